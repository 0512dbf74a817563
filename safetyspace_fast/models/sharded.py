"""One model on several devices: one process (rank) a device, by transformers' tensor parallel plan.

Each rank holds a share of every large weight; the states between blocks are whole on all of them.
Rank 0 loads, tunes and runs as a single process does. The others `follow`: rank 0 announces each
loading and each forward pass, and all ranks do it together. So nothing can differ between ranks:
sizes of batches, a shared prefix, the layer where a forward pass ends.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError, ModelError, first_line
from .device import attention_kernels, memory_errors
from .layers import DeepestLayerReached
from .source import Source
from .spec import ModelSpec

if TYPE_CHECKING:
    from transformers import Cache

PATIENCE = timedelta(minutes=10)
"""How long a rank waits for the others within a forward pass."""
_LONG = timedelta(days=30)
"""How long the others wait for rank 0 between forward passes: it may compute a language's arrays.
Whoever starts the ranks ends them when one dies."""
# Parts of a plan that share out the heads of the attention, by the end of their names.
_HEADS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value")


@dataclass(frozen=True)
class Ranks:
    """The processes that run one model together; this is one of them."""

    rank: int
    size: int
    control: dist.ProcessGroup
    """Carries announcements, by way of the hosts' memory."""
    most_tokens: float
    """In a batch, padding included: half of one that an earlier try had no memory for."""

    def announce(self, what: object) -> None:
        """Tell the other ranks what comes next; on these, nothing is done."""
        if self.rank > 0:
            return
        dist.broadcast_object_list([what], src=0, group=self.control)

    def heard(self) -> Any:
        """What rank 0 announces; waits for it."""
        box: list[Any] = [None]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def meet(self) -> None:
        """Wait until all ranks are here."""
        dist.barrier(group=self.control)


_joined: list[Ranks] = []
"""The ranks that this process belongs to, as torch has one group a process; or none."""


def join(
    rank: int,
    size: int,
    file: Path,
    *,
    on_cpu: bool,
    most_tokens: float,
    patience: timedelta = PATIENCE,
) -> Ranks:
    """Meet the other ranks of a model on this machine.

    Args:
        rank: this process, from 0.
        size: number of ranks.
        file: not there yet; the same for all ranks.
        on_cpu: also where there are GPUs; else rank `i` takes GPU `i`, if there is one.
        most_tokens: see `Ranks`.
        patience: how long a forward pass waits for another rank.
    """
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    gpu = not on_cpu and torch.cuda.is_available()
    device = torch.device("cuda", rank) if gpu else None
    if device is not None:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        init_method=f"file://{file}",
        rank=rank,
        world_size=size,
        timeout=patience,
        device_id=device,
    )
    _joined.append(Ranks(rank, size, dist.new_group(timeout=_LONG, backend="gloo"), most_tokens))
    return _joined[-1]


def joined(size: int) -> Ranks:
    """The ranks that this process belongs to.

    Raises:
        ConfigError: it is not one of `size` ranks.
    """
    if not _joined or _joined[-1].size != size:
        raise ConfigError(
            f"tensor_parallel {size}: expected one of {size} processes; start them with `run` or "
            "`safetyspace-fast run --tensor-parallel`"
        )
    return _joined[-1]


