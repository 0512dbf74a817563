"""Models: loading, tokens and spans, hookpoints, the shared prefix, faster layers for CPUs."""

from .device import ATTENTION, device_errors, memory_errors
from .fused import GatedLinear, PackedLinear, fuse, unfuse
from .layers import DeepestLayerReached, block_output, hookpoint_names, resolve_layers
from .loading import LoadedModel, find_sources, load_model, weights_changed
from .sharded import PATIENCE, RankOutOfMemoryError, check_plan, follow, join
from .spec import ModelSpec, parse_model
from .streamed import StreamedBlocks, starting_with
from .templates import choose_templates
from .tokens import Template, Tokenized, share_prefix, to_device, tokenize
from .weights import quiet_transformers

__all__ = [
    "ATTENTION",
    "PATIENCE",
    "DeepestLayerReached",
    "GatedLinear",
    "LoadedModel",
    "ModelSpec",
    "PackedLinear",
    "RankOutOfMemoryError",
    "StreamedBlocks",
    "Template",
    "Tokenized",
    "block_output",
    "check_plan",
    "choose_templates",
    "device_errors",
    "find_sources",
    "follow",
    "fuse",
    "hookpoint_names",
    "join",
    "load_model",
    "memory_errors",
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
