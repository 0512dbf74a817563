"""Growing a store: only new work is done, the bytes are those of a fresh run, nothing is lost."""

import json
import random
import shutil
from itertools import islice
from pathlib import Path

import pytest
from tiny_models import save_tiny

from safetyspace_fast import api
from safetyspace_fast.errors import StoreError
from safetyspace_fast.extract import loop
from safetyspace_fast.store import Place, growth

Rows = list[dict[str, object]]


def rows(**counts: int) -> Rows:
    """Texts of each language; a larger count has those of a smaller one, and more between them."""
    return [
        {"text": f"{lang} {'x' * (i * 7 % 23)} {i}", "label": i % 2, "lang": lang}
        for lang, count in counts.items()
        for i in range(count)
    ]


SMALL = {"de": 150, "en": 300, "ru": 60}
GROWN = {"am": 40, "de": 150, "en": 320, "es": 90, "ru": 60}
"""Two languages more, one of them first, and texts more in `en`; shards move under all others."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama", num_hidden_layers=1)


def make_config(tiny: Path, out: Path, data: Rows, **changes: object) -> api.RunConfig:
    path = out.with_suffix(f".{len(data)}.jsonl")
    random.Random(len(data)).shuffle(data)
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    options = {"models": (f"m={tiny}",), "data": str(path), "out": out, "template": "none"}
    return api.RunConfig(**(options | {"layers": "block.0,final_norm", "resume": True} | changes))


def contents(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "zarr.json"
    }


def texts_run(events: list[api.Event]) -> int:
    return sum(event.texts for event in events if isinstance(event, api.Progressed))


def notes(events: list[api.Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, api.Note)]


@pytest.fixture(scope="module")
def fresh(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    out = tmp_path_factory.mktemp("fresh") / "run.zarr"
    return api.run(make_config(tiny, out, rows(**GROWN)))


@pytest.fixture(scope="module")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small") / "run.zarr"
    return api.run(make_config(tiny, out, rows(**SMALL))).path


@pytest.fixture
def out(small: Path, tmp_path: Path) -> Path:
    """A store of the smaller data."""
    return Path(shutil.copytree(small, tmp_path / "run.zarr"))


def test_only_new_work_is_done_and_the_bytes_are_those_of_a_fresh_run(
    tiny: Path, fresh: api.Run, out: Path
) -> None:
    events = list(api.iter_run(make_config(tiny, out, rows(**GROWN))))
    assert texts_run(events) == GROWN["am"] + GROWN["en"] + GROWN["es"]
    assert notes(events) == ["languages taken from the store: de, ru; to run: am, en, es"]
    assert contents(out) == contents(fresh.path)
    (planned,) = [event for event in events if isinstance(event, api.Planned)]
    assert planned.texts_done == GROWN["de"] + GROWN["ru"]
    assert api.open_run(out).languages == ("am", "de", "en", "es", "ru")
    assert api.check(out).damage == []
    assert not Place(out).work.exists()
    again = list(api.iter_run(make_config(tiny, out, rows(**GROWN))))
    assert notes(again) == ["complete in the store already; nothing to do"]


@pytest.mark.parametrize("stop_after", [1, 3, 12, 16])
def test_the_store_is_as_before_until_all_is_there(
    tiny: Path, fresh: api.Run, out: Path, stop_after: int
) -> None:
    before = contents(out)
    config = make_config(tiny, out, rows(**GROWN))
    seen = list(islice(api.iter_run(config), stop_after))
    assert contents(out) == before
    assert api.open_run(out).models == ("m",)
    events = list(api.iter_run(config))
    assert texts_run(seen) + texts_run(events) == GROWN["am"] + GROWN["en"] + GROWN["es"]
    assert contents(out) == contents(fresh.path)
    assert not Place(out).work.exists()


def test_an_unfinished_store_grows_by_what_it_has(
    tiny: Path, fresh: api.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.zarr"
    monkeypatch.setattr(loop, "finishes_beside", lambda _device: False)  # `ru` has not begun
    for event in api.iter_run(make_config(tiny, out, rows(**SMALL))):
        if isinstance(event, api.LanguageDone) and event.lang == "en":
            break  # `de` is whole; the last shard of `en` waits for `ru`
    events = list(api.iter_run(make_config(tiny, out, rows(**GROWN))))
    assert texts_run(events) == sum(GROWN.values()) - GROWN["de"]
    assert contents(out) == contents(fresh.path)
    assert not Place(out).work.exists()


def test_the_store_waits_for_its_other_models(tiny: Path, out: Path) -> None:
    before = contents(out)
    api.run(make_config(tiny, out, rows(**SMALL), models=(f"other={tiny}",)))
    (said,) = notes(list(api.iter_run(make_config(tiny, out, rows(**GROWN)))))[1:]
    assert said == "the store stays as it was until these models are run too: other"
    assert {key: contents(out)[key] for key in before} == before
    config = make_config(tiny, out, rows(**GROWN), models=(f"other={tiny}",))
    events = list(api.iter_run(config))
    assert texts_run(events) == GROWN["am"] + GROWN["en"] + GROWN["es"]
    run = api.open_run(out)
    assert run.models == ("m", "other")
    assert run.model("other").attrs["bases"] == ["m"]  # it has states as seen from m too
    other = {key: x for key, x in contents(out / "models/other").items() if "basis_" not in key}
    assert contents(out / "models/m") == other
    assert not Place(out).work.exists()


def test_the_store_waits_for_another_writer(tiny: Path, out: Path) -> None:
    other = api.iter_run(make_config(tiny, out, rows(**SMALL), models=(f"other={tiny}",)))
    next(other)  # planned, and nothing of it in the store yet
    events = list(api.iter_run(make_config(tiny, out, rows(**GROWN))))
    assert "until" in notes(events)[-1]
    list(other)
    assert api.open_run(out).models == ("m", "other")
    assert api.check(out).damage == []
    both = (f"m={tiny}", f"other={tiny}")
    assert api.run(make_config(tiny, out, rows(**GROWN), models=both)).models == ("m", "other")
    assert not Place(out).work.exists()


def test_data_that_disagree_are_refused(tiny: Path, out: Path) -> None:
    before = contents(out)
    changed = rows(**GROWN)
    changed[50]["label"] = 1 - changed[50]["label"]  # of `de`
    with pytest.raises(StoreError, match=r"of its de texts, 1 are not .* now has label") as caught:
        api.run(make_config(tiny, out, changed))
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match=r"of its en texts, 10 are not .* row \d+ .* is gone"):
        api.run(make_config(tiny, out, rows(**GROWN | {"en": 290})))
    with pytest.raises(StoreError, match=r"of its ru texts, 60 are not"):
        api.run(make_config(tiny, out, rows(de=150, en=300, es=20)))
    with pytest.raises(StoreError, match="another poolings"):
        api.run(make_config(tiny, out, rows(**GROWN), poolings=("mean",)))
    with pytest.raises(StoreError, match="another token_budget, plan_sha256"):
        api.run(make_config(tiny, out, rows(**GROWN), token_budget=64))
    link = out.with_name("link.zarr")
    link.symlink_to(out)
    with pytest.raises(StoreError, match="a link cannot grow"):
        api.run(make_config(tiny, link, rows(**GROWN)))
    assert contents(out) == before


def test_growth_that_was_given_up_is_replaced(tiny: Path, fresh: api.Run, out: Path) -> None:
    list(islice(api.iter_run(make_config(tiny, out, rows(**GROWN | {"es": 50}))), 6))
    assert texts_run(list(api.iter_run(make_config(tiny, out, rows(**SMALL))))) == 0
    api.run(make_config(tiny, out, rows(**GROWN)))
    assert contents(out) == contents(fresh.path)
    assert not Place(out).work.exists()


def test_a_crash_between_the_two_renames_is_mended(
    tiny: Path, fresh: api.Run, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(growth, "settle", crash)
        with pytest.raises(KeyboardInterrupt):
            api.run(make_config(tiny, out, rows(**GROWN)))
    assert not out.exists()
    with pytest.raises(StoreError, match=r"no such store yet, but an unfinished run.*--resume"):
        api.open_run(out)
    config = make_config(tiny, out, rows(**GROWN))
    assert texts_run(list(api.iter_run(config))) == 0
    assert contents(out) == contents(fresh.path)
    assert not Place(out).work.exists()


def test_a_reader_does_not_mix_the_two_stores(tiny: Path, out: Path) -> None:
    run, unread = api.open_run(out), api.open_run(out)
    model = run.model("m")
    model.read("projected")
    api.run(make_config(tiny, out, rows(**GROWN)))
    with pytest.raises(StoreError, match="open it again"):
        model.read("projected")
    with pytest.raises(StoreError, match="open it again"):
        run.model("m")
    with pytest.raises(StoreError, match="open it again"):
        _ = unread.samples
