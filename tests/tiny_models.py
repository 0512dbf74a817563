"""Tiny random models of many architectures, as directories that transformers loads."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import tokenizers
import torch
import transformers

VOCABULARY = 512
BOS, EOS, PAD = 0, 1, 2
NUM_BLOCKS = 3
HIDDEN_SIZE = 32

# Trains the tokenizer, so that common pairs of letters of several scripts become one token.
TRAINING_TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "श्रीमान की यह बात सुनकर सब लोग हँस पड़े।",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "天地玄黄,宇宙洪荒。日月盈昃,辰宿列张。",
    "ሰላም ለዓለም ሁሉ ይሁን።",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '[' + message['role'] + ']\n' + message['content'] | trim + '[end]\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"
)

# 32 keys and values of a token: what may be packed and fused is.
_GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
# Sliding windows are shorter than the test texts, so that they take part.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "gemma2": _GROUPED | {"sliding_window": 8},
    "gemma3_text": _GROUPED
    | {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "mistral": _GROUPED | {"sliding_window": 8},
    "phi3": {"num_key_value_heads": 2},
    "gpt2": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": HIDDEN_SIZE},
    "bloom": {},
    "falcon": {},
    "mixtral": _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
}

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_SCAN = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 4,
    "mamba_chunk_size": 8,
}

# The rest of what people use; names may differ from transformers' where two variants count.
FURTHER_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gemma": _GROUPED,
    "gptj": {"rotary_dim": 4},
    "rwkv": {"context_length": 128},
    "xglm": {"d_model": HIDDEN_SIZE, "ffn_dim": 64, "num_layers": NUM_BLOCKS, "attention_heads": 4},
    "llama4_text": _GROUPED
    | {
        "num_local_experts": 2,
        "attention_chunk_size": 8,
        "intermediate_size_mlp": 64,
    },
    "falcon_new": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon_alibi": {"model_type": "falcon", "alibi": True, "parallel_attn": False},
    "olmo2": _GROUPED,
    "smollm3": _GROUPED | {"no_rope_layers": [1, 0, 1]},
    "stablelm": {"num_key_value_heads": 2},
    "cohere": _GROUPED,
    "cohere2": _GROUPED | {"sliding_window": 8},
    "granite": _GROUPED,
    "phi": {},
    "mpt": {"d_model": HIDDEN_SIZE, "n_layers": NUM_BLOCKS, "n_heads": 4, "max_seq_len": 128},
    "qwen2_moe": _GROUPED | _EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_moe": _GROUPED | _EXPERTS,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "gpt_oss": _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "mamba2": {"state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 8},
    "jamba": _GROUPED
    | {
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "bamba": _GROUPED | _SCAN | {"attn_layer_indices": [1]},
    "falcon_h1": _GROUPED | _SCAN | {"head_dim": 8, "mamba_d_ssm": 64},
    "granitemoehybrid": _GROUPED
    | _SCAN
    | {
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "zamba2": _GROUPED
    | {
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "mamba_d_state": 4,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "chunk_size": 8,
    },
    "qwen3_next": _GROUPED
    | _EXPERTS
    | {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "shared_expert_intermediate_size": 16,
    },
}

# Models whose tokens see those to their right; of mt5 the encoder is read.
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "xlm-roberta": {},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": "c2p|p2c",
        "position_buckets": 8,
    },
    "gemma3_bidirectional": {
        "model_type": "gemma3_text",
        "use_bidirectional_attention": True,
        "num_key_value_heads": 2,
        "sliding_window": 8,
    },
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 8},
    "mt5": {
        "d_model": HIDDEN_SIZE,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": NUM_BLOCKS,
        "num_heads": 4,
        "decoder_start_token_id": BOS,
    },
}

# Encoders whose states padding changes, whatever the mask says.
PADDING_READERS: dict[str, dict[str, Any]] = {
    "fnet": {},
    "convbert": {"embedding_size": HIDDEN_SIZE},
    "nystromformer": {},
    "yoso": {},
}

# The image tower of multimodal models, which is not read.
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def tiny_config(name: str, **changes: Any) -> transformers.PreTrainedConfig:
    """The configuration of a model above, or of any other that transformers knows."""
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 64,
        "num_hidden_layers": NUM_BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        # Large enough that attention, not only the embedding, shapes the states.
        "initializer_range": 0.2,
    }
    known = ARCHITECTURES | FURTHER_ARCHITECTURES | ENCODERS | PADDING_READERS
    options |= known.get(name, {}) | changes
    return transformers.AutoConfig.for_model(options.pop("model_type", name), **options)


def tiny_model(name: str, **changes: Any) -> transformers.PreTrainedModel:
    """A random model; the same name and changes give the same weights."""
    torch.manual_seed(0)
    config = tiny_config(name, **changes)
    auto = transformers.AutoModelForCausalLM
    if config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    elif type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING:
        auto = transformers.AutoModelForMaskedLM
    return auto.from_config(config, dtype=torch.float32).eval()


@cache
def _byte_level_bpe() -> str:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXTS, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return tokenizer.to_str()


def tiny_tokenizer(
    chat_template: str | None = None, *, adds_bos: bool = True
) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of VOCABULARY tokens; it reads any text."""
    tokenizer = tokenizers.Tokenizer.from_str(_byte_level_bpe())
    if not adds_bos:
        tokenizer.post_processor = tokenizers.processors.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=chat_template,
    )


def save_tiny(
    name: str,
    path: Path,
    *,
    chat_template: str | None = None,
    adds_bos: bool = True,
    **changes: Any,
) -> Path:
    """Write a tiny model and its tokenizer to a directory, and return it."""
    tiny_model(name, **changes).save_pretrained(path)
    tiny_tokenizer(chat_template, adds_bos=adds_bos).save_pretrained(path)
    return path


def save_tiny_gguf(directory: Path, target: Path) -> dict[str, torch.Tensor]:
    """Write a tiny Llama as GGUF with 8-bit matrices; return its unpacked weights."""
    gguf = pytest.importorskip("gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary["vocab"], key=vocabulary["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in state.items():
        weight = tensor.numpy()
        if tensor.ndim == 2:
            weight = gguf.quantize(weight, kind)
            state[name] = torch.from_numpy(gguf.dequantize(weight, kind))
        if "q_proj" in name or "k_proj" in name:  # llama.cpp interleaves the halves of each head
            rows = weight.reshape(-1, 2, config.head_dim // 2, weight.shape[-1])
            weight = rows.swapaxes(1, 2).reshape(weight.shape)
        raw = kind if tensor.ndim == 2 else None
        writer.add_tensor(names.get_name(name, (".weight",)), weight, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dict(state)


def save_adapter(
    base: Path,
    path: Path,
    *,
    auto: str = "AutoModelForCausalLM",
    rows: int | None = None,
    seed: int = 1,
    **options: Any,
) -> Path:
    """Write a LoRA adapter with weights that change what a model says, and return its folder.

    Args:
        base: the model that it is for.
        path: where to.
        auto: the class on which it is trained.
        rows: of the embedding, which is resized before the training.
        seed: of the weights.
        options: of peft.LoraConfig.
    """
    model = getattr(transformers, auto).from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows)
    usual = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**usual | options))
    torch.manual_seed(seed)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(path)
    return path
