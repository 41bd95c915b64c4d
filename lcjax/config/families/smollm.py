"""SmolLM3: Llama with RoPE in three layers of four, and optional windows in the others.

SmolLM and SmolLM2 are Llamas.

Source: transformers 5, `models/smollm3/configuration_smollm3.py`; llama.cpp,
`conversion/smollm.py` and `src/models/smollm3.cpp`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcjax.config.families import windows
from lcjax.config.families.family import AttentionView, Family, Rotary
from lcjax.config.families.parameters.decoder import decoder_parameters

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

_INTERVAL = 4  # a constant in llama.cpp


def _has_rope(config: LlamaConfig) -> tuple[int, ...]:
    """For every layer, whether it has rotary positions: 1, or 0."""
    if (given := config.own_value("no_rope_layers")) is not None:
        return given
    return _every(config.own_value("no_rope_layer_interval"), config)


def _every(interval: int, config: LlamaConfig) -> tuple[int, ...]:
    """RoPE in all layers except every `interval`-th."""
    return tuple(int((layer + 1) % interval != 0) for layer in range(config.num_hidden_layers))


def _kinds(config: LlamaConfig) -> tuple[str, ...]:
    """What each layer sees. Without `layer_types`, layers with RoPE see all tokens."""
    if (given := config.own_value("layer_types")) is not None:
        return given
    has_window = config.own_value("use_sliding_window") and config.sliding_window is not None
    return tuple(
        windows.WINDOW if has_window and not rope else windows.FULL
        for rope in _has_rope(config)[: config.num_hidden_layers]
    )


def _refusal(config: LlamaConfig) -> str | None:
    interval, given = config.own_value("no_rope_layer_interval"), config.own_value("no_rope_layers")
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        return f"no_rope_layer_interval={interval!r} is not a number of layers"
    if given is not None and not (isinstance(given, tuple) and all(has in (0, 1) for has in given)):
        return f"no_rope_layers={given!r} is not a list of 0 and 1"
    if len(_has_rope(config)) < config.num_hidden_layers:
        return f"no_rope_layers has {len(_has_rope(config))} entries for {config.num_hidden_layers} layers"
    return windows.switched_refusal(config, _kinds(config))


def _gguf_refusal(config: LlamaConfig) -> str | None:
    if _has_rope(config)[: config.num_hidden_layers] == _every(_INTERVAL, config):
        return None
    return f"layers without RoPE other than every {_INTERVAL}th"


def _sees(config: LlamaConfig, layer: int) -> AttentionView:
    rotary = Rotary(rotates=bool(_has_rope(config)[layer]))
    return AttentionView(window=windows.window(config, _kinds(config)[layer]), rotary=rotary)


SMOLLM3 = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    gguf_architecture="smollm3",
    gguf_refusal=_gguf_refusal,
    keys={
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": None,
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2_000_000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "sliding_window": None,
        "bos_token_id": 128_000,
        "eos_token_id": 128_001,
    },
    own_keys={
        "no_rope_layers": None,
        "no_rope_layer_interval": _INTERVAL,
        "use_sliding_window": False,
        "layer_types": None,
        "pad_token_id": 128_004,  # transformers' embedding needs it in its vocabulary
    },
    parameters=decoder_parameters(
        qkv_bias=lambda config: config.attention_bias,
        output_bias=lambda config: config.attention_bias,
        mlp_bias=lambda config: config.mlp_bias,
        interleaved=True,
    ),
    sees=_sees,
    refusal=_refusal,
)
