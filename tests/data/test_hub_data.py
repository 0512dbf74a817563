"""Data sets by hub id, from a local stand-in of the hub."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hub
import pytest

from safetyspace_fast.data import read_samples
from safetyspace_fast.errors import ConfigError, DataError

REPO = "textdetox/toxicity"


def write_language(revision: Path, lang: str, words: list[str]) -> None:
    path = revision / "data" / f"{lang}-00000-of-00001.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": word, "toxic": i % 2} for i, word in enumerate(words)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "hub" / "datasets" / REPO
    write_language(folder / "main", "en", ["kind", "rude"])
    write_language(folder / "main", "de", ["nett", "frech"])
    (folder / "main" / "toxicity.py").write_text("raise SystemExit('a script was run')")
    (folder / "main" / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    return folder


@pytest.fixture
def url(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with hub.serve(tmp_path / "hub") as url:
        hub.point_client_at(url, tmp_path / "cache", monkeypatch)
        yield url


def test_split_per_language_data_set(url: str, repo: Path) -> None:
    notes: list[str] = []
    samples = read_samples(REPO, on_note=notes.append)
    assert samples.name == REPO
    assert samples.languages == ("de", "en")
    assert samples.texts == ["nett", "frech", "kind", "rude"]
    assert samples.labels.tolist() == [0, 1, 0, 1]
    assert notes == [f"{REPO}: hub revision {hub.commit_of(repo / 'main')}"]


def test_splits_are_read_by_name(url: str, repo: Path) -> None:
    for split in ("full", "small"):
        write_language(repo / "main", split, ["kind", "rude", split])
    (repo / "main" / "data" / "dataset_infos.json").write_text("{}")
    notes: list[str] = []
    samples = read_samples(REPO, lang="en", on_note=notes.append)
    assert samples.splits == ({"other": 4, "full": 3, "small": 3}, 2)
    assert any("splits read together: other (4 texts), full (3 texts)" in note for note in notes)
    assert sorted(read_samples(REPO, split="small", lang="en").texts) == ["kind", "rude", "small"]


def test_only_data_files_are_fetched(url: str, tmp_path: Path) -> None:
    read_samples(REPO)
    fetched = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/**/*.*")}
    assert fetched == {"en-00000-of-00001.jsonl", "de-00000-of-00001.jsonl"}


def test_a_pinned_revision_stays_what_it_was(url: str, repo: Path) -> None:
    before = read_samples(REPO)
    commit = hub.commit_of(repo / "main")
    shutil.copytree(repo / "main", repo / "v1.0")
    write_language(repo / "main", "en", ["kind", "rude", "polite", "gruff"])
    assert len(read_samples(REPO)) == 6
    for pinned in (
        read_samples(f"{REPO}@v1.0"),
        read_samples(f"{REPO}@{commit}"),
        read_samples(REPO, revision="v1.0"),
        read_samples(f"{REPO}@v1.0", revision="v1.0"),
    ):
        assert pinned.sha256 == before.sha256


def test_two_different_revisions_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="revision 'v2' is given too"):
        read_samples(f"{REPO}@v1", revision="v2")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("textdetox/nowhere", "textdetox/nowhere: neither a local path nor a data set on the hub"),
        (f"{REPO}@v9", "no revision 'v9' on the hub"),
        ("textdetox/a--b", "textdetox/a--b: not a hub id"),
    ],
)
def test_what_is_not_there_is_named(url: str, source: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_samples(source)
    assert "\n" not in str(caught.value)


def test_gated_data_set(url: str, repo: Path) -> None:
    (repo / "GATED").touch()
    with pytest.raises(DataError, match="gated data set: accept its terms"):
        read_samples(REPO)


def test_a_data_set_without_data_files(url: str, repo: Path) -> None:
    shutil.rmtree(repo / "main" / "data")
    with pytest.raises(DataError, match=r"no data files: expected \.jsonl"):
        read_samples(REPO)


def test_offline_uses_the_cache_or_says_so(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="can neither be fetched from the hub nor found"):
        read_samples(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    online = read_samples(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read_samples(REPO).sha256 == online.sha256


def test_an_unreachable_hub_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub.serve(tmp_path) as url:
        pass  # the port is closed again
    hub.point_client_at(url, tmp_path / "cache", monkeypatch)
    with pytest.raises(DataError, match="go online, or give the path of a copy") as caught:
        read_samples(REPO)
    assert "\n" not in str(caught.value)


def test_a_new_process_reads_the_environment(url: str, tmp_path: Path) -> None:
    script = f"from safetyspace_fast.data import read_samples; print(len(read_samples({REPO!r})))"
    env = hub.environment(url, tmp_path / "home")
    result = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    )
    assert result.stdout == "4\n"


def test_a_local_path_wins_over_a_hub_id(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_language(tmp_path / REPO, "fr", ["gentil", "grossier"])
    monkeypatch.chdir(tmp_path)
    assert read_samples(REPO).languages == ("fr",)
