"""Models: loading, hookpoints, and the tokens that belong to a text."""

from .layers import resolve_layers
from .loading import LoadedModel, load_model
from .spec import ModelSpec, parse_model
from .tokens import Template, Tokenized, tokenize

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
