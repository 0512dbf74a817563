"""Odd stores and hostile names give a page that says what is missing, or one clear line."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import tiny_models
from browser import Browser
from test_page import HOSTILE, LONG, RTL, choose, rows_of, write_texts

import safetyspace_fast as ssf
from safetyspace_fast.cli import main
from safetyspace_fast.errors import ConfigError
from safetyspace_fast.report.plot import require_writable, write_file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_tiny("llama", tmp_path_factory.mktemp("model") / "tiny")


def run_of(model: Path, folder: Path, name: str = "tiny", **fields: object) -> Path:
    out = folder / "run.zarr"
    options = {"proj_dim": 16, "poolings": ("mean",)} | fields
    ssf.run(models=f"{name}={model}", data=folder / "texts.jsonl", out=out, **options)
    return out


def page_of(store: Path, *options: str) -> Path:
    path = store.with_name("page.html")
    assert main(["report", str(store), "-o", str(path), *options]) == 0
    return path


def rename(store: Path, languages: dict[str, str]) -> None:
    """Give languages of a store names that a run would refuse, as somebody else's store may."""
    file = store / "zarr.json"
    root = json.loads(file.read_text("utf-8"))
    attributes = root["attributes"]
    attributes["languages"] = [languages[lang] for lang in attributes["languages"]]
    attributes["data_name"] = HOSTILE
    attributes.pop("metadata_sha256")
    sealed = {key: value for key, value in root.items() if key != "consolidated_metadata"}
    digest = hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()
    attributes["metadata_sha256"] = digest
    file.write_text(json.dumps(root), encoding="utf-8")


def test_hostile_names_stay_text(model: Path, tmp_path: Path, window: Browser) -> None:
    write_texts(tmp_path / "texts.jsonl", ("en", "de", "ar"), 22)
    store = run_of(model, tmp_path)
    rename(store, {"en": HOSTILE, "de": RTL, "ar": LONG})
    page = page_of(store)
    window.open(page, width=360)
    assert window.js("window.hacked") is None
    assert window.messages == []
    assert window.js("document.querySelectorAll('img, b[onclick]').length") == 0
    assert window.js("document.documentElement.scrollWidth") == 360
    names = {row["lang"] for row in rows_of(window, "layers")}
    assert names == {HOSTILE, RTL, LONG}
    assert HOSTILE in window.js("document.getElementById('made').textContent")


def test_texts_are_shown_only_when_asked_and_confirmed(
    model: Path,
    tmp_path: Path,
    window: Browser,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "texts.jsonl"
    write_texts(data, ("en",), 22)
    marked = f"{HOSTILE} only once"
    with data.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": marked, "label": 1, "lang": "en"}) + "\n")
    store = run_of(model, tmp_path)
    page = page_of(store)
    window.open(page)
    assert "words" not in rows_of(window, "scatter")[0]
    assert main(["report", str(store), "-o", str(page), "--texts", str(data)]) == 2
    assert "--show-texts" in capsys.readouterr().err
    page = page_of(store, "--texts", str(data), "--show-texts")
    window.open(page)
    texts = {row["text"]: row["label"] for row in rows_of(window, "texts")}
    assert texts[marked] == "harmful"
    assert len(texts) == 23
    assert window.js("window.hacked") is None
    assert window.js("document.querySelectorAll('img').length") == 0


def test_texts_of_other_data_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path / "texts.jsonl", ("en",), 4)
    write_texts(tmp_path / "other.jsonl", ("hi",), 4)
    store, page = run_of(model, tmp_path), tmp_path / "page.html"
    texts = ["--texts", str(tmp_path / "other.jsonl"), "--show-texts"]
    assert main(["report", str(store), "-o", str(page), *texts]) == 2
    assert "none of the 4 is in" in capsys.readouterr().err.splitlines()[-1]
    assert not page.exists()


def test_no_complete_model_is_one_clear_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_texts(tmp_path / "texts.jsonl", ("en",))
    events = ssf.iter_run(models=str(model), data=tmp_path / "texts.jsonl", out=tmp_path / "a.zarr")
    next(events)
    events.close()
    assert main(["report", str(tmp_path / "a.zarr"), "-o", str(tmp_path / "page.html")]) != 0
    lines = capsys.readouterr().err.strip().splitlines()
    assert "no model is complete" in lines[-1]
    assert not (tmp_path / "page.html").exists()


def test_a_run_that_goes_on_is_said_and_its_finished_models_are_shown(
    model: Path, tmp_path: Path
) -> None:
    write_texts(tmp_path / "texts.jsonl", ("en",))
    models = (f"first={model}", f"second={model}")
    out = tmp_path / "run.zarr"
    events = ssf.iter_run(models=models, data=tmp_path / "texts.jsonl", out=out, proj_dim=16)
    for event in events:
        if isinstance(event, ssf.Planned) and event.model == "second":
            break
    events.close()
    assert ssf.open_run(out).unfinished == ("second",)
    text = page_of(out).read_text("utf-8")
    assert "is not finished: \u2068second\u2069 is not complete" in text


