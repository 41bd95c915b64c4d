"""Models by name, with the shapes in their published config.json files.

Sources: meta-llama/Llama-3.1-8B, -70B, -405B, Llama-3.2-1B, -3B, Llama-3.3-70B-Instruct;
HuggingFaceTB/SmolLM2-135M; TinyLlama/TinyLlama_v1.1; mistralai/Mistral-7B-v0.1 (with a window of
4,096 tokens) and -v0.3 (with full attention); Qwen/Qwen2.5-0.5B, -7B, -32B, -72B; Qwen/Qwen3-0.6B,
-4B, -8B, -14B, -32B.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lcjax.config import LlamaConfig, RopeScaling
from lcjax.errors import InputError, unknown

_LLAMA_3_1_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    ),
    bos_token_id=128_000,
    eos_token_id=128_001,
)
_LLAMA_3_1_70B = dataclasses.replace(
    _LLAMA_3_1_8B, hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80, num_attention_heads=64
)
_LLAMA_3_2_1B = dataclasses.replace(
    _LLAMA_3_1_8B,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    head_dim=64,
    rope_scaling=dataclasses.replace(_LLAMA_3_1_8B.rope_scaling, factor=32.0),
    tie_word_embeddings=True,
)

_MISTRAL_7B = LlamaConfig(
    vocab_size=32_768,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=32_768,
    rms_norm_eps=1e-5,
    rope_theta=1_000_000.0,
    bos_token_id=1,
    eos_token_id=2,
    model_type="mistral",
)
_QWEN2_5_7B = LlamaConfig(
    vocab_size=152_064,
    hidden_size=3584,
    intermediate_size=18_944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    head_dim=128,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-6,
    rope_theta=1_000_000.0,
    bos_token_id=151_643,
    eos_token_id=151_643,
    model_type="qwen2",
)
_QWEN2_5_72B = dataclasses.replace(
    _QWEN2_5_7B,
    hidden_size=8192,
    intermediate_size=29_568,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    rms_norm_eps=1e-5,
)
_QWEN3_8B = LlamaConfig(
    vocab_size=151_936,
    hidden_size=4096,
    intermediate_size=12_288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40_960,
    rms_norm_eps=1e-6,
    rope_theta=1_000_000.0,
    bos_token_id=151_643,
    eos_token_id=151_645,
    model_type="qwen3",
)

PRESETS: dict[str, LlamaConfig] = {
    "llama-3.1-8b": _LLAMA_3_1_8B,
    "llama-3.2-1b": _LLAMA_3_2_1B,
    "llama-3.2-3b": dataclasses.replace(
        _LLAMA_3_2_1B, hidden_size=3072, num_hidden_layers=28, num_attention_heads=24, head_dim=128
    ),
    "llama-3.1-70b": _LLAMA_3_1_70B,
    "llama-3.3-70b": dataclasses.replace(_LLAMA_3_1_70B, eos_token_id=(128_001, 128_008, 128_009)),
    "llama-3.1-405b": dataclasses.replace(
        _LLAMA_3_1_8B, hidden_size=16_384, intermediate_size=53_248, num_hidden_layers=126, num_attention_heads=128
    ),
    "smollm2-135m": LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100_000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    ),
    "tinyllama-1.1b": LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "mistral-7b": _MISTRAL_7B,
    "mistral-7b-v0.1": dataclasses.replace(_MISTRAL_7B, vocab_size=32_000, rope_theta=10_000.0, sliding_window=4096),
    "qwen2.5-0.5b": dataclasses.replace(
        _QWEN2_5_7B,
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    ),
    "qwen2.5-7b": _QWEN2_5_7B,
    "qwen2.5-32b": dataclasses.replace(
        _QWEN2_5_72B, hidden_size=5120, intermediate_size=27_648, num_hidden_layers=64, num_attention_heads=40
    ),
    "qwen2.5-72b": _QWEN2_5_72B,
    "qwen3-0.6b": dataclasses.replace(
        _QWEN3_8B,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        tie_word_embeddings=True,
    ),
    "qwen3-4b": dataclasses.replace(_QWEN3_8B, hidden_size=2560, intermediate_size=9728, tie_word_embeddings=True),
    "qwen3-8b": _QWEN3_8B,
    "qwen3-14b": dataclasses.replace(
        _QWEN3_8B, hidden_size=5120, intermediate_size=17_408, num_hidden_layers=40, num_attention_heads=40
    ),
    "qwen3-32b": dataclasses.replace(
        _QWEN3_8B, hidden_size=5120, intermediate_size=25_600, num_hidden_layers=64, num_attention_heads=64
    ),
}


def resolve_config(model: str) -> LlamaConfig:
    """The shape of a model: of a preset, of a config.json, or of the config.json in a directory.

    Raises:
      InputError: it is none of these, with the nearest presets; or the config.json is incomplete.
    """
    if model.lower() in PRESETS:
        return PRESETS[model.lower()]
    path = Path(model)
    if path.is_dir():
        path /= "config.json"
    elif not path.is_file():
        raise InputError(f"{unknown('model', model, PRESETS)}, or the path of a config.json")
    return LlamaConfig.from_json(path)
