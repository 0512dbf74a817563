"""Models: loading, tokens and spans, hookpoints, the shared prefix, faster layers for CPUs."""

from .device import attention_kernels, device_errors, memory_errors
from .fused import GatedLinear, PackedLinear, fuse, unfuse
from .identity import weights_changed
from .layers import DeepestLayerReached, block_output, hookpoint_names, resolve_layers
from .loading import load_model
from .model import LoadedModel
from .quiet import quiet_transformers
from .sharded import PATIENCE, RankOutOfMemoryError, check_plan, follow, join
from .source import find_sources
from .spec import ModelSpec, parse_model
from .streamed import StreamedBlocks, starting_with
from .templates import choose_templates
from .tokens import Template, Tokenized, share_prefix, to_device, tokenize

__all__ = [
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
    "attention_kernels",
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
