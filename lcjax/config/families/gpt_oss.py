"""gpt-oss: sinks in attention, biases, a window in every other layer, and experts.

Source: transformers 5, `models/gpt_oss/configuration_gpt_oss.py`; OpenAI, gpt-oss model card,
arXiv 2508.10925; llama.cpp, `conversion/gpt_oss.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lcjax.config.families import experts, windows
from lcjax.config.families.family import AttentionView, Family
from lcjax.config.families.parameters.common import joint_expert_linear, router
from lcjax.config.families.parameters.decoder import decoder_parameters
from lcjax.config.families.parameters.norms import Norms

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

KEYS = {
    "vocab_size": 201_088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150_000.0,
    "tie_word_embeddings": False,
    "attention_bias": True,
    "sliding_window": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}
OWN_KEYS = {"layer_types": None}
_OF_EXPERTS = {
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_limit": 7.0,
    "swiglu_alpha": 1.702,
    "router_aux_loss_coef": 0.001,
}
_FORMATS = ("mxfp4",)

NORMS = Norms(in_float32=True)
"""Those of Llama, rounded after the product with their weights."""

ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""The scaling of RoPE if config.json has none."""


def flattened(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """config.json with the default scaling of RoPE if it has none, and its kind of quantization."""
    method = (config.get("quantization_config") or {}).get("quant_method")
    config = {**config, experts.STORED_FORMAT: method if method in _FORMATS else None}
    if config.get("rope_scaling") or config.get("rope_parameters"):
        return config
    return {**config, "rope_parameters": ROPE}


def has_bias(config: LlamaConfig) -> bool:
    """Whether the four linear maps of attention have biases."""
    return config.attention_bias


def sees(config: LlamaConfig, layer: int) -> AttentionView:
    """Without `layer_types`, the first layer and every second one after it have a window."""
    return AttentionView(window=windows.window(config, _kinds(config)[layer]))


def refusal(config: LlamaConfig) -> str | None:
    return windows.refusal(config, _kinds(config))


def _kinds(config: LlamaConfig) -> tuple[str, ...]:
    if (given := config.own_value("layer_types")) is not None:
        return given
    return _alternating(config.num_hidden_layers)


def _alternating(layers: int) -> tuple[str, ...]:
    return tuple(windows.FULL if layer % 2 else windows.WINDOW for layer in range(layers))


def _written(values: dict[str, Any]) -> dict[str, Any]:
    """Weights are written without quantization."""
    return {key: value for key, value in values.items() if key != experts.STORED_FORMAT}


def _experts(config: LlamaConfig) -> experts.Experts:
    return experts.Experts(
        count=config.own_value("num_local_experts"),
        per_token=config.own_value("num_experts_per_tok"),
        width=config.intermediate_size,
        sums_to_one=True,
        router_aux_loss_coef=config.own_value("router_aux_loss_coef"),
        limit=config.own_value("swiglu_limit"),
        sharpness=config.own_value("swiglu_alpha"),
        stored_format=config.own_value(experts.STORED_FORMAT),
    )


def _refusal(config: LlamaConfig) -> str | None:
    for key in ("swiglu_limit", "swiglu_alpha"):
        value = config.own_value(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            return f"{key}={value!r} is not a positive number"
    return refusal(config) or experts.refusal(config, "num_local_experts")


def _gguf_refusal(config: LlamaConfig) -> str | None:
    if _kinds(config) != _alternating(config.num_hidden_layers):
        return "layer_types other than a window in the first layer and every second one after it"
    return None if config.attention_bias else "attention_bias=false"


GPT_OSS = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    keys=KEYS,
    own_keys={**OWN_KEYS, **_OF_EXPERTS, experts.STORED_FORMAT: None},
    parameters=decoder_parameters(
        qkv_bias=has_bias,
        output_bias=has_bias,
        norms=NORMS,
        sinks=True,
        gguf_before_mlp="post_attention_norm",
        mlp=(
            *router("router", has_bias=True),
            *joint_expert_linear(
                "gate_up_proj", "ffn_gate_exps", "expert_gate_and_mlp", "embed", gguf_odd="ffn_up_exps"
            ),
            *joint_expert_linear("down_proj", "ffn_down_exps", "embed", "expert_mlp"),
        ),
    ),
    norms=NORMS,
    sees=sees,
    experts=_experts,
    refusal=_refusal,
    flattened=flattened,
    written=_written,
    stored_formats=_FORMATS,
    gguf_architecture="gpt-oss",
    gguf_keys={
        "attention.sliding_window": "sliding_window",
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "intermediate_size",
    },
    gguf_derived=lambda config: {key: _OF_EXPERTS[key] for key in ("swiglu_limit", "swiglu_alpha")},
    gguf_refusal=_gguf_refusal,
    gguf_yarn_truncates=False,
)
