"""Whether this package's states are those that transformers gives.

A few texts run as in a run (tokens, plan, padding, hooks, pooling). Then each runs alone, without
padding, through transformers with `output_hidden_states`. This second way shares no code with the
first: it loads the model, finds the text's tokens and pools by itself.

The limits between the verdicts are measured. *Rounding* is the error of transformers itself: the
distance of its run in the working dtype from a far more exact one, plus the rounding of float32, in
which states are stored. The *error* is this package's distance from the exact run. Both are
relative, and the largest over the texts. The verdict is

- supported: the error is at most twice the rounding, as between two orders of summation;
- degraded: at most sqrt(D) times the rounding. Rounding errors of a sum over D terms grow like
  sqrt(D), in the worst order of summation like D (Higham and Mary 2019), so a bad order of
  summation could explain it;
- wrong: more. No order of summation in this dtype explains it, so it is another quantity;
- unchecked: transformers has no such state, or one that is not finite.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .data import Samples
from .errors import DataError, ModelError, first_line
from .extract import Capture, CellCheck, Verification
from .extract.prepare import Prepared, prepare
from .models import LoadedModel, ModelSpec, load_model, tokenize
from .models.quiet import quiet_transformers
from .models.spec import split_revision
from .models.tokens import FIXED_DATE
from .models.weights import placed_on, without_adapter

_PLACEHOLDER = "placeholder8"
_Prompt = tuple[list[int], list[list[int]]]  # token ids, and a span [start, stop] for each pooling
_States = dict[str, NDArray[np.float64]]  # by hookpoint, [N, S, D]


def verify_model(
    spec: ModelSpec,
    samples: Samples,
    *,
    num_texts: int = 32,
    layers: str | Sequence[str] = "all",
    poolings: Sequence[str] = ("mean", "last"),
    template: str = "auto",
    chat_template: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int = 512,
    max_tokens: int | None = None,
    impl: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Verification:
    """Compare states with transformers' on texts that are spread evenly over the canonical order.

    Texts that begin or end with white space are left out: two ways to find their tokens may differ
    and both be right. So are texts that do not fit into the model's window.

    Args:
        spec: the model.
        samples: the texts to choose from.
        num_texts: how many to choose.
        layers, poolings, template, device, dtype, token_budget, max_tokens, impl, allow_pickle,
            trust_remote_code: as in `RunConfig`; impl None: the fastest that works here.
        chat_template: Jinja text that replaces the tokenizer's own.
        progress: called with the number of texts done and their total, over all passes.
        on_note: called with what loading the model has to say.

    Raises:
        ModelError: the model is a control with random weights, cannot be loaded, or cannot run in a
            more exact dtype.
        DataError: no text can be used.
    """
    if spec.random:
        raise ModelError(
            f"{spec.name}: its random weights are in no file that transformers could load too; "
            "verify its base instead"
        )
    model = load_model(
        spec,
        device=device,
        dtype=dtype,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        chat_template=chat_template,
        on_note=on_note,
    )
    _refuse_quantised(model)
    chosen = _choose(model, samples, num_texts, template, max_tokens)
    texts = [samples.texts[i] for i in chosen]
    work = prepare(
        model,
        texts,
        layers=layers,
        poolings=poolings,
        template=template,
        max_tokens=max_tokens,
        proj_dim=2,
        token_budget=token_budget,
    )
    states = _engine_states(model, work, impl)
    working, causal, target = model.dtype, model.causal, model.device
    num_blocks, home = len(model.blocks), str(model.identity["tokenizer"])
    del model  # transformers needs the memory
    exact = torch.float64 if working == torch.float32 else torch.float32
    with quiet_transformers():
        oracle = _Oracle(spec, num_blocks, target, allow_pickle, trust_remote_code)
        prompts = oracle.prompts(home, texts, work.prompts.template.kind, chat_template, poolings)
        passes = iter(count(1))

        def tick() -> None:
            if progress is not None:
                progress(next(passes), 2 * len(texts))

        truth, theirs = (oracle.states(prompts, dtype, tick) for dtype in (exact, working))
    return Verification(
        model=spec.name,
        texts=len(texts),
        template=work.prompts.template.kind,
        dtype=str(working).removeprefix("torch."),
        exact_dtype=str(exact).removeprefix("torch."),
        odd_tokens=tuple(chosen[i] for i in _odd_tokens(work, prompts, causal)),
        cells=tuple(_cells(work, states, truth, theirs)),
    )


def _refuse_quantised(model: LoadedModel) -> None:
    if getattr(model.backbone.config, "quantization_config", None) is not None:
        raise ModelError(
            f"{model.name}: its weights are quantised ({model.identity['quantization']}) and run "
            "in one way only; expected weights that also run in float64, to compare with"
        )


def _choose(
    model: LoadedModel, samples: Samples, number: int, template: str, max_tokens: int | None
) -> list[int]:
    """The samples to compare, as indices."""
    plain = [i for i, text in enumerate(samples.texts) if text and text == text.strip()]
    if not plain:
        raise DataError("no text without white space around it to verify with")
    picks = np.linspace(0, len(plain) - 1, min(number, len(plain))).round().astype(int)
    chosen = [plain[i] for i in picks]
    texts = [samples.texts[i] for i in chosen]
    tokens = tokenize(model, texts, template=template, max_tokens=max_tokens)
    usable = np.flatnonzero(~tokens.truncated & (tokens.n_text_tokens > 0))
    if not len(usable):
        raise DataError(f"{samples.name}: no text fits into the window of {model.name} uncut")
    return [chosen[i] for i in usable]


def _engine_states(model: LoadedModel, work: Prepared, impl: str | None) -> NDArray[np.float32]:
    """The states that a run would pool: `[N, L, S, D] float32`."""
    tokens = work.tokens
    shape = (len(tokens), len(work.hookpoints), len(tokens.poolings), model.hidden_size)
    states = np.full(shape, np.nan, np.float32)
    with Capture(
        model, work.hookpoints, work.projection, impl, work.cache, packed=work.packed
    ) as capture:
        for batch in work.plan:
            out = capture.run(tokens, batch).cpu().numpy()
            pooled = batch.for_rows(out)[..., : model.hidden_size]
            states[batch.rows] = pooled.transpose(2, 0, 1, 3)
    return states


def _odd_tokens(work: Prepared, prompts: list[_Prompt], causal: bool) -> Iterator[int]:
    """The texts whose token ids or spans are not transformers'."""
    for i, (ids, spans) in enumerate(prompts):
        run = work.prompts.prompt(i).tolist()  # of a causal model, up to the last token pooled
        if run != (ids[: len(run)] if causal else ids) or spans != work.prompts.spans[i].tolist():
            yield i


