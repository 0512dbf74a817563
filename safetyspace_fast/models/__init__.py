"""Models: loading, hookpoints, and the tokens that belong to a text."""

from .layers import resolve_layers
from .loading import LoadedModel, load_model
from .packing import PackedLinear, pack_linears, unpack_linears
from .spec import ModelSpec, parse_model
from .tokens import Template, Tokenized, tokenize

__all__ = [
    "LoadedModel",
    "ModelSpec",
    "PackedLinear",
    "Template",
    "Tokenized",
    "load_model",
    "pack_linears",
    "parse_model",
    "resolve_layers",
    "tokenize",
    "unpack_linears",
]
