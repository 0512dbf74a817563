"""Tokenizers of equal files are loaded once; files that stay as they are are hashed once."""

import gc
import hashlib
import os
import shutil
from pathlib import Path

import pytest
import transformers
from tiny_models import save_tiny

from safetyspace_fast.models import tokenizer as tokenizers
from safetyspace_fast.models.source import Source, sha256
from safetyspace_fast.models.tokenizer import KEPT_TOKENIZERS, load_tokenizer


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders from which transformers reads a tokenizer."""
    monkeypatch.setattr(tokenizers, "_recent", {})
    folders: list[Path] = []
    plain = transformers.AutoTokenizer.from_pretrained

    def noted(folder: Path, **options: object):
        folders.append(folder)
        assert not gc.isenabled()
        return plain(folder, **options)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", noted)
    return folders


def test_models_with_the_same_files_share_a_tokenizer_but_no_template(
    tmp_path: Path, loaded: list[Path]
) -> None:
    save_tiny("llama", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = (load_tokenizer(Source(name, tmp_path / name), False) for name in "ab")
    assert loaded == [tmp_path / "a"]
    assert gc.isenabled()
    first.chat_template = "{{ messages }}"
    assert not second.chat_template
    assert not load_tokenizer(Source("a", tmp_path / "a"), False).chat_template
    assert first("so be it").input_ids == second("so be it").input_ids


@pytest.mark.parametrize(
    "file", ["tokenizer_config.json", "chat_template.jinja", "tokenizer.json", "config.json"]
)
def test_a_tokenizer_of_other_files_is_another(
    tmp_path: Path, loaded: list[Path], file: str
) -> None:
    save_tiny("llama", tmp_path / "a", chat_template="{{ messages }}")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    changed = tmp_path / "b" / file
    text = changed.read_text()
    if file == "config.json":
        text = text.replace('"model_type": "llama"', '"model_type": "mistral"')
    changed.write_text(text + "\n")
    for name in "ab":
        load_tokenizer(Source(name, tmp_path / name), False)
    assert len(loaded) == 2


def test_code_that_comes_with_a_model_is_run_for_each_and_few_are_kept(
    tmp_path: Path, loaded: list[Path]
) -> None:
    save_tiny("llama", tmp_path / "a")
    for _ in range(2):
        load_tokenizer(Source("a", tmp_path / "a"), True)
    assert len(loaded) == 2
    for number in range(KEPT_TOKENIZERS + 1):
        template = f"{number} {{{{ messages }}}}"
        save_tiny("llama", tmp_path / str(number), chat_template=template)
        load_tokenizer(Source("x", tmp_path / str(number)), False)
    assert len(tokenizers._recent) == KEPT_TOKENIZERS


def test_notes_come_with_a_shared_tokenizer_too(
    tmp_path: Path, loaded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny("llama", tmp_path / "a")
    monkeypatch.setattr(tokenizers, "_check_bos", lambda _source, _tokenizer, note: note("of it"))
    notes: list[str] = []
    for _ in range(2):
        load_tokenizer(Source("a", tmp_path / "a"), False, notes.append)
    assert (len(loaded), notes) == (1, ["of it", "of it"])


def test_a_file_is_hashed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    plain = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: (read.append(1), plain(*args))[1])
    file = tmp_path / "weights"
    for number, content in enumerate((b"one", b"two", b"three"), 1):
        file.write_bytes(content)
        os.utime(file, ns=(number, number))  # not all disks tell times of milliseconds apart
        for _ in range(2):
            assert sha256(file) == hashlib.sha256(content).hexdigest()
        assert len(read) == number
