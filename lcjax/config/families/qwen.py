"""Qwen2, Qwen2.5 (whose files say qwen2) and Qwen3, dense and with experts.

Qwen2 has biases of queries, keys and values. Qwen3 normalizes queries and keys instead. In Qwen3
with experts, the MLP of each layer is a mixture of them.

Source: transformers 5, `models/qwen2/configuration_qwen2.py` and `models/qwen3`; llama.cpp,
`gguf-py/gguf/constants.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lcjax.config.families import experts, windows
from lcjax.config.families.family import AttentionView, Family
from lcjax.config.families.parameters.common import expert_linear, router
from lcjax.config.families.parameters.decoder import OF_A_HEAD, always, decoder_parameters
from lcjax.errors import InputError

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

_KEYS = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "sliding_window": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
}
_OWN_KEYS = {"use_sliding_window": False, "max_window_layers": 28, "layer_types": None}


def _kinds(config: LlamaConfig) -> tuple[str, ...]:
    """What each layer sees. Without `layer_types`, the first layers see all tokens."""
    if (given := config.own_value("layer_types")) is not None:
        return given
    has_window = config.own_value("use_sliding_window") and config.sliding_window is not None
    first = config.own_value("max_window_layers") if has_window else config.num_hidden_layers
    return tuple(windows.WINDOW if layer >= first else windows.FULL for layer in range(config.num_hidden_layers))


def _refusal(config: LlamaConfig) -> str | None:
    first = config.own_value("max_window_layers")
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        return f"max_window_layers={first!r} is not a number of layers"
    return windows.switched_refusal(config, _kinds(config))


def _window(config: LlamaConfig, layer: int) -> int | None:
    return windows.window(config, _kinds(config)[layer])


QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    gguf_architecture="qwen2",
    keys={**_KEYS, "head_dim": None},
    own_keys=_OWN_KEYS,
    parameters=decoder_parameters(qkv_bias=always),
    sees=lambda config, layer: AttentionView(window=_window(config, layer)),
    refusal=_refusal,
)

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    gguf_architecture="qwen3",
    keys={**_KEYS, "head_dim": 128, "attention_bias": False},
    own_keys=_OWN_KEYS,
    parameters=decoder_parameters(
        qkv_bias=lambda config: config.attention_bias,
        output_bias=lambda config: config.attention_bias,
        qk_norm=OF_A_HEAD,
    ),
    sees=lambda config, layer: AttentionView(window=_window(config, layer)),
    refusal=_refusal,
    gguf_refusal=lambda config: "attention_bias=true" if config.attention_bias else None,
)


_EVERY_LAYER = {"decoder_sparse_step": (1, None), "mlp_only_layers": ((), [], None)}
"""The values with which every layer has experts."""


def _flattened(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """config.json with the number of experts under one name; transformers 5 writes another.

    Raises:
      InputError: a layer has no experts, or a number of them is not possible. The message has the
        file's own key.
    """
    for key, usual in _EVERY_LAYER.items():
        if (value := config.get(key)) not in usual:
            raise InputError(
                f"{source} says {key}={repr(value)[:60]}, so that some layers have no experts; only models with experts in "
                "every layer are supported, such as Qwen3-30B-A3B: use another model"
            )
    key = next((key for key in ("num_experts", "num_local_experts") if config.get(key) is not None), "num_experts")
    values = {key: 128, "num_experts_per_tok": 8}
    values = {key: config.get(key, default) for key, default in values.items()}
    if (reason := experts.refusal_of(key, values)) is not None:
        raise InputError(f"{source} says {reason[:200]}; correct it, or download the model again")
    return {**config, "num_experts": values[key]}


def _moe_refusal(config: LlamaConfig) -> str | None:
    for key, usual in _EVERY_LAYER.items():
        if (value := config.own_value(key)) not in usual:
            return f"{key}={value!r}: only layers with experts are supported"
    if not isinstance(normalizes := config.own_value("norm_topk_prob"), bool):
        return f"norm_topk_prob={normalizes!r} is not true or false"
    if (uses := config.own_value("use_sliding_window")) not in (False, None):
        return f"use_sliding_window={uses!r} is not supported"
    return experts.refusal(config, "num_experts", "moe_intermediate_size")


def _experts(config: LlamaConfig) -> experts.Experts:
    return experts.Experts(
        count=config.own_value("num_experts"),
        per_token=config.own_value("num_experts_per_tok"),
        width=config.own_value("moe_intermediate_size"),
        sums_to_one=config.own_value("norm_topk_prob"),
        router_aux_loss_coef=config.own_value("router_aux_loss_coef"),
    )


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    gguf_architecture="qwen3moe",
    keys={
        **_KEYS,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "head_dim": None,
        "attention_bias": False,
    },
    own_keys={
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "router_aux_loss_coef": 0.001,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "use_sliding_window": False,
    },
    parameters=decoder_parameters(
        qkv_bias=lambda config: config.attention_bias,
        output_bias=lambda config: config.attention_bias,
        qk_norm=OF_A_HEAD,
        mlp=(
            *router("gate"),
            expert_linear("gate_proj", "ffn_gate_exps", "expert_mlp", "embed"),
            expert_linear("up_proj", "ffn_up_exps", "expert_mlp", "embed"),
            expert_linear("down_proj", "ffn_down_exps", "embed", "expert_mlp"),
        ),
    ),
    experts=_experts,
    gguf_keys={
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
    },
    gguf_derived=lambda config: {"norm_topk_prob": True},
    refusal=_moe_refusal,
    flattened=_flattened,
    gguf_refusal=lambda config: "attention_bias=true" if config.attention_bias else None,
)
