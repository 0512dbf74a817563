"""What a run is told to do: one frozen, validated dataclass."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

from .errors import ConfigError

POOLINGS = ("mean", "last", "last_text")
TEMPLATES = ("auto", "chat", "none")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MAX_PROJ_DIM = 4096
MAX_SEED = 2**63 - 1
MAX_RESAMPLES = 1_000_000
IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton", "cuda")


@dataclass(frozen=True)
class RunConfig:
    """Everything that `run` needs to know; validated at construction.

    Raises:
        ConfigError: a value is out of range; the message names the field.
    """

    models: Annotated[
        tuple[str, ...], "One or more `[NAME=]BASE[+ADAPTER]`: directory, hub id or GGUF file."
    ]
    data: Annotated[
        str, "Data file, directory, hub id, or `sample:polite` for the packaged sample."
    ]
    out: Annotated[
        Path | str,
        "The store to write: a directory that ends in `.zarr` by custom, or a URL such as "
        "`s3://bucket/run.zarr`.",
    ]
    layers: Annotated[
        str, "`all`, or hookpoints by name or negative index: `embed,block.3,-1`."
    ] = "all"
    poolings: Annotated[
        tuple[str, ...],
        "Any of `mean` (the text's tokens), `last` (of the prompt), `last_text` (of the text).",
    ] = ("mean", "last")
    template: Annotated[
        str,
        "`auto`: the model's chat template if it has one; `chat`: insist; `none`: the bare text.",
    ] = "auto"
    proj_dim: Annotated[int, "Width of the seeded Gaussian projection kept for every text."] = 64
    seed: Annotated[int, "Seed of the projection."] = 0
    languages: Annotated[tuple[str, ...] | None, "Keep only these languages."] = None
    limit: Annotated[int | None, "At most this many texts per language and label."] = None
    verify: Annotated[
        bool,
        "First hold 32 texts against transformers' own hidden states; stop if a layer is wrong.",
    ] = False
    strict: Annotated[bool, "Rows that would be left out with a count become errors."] = False
    device: Annotated[str, "`auto`, `cpu`, `cuda` or `cuda:N`."] = "auto"
    dtype: Annotated[
        str,
        "Working type of the model; `auto` is float32 on CPUs, bfloat16 on GPUs that have it and "
        "on CPUs with AMX.",
    ] = "auto"
    compile: Annotated[
        bool,
        "Compile the model's blocks first (torch.compile): takes a while, pays in longer runs.",
    ] = False
    token_budget: Annotated[
        int | None,
        "Padded tokens per batch; None: a short try finds the size. Results agree to rounding.",
    ] = None
    max_tokens: Annotated[
        int | None,
        "Longest prompt in tokens; texts are cut to fit and counted. None: the model's window.",
    ] = None
    impl: Annotated[str, "Kernel implementation, to force one."] = "auto"
    resume: Annotated[
        bool,
        "Finish an interrupted run; also adds models to a store, and texts and languages if the "
        "data have more than it.",
    ] = False
    overwrite: Annotated[bool, "Replace an existing store."] = False
    allow_pickle: Annotated[
        bool, "Also open weights that only come as pickle files. They can run code."
    ] = False
    trust_remote_code: Annotated[bool, "Let a model repository run its own code."] = False

    def __post_init__(self) -> None:
        """Check every field that can be checked without opening anything."""
        if not self.models:
            raise ConfigError("models: none given; name at least one directory, hub id or file")
        _one_of("template", self.template, TEMPLATES)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("impl", self.impl, IMPLEMENTATIONS)
        if not self.poolings:
            raise ConfigError(f"poolings: none given; choose from {', '.join(POOLINGS)}")
        for pooling in self.poolings:
            _one_of("poolings", pooling, POOLINGS)
        if len(set(self.poolings)) != len(self.poolings):
            raise ConfigError(f"poolings: {','.join(self.poolings)} names one twice")
        _at_least("proj_dim", self.proj_dim, 2, MAX_PROJ_DIM)
        _at_least("seed", self.seed, 0, MAX_SEED)
        _at_least("limit", self.limit, 2)
        _at_least("token_budget", self.token_budget, 1)
        _at_least("max_tokens", self.max_tokens, 1)
        if self.resume and self.overwrite:
            raise ConfigError("resume and overwrite exclude each other; give one of them")
        if "://" not in str(self.out):
            object.__setattr__(self, "out", Path(self.out))


def layer_name(asked: str, hookpoints: Sequence[str]) -> str:
    """The name of a layer: `-1` is the last of `hookpoints`, `-2` the one before; a name is itself.

    Names that are not among the hookpoints are returned as they are.
    """
    counted = {str(i - len(hookpoints)): name for i, name in enumerate(hookpoints)}
    return counted.get(asked, asked)


def field_docs() -> dict[str, str]:
    """The doc line of every field of `RunConfig`."""
    hints = get_type_hints(RunConfig, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{field}: got {value!r}, expected one of {', '.join(allowed)}")


def _at_least(field: str, value: int | None, low: int, high: int | None = None) -> None:
    if value is not None and value < low:
        raise ConfigError(f"{field}: got {value}, expected at least {low}")
    if value is not None and high is not None and value > high:
        raise ConfigError(f"{field}: got {value}, expected at most {high}")
