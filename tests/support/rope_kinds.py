"""Named RoPE settings for transformers' Llama, difficult on purpose, with float64 frequencies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lcjax.config import LlamaConfig

CONTEXT = 4096
# On both sides of the original context of each kind, and far above it.
LENGTHS = (1, 4095, 4096, 4097, 8192, 8193, 32_768, 131_072, 1_000_000)
PAIRS = 32


def _searched(last: float) -> list[float]:
    return [round(1.0 + (last - 1.0) * (i / (PAIRS - 1)) ** 2, 3) for i in range(PAIRS)]


KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 100_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0},
    "dynamic, factor 8": {"rope_type": "dynamic", "rope_theta": 500_000.0, "factor": 8.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 32.0, "original_max_position_embeddings": 4096},
    "yarn, DeepSeek": {
        "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0,
        "mscale_all_dim": 0.707, "beta_fast": 32, "beta_slow": 1,
    },
    "yarn, not truncated": {
        "rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0, "original_max_position_embeddings": 4096,
        "truncate": False, "beta_fast": 20.0, "beta_slow": 1.5,
    },
    "yarn, own attention factor": {
        "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 4096,
        "attention_factor": 0.9,
    },
    "longrope": {
        "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 4096, "factor": 32.0,
        "short_factor": _searched(1.6), "long_factor": _searched(60.0),
    },
    "longrope, own attention factor": {
        "rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 8192, "factor": 4.0,
        "short_factor": _searched(1.0), "long_factor": _searched(5.0), "attention_factor": 1.25,
    },
    "llama3": {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


def hugging_face(name: str, head_dim: int = 2 * PAIRS, **changes: Any) -> transformers.LlamaConfig:
    """Returns transformers' config of a kind. For dynamic, the context is the original one."""
    rope = KINDS[name] | changes
    extended = {"default": 1, "dynamic": 1, "linear": 3}.get(rope["rope_type"], 32)
    return transformers.LlamaConfig(
        vocab_size=8,
        hidden_size=4 * head_dim,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=CONTEXT * extended,
        rope_parameters=dict(rope),
    )


def ours(name: str, **changes: Any) -> LlamaConfig:
    """Returns the same config, read from the config.json that transformers writes."""
    return LlamaConfig.from_dict(hugging_face(name, **changes).to_dict())


def transformers_frequencies(config: transformers.LlamaConfig, tokens: int) -> tuple[np.ndarray, float]:
    """Returns (float32 frequencies, attention factor) for a sequence length."""
    rope_type = config.rope_parameters["rope_type"]
    if rope_type == "default":
        return LlamaRotaryEmbedding.compute_default_rope_parameters(config)[0].numpy(), 1.0
    # A tensor, as in transformers' forward pass.
    length: Any = torch.tensor(tokens) if rope_type == "dynamic" else tokens
    frequencies, factor = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), length)
    return frequencies.numpy(), factor


def exact_frequencies(config: LlamaConfig, tokens: int) -> np.ndarray:
    """Returns float64 frequencies by the formulas of the papers, independent of the code."""
    scaling, dimensions = config.rope_scaling, config.rotary_dim
    pairs = np.arange(0, dimensions, 2)
    base, context, factor = config.rope_theta, scaling.original_max_position_embeddings, scaling.factor
    plain = base ** (-pairs / dimensions)
    match scaling.rope_type:
        case "default":
            return plain
        case "linear":
            return plain / factor
        case "dynamic":
            length = max(tokens, config.max_position_embeddings)
            stretch = factor * length / config.max_position_embeddings - (factor - 1)
            return (base * stretch ** (dimensions / (dimensions - 2))) ** (-pairs / dimensions)
        case "yarn":
            dimension = lambda turns: dimensions * np.log(context / (turns * 2 * np.pi)) / (2 * np.log(base))  # noqa: E731
            low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
            if scaling.truncate:
                low, high = np.floor(low), np.ceil(high)
            ramp = np.clip((pairs / 2 - max(low, 0)) / (min(high, dimensions - 1) - max(low, 0)), 0, 1)
            return plain * ((1 - ramp) + ramp / factor)
        case "longrope":
            return plain / np.array(scaling.long_factor if tokens > context else scaling.short_factor)
        case "llama3":
            waves = context * plain / (2 * np.pi)
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            keep = np.clip((waves - low) / (high - low), 0, 1)
            return plain * (keep + (1 - keep) / factor)
    raise AssertionError(scaling.rope_type)


def exact_attention_factor(config: LlamaConfig) -> float:
    """Returns the float64 factor by the formulas of the papers."""
    scaling = config.rope_scaling
    if scaling.rope_type not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.rope_type == "longrope":
        return float(np.sqrt(1 + np.log(scaling.factor) / np.log(scaling.original_max_position_embeddings)))
    sharpened = lambda mscale: 1 + 0.1 * mscale * np.log(scaling.factor)  # noqa: E731
    if scaling.mscale and scaling.mscale_all_dim:
        return sharpened(scaling.mscale) / sharpened(scaling.mscale_all_dim)
    return sharpened(1.0)


def with_exact_angles(model, config: LlamaConfig):
    """Changes a float64 model of transformers to use float64 angles by the papers' formulas."""

    def forward(x, position_ids):
        frequencies = torch.from_numpy(exact_frequencies(config, int(position_ids.max()) + 1))
        angles = position_ids[..., None].double() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return tuple(exact_attention_factor(config) * f(angles) for f in (torch.cos, torch.sin))

    model.model.rotary_emb.forward = forward
    return model
