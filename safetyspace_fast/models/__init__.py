"""Models: loading, tokens and spans, hookpoints, the shared prefix, faster layers for CPUs."""

from .device import device_errors
from .fused import GatedLinear, PackedLinear, fuse, unfuse
from .layers import block_output, hookpoint_names, resolve_layers
from .loading import LoadedModel, find_sources, load_model, weights_changed
from .spec import ModelSpec, parse_model
from .streamed import StreamedBlocks, starting_with
from .templates import choose_templates
from .tokens import Template, Tokenized, share_prefix, to_device, tokenize
from .weights import quiet_transformers

__all__ = [
    "GatedLinear",
    "LoadedModel",
    "ModelSpec",
    "PackedLinear",
    "StreamedBlocks",
    "Template",
    "Tokenized",
    "block_output",
    "choose_templates",
    "device_errors",
    "find_sources",
    "fuse",
    "hookpoint_names",
    "load_model",
    "parse_model",
    "quiet_transformers",
    "resolve_layers",
    "share_prefix",
    "starting_with",
    "to_device",
    "tokenize",
    "unfuse",
    "weights_changed",
]
