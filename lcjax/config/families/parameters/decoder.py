"""The table of parameters that most families share: attention, a gated MLP, and their norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lcjax.config.families.parameters.common import SINKS, linear, norm
from lcjax.config.families.parameters.norms import PRE_NORMS, Norms
from lcjax.config.families.parameters.row import Parameter

if TYPE_CHECKING:
    from lcjax.config.model import LlamaConfig

Condition = Callable[["LlamaConfig"], bool]

OF_A_HEAD, OF_ALL_HEADS = ("head_dim", "head_dim"), ("heads", "kv_heads")
"""What a norm of queries and a norm of keys are over."""


def never(config: LlamaConfig) -> bool:
    return False


def always(config: LlamaConfig) -> bool:
    return True


def decoder_parameters(
    *,
    qkv_bias: Condition = never,
    output_bias: Condition = never,
    mlp_bias: Condition = never,
    norms: Norms = PRE_NORMS,
    qk_norm: tuple[str, str] | None = None,
    interleaved: bool = False,
    joint: bool = False,
    mlp: tuple[Parameter, ...] | None = None,
    sinks: bool = False,
    gguf_before_mlp: str = "ffn_norm",
) -> tuple[Parameter, ...]:
    """The rows in the order in which checkpoints are written.

    Args:
      qkv_bias, output_bias, mlp_bias: which linear maps have a bias, by the model's config.
      norms: those of a layer.
      qk_norm: OF_A_HEAD or OF_ALL_HEADS if queries and keys are normalized.
      interleaved: whether llama.cpp's converter interleaves the halves of queries and keys.
      joint: whether one matrix has the rows of queries, keys and values, and another those of gate
        and up.
      mlp: the rows of another MLP than the gated one.
      sinks: whether a sink joins the softmax of every head.
      gguf_before_mlp: what GGUF files call the norm before the MLP.
    """
    return (
        Parameter(("embed_tokens", "weight"), "model.embed_tokens.weight", "token_embd.weight", ("vocab", "embed")),
        *_norm(norms, norms.before_attention, "attn_norm"),
        *(_JOINT_QKV if joint else _single_qkv(qkv_bias, interleaved)),
        *linear("self_attn.o_proj", "attn_output", "embed", "heads", has_bias=output_bias),
        *((SINKS,) if sinks else ()),
        *(_qk_norms(norms, *qk_norm) if qk_norm else ()),
        *(_gated_mlp(joint, mlp_bias) if mlp is None else mlp),
        *_norm(norms, norms.after_attention, "post_attention_norm"),
        *_norm(norms, norms.before_mlp, gguf_before_mlp),
        *_norm(norms, norms.after_mlp, "post_ffw_norm"),
        Parameter(("norm", "weight"), "model.norm.weight", "output_norm.weight", ("embed",), gguf_offset=norms.offset),
        Parameter(
            ("lm_head", "weight"),
            "lm_head.weight",
            "output.weight",
            ("vocab", "embed"),
            matmul=True,  # by the embedding if they are tied
            stored=lambda config: not config.tie_word_embeddings,
        ),
    )


def _norm(norms: Norms, name: str | None, gguf: str, axis: str = "embed") -> tuple[Parameter, ...]:
    # llama.cpp's converter adds the offset to the weight.
    return () if name is None else (norm(name, gguf, axis, gguf_offset=norms.offset),)


def _qk_norms(norms: Norms, queries: str, keys: str) -> tuple[Parameter, ...]:
    return (
        *_norm(norms, "self_attn.q_norm", "attn_q_norm", queries),
        *_norm(norms, "self_attn.k_norm", "attn_k_norm", keys),
    )


_JOINT_QKV = linear("self_attn.qkv_proj", "attn_qkv", "heads_and_kv_heads", "embed")
_JOINT_MLP = linear("mlp.gate_up_proj", "ffn_up", "gate_and_mlp", "embed")


def _single_qkv(has_bias: Condition, interleaved: bool) -> tuple[Parameter, ...]:
    return (
        *linear("self_attn.q_proj", "attn_q", "heads", "embed", has_bias=has_bias, interleaved=interleaved),
        *linear("self_attn.k_proj", "attn_k", "kv_heads", "embed", has_bias=has_bias, interleaved=interleaved),
        *linear("self_attn.v_proj", "attn_v", "kv_heads", "embed", has_bias=has_bias),
    )


def _gated_mlp(joint: bool, has_bias: Condition) -> tuple[Parameter, ...]:
    down = linear("mlp.down_proj", "ffn_down", "embed", "mlp", has_bias=has_bias)
    if joint:
        return (*_JOINT_MLP, *down)
    return (
        *linear("mlp.gate_proj", "ffn_gate", "mlp", "embed", has_bias=has_bias),
        *linear("mlp.up_proj", "ffn_up", "mlp", "embed", has_bias=has_bias),
        *down,
    )
