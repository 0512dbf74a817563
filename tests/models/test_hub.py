"""Models of the hub, from a server on this machine."""

import shutil

import hub
import pytest
import torch
from loaded import last_states, refused

from safetyspace_fast.errors import ModelError
from safetyspace_fast.models import ModelSpec, load_model, parse_model


@pytest.fixture
def hub_id(llama, tmp_path, monkeypatch):
    """A model on a local stand-in of the hub, beside files that are not to be fetched."""
    folder = shutil.copytree(llama, tmp_path / "hub" / "models" / "someone" / "tiny" / "main")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"a copy")
    shutil.copytree(folder, folder.parent / "v2")
    (folder.parent / "v2" / "README.txt").write_text("second")
    with hub.serve(tmp_path / "hub") as url:
        hub.point_client_at(url, tmp_path / "cache", monkeypatch)
        yield "someone/tiny"


def test_hub_id_loads_and_is_pinned(hub_id, llama, tmp_path):
    model = load_model(parse_model(hub_id))
    main = hub.commit_of(tmp_path / "hub" / "models" / hub_id / "main")
    assert (model.name, model.identity["id"], model.identity["commit"]) == ("tiny", hub_id, main)
    expected = load_model(ModelSpec("m", str(llama)))
    assert model.identity["weights_sha256"] == expected.identity["weights_sha256"]
    torch.testing.assert_close(last_states(model), last_states(expected), rtol=0, atol=0)
    fetched = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert "model.safetensors" in fetched
    assert not {"pytorch_model.bin", "onnx"} & fetched

    second = load_model(parse_model(f"{hub_id}@v2"))
    v2 = hub.commit_of(tmp_path / "hub" / "models" / hub_id / "v2")
    assert (second.identity["revision"], second.identity["commit"]) == ("v2", v2)


def test_hub_adapter(hub_id, lora, llama, tmp_path):
    shutil.copytree(lora, tmp_path / "hub" / "models" / "someone" / "lora" / "main")
    model = load_model(parse_model(f"{hub_id}+someone/lora@main"))
    expected = load_model(parse_model(f"{llama}+{lora}"))
    torch.testing.assert_close(last_states(model), last_states(expected), rtol=0, atol=0)
    commit = model.identity["adapter_commit"]
    assert commit == hub.commit_of(tmp_path / "hub" / "models" / "someone" / "lora" / "main")

    chain = load_model(parse_model(f"{hub_id}+someone/lora@main+{lora}+someone/lora"))
    assert chain.identity["adapter"] == f"someone/lora@main+{lora}+someone/lora"
    assert chain.identity["adapter_commit"] == f"{commit}++{commit}"


def test_hub_refusals(hub_id, tmp_path):
    refused(
        "someone/absent", "someone/absent: no such directory, and the model hub does not give it"
    )
    refused(f"{hub_id}@v3", "at revision v3")
    (tmp_path / "hub" / "models" / hub_id / "GATED").touch()
    refused(hub_id, "GatedRepoError.*ask for access on its page")


def test_hub_model_with_pickles_only(hub_id, tmp_path):
    (tmp_path / "hub" / "models" / hub_id / "main" / "model.safetensors").unlink()
    refused(hub_id, "it has no weights: expected model.safetensors")


def test_hub_out_of_reach(monkeypatch, tmp_path):
    hub.point_client_at("http://127.0.0.1:9", tmp_path, monkeypatch)
    error = refused("someone/tiny", "the model hub does not give it")
    assert isinstance(error, ModelError)
