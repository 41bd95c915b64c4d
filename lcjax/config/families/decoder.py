"""The table of parameters that most families share: attention and a SwiGLU, each after a norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lcjax.config.families.family import Parameter, linear, norm

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

Condition = Callable[["LlamaConfig"], bool]


def never(config: LlamaConfig) -> bool:
    return False


def always(config: LlamaConfig) -> bool:
    return True


def decoder_parameters(
    *,
    qkv_bias: Condition = never,
    output_bias: Condition = never,
    mlp_bias: Condition = never,
    qk_norm: bool = False,
    interleaved: bool = False,
) -> tuple[Parameter, ...]:
    """The rows in the order in which checkpoints are written.

    Args:
      qkv_bias, output_bias, mlp_bias: which linear maps have a bias, by the model's config.
      qk_norm: whether queries and keys are normalized.
      interleaved: whether llama.cpp's converter interleaves the halves of queries and keys.
    """
    return (
        Parameter(("embed_tokens", "weight"), "model.embed_tokens.weight", "token_embd.weight", ("vocab", "embed")),
        norm("input_layernorm", "attn_norm", "embed"),
        *linear("self_attn.q_proj", "attn_q", "heads", "embed", has_bias=qkv_bias, interleaved=interleaved),
        *linear("self_attn.k_proj", "attn_k", "kv_heads", "embed", has_bias=qkv_bias, interleaved=interleaved),
        *linear("self_attn.v_proj", "attn_v", "kv_heads", "embed", has_bias=qkv_bias),
        *linear("self_attn.o_proj", "attn_output", "embed", "heads", has_bias=output_bias),
        *(_QK_NORMS if qk_norm else ()),
        *linear("mlp.gate_proj", "ffn_gate", "mlp", "embed", has_bias=mlp_bias),
        *linear("mlp.up_proj", "ffn_up", "mlp", "embed", has_bias=mlp_bias),
        *linear("mlp.down_proj", "ffn_down", "embed", "mlp", has_bias=mlp_bias),
        norm("post_attention_layernorm", "ffn_norm", "embed"),
        Parameter(("norm", "weight"), "model.norm.weight", "output_norm.weight", ("embed",)),
        Parameter(
            ("lm_head", "weight"),
            "lm_head.weight",
            "output.weight",
            ("vocab", "embed"),
            matmul=True,  # by the embedding if they are tied
            stored=lambda config: not config.tie_word_embeddings,
        ),
    )


_QK_NORMS = (
    norm("self_attn.q_norm", "attn_q_norm", "head_dim"),
    norm("self_attn.k_norm", "attn_k_norm", "head_dim"),
)