def _cells(
    work: Prepared, states: NDArray[np.float32], truth: _States, theirs: _States
) -> Iterator[CellCheck]:
    """Compare every hookpoint and pooling."""
    for i_layer, hookpoint in enumerate(work.hookpoints):
        for i_pooling, pooling in enumerate(work.prompts.poolings):
            if hookpoint not in truth or hookpoint not in theirs:
                yield CellCheck(hookpoint, pooling, None, None, "unchecked")
                continue
            exact, working = (of[hookpoint][:, i_pooling] for of in (truth, theirs))
            yield _check(hookpoint, pooling, states[:, i_layer, i_pooling], exact, working)


def _check(
    hookpoint: str,
    pooling: str,
    states: NDArray[np.float32],
    truth: NDArray[np.float64],
    theirs: NDArray[np.float64],
) -> CellCheck:
    """Compare the states `[N, D]` of one cell."""
    size = np.maximum(np.linalg.norm(truth, axis=-1), np.finfo(np.float64).tiny)

    def distance(others: NDArray[np.floating]) -> float:
        with np.errstate(invalid="ignore", over="ignore"):
            relative = np.linalg.norm(others - truth, axis=-1) / size
        return float(np.where(np.isnan(relative), np.inf, relative).max())

    error = distance(states)
    rounding = distance(theirs) + float(np.finfo(np.float32).eps)
    if not np.isfinite(rounding):
        verdict = "unchecked"
    elif error <= 2 * rounding:
        verdict = "supported"
    elif error <= truth.shape[-1] ** 0.5 * rounding:
        verdict = "degraded"
    else:
        verdict = "wrong"
    finite = [value if np.isfinite(value) else None for value in (error, rounding)]
    return CellCheck(hookpoint, pooling, finite[0], finite[1], verdict)


