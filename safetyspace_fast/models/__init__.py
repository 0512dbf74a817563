"""Models: loading, hookpoints, and the tokens that belong to a text."""

from safetyspace_fast.models.layers import resolve_layers
from safetyspace_fast.models.loading import LoadedModel, load_model
from safetyspace_fast.models.spec import ModelSpec, parse_model
from safetyspace_fast.models.tokens import Template, Tokenized, tokenize

__all__ = [
    "LoadedModel",
    "ModelSpec",
    "Template",
    "Tokenized",
    "load_model",
    "parse_model",
    "resolve_layers",
    "tokenize",
]
