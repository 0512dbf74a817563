"""Tiny random models of many architectures, as directories that transformers loads."""

from functools import cache
from pathlib import Path
from typing import Any

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

# Sliding windows are shorter than the test texts, so that they take part.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8},
    "gemma3_text": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "phi3": {"num_key_value_heads": 2},
    "gpt2": {},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": HIDDEN_SIZE},
    "bloom": {},
    "falcon": {},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
}

# Models whose tokens see those to their right; of t5 the encoder is read.
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "xlm-roberta": {},
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
    return transformers.AutoConfig.for_model(
        name, **(options | (ARCHITECTURES | ENCODERS).get(name, {}) | changes)
    )


def tiny_model(name: str, **changes: Any) -> transformers.PreTrainedModel:
    """A random model; the same name and changes give the same weights."""
    torch.manual_seed(0)
    config = tiny_config(name, **changes)
    auto = transformers.AutoModelForCausalLM
    if name in ENCODERS:
        seq2seq = config.is_encoder_decoder
        auto = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForMaskedLM
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


def tiny_tokenizer(chat_template: str | None = None) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of VOCABULARY tokens that adds BOS; it reads any text."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(_byte_level_bpe()),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=chat_template,
    )


def save_tiny(name: str, path: Path, *, chat_template: str | None = None, **changes: Any) -> Path:
    """Write a tiny model and its tokenizer to a directory, and return it."""
    tiny_model(name, **changes).save_pretrained(path)
    tiny_tokenizer(chat_template).save_pretrained(path)
    return path
