"""What a tiny model gives once it is loaded, and how a refusal reads."""

import pytest
import torch

from safetyspace_fast.errors import SafetySpaceError
from safetyspace_fast.models import ModelSpec, load_model, parse_model

IDS = torch.tensor([[5, 17, 300, 42, 9]])


def last_states(model):
    """The last hidden state of IDS, `[1, T, D]`."""
    with torch.no_grad():
        mask = {} if model.causal else {"attention_mask": torch.ones_like(IDS)}
        return model.backbone(input_ids=IDS, use_cache=False, **mask).last_hidden_state


def load(spec, **options):
    """Load what a user typed; return the model and the notes."""
    notes = []
    model = load_model(parse_model(f"m={spec}"), on_note=notes.append, **options)
    assert all("\n" not in note for note in notes)
    return model, notes


def refused(spec, match, **options):
    """Assert that loading is refused in one line that matches; return the error."""
    with pytest.raises(SafetySpaceError, match=match) as caught:
        load_model(spec if isinstance(spec, ModelSpec) else parse_model(f"m={spec}"), **options)
    assert "\n" not in str(caught.value)
    return caught.value
