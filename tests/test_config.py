"""Options as a careless or hostile caller gives them: a config, or one line that says why not."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safetyspace_fast.config import MAX_PROJ_DIM, RunConfig
from safetyspace_fast.errors import ConfigError, SafetySpaceError
from safetyspace_fast.models import parse_model
from safetyspace_fast.store import Place

ODD_TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["", ".", "..", "/", "../x", "~", "~nobody/x", "x" * 300, "a/" * 3000]),
    st.sampled_from(["a\0b", "a\nb", "\ud800", "\udc80", "\u202ex", "é", "e\u0301", "zarr.json"]),
    st.sampled_from(["con", "s3://", "://", "a=b+c"]),
)
NUMBER = st.one_of(st.none(), st.integers(-3, 3), st.integers())
NAMES = st.lists(st.one_of(ODD_TEXT, st.sampled_from(["mean", "last"])), max_size=3).map(tuple)
OPTIONS = st.fixed_dictionaries(
    {"models": NAMES, "data": ODD_TEXT, "out": ODD_TEXT},
    optional={
        "poolings": NAMES,
        "layers": ODD_TEXT,
        "template": st.one_of(st.sampled_from(["auto", "chat"]), ODD_TEXT),
        "dtype": st.one_of(st.sampled_from(["auto", "float16"]), ODD_TEXT),
        "impl": st.one_of(st.sampled_from(["auto", "cpu"]), ODD_TEXT),
        **dict.fromkeys(("text_column", "label_column", "harmful", "harmless"), NAMES | ODD_TEXT),
        **dict.fromkeys(("lang", "lang_column", "split", "delimiter", "quoting"), ODD_TEXT),
        **dict.fromkeys(("limit", "token_budget", "max_tokens"), NUMBER),
        **{key: st.integers() for key in ("proj_dim", "seed")},
        **{key: st.booleans() for key in ("resume", "overwrite", "strict", "verify")},
    },
)


def build(options: dict[str, object]) -> None:
    """Make all that is made before anything is opened."""
    message = ""
    try:
        config = RunConfig(**options)
        names = [parse_model(text).name for text in config.models]
        place = Place(config.out)
    except SafetySpaceError as error:
        message = str(error)
    if message:
        assert message.isprintable()
        return
    assert names
    assert all(Path("/s/models", name).resolve().parent == Path("/s/models") for name in names)
    assert 2 <= config.proj_dim <= MAX_PROJ_DIM
    if place.path is not None:
        place.exists()
        assert place.work.parent == place.path.parent


@settings(max_examples=300, deadline=None)
@given(options=OPTIONS)
def test_any_options(options: dict[str, object]) -> None:
    build(options)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(options=OPTIONS)
def test_any_options_for_long(options: dict[str, object]) -> None:
    build(options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proj_dim": 10**12}, "proj_dim: got 1000000000000, expected at most 4096"),
        ({"seed": 2**64}, "seed: got 18446744073709551616, expected at most"),
        ({"seed": -1}, "seed: got -1, expected at least 0"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
    ],
)
def test_values_out_of_range(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig(models=("m",), data="x.jsonl", out="x.zarr", **change)


@pytest.mark.parametrize("out", ["/", "x" * 300, "a/" * 3000 + "x", "a\0b", "\ud800.zarr"])
def test_places_that_cannot_be(out: str) -> None:
    with pytest.raises(ConfigError, match="expected the path of a store") as caught:
        Place(out)
    assert str(caught.value).isprintable()


def test_a_store_may_be_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.zarr").mkdir()
    monkeypatch.chdir(tmp_path / "run.zarr")
    assert Place(".").work == tmp_path / "run.zarr.work"


NEEDED = {"models": "m", "data": "d.jsonl", "out": "o.zarr"}


def test_what_a_notebook_gives_is_taken() -> None:
    config = RunConfig(models=Path("m"), data=Path("d.jsonl"), out="o.zarr", layers=[-1, "embed"])
    assert (config.models, config.data) == (("m",), ("d.jsonl",))
    assert config.layers == ("-1", "embed")
    assert RunConfig(**NEEDED, layers=-1).layers == ("-1",)
    assert RunConfig(**NEEDED | {"models": [Path("a"), "b"]}).models == ("a", "b")
    assert parse_model(Path("some/where")).name == "where"


@pytest.mark.parametrize(
    "wrong",
    [
        *({"models": value} for value in (None, {"a": "b"}, b"m", [None], [])),
        *({"layers": value} for value in (None, [], [None], {"embed": 1})),
        *({"poolings": value} for value in ("mean", None, [], ["mean", "mean"])),
        *({"languages": value} for value in ("en", 3, {"en": 1})),
        *({name: value} for name in ("limit", "seed", "max_tokens") for value in ("5", 4.0)),
        {"proj_dim": 8.0},
        {"out": None},
    ],
)
def test_what_cannot_be_meant_is_one_line(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RunConfig(**NEEDED | wrong)