class _Oracle:
    """transformers alone: one text at a time, without padding, with `output_hidden_states`."""

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: int,
        device: torch.device,
        allow_pickle: bool,
        trust_remote_code: bool,
    ) -> None:
        self._spec = spec
        self._num_blocks = num_blocks
        self._device = device
        self._where: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        path = Path(os.path.expanduser(spec.base))
        self._base = str(path) if path.exists() else spec.base
        self._weights: dict[str, Any] = {"use_safetensors": None if allow_pickle else True}
        if spec.revision:
            self._where["revision"] = spec.revision
        if path.suffix == ".gguf":
            import transformers

            self._base, self._where["gguf_file"] = str(path.parent), path.name
            self._weights["quantization_config"] = transformers.GgufConfig(dequantize=True)

    def prompts(
        self,
        home: str,
        texts: Sequence[str],
        kind: str,
        chat_template: str | None,
        poolings: Sequence[str],
    ) -> list[_Prompt]:
        """Token ids and spans of every text.

        Args:
            home: where the tokenizer is from: the base model or the adapter.
            texts: the texts.
            kind: of the template: `chat` or `none`.
            chat_template: Jinja text that replaces the tokenizer's own.
            poolings: which spans.
        """
        import transformers

        if home == self._spec.base:
            name, where = self._base, self._where
        else:
            revision = dict(map(split_revision, self._spec.adapters)).get(home)
            name = os.path.expanduser(home)
            where = {**self._where, "gguf_file": None, "revision": revision or "main"}
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, mistral_format=False, **where)
        if tokenizer.bos_token is None and (Path(name) / "tekken.json").is_file():
            tokenizer.bos_token, tokenizer.add_bos_token = "<s>", True  # as mistral-common does
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        prompts = []
        for text in texts:
            ids, first, stop = (_chat if kind == "chat" else _plain)(tokenizer, text)
            span_of = {
                "mean": [max(first, 1) if stop > 1 else first, stop],
                "mean_all": [first, stop],
                "last": [len(ids) - 1, len(ids)],
                "last_text": [stop - 1, stop],
            }
            prompts.append((ids, [span_of[pooling] for pooling in poolings]))
        return prompts

    @torch.inference_mode()
    def states(
        self,
        prompts: list[_Prompt],
        dtype: torch.dtype,
        tick: Callable[[], None],
    ) -> _States:
        """Pooled states of every hookpoint that transformers gives.

        A list whose last entry is the normed state lacks the last block's own output; a model with
        one block more has it. It is loaded when the first one is gone, so that one is in memory.
        """
        model = self._load(dtype)
        normed, embedded = self._last_is_normed(model), self._begins_with_embedding(model)

        def hookpoints(ids: list[int]) -> Iterator[tuple[str, torch.Tensor]]:
            yield from self._hookpoints(model, ids, normed, embedded)
            tick()

        pooled = self._pooled(prompts, dtype, hookpoints)
        del model
        if normed:
            with suppress(Exception):  # if it fails, the last block's own output is not checked
                model = self._load(dtype, extra_blocks=1)
                name, place = f"block.{self._num_blocks - 1}", self._num_blocks
                pooled |= self._pooled(
                    prompts, dtype, lambda ids: [(name, self._run(model, ids)[1][place])]
                )
        return pooled

    def _pooled(
        self,
        prompts: list[_Prompt],
        dtype: torch.dtype,
        hookpoints: Callable[[list[int]], Iterable[tuple[str, torch.Tensor]]],
    ) -> _States:
        """Average the states `[1, T, D]` that `hookpoints` gives for each prompt's token ids."""
        pooled: dict[str, list[NDArray[np.float64]]] = {}
        for ids, spans in prompts:
            for name, state in hookpoints(ids):
                # A usual script also sums in float32.
                wide = state[0].to(torch.promote_types(dtype, torch.float32))
                means = [wide[start:stop].mean(0).double().cpu().numpy() for start, stop in spans]
                pooled.setdefault(name, []).append(np.stack(means))
        return {name: np.stack(rows) for name, rows in pooled.items()}

    def _hookpoints(
        self, model: Any, ids: list[int], normed: bool, embedded: bool
    ) -> Iterator[tuple[str, torch.Tensor]]:
        last, states = self._run(model, ids)
        if not embedded:  # Mamba's list has the outputs of its blocks, without the first input
            inputs = torch.tensor([ids], device=self._device)
            states = (model.get_input_embeddings()(inputs), *states)
        yield "embed", states[0]
        blocks = states[1 : self._num_blocks + 1]
        for number, state in enumerate(blocks[:-1]):
            yield f"block.{number}", state
        if not normed and not torch.equal(blocks[-1], last):
            yield f"block.{self._num_blocks - 1}", blocks[-1]
        yield "final_norm", last

    def _run(self, model: Any, ids: list[int]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        inputs = torch.tensor([ids], device=self._device)
        usual = torch.get_default_dtype()
        for default in (usual, model.dtype):  # XGLM makes its mask in the default dtype
            torch.set_default_dtype(default)
            try:
                out = model(
                    input_ids=inputs,
                    attention_mask=torch.ones_like(inputs),
                    output_hidden_states=True,
                    use_cache=False,
                )
                break
            except Exception as error:
                failed = error
            finally:
                torch.set_default_dtype(usual)
        else:
            raise ModelError(
                f"{self._spec.name}: transformers cannot run it in {model.dtype} to compare with "
                f"({type(failed).__name__}: {first_line(failed)})"
            ) from failed
        return out.last_hidden_state, out.hidden_states

    def _last_is_normed(self, model: Any) -> bool:
        last, states = self._run(model, [5, 6, 7])
        return torch.equal(states[-1], last) and self._begins_with_embedding(model)

    def _begins_with_embedding(self, model: Any) -> bool:
        """Whether the first state is the embedding, which does not depend on other tokens."""
        one, other = (self._run(model, ids)[1][0] for ids in ([5, 6, 7, 8], [9, 6, 7, 5]))
        return torch.equal(one[0, 1:3], other[0, 1:3])

    def _load(self, dtype: torch.dtype, extra_blocks: int = 0) -> Any:
        import transformers

        config = transformers.AutoConfig.from_pretrained(self._base, **self._where)
        for part in (config, config.get_text_config()):
            part.tie_last_hidden_states = False  # otherwise the last entry is the normed state
        if extra_blocks:
            config.num_hidden_layers += extra_blocks
            if getattr(config, "layer_types", None):
                config.layer_types = [*config.layer_types, config.layer_types[-1]]
        known = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        remote = "AutoModelForCausalLM" in getattr(config, "auto_map", {})
        auto = transformers.AutoModel
        if (known or remote) and not config.is_encoder_decoder:  # adapters name its modules
            auto = transformers.AutoModelForCausalLM
        elif type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            auto = transformers.AutoModelForImageTextToText
        how = {"dtype": dtype, **self._weights, **placed_on(self._device)}
        if dtype == torch.float64:
            how["experts_implementation"] = "eager"  # grouped products do not run in float64
        with without_adapter(Path(self._base)) as base:
            model = auto.from_pretrained(str(base), config=config, **self._where, **how)
        # AutoModel also gives an encoder that was saved alone its decoder (T5EncoderModel).
        both = all(hasattr(model.base_model, part) for part in ("encoder", "decoder"))
        inner = model.get_encoder() if config.is_encoder_decoder or both else model.base_model
        if inner is model and hasattr(model, "lm_head"):
            inner = model.model
        for number, adapter in enumerate(self._spec.adapters, 1):
            adapted = _adapt(model, inner, *split_revision(adapter))
            if number < len(self._spec.adapters):
                adapted.merge_and_unload()
        return inner.to(self._device).eval()


def _adapt(model: Any, inner: Any, name: str, revision: str | None) -> Any:
    """Put an adapter on a model, or on the part without a head if it was trained there."""
    import peft

    name, where = os.path.expanduser(name), {"revision": revision or "main"}
    config = peft.PeftConfig.from_pretrained(name, **where)
    weights = peft.utils.load_peft_weights(name, device="cpu", **where)
    embedding = model.get_input_embeddings()
    called = next(name for name, part in model.named_modules() if part is embedding)
    called = f".{called.rpartition('.')[2]}."
    for key, weight in weights.items():
        if called in key and key.endswith("weight") and len(weight) != len(embedding.weight):
            model.resize_token_embeddings(len(weight), mean_resizing=False)
            break
    if config.task_type != "CAUSAL_LM":  # the head of a classifier is not here
        config.modules_to_save = None
    target = inner if config.task_type == "FEATURE_EXTRACTION" else model
    config.task_type = None
    return peft.PeftModel.from_pretrained(target, name, config=config, **where)


def _chat(tokenizer: Any, text: str) -> tuple[list[int], int, int]:
    """Token ids of one user turn, and the range of the text's own tokens."""

    def turn(content: str, **options: Any) -> Any:
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=FIXED_DATE + tokenizer.get_chat_template(),
            add_generation_prompt=True,
            **options,
        )

    start = turn(_PLACEHOLDER, tokenize=False).index(_PLACEHOLDER)
    end = start + len(text)
    encoding = turn(text, tokenize=True, return_dict=True)
    ids = list(encoding["input_ids"])
    chars = [encoding.token_to_chars(i) for i in range(len(ids))]
    own = [i for i, held in enumerate(chars) if held and held.start < end and held.end > start]
    return ids, own[0], own[-1] + 1


def _plain(tokenizer: Any, text: str) -> tuple[list[int], int, int]:
    """Token ids of a text with special tokens around it, and the range of its own."""
    ids = tokenizer(text)["input_ids"]
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    first = next(i for i in count() if ids[i : i + len(own)] == own or i == len(ids))
    return list(ids), first, first + len(own)
