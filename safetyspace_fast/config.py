"""What a run is told to do: one frozen, validated dataclass."""

from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError

POOLINGS = ("mean", "last", "last_text")
TEMPLATES = ("auto", "chat", "none")
DTYPES = ("auto", "float32", "bfloat16", "float16")
IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton", "cuda")


@dataclass(frozen=True)
class RunConfig:
    """Everything that `run` needs to know; validated at construction.

    Raises:
        ConfigError: a value is out of range; the message names the field.
    """

    models: tuple[str, ...]
    """One or more `[NAME=]BASE[+ADAPTER]`: directory, hub id or GGUF file."""
    data: str
    """Data file, directory, hub id, or `sample:polite` for the packaged sample."""
    out: Path
    """The store to write, a directory that ends in `.zarr` by custom."""
    layers: str = "all"
    """`all`, or hookpoints by name or negative index: `embed,block.3,-1`."""
    poolings: tuple[str, ...] = ("mean", "last")
    """Any of `mean` (the text's tokens), `last` (of the prompt), `last_text` (of the text)."""
    template: str = "auto"
    """`auto`: the model's chat template if it has one; `chat`: insist; `none`: the bare text."""
    proj_dim: int = 64
    """Width of the seeded Gaussian projection kept for every text."""
    seed: int = 0
    """Seed of the projection."""
    languages: tuple[str, ...] | None = None
    """Keep only these languages."""
    limit: int | None = None
    """At most this many texts per language and label."""
    strict: bool = False
    """Rows that would be left out with a count become errors."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: str = "auto"
    """Working type of the model; `auto` is float32 on CPUs, bfloat16 on GPUs that have it."""
    token_budget: int | None = None
    """Padded tokens per batch; None picks a size for the device. Results do not depend on it."""
    max_tokens: int | None = None
    """Longest prompt in tokens; texts are cut to fit and counted. None: the model's window."""
    impl: str = "auto"
    """Kernel implementation, to force one."""
    resume: bool = False
    """Finish an interrupted run; also adds models to a store of the same data."""
    overwrite: bool = False
    """Replace an existing store."""
    allow_pickle: bool = False
    """Also open weights that only come as pickle files. They can run code."""
    trust_remote_code: bool = False
    """Let a model repository run its own code."""

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
        _at_least("proj_dim", self.proj_dim, 2)
        _at_least("seed", self.seed, 0)
        _at_least("limit", self.limit, 2)
        _at_least("token_budget", self.token_budget, 1)
        _at_least("max_tokens", self.max_tokens, 1)
        if self.resume and self.overwrite:
            raise ConfigError("resume and overwrite exclude each other; give one of them")
        object.__setattr__(self, "out", Path(self.out))


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{field}: got {value!r}, expected one of {', '.join(allowed)}")


def _at_least(field: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise ConfigError(f"{field}: got {value}, expected at least {low}")