def check_plan(source: Source, size: int, *, alone: bool, trust_remote_code: bool = False) -> None:
    """Refuse a model that cannot be shared out over `size` devices; reads its configuration only.

    Args:
        source: of the model.
        size: number of devices.
        alone: without adapters, and not a control with random weights.
        trust_remote_code: as in `load_model`.

    Raises:
        ModelError: the reason, and what to do instead.
    """
    from transformers import AutoConfig

    if reason := _form(source, alone):
        raise ModelError(
            f"{source.asked}: tensor parallel {reason}; or leave it out and use --weights stream"
        )
    try:
        config: Any = AutoConfig.from_pretrained(
            source.directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise ModelError(f"{source.asked}: no usable config.json: {first_line(error)}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{source.asked}: tensor parallel takes plain weights, and these are quantised; "
            "run it on one device"
        )
    text = config.get_text_config()
    plan = getattr(text, "base_model_tp_plan", None)
    if not plan:
        raise ModelError(
            f"{source.asked}: transformers has no tensor parallel plan for {text.model_type}; "
            "leave it out: on one device, --weights stream runs models that do not fit"
        )
    if not any(part.rpartition(".")[2] in _HEADS for part in plan):
        return
    for what in ("num_attention_heads", "num_key_value_heads"):
        number = getattr(text, what, None)
        counts = number if isinstance(number, list) else [number]
        if any(count is not None and count % size for count in counts):
            raise ModelError(
                f"{source.asked}: {what} {number} cannot be shared out over {size} devices; "
                f"expected a --tensor-parallel that divides it"
            )


def _form(source: Source, alone: bool) -> str | None:
    """What the files would have to be."""
    if source.gguf is not None:
        return "takes safetensors, not GGUF"
    if not alone:
        return "takes a model as it is stored, without +ADAPTER or random: (merge and save it)"
    return None


class Leader:
    """On rank 0: announces every forward pass of a model to the other ranks."""

    def __init__(self, ranks: Ranks, backbone: nn.Module) -> None:
        """Announce the forward passes of a backbone from now on."""
        self.most_tokens = ranks.most_tokens
        self._ranks = ranks
        self._until: str | None = None
        self._forward: Callable[..., Any] = backbone.forward
        self._failed: str | None = None
        backbone.forward = self._lead

    @contextmanager
    def ending(self, hookpoint: str) -> Iterator[None]:
        """While this lasts, all ranks end forward passes behind a hookpoint."""
        self._until = hookpoint
        try:
            yield
        finally:
            self._until = None

    def _lead(self, input_ids: Tensor, **how: Any) -> Any:  # what a backbone returns
        """A forward pass of all ranks."""
        if self._failed is not None:
            raise ModelError(f"tensor parallel: a forward pass failed on rank 0: {self._failed}")
        mask: Tensor | None = how.get("attention_mask")
        reads = _Reads.of(how)
        self._ranks.announce(_Pass(tuple(input_ids.shape), mask is not None, reads, self._until))
        try:
            dist.broadcast(input_ids.contiguous(), src=0)
            if mask is not None:
                dist.broadcast(mask.contiguous(), src=0)
            with memory_errors():
                return self._forward(input_ids=input_ids, **how)
        except DeepestLayerReached:
            raise
        except Exception as error:
            # The other ranks wait in the middle of it, so no further one can begin.
            self._failed = first_line(error)
            if isinstance(error, torch.OutOfMemoryError):
                raise RankOutOfMemoryError(*input_ids.shape) from error
            raise


class RankOutOfMemoryError(ModelError):
    """A rank has too little memory for a batch; the ranks must be started again."""

    def __init__(self, rows: int, length: int) -> None:
        """Of a batch of `rows` prompts of `length` tokens."""
        super().__init__(rows, length)
        self.rows, self.length = rows, length

    def __str__(self) -> str:
        """What to do."""
        return (
            f"a single text of {self.length} tokens does not fit into the memory of a tensor "
            "parallel device; lower --max-tokens, or raise --tensor-parallel"
        )


class _Reads:
    """Which keys and values a forward pass reads or keeps."""

    NONE, KEEPS, PREFIX, EMPTY = range(4)

    @classmethod
    def of(cls, how: dict[str, Any]) -> int:
        if not how.get("use_cache"):
            return cls.NONE
        past = how.get("past_key_values")
        if past is None:
            return cls.KEEPS
        return cls.EMPTY if type(past).__name__ == "NoCache" else cls.PREFIX


@dataclass(frozen=True)
class _Pass:
    """Announces a forward pass."""

    shape: tuple[int, ...]
    masked: bool
    reads: int
    until: str | None


@dataclass(frozen=True)
class Loading:
    """Announces that a model is loaded: the arguments of `load_model`."""

    spec: ModelSpec
    device: str | torch.device
    dtype: str
    allow_pickle: bool
    trust_remote_code: bool
    tensor_parallel: int


def follow(ranks: Ranks, load: Callable[..., Any]) -> None:
    """On any rank but 0: do what rank 0 announces, until the process is ended.

    Args:
        ranks: that this process belongs to.
        load: `load_model`, which would be imported in a circle.

    Raises:
        RankOutOfMemoryError: this rank has too little memory for a batch.
        ModelError: a model cannot be loaded.
    """
    follower: _Follower | None = None
    while True:
        what = ranks.heard()
        if isinstance(what, Loading):
            follower = None  # its memory is for the next one
            follower = _Follower(load(**vars(what)))
        elif follower is not None:
            try:
                with memory_errors():
                    follower.run(what)
            except torch.OutOfMemoryError as error:
                raise RankOutOfMemoryError(*what.shape) from error


class _Follower:
    """A rank's share of a model, which runs what rank 0 announces."""

    def __init__(self, model: Any) -> None:  # a LoadedModel, which imports this file
        self._model = model
        self._prefix: Cache | None = None

    @torch.inference_mode()
    def run(self, what: _Pass) -> None:
        """Run this rank's part of a forward pass; its states are read on rank 0."""
        from .prefix import NoCache, SharedPrefix, keeps_keys_and_values

        device = self._model.device
        how: dict[str, Any] = {"use_cache": what.reads != _Reads.NONE}
        ids = torch.empty(what.shape, dtype=torch.int64, device=device)
        dist.broadcast(ids, src=0)
        if what.masked:
            how["attention_mask"] = torch.empty_like(ids)
            dist.broadcast(how["attention_mask"], src=0)
        if what.reads == _Reads.PREFIX:
            how["past_key_values"] = self._prefix
        elif what.reads == _Reads.EMPTY:
            how["past_key_values"] = NoCache()
        with ExitStack() as stack:
            stack.enter_context(suppress(DeepestLayerReached))
            stack.enter_context(attention_kernels(device))
            if what.until is not None:
                stack.callback(self._model.watch(what.until, _stop).remove)
            result = self._model.backbone(input_ids=ids, **how)
            if what.reads == _Reads.KEEPS:
                cache: Any = getattr(result, "past_key_values", None)
                usable = keeps_keys_and_values(cache)  # else rank 0 will not read it
                self._prefix = SharedPrefix(cache.layers) if usable else None


def _stop(_hidden_states: Tensor) -> None:
    raise DeepestLayerReached