@pytest.mark.parametrize("number", [2, 4])
def test_few_texts_give_a_page_that_says_so(
    model: Path,
    tmp_path: Path,
    window: Browser,
    number: int,
) -> None:
    write_texts(tmp_path / "texts.jsonl", ("en",), number)
    window.open(page_of(run_of(model, tmp_path)))
    assert window.messages == []
    words = window.js("document.getElementById('answer').textContent")
    assert "Few texts" in words
    assert "refused" in words.lower() or "nothing can be said" in words


@pytest.mark.slow
def test_sixty_languages_stay_readable(model: Path, tmp_path: Path, window: Browser) -> None:
    langs = tuple(f"a{a}{b}" for a in "bcdfgh" for b in "aeiouklmno")
    write_texts(tmp_path / "texts.jsonl", langs, 8)
    page = page_of(run_of(model, tmp_path), "--layers=-1", "--metric", "auc_direction")
    window.open(page, width=360)
    assert window.messages == []
    assert window.js("document.documentElement.scrollWidth") == 360
    choose(window, "scatter", "Language", "abo")
    assert {row["lang"] for row in rows_of(window, "scatter")} == {"abo"}


def test_two_hundred_layers_stay_readable(tmp_path: Path, window: Browser) -> None:
    deep = tiny_models.save_tiny("llama", tmp_path / "deep", num_hidden_layers=198)
    write_texts(tmp_path / "texts.jsonl", ("en",), 22)
    window.open(page_of(run_of(deep, tmp_path), "--metric", "rho_adjusted"))
    assert window.messages == []
    assert len(rows_of(window, "layers")) == 200
    choose(window, "scatter", "Layer", 100)
    assert {row["layer"] for row in rows_of(window, "scatter")} == {"block.99"}


def test_a_page_is_replaced_whole_or_not_at_all(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_texts(tmp_path / "texts.jsonl", ("en",), 22)
    store = run_of(model, tmp_path)
    page = tmp_path / "page.html"
    page.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    assert main(["report", str(store), "-o", str(page)]) != 0
    assert page.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "run.zarr", "texts.jsonl"}


def test_a_page_is_refused_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "none.zarr")]) != 0
    assert "none.zarr" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["a.zarr", Path("a.zarr"), ["a.zarr"], []])
def test_what_is_no_open_store_is_refused_in_one_line(given: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"open_run first|name at least one"):
        ssf.report(given, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_only_a_file_is_replaced_and_a_link_to_one_stays(tmp_path: Path) -> None:
    pipe, file, link = (tmp_path / name for name in ("pipe.html", "real.html", "link.html"))
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="is no file"):
        require_writable(pipe)
    link.symlink_to(file)
    write_file(link, b"new")
    assert link.is_symlink()
    assert file.read_bytes() == b"new"


def test_several_stores_are_chosen_on_one_page(
    model: Path,
    tmp_path: Path,
    window: Browser,
) -> None:
    stores = []
    for name, langs in (("one", ("en", "de")), ("two", ("en", "hi"))):
        folder = tmp_path / name
        folder.mkdir()
        write_texts(folder / "texts.jsonl", langs, 22)
        stores.append(run_of(model, folder).rename(folder / f"{name}.zarr"))
    page = tmp_path / "page.html"
    options = ["--metric", "auc_direction", "--layers=-1", "-o", str(page)]
    assert main(["report", *map(str, stores), *options]) == 0
    window.open(page)
    assert window.messages == []
    assert {row["lang"] for row in rows_of(window, "layers")} == {"en", "de"}
    choose(window, "layers", "Store", "two.zarr")
    assert {row["lang"] for row in rows_of(window, "layers")} == {"en", "hi"}
    answer = window.js("document.getElementById('answer').textContent")
    assert "one.zarr" in answer
    assert "two.zarr" in answer
    for figure in ("scatter", "scores"):
        assert {row["store"] for row in rows_of(window, figure)} == {"one.zarr"}
        choose(window, figure, "Language", "de")
        window.js(f"document.querySelector('#{figure} select').focus()")
        window.key("ArrowDown")  # the first control chooses the store
        window.until(f"document.querySelector('#{figure} td').textContent === 'two.zarr'")
        assert {row["lang"] for row in rows_of(window, figure)} == {"en"}  # it has no `de`
        focused = "document.activeElement === document.querySelector('#%s select')"
        assert window.js(focused % figure)
        choose(window, figure, "Language", "hi")
        assert {row["lang"] for row in rows_of(window, figure)} == {"hi"}
    marks = "document.querySelectorAll('#scatter .mark-symbol.role-mark path').length"
    assert window.js(marks) == 22
    assert window.messages == []
