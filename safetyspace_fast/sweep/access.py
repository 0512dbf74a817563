"""Before a sweep starts: is every model there, may it be had, and may the stores be written?"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..config import RunConfig
from ..errors import ConfigError, ModelError
from ..extract.blocks import least_scratch
from ..models import hookpoint_names, parse_model, resolve_layers
from ..models.device import find_device, find_dtype, fits
from ..models.source import fetch_file, find_source
from ..models.spec import split_revision
from ..runner import refuse_existing
from .work import shape_of, source_of


def refuse_missing(configs: Sequence[RunConfig]) -> None:
    """Raise ModelError if a model is not there or may not be had; no weights are downloaded.

    A damaged or half-downloaded file is found when its model is loaded, and stops no other.
    """
    for config in configs:
        spec = parse_model(*config.models)
        try:
            _refuse_part(spec.base, spec.revision, False, config)
            for adapter in spec.adapters:
                _refuse_part(*split_revision(adapter), True, config)
        except (ModelError, ConfigError) as error:
            raise type(error)(f"model {spec.name!r}: {error}") from error


def refuse_begun(configs: Sequence[RunConfig]) -> None:
    """Raise StoreError if a store of a new sweep exists already."""
    for config in {str(config.out): config for config in configs}.values():
        refuse_existing(
            replace(config, resume=False), "continue the sweep with --resume, or remove the store"
        )


def refuse_tiny_scratch(configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError if a model is streamed, and not even one token fits into its scratch file.

    Whether its largest batch fits is known when it is tokenised, in its turn.
    """
    for config in configs:
        if config.scratch is None or config.weights == "load":
            continue
        device = find_device(config.device)
        dtype = find_dtype(config.dtype, device)
        try:
            source = source_of(config)
            shape = shape_of(source.directory, source.gguf, config.trust_remote_code)
        except ModelError:  # its own run says so, and stops no other
            continue
        if config.weights == "auto" and fits(shape.parameters, dtype, device):
            continue
        layers = resolve_layers(config.layers, hookpoint_names(shape.blocks))
        least = least_scratch(len(layers) * len(config.poolings), shape.hidden_size, dtype)
        if config.scratch < least:
            raise ConfigError(
                f"model {parse_model(*config.models).name!r}: scratch: {config.scratch:,} bytes, "
                f"but a single token keeps {least:,} between two blocks; give more"
            )


def _refuse_part(asked: str, revision: str | None, is_adapter: bool, config: RunConfig) -> None:
    path = Path(asked).expanduser()
    if not (path.exists() or asked.startswith(("/", ".", "~")) or asked.count("/") > 1):
        # Small, wanted anyway, and gated as the weights are.
        fetch_file(asked, revision, "adapter_config.json" if is_adapter else "config.json")
        return
    source = find_source(asked, revision, config.allow_pickle, config.trust_remote_code)
    if is_adapter:
        source.check_adapter(config.allow_pickle)
        return
    is_model = source.gguf is not None or (source.directory / "config.json").is_file()
    files = source.weight_files() if is_model else []
    if not files or not all(file.is_file() for file in files):
        source.check(config.allow_pickle)  # says what is missing
