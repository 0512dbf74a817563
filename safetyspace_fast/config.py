"""What a run is told to do: one frozen, validated dataclass."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Annotated, Literal, Required, TypedDict, cast, get_args, get_type_hints

from .errors import ConfigError
from .names import nearest

Pooling = Literal["mean", "mean_all", "last", "last_text"]
TemplateMode = Literal["auto", "chat", "none"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Implementation = Literal["auto", "reference", "cpu", "triton", "cuda"]
Weights = Literal["auto", "load", "stream"]
Quoting = Literal["auto", "csv", "none"]
Data = str | Path | Sequence[str | Path]
Names = str | float | Sequence[str | float]
"""One name, label value or number of a column, or several."""

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
TEMPLATES: tuple[TemplateMode, ...] = get_args(TemplateMode)
DTYPES: tuple[DType, ...] = get_args(DType)
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
QUOTINGS: tuple[Quoting, ...] = get_args(Quoting)
SEVERAL_NAMES = ("text_column", "label_column", "harmful", "harmless")
"""Fields that take one name or several."""
MEAN_ALL, MEAN_WITHOUT_FIRST = "mean_all", "without the first position"
"""What a manifest says of `mean`: the same as `mean_all`, as no text begins at a prompt's first
position; or not. Manifests of earlier versions, whose `mean` was `mean_all`, say nothing."""
MAX_PROJ_DIM = 4096
MAX_SEED = 2**63 - 1
LABELLINGS = 1000
"""Label permutations behind every p; a run computes them once."""
MAX_RESAMPLES = 1_000_000


@dataclass(frozen=True)
class RunConfig:
    """Everything that `run` needs to know; checked when it is made.

    Lists of names become tuples, and one model may be given as a string.

    Raises:
        ConfigError: a value is out of range; the message names the field.
    """

    models: Annotated[
        str | Sequence[str],
        "One or more `[NAME=]BASE[+ADAPTER]...`: directory, hub id or GGUF file. `random:BASE` is "
        "a control: the same model with random weights.",
    ]
    data: Annotated[
        Data,
        "Data file, directory, hub id, or `sample:polite` for the packaged sample. Several are "
        "joined. `harmful=` or `harmless=` before one labels all its texts; the name of a known "
        "data set before one, as in `olid:FILE`, says what its columns mean.",
    ]
    out: Annotated[
        Path | str,
        "The store to write: a directory that ends in `.zarr` by custom, or a URL such as "
        "`s3://bucket/run.zarr`.",
    ]
    layers: Annotated[
        str | Sequence[str],
        "`all`, or hookpoints by name or negative index: `embed,block.3,-1`.",
    ] = "all"
    poolings: Annotated[
        Sequence[Pooling],
        "Any of `mean` (the text's own tokens without the first of the prompt, which many models "
        "use as an attention sink), `mean_all` (all of the text's own tokens), `last` (last token "
        "of the prompt), `last_text` (last token of the text).",
    ] = ("mean", "last")
    template: Annotated[
        TemplateMode,
        "`auto`: the model's chat template if it has one; `chat`: stop if it has none; `none`: the "
        "text alone.",
    ] = "auto"
    proj_dim: Annotated[int, "Width of the seeded Gaussian projection kept for every text."] = 64
    seed: Annotated[int, "Seed of the projection."] = 0
    text_column: Annotated[
        Names | None,
        "Column of the text; a number, from 1, if the file has no header. Of several, the first "
        "that a file has.",
    ] = None
    label_column: Annotated[
        Names | None,
        "Column of the label. Of several, a text is harmful if any says so.",
    ] = None
    harmful: Annotated[
        Names | None,
        "Labels that mean harmful (`OFF,hate`), or thresholds (`>=1`, or `toxicity>=0.5` to name "
        "the column). Without `harmless`, every other label means harmless.",
    ] = None
    harmless: Annotated[
        Names | None,
        "Labels or thresholds that mean harmless. Without `harmful`, every other label means "
        "harmful; with both, texts of other labels are left out, and counted.",
    ] = None
    lang_column: Annotated[str | None, "Column of the language."] = None
    lang: Annotated[str | None, "Language of all texts, whatever the data say."] = None
    split: Annotated[
        str | None, "Read only this split of a directory or hub data set. None: all of them."
    ] = None
    delimiter: Annotated[
        str | None,
        "Delimiter of CSV and the like: `comma`, `tab`, `semicolon`, `pipe` or a character. None: "
        "found.",
    ] = None
    quoting: Annotated[
        Quoting,
        "`csv`: fields of CSV and the like may stand in quotation marks; `none`: these are part of "
        "the text; `auto`: found.",
    ] = "auto"
    languages: Annotated[
        list[str] | tuple[str, ...] | None,
        "Keep only these languages; `zh` also means `zh-CN` where the data have no `zh`.",
    ] = None
    limit: Annotated[int | None, "At most this many texts per language and label."] = None
    verify: Annotated[
        bool,
        "First compare 32 texts with transformers' own hidden states; stop if a layer is wrong.",
    ] = False
    strict: Annotated[
        bool, "Stop at a row that cannot be used, instead of leaving it out and counting it."
    ] = False
    device: Annotated[str, "`auto`, `cpu`, `cuda` or `cuda:N`."] = "auto"
    tensor_parallel: Annotated[
        int,
        "Devices of this machine that share a model's weights, by transformers' tensor parallel "
        "plan. Numbers change by rounding only.",
    ] = 1
    dtype: Annotated[
        DType,
        "Working type of the model; `auto` is float32 on CPUs, bfloat16 on GPUs that have it and "
        "on CPUs with AMX.",
    ] = "auto"
    compile: Annotated[
        bool,
        "Compile the model's blocks first (torch.compile): 10 to 30 s that pay off in long runs.",
    ] = False
    token_budget: Annotated[
        int | None,
        "Tokens per batch, padding included. None: measured on a few batches. Any value gives the "
        "same results up to rounding.",
    ] = None
    max_tokens: Annotated[
        int | None,
        "Longest prompt in tokens; longer texts are cut, and counted. None: the model's context "
        "length.",
    ] = None
    impl: Annotated[Implementation, "Force one kernel implementation."] = "auto"
    weights: Annotated[
        Weights,
        "`load`: the whole model into memory. `stream`: its blocks stay on disk, and each is read, "
        "applied to all texts and released. `auto`: stream if the model does not fit.",
    ] = "auto"
    scratch: Annotated[
        int | None,
        "With streamed weights: bytes of the file that keeps the states between two blocks. The "
        "weights are read once for each time that it is filled. None: half of the free disk.",
    ] = None
    resume: Annotated[
        bool,
        "Finish an interrupted run. Also adds further models to a store, and further texts and "
        "languages if the data have them.",
    ] = False
    overwrite: Annotated[bool, "Replace an existing store."] = False
    basis: Annotated[
        str | Path | Sequence[str | Path],
        "Other stores, as `STORE.zarr[:MODEL]`: keep where each text lies along the harm direction "
        "of a finished model there, which `transfer` reads. Without MODEL the one of the same "
        "name. It has the same layers, poolings and hidden size.",
    ] = ()
    allow_pickle: Annotated[
        bool, "Also open weights that only come as pickle files. They can run code."
    ] = False
    trust_remote_code: Annotated[bool, "Let a model repository run its own code."] = False

    def __post_init__(self) -> None:
        """Check every field that can be checked without opening anything."""
        data = self.data
        if not isinstance(self.out, str | Path):
            raise ConfigError(f"out: got {self.out!r}, expected a path or a URL")
        for field, value in (
            ("models", names_of("models", self.models, single=True)),
            ("data", tuple(map(str, [data] if isinstance(data, str | Path) else data))),
            *((field, several_names(getattr(self, field))) for field in SEVERAL_NAMES),
            ("layers", layers_of(self.layers)),
            ("poolings", names_of("poolings", self.poolings)),
            ("basis", names_of("basis", self.basis, single=True)),
            (
                "languages",
                None if self.languages is None else names_of("languages", self.languages),
            ),
            ("out", self.out if "://" in str(self.out) else Path(self.out)),
        ):
            object.__setattr__(self, field, value)
        if not self.models:
            raise ConfigError("models: none given; name at least one directory, hub id or file")
        _one_of("template", self.template, TEMPLATES)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("impl", self.impl, IMPLEMENTATIONS)
        _one_of("quoting", self.quoting, QUOTINGS)
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
        _at_least("scratch", self.scratch, 1)
        _one_of("weights", self.weights, WEIGHTS)
        if self.weights == "stream":
            for field in ("compile", "verify"):
                if getattr(self, field):
                    raise ConfigError(
                        f"{field} needs the whole model in memory; leave it out, or choose weights "
                        "'load'"
                    )
        _at_least("tensor_parallel", self.tensor_parallel, 1)
        if self.tensor_parallel > 1:
            if self.weights == "stream":
                raise ConfigError("tensor_parallel: leave it out, or choose weights 'load'")
            for field, why in (
                ("compile", "compiled blocks do not announce themselves to the other devices"),
                ("verify", "transformers' own states are computed on one device"),
            ):
                if getattr(self, field):
                    raise ConfigError(f"tensor_parallel: leave out {field}; {why}")
            if ":" in self.device:
                raise ConfigError(
                    f"tensor_parallel: got device {self.device!r}, expected 'cpu', 'cuda' or "
                    "'auto'; choose GPUs with CUDA_VISIBLE_DEVICES"
                )
        if self.resume and self.overwrite:
            raise ConfigError("resume and overwrite exclude each other; give one of them")


class DataFields(TypedDict, total=False):
    """How data are read: the fields of `RunConfig` that say so, beside `data`."""

    text_column: Names | None
    label_column: Names | None
    harmful: Names | None
    harmless: Names | None
    lang_column: str | None
    lang: str | None
    split: str | None
    delimiter: str | None
    quoting: Quoting
    languages: list[str] | tuple[str, ...] | None
    limit: int | None
    strict: bool


class RunFields(DataFields, total=False):
    """The fields of `RunConfig`, for `run(models=.., data=.., out=..)`."""

    models: Required[str | Sequence[str]]
    data: Required[Data]
    out: Required[Path | str]
    layers: str | Sequence[str]
    poolings: Sequence[Pooling]
    template: TemplateMode
    proj_dim: int
    seed: int
    verify: bool
    device: str
    tensor_parallel: int
    dtype: DType
    compile: bool
    token_budget: int | None
    max_tokens: int | None
    impl: Implementation
    weights: Weights
    scratch: int | None
    resume: bool
    overwrite: bool
    basis: str | Path | Sequence[str | Path]
    allow_pickle: bool
    trust_remote_code: bool


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


def data_fields(config: RunConfig) -> DataFields:
    """How a config reads data, as arguments of `read_samples`."""
    fields = {name: getattr(config, name) for name in DataFields.__annotations__}
    return cast(DataFields, fields)


def several_names(names: Names | None) -> tuple[str, ...] | None:
    """Names as strings; a single one needs no list."""
    if names is None:
        return None
    return tuple(map(str, [names] if isinstance(names, str | float | int) else names))


def names_of(field: str, names: object, *, single: bool = False) -> tuple[str, ...]:
    """A list of names or paths as strings.

    Args:
        field: for messages.
        names: the list; numbers become strings.
        single: one name needs no list.

    Raises:
        ConfigError: it is no list of names.
    """
    if isinstance(names, str | Path | int):
        if not single:
            kind = "the string " if isinstance(names, str) else ""
            raise ConfigError(
                f"{field}: got {kind}{names!r}, expected a tuple such as ({names!r},)"
            )
        names = [names]
    is_list = isinstance(names, Iterable) and not isinstance(names, bytes | Mapping)
    listed = list(names) if is_list else [None]  # type: ignore[call-overload]  # checked above
    if not all(isinstance(name, str | Path | int) for name in listed):
        raise ConfigError(f"{field}: got {names!r}, expected a tuple of names")
    return tuple(map(str, listed))


def layers_of(asked: object) -> str | tuple[str, ...]:
    """A selection of layers: names with commas, or a list of names and negative numbers.

    Raises:
        ConfigError: it is neither, or empty.
    """
    layers = asked if isinstance(asked, str) else names_of("layers", asked, single=True)
    if not layers:
        raise ConfigError("layers: none given; name at least one, or 'all'")
    return layers


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = nearest(str(value), allowed)
        raise ConfigError(f"{field}: got {value!r}, expected one of {', '.join(allowed)}{near}")


def _at_least(field: str, value: int | None, low: int, high: int | None = None) -> None:
    if value is not None and not isinstance(value, Integral):
        raise ConfigError(f"{field}: got {value!r}, expected a whole number")
    if value is not None and value < low:
        raise ConfigError(f"{field}: got {value}, expected at least {low}")
    if value is not None and high is not None and value > high:
        raise ConfigError(f"{field}: got {value}, expected at most {high}")
