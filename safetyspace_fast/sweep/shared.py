"""What the runs of a sweep share: data sets, tokens, and the model in memory."""

from collections.abc import Callable, Sequence
from typing import Any

from ..config import RunConfig, data_fields
from ..data import Samples, read_samples
from ..models import (
    LoadedModel,
    ModelSpec,
    Tokenized,
    load_model,
    parse_model,
    tokenize,
)
from ..models.layers import embedding_rows
from ..models.tokenizer import KEPT_TOKENIZERS, backend_sha256
from ..runner import Steps
from .templates import template_of


class SharedWork:
    """Steps of runs that remember, so that no run repeats what an earlier one did."""

    def __init__(self, configs: Sequence[RunConfig]) -> None:
        """Remember nothing yet.

        Args:
            configs: the runs of a sweep, in order, each with one model.
        """
        self.steps = Steps(self._read, self._choose_templates, self._load, self._tokenize)
        self._configs = tuple(configs)
        self._samples: dict[str, Samples] = {}
        self._tokens: dict[object, Tokenized] = {}
        """Those of the latest tokenizers, the latest at the end."""
        self._loaded: tuple[str, LoadedModel] | None = None

    def samples(
        self, config: RunConfig, on_note: Callable[[str], None] = lambda _: None
    ) -> Samples:
        """The data of a run; notes on them are given once."""
        return self._read(config.data, on_note=on_note, **data_fields(config))

    def forget_model(self) -> None:
        """Free the model in memory."""
        self._loaded = None

    def _read(self, data: Any, *, on_note: Callable[[str], None], **reading: Any) -> Samples:
        key = repr((data, sorted(reading.items())))
        if key not in self._samples:
            self._samples[key] = read_samples(data, on_note=on_note, **reading)
        return self._samples[key]

    def _choose_templates(
        self, specs: Sequence[ModelSpec], mode: str, **options: Any
    ) -> dict[str, str | None]:
        """Choose as for a run of all models that share a base: such models get one template."""
        (spec,) = specs
        config = next(
            config
            for config in self._configs
            if (parse_model(*config.models), config.template) == (spec, mode)
        )
        return template_of(config, self._configs, options["on_note"])

    def _load(self, spec: ModelSpec, **options: Any) -> LoadedModel:
        key = repr((spec, sorted((k, v) for k, v in options.items() if k != "on_note")))
        if self._loaded is not None and self._loaded[0] == key:
            return self._loaded[1]
        self.forget_model()  # before the next one takes memory
        model = load_model(spec, **options)
        self._loaded = (key, model)
        return model

    def _tokenize(self, model: LoadedModel, texts: Sequence[str], **options: Any) -> Tokenized:
        # The texts are those of a data set that is kept, so no other can get their id.
        key = (_reads_as(model), id(texts), repr(sorted(options.items())))
        tokens = self._tokens.pop(key, None) or tokenize(model, texts, **options)
        self._tokens[key] = tokens
        while len(self._tokens) > KEPT_TOKENIZERS * len(self._samples):
            del self._tokens[next(iter(self._tokens))]
        return tokens


def _reads_as(model: LoadedModel) -> tuple[object, ...]:
    """All of a model that decides its tokens."""
    tokenizer = model.tokenizer
    return (
        backend_sha256(tokenizer.backend_tokenizer),
        type(tokenizer),
        repr(tokenizer.special_tokens_map),
        repr(tokenizer.chat_template),
        model.max_tokens,
        model.causal,
        embedding_rows(model.backbone, model.name),
    )
