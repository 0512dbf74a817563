"""Keys and values of the tokens that all prompts begin with."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_tiny

from safetyspace_fast.errors import ModelError
from safetyspace_fast.models import (
    LoadedModel,
    Template,
    Tokenized,
    load_model,
    parse_model,
    share_prefix,
)
from safetyspace_fast.models.prefix import SharedPrefix

IDS = torch.tensor([5, 9, 7, 6, 8])
ENDS = torch.tensor([[10, 11, 12], [13, 14, 15], [12, 12, 11]])


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    return load_model(parse_model(str(save_tiny("llama", tmp_path / "llama"))))


def test_forward_passes_leave_a_prefix_as_it_was(model: LoadedModel) -> None:
    prefix = SharedPrefix.of(model.backbone, IDS)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in prefix.layers]
    both = torch.cat([IDS.expand(len(ENDS), -1), ENDS], 1)
    with torch.no_grad():
        expected = model.backbone(input_ids=both, use_cache=False).last_hidden_state[:, len(IDS) :]
        for rows in (slice(0, 3), slice(1, 2), slice(0, 3)):
            states = model.backbone(
                input_ids=ENDS[rows], past_key_values=prefix, use_cache=True
            ).last_hidden_state
            torch.testing.assert_close(states, expected[rows], rtol=1e-4, atol=1e-5)
    for layer, (keys, values) in zip(prefix.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)
        assert keys.shape == (1, 2, len(IDS), 16)


def test_attention_reads_the_prefix_before_the_batch(model: LoadedModel) -> None:
    prefix = SharedPrefix.of(model.backbone, IDS)
    new = torch.randn(2, 3, 2, 3, 16).unbind()
    for got, kept, added in zip(
        prefix.update(*new[:2], 1), (prefix.layers[1].keys, prefix.layers[1].values), new[:2],
        strict=True,
    ):  # fmt: skip
        assert got.shape == (3, 2, len(IDS) + 3, 16)
        assert all(torch.equal(row, kept[0]) for row in got[:, :, : len(IDS)])
        assert torch.equal(got[:, :, len(IDS) :], added)


@pytest.mark.parametrize(
    ("mask", "hides_nothing"),
    [
        (torch.ones(2, 1, 3, 8, dtype=torch.bool).tril(5), True),
        (torch.ones(2, 1, 3, 8, dtype=torch.bool).tril(5).triu(3), False),
        (torch.ones(2, 1, 3, 8, dtype=torch.bool), False),
        (torch.ones(2, 1, 3, 8).tril(5), False),  # added to scores: ones mean something else
    ],
)
def test_a_mask_that_hides_earlier_tokens_is_told(
    model: LoadedModel, mask: torch.Tensor, hides_nothing: bool
) -> None:
    prefix = SharedPrefix.of(model.backbone, IDS)
    for layer_idx in (0, 2):  # the second time from what the first found
        before = prefix.before(layer_idx, mask)
        assert (before is not None) == hides_nothing
        if before is not None:
            assert torch.equal(before[0], prefix.layers[layer_idx].keys[0])
            assert torch.equal(before[1], prefix.layers[layer_idx].values[0])


def test_a_model_that_keeps_more_than_keys_and_values_is_refused(tmp_path: Path) -> None:
    model = load_model(parse_model(str(save_tiny("mamba", tmp_path / "mamba"))))
    with pytest.raises(ModelError, match="keeps more than their keys and values"):
        SharedPrefix.of(model.backbone, IDS)


@pytest.mark.parametrize(("behind", "shared"), [(20, True), (400, False)])
def test_on_a_gpu_a_short_prefix_before_long_texts_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: int, shared: bool
) -> None:
    """Attention behind a prefix needs a mask, so it saves less than it costs."""
    model = load_model(parse_model(str(save_tiny("llama", tmp_path / "m"))))
    ids = np.arange(2 * (8 + behind), dtype=np.int32) % 50
    ids[8 + behind : 16 + behind] = ids[:8]
    starts = np.array([0, 8 + behind, 16 + 2 * behind])
    spans = np.array([[[8, 8 + behind]]] * 2, np.int32)
    no = np.zeros(2, bool)
    count = np.full(2, behind, np.int32)
    tokens = Tokenized(ids, starts, spans, count, no, no, ("mean",), Template("none"), 8)
    assert share_prefix(model, tokens)[0] is not None
    on_a_gpu = dataclasses.replace(model, device=torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    assert (share_prefix(on_a_gpu, tokens)[0] is not None) == shared
