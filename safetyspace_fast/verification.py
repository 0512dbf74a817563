"""Whether the engine's numbers are those that transformers itself gives.

A sample of texts goes through the engine's own path (tokens, plan, padding, hooks, pooling), and
then, each text alone and without padding, through transformers' `output_hidden_states`. The second
way shares no code with the first: it loads the model, finds the text's tokens and pools by itself.

What separates the verdicts is measured, not chosen. Rounding is how far transformers' own run in
the working dtype lies from its run in a far more exact one, plus the rounding of the float32 in
which pooled states are kept. The engine's distance from the exact run, the largest over the texts,
is then

- supported: at most twice the rounding, as far as two orders of summation lie apart;
- degraded: at most sqrt(D) times the rounding. Rounding errors of a sum over D terms grow like
  sqrt(D), and in the worst order of summation like D (Higham and Mary 2019), so a bad order could
  still explain it;
- wrong: more. No order of summation in this dtype explains it: it is another quantity.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .data import Samples
from .errors import DataError, ModelError
from .extract import Capture, CellCheck, Verification
from .extract.prepare import Prepared, prepare
from .models import LoadedModel, ModelSpec, load_model, tokenize
from .models.spec import split_revision
from .models.tokens import FIXED_DATE
from .models.weights import quiet_transformers

Progress = Callable[[int, int], None]

_PLACEHOLDER = "placeholder8"


def verify_model(
    spec: ModelSpec,
    samples: Samples,
    *,
    num_texts: int = 32,
    layers: str | Sequence[str] = "all",
    poolings: Sequence[str] = ("mean", "last"),
    template: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    token_budget: int = 512,
    max_tokens: int | None = None,
    impl: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Hold the engine against transformers on texts taken evenly from the canonical order.

    Left out are texts that begin or end with white space, where two ways to find a text's tokens
    may differ and both be right, and texts that are longer than the window.

    Args:
        spec: the model.
        samples: where the texts come from.
        num_texts: how many, if there are as many.
        layers: as in a run, like all arguments from here to `trust_remote_code`.
        progress: called with the texts done and their number, over all passes.

    Raises:
        ModelError: the model cannot be loaded, or not run more exactly than in its working dtype.
        DataError: no text can be used.
    """
    model = load_model(
        spec,
        device=device,
        dtype=dtype,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    if getattr(model.backbone.config, "quantization_config", None) is not None:
        raise ModelError(
            f"{spec.name}: its weights are quantised ({model.identity['quantization']}) and run in "
            "one way only; expected weights that also run in float64, to compare with"
        )
    chosen = _choose(samples.texts, num_texts)
    texts = [samples.texts[i] for i in chosen]
    tokens = tokenize(model, texts, template=template, poolings=poolings, max_tokens=max_tokens)
    usable = np.flatnonzero(~tokens.truncated & (tokens.n_text_tokens > 0))
    if not len(usable):
        raise DataError(f"{samples.name}: no text fits into the window of {spec.name} uncut")
    chosen = [chosen[i] for i in usable]
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
    ours = _engine_states(model, work, impl)
    working, target, causal = model.dtype, model.device, model.causal
    num_blocks, home = len(model.blocks), str(model.identity["tokenizer"])
    del model  # the memory is needed
    exact = torch.float64 if working == torch.float32 else torch.float32

    with quiet_transformers():
        oracle = _Oracle(spec, num_blocks, target, allow_pickle, trust_remote_code)
        prompts = oracle.prompts(home, texts, work.prompts.template.kind, poolings)
        passes = iter(count(1))

        def tick() -> None:
            if progress is not None:
                progress(next(passes), 2 * len(texts))

        truth = oracle.states(prompts, exact, tick)
        theirs = oracle.states(prompts, working, tick)
    cells = []
    for i_layer, hookpoint in enumerate(work.hookpoints):
        for i_pooling, pooling in enumerate(poolings):
            cells.append(
                _check(
                    hookpoint,
                    pooling,
                    ours[:, i_layer, i_pooling],
                    *(states[hookpoint][:, i_pooling] for states in (truth, theirs)),
                )
                if hookpoint in truth and hookpoint in theirs
                else CellCheck(hookpoint, pooling, None, None, "unchecked")
            )
    odd: list[int] = []
    for i, (ids, spans) in enumerate(prompts):
        run = work.prompts.prompt(i).tolist()  # of a causal model, up to the last token pooled
        if run != (ids[: len(run)] if causal else ids) or spans != work.prompts.spans[i].tolist():
            odd.append(chosen[i])
    return Verification(
        model=spec.name,
        texts=len(texts),
        template=work.prompts.template.kind,
        dtype=str(working).removeprefix("torch."),
        exact_dtype=str(exact).removeprefix("torch."),
        odd_tokens=tuple(odd),
        cells=tuple(cells),
    )


def _choose(texts: Sequence[str], number: int) -> list[int]:
    plain = [i for i, text in enumerate(texts) if text and text == text.strip()]
    if not plain:
        raise DataError("no text without white space around it to verify with")
    picks = np.linspace(0, len(plain) - 1, min(number, len(plain))).round().astype(int)
    return [plain[i] for i in picks]


def _engine_states(model: LoadedModel, work: Prepared, impl: str | None) -> NDArray[np.float32]:
    """What a run would keep: `[N, L, S, D] float32`."""
    tokens = work.tokens
    shape = (len(tokens), len(work.hookpoints), len(tokens.poolings), model.hidden_size)
    states = np.full(shape, np.nan, np.float32)
    with Capture(model, work.hookpoints, work.projection, impl, work.prefix) as capture:
        for batch in work.plan:
            out = capture.run(tokens, batch).cpu().numpy()
            pooled = batch.for_rows(out)[..., : model.hidden_size]
            states[batch.rows] = pooled.transpose(2, 0, 1, 3)
    return states


def _check(
    hookpoint: str,
    pooling: str,
    ours: NDArray[np.float32],
    truth: NDArray[np.float64],
    theirs: NDArray[np.float64],
) -> CellCheck:
    """Compare `[N, D]` states of one cell; those of transformers are float64."""
    size = np.maximum(np.linalg.norm(truth, axis=-1), np.finfo(np.float64).tiny)

    def distance(states: NDArray[np.floating]) -> float:
        with np.errstate(invalid="ignore", over="ignore"):
            relative = np.linalg.norm(states - truth, axis=-1) / size
        return float(np.where(np.isnan(relative), np.inf, relative).max())

    error = distance(ours)
    rounding = distance(theirs) + float(np.finfo(np.float32).eps)
    if not np.isfinite(rounding):
        verdict = "unchecked"
    elif error <= 2 * rounding:
        verdict = "supported"
    elif error <= truth.shape[-1] ** 0.5 * rounding:
        verdict = "degraded"
    else:
        verdict = "wrong"
    shown = [value if np.isfinite(value) else None for value in (error, rounding)]
    return CellCheck(hookpoint, pooling, shown[0], shown[1], verdict)


class _Oracle:
    """transformers by itself: one text after the other, no padding, `output_hidden_states`."""

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
        path = Path(spec.base).expanduser()
        self._base = str(path) if path.exists() else spec.base
        self._weights: dict[str, Any] = {"use_safetensors": None if allow_pickle else True}
        if spec.revision:
            self._where["revision"] = spec.revision
        if path.suffix == ".gguf":
            import transformers

            self._base, self._where["gguf_file"] = str(path.parent), path.name
            self._weights["quantization_config"] = transformers.GgufConfig(dequantize=True)

    def prompts(
        self, home: str, texts: Sequence[str], kind: str, poolings: Sequence[str]
    ) -> list[tuple[list[int], list[list[int]]]]:
        """Token ids and spans of every text, found without the engine's code."""
        import transformers

        if home == self._spec.base:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self._base, **self._where)
        else:
            name, revision = split_revision(str(self._spec.adapter))
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                name, revision=revision or "main", **{**self._where, "gguf_file": None}
            )
        found = []
        for text in texts:
            ids, first, stop = (_chat if kind == "chat" else _plain)(tokenizer, text)
            span_of = {
                "mean": [first, stop],
                "last": [len(ids) - 1, len(ids)],
                "last_text": [stop - 1, stop],
            }
            found.append((ids, [span_of[pooling] for pooling in poolings]))
        return found

    @torch.inference_mode()
    def states(
        self,
        prompts: list[tuple[list[int], list[list[int]]]],
        dtype: torch.dtype,
        tick: Callable[[], None],
    ) -> dict[str, NDArray[np.float64]]:
        """Pooled states of every hookpoint that transformers gives: `[N, S, D] float64`."""
        model = self._load(dtype)
        deeper = None
        if self._last_is_normed(model):
            with suppress(Exception):  # then the last block's own output stays unchecked
                deeper = self._load(dtype, extra_blocks=1)
        embedded = self._begins_with_embedding(model)
        pooled: dict[str, list[NDArray[np.float64]]] = {}
        for ids, spans in prompts:
            for name, state in self._hookpoints(model, deeper, ids, embedded):
                # float32 sums for the usual script's sake, which the working dtype stands for
                wide = state[0].to(torch.promote_types(dtype, torch.float32))
                means = [wide[start:stop].mean(0).double().cpu().numpy() for start, stop in spans]
                pooled.setdefault(name, []).append(np.stack(means))
            tick()
        return {name: np.stack(rows) for name, rows in pooled.items()}

    def _hookpoints(
        self, model: Any, deeper: Any, ids: list[int], embedded: bool
    ) -> Iterator[tuple[str, torch.Tensor]]:
        last, states = self._run(model, ids)
        if not embedded:  # Mamba lists what its blocks wrote, and not what the first one read
            inputs = torch.tensor([ids], device=self._device)
            states = (model.get_input_embeddings()(inputs), *states)
        yield "embed", states[0]
        blocks = states[1 : self._num_blocks + 1]
        for number, state in enumerate(blocks[:-1]):
            yield f"block.{number}", state
        if deeper is not None:
            yield f"block.{self._num_blocks - 1}", self._run(deeper, ids)[1][self._num_blocks]
        elif not torch.equal(blocks[-1], last):
            yield f"block.{self._num_blocks - 1}", blocks[-1]
        yield "final_norm", last

    def _run(self, model: Any, ids: list[int]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        inputs = torch.tensor([ids], device=self._device)
        out = model(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            output_hidden_states=True,
            use_cache=False,
        )
        return out.last_hidden_state, out.hidden_states

    def _last_is_normed(self, model: Any) -> bool:
        last, states = self._run(model, [5, 6, 7])
        return torch.equal(states[-1], last) and self._begins_with_embedding(model)

    def _begins_with_embedding(self, model: Any) -> bool:
        """An embedding does not know its neighbours; what a block writes does."""
        one, other = (self._run(model, ids)[1][0] for ids in ([5, 6, 7, 8], [9, 6, 7, 5]))
        return torch.equal(one[0, 1:3], other[0, 1:3])

    def _load(self, dtype: torch.dtype, extra_blocks: int = 0) -> Any:
        import transformers

        config = transformers.AutoConfig.from_pretrained(self._base, **self._where)
        for part in (config, config.get_text_config()):
            part.tie_last_hidden_states = False  # else the last entry is the normed state
        if extra_blocks:
            config.num_hidden_layers += extra_blocks
            if getattr(config, "layer_types", None):
                config.layer_types = [*config.layer_types, config.layer_types[-1]]
        known = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        remote = "AutoModelForCausalLM" in getattr(config, "auto_map", {})
        auto = transformers.AutoModel
        if (known or remote) and not config.is_encoder_decoder:  # adapters name this class's parts
            auto = transformers.AutoModelForCausalLM
        how = {"dtype": dtype, **self._weights}
        if dtype == torch.float64:
            how["experts_implementation"] = "eager"  # the grouped products stop at float32
        model = auto.from_pretrained(self._base, config=config, **self._where, **how)
        inner = model.get_encoder() if config.is_encoder_decoder else model.base_model
        if inner is model and hasattr(model, "lm_head"):
            inner = model.model
        if self._spec.adapter is not None:
            import peft

            name, revision = split_revision(self._spec.adapter)
            peft.PeftModel.from_pretrained(model, name, revision=revision or "main")
        return inner.to(self._device).eval()


def _chat(tokenizer: Any, text: str) -> tuple[list[int], int, int]:
    """Ids of one user turn, and the first and one past the last token of the text."""

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
    """Ids of a bare text with the special tokens around it, and where its own are."""
    ids = tokenizer(text)["input_ids"]
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    first = next(i for i in count() if ids[i : i + len(own)] == own or i == len(ids))
    return list(ids), first, first + len(own)
