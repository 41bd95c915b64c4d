"""A Flax NNX Llama over one stack of layers: the layers' parameters carry a leading axis L and a scan runs through it.

Shapes: B batch, T tokens, D hidden size, H query heads, K key/value heads, V vocabulary, F = head_dim / 2, L layers; a linear map's
weight is [O, I] (out, in), its adapter A [R, I] and B [O, R].
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from lcjax import ops, remat
from lcjax.config import LlamaConfig, LoraConfig
from lcjax.rope import inverse_frequencies

Tree = dict[str, Any]


class Linear(nnx.Module):
    """`y = x W^T + b`, plus the adapter `scaling * (dropout(x) A^T) B^T` where one is attached."""

    def __init__(self, tree: Tree, lora: LoraConfig | None = None):
        self.weight = nnx.Param(tree["weight"])
        self.bias = nnx.Param(tree["bias"]) if "bias" in tree else None
        self.lora_A = nnx.LoRAParam(tree["lora_A"]) if "lora_A" in tree else None
        self.lora_B = nnx.LoRAParam(tree["lora_B"]) if "lora_B" in tree else None
        self.lora_scaling = lora.scaling if lora else 0.0
        self.lora_dropout = lora.lora_dropout if lora else 0.0

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """x [..., I] to [..., O], in x's dtype; products accumulate in float32."""
        y = _times_transposed(x, self.weight[...])
        if self.bias is not None:
            y = y + jnp.expand_dims(self.bias[...], range(x.ndim - 1))
        if self.lora_A is not None and self.lora_B is not None:
            # Adapters are float32 masters; their products run in the activations' dtype.
            low_rank = _times_transposed(self._dropout(x, dropout_key), self.lora_A[...].astype(x.dtype))
            low_rank = remat.name_residual(low_rank, remat.LOW_RANK)
            y = y + _expand(low_rank * self.lora_scaling, self.lora_B[...].astype(x.dtype))
        return y

    def _dropout(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        if key is None or self.lora_dropout == 0.0:
            return x
        keep = 1.0 - self.lora_dropout
        return jnp.where(jax.random.bernoulli(key, keep, x.shape), x / keep, jnp.zeros_like(x))


class RMSNorm(nnx.Module):
    """`weight * x / sqrt(mean(x^2) + eps)`; the mean and the division are float32.

    Source: Zhang & Sennrich, arXiv 1910.07467.
    """

    def __init__(self, tree: Tree, eps: float):
        self.weight = nnx.Param(tree["weight"])
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        # As products, whose gradients are products too: on a CPU, XLA's sum of `a * b` takes six times as long as their dot.
        product = functools.partial(jnp.einsum, precision="highest")
        mean_square = product("...d,...d->...", x32, x32) / x.shape[-1]
        normalised = product("...d,...->...d", x32, lax.rsqrt(mean_square + self.eps))
        return jnp.expand_dims(self.weight[...], range(x.ndim - 1)) * normalised.astype(x.dtype)


class SelfAttention(nnx.Module):
    """Grouped-query causal self-attention with rotary positions."""

    def __init__(self, tree: Tree, config: LlamaConfig, lora: LoraConfig | None):
        self.q_proj = Linear(tree["q_proj"], lora)
        self.k_proj = Linear(tree["k_proj"], lora)
        self.v_proj = Linear(tree["v_proj"], lora)
        self.o_proj = Linear(tree["o_proj"], lora)
        self.head_dim = config.head_dim

    def __call__(self, x_BTD: jax.Array, context: Context, dropout_key: jax.Array | None) -> jax.Array:
        q_key, k_key, v_key, o_key = _split_key(dropout_key, 4)
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTHd = self.q_proj(x_BTD, q_key).reshape(heads)
        k_BTKd = self.k_proj(x_BTD, k_key).reshape(heads)
        v_BTKd = self.v_proj(x_BTD, v_key).reshape(heads)
        q_BTHd, k_BTKd = ops.rope(
            q_BTHd,
            k_BTKd,
            context.positions_BT,
            context.inverse_frequencies_F,
            implementation=ops.rope_beside(context.attention),
        )
        q_BTHd, k_BTKd, v_BTKd = (remat.name_residual(x, remat.PROJECTION) for x in (q_BTHd, k_BTKd, v_BTKd))
        out_BTHd = ops.attention(
            q_BTHd,
            k_BTKd,
            v_BTKd,
            query_segments_BT=context.segment_ids_BT,
            key_segments_BS=context.segment_ids_BT,
            implementation=context.attention,
        )
        return self.o_proj(out_BTHd.reshape(*x_BTD.shape[:2], -1), o_key)


class MLP(nnx.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`. Source: Shazeer, arXiv 2002.05202."""

    def __init__(self, tree: Tree, lora: LoraConfig | None):
        self.gate_proj = Linear(tree["gate_proj"], lora)
        self.up_proj = Linear(tree["up_proj"], lora)
        self.down_proj = Linear(tree["down_proj"], lora)

    def __call__(self, x_BTD: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        gate_key, up_key, down_key = _split_key(dropout_key, 3)
        gate, up = self.gate_proj(x_BTD, gate_key), self.up_proj(x_BTD, up_key)
        gate, up = (remat.name_residual(x, remat.PROJECTION) for x in (gate, up))
        return self.down_proj(jax.nn.silu(gate) * up, down_key)


class DecoderLayer(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, tree: Tree, config: LlamaConfig, lora: LoraConfig | None):
        self.input_layernorm = RMSNorm(tree["input_layernorm"], config.rms_norm_eps)
        self.self_attn = SelfAttention(tree["self_attn"], config, lora)
        self.post_attention_layernorm = RMSNorm(tree["post_attention_layernorm"], config.rms_norm_eps)
        self.mlp = MLP(tree["mlp"], lora)

    def __call__(self, x_BTD: jax.Array, context: Context, dropout_key: jax.Array | None) -> jax.Array:
        attention_key, mlp_key = _split_key(dropout_key, 2)
        x_BTD = remat.name_residual(x_BTD, remat.LAYER_INPUT)
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), context, attention_key)
        x_BTD = remat.name_residual(x_BTD, remat.MIDDLE)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD), mlp_key)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer reads besides the residual stream; int32 [B, T] positions and segment ids."""

    positions_BT: jax.Array
    segment_ids_BT: jax.Array
    inverse_frequencies_F: jax.Array
    attention: str = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What a model is besides its shape and weights: how it is run and what its adapter is.

    `max_seq_length` is in tokens; `use_gradient_checkpointing` is a name that `lcjax.remat.resolve_policy` knows; `name_or_path` is
    where the base weights came from, for the adapter's own config.
    """

    max_seq_length: int
    name_or_path: str = ""
    lora: LoraConfig | None = None
    use_gradient_checkpointing: str = "auto"
    attention: str = "auto"


class Embedding(nnx.Module):
    """Rows of `weight` [V, D] by token."""

    def __init__(self, tree: Tree):
        self.weight = nnx.Param(tree["weight"])

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        return jnp.take(self.weight[...], tokens_BT, axis=0)


class Llama(nnx.Module):
    """A decoder of the Llama family: `logits_BTV = model(tokens_BT)`.

    Holds shapes and parameters; the computation is a pure function of them, so `nnx.split` and `nnx.merge` cost nothing and the
    parameters' tree is the checkpoint's (see `lcjax.weights.names`).
    """

    def __init__(self, config: LlamaConfig, params: Tree, settings: ModelSettings):
        """Wraps a tree of arrays as `lcjax.weights` loads it, float32 or bfloat16 throughout, adapters float32."""
        self.config = config
        self.settings = settings
        self.embed_tokens = Embedding(params["embed_tokens"])
        self.layers = DecoderLayer(params["layers"], config, settings.lora)
        self.norm = RMSNorm(params["norm"], config.rms_norm_eps)
        self.lm_head = None if config.tie_word_embeddings else Linear(params["lm_head"])

    @property
    def params(self) -> Tree:
        """The tree of arrays that the model was built from, adapters included; shares the arrays."""
        return nnx.to_pure_dict(nnx.state(self))

    @property
    def head_VD(self) -> jax.Array:
        """The output projection [V, D]: the embedding where the two are tied."""
        return (self.embed_tokens if self.lm_head is None else self.lm_head).weight[...]

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits float32 [B, T, V] for int32 tokens. For training use `hidden_states` and the chunked loss instead."""
        hidden_BTD = self.hidden_states(tokens_BT, positions_BT, segment_ids_BT)
        return jnp.einsum("btd,vd->btv", hidden_BTD, self.head_VD, preferred_element_type=jnp.float32)

    def hidden_states(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """The residual stream after the last norm, [B, T, D] in the weights' dtype.

        Args:
          tokens_BT: int32 in [0, V).
          positions_BT: int32; 0, 1, 2, ... when None. A packed document's positions restart at 0.
          segment_ids_BT: int32, ascending along T; one document when None. Attention stays inside a segment.
          dropout_key: turns the adapter's dropout on.
        """
        tokens_BT = jnp.asarray(tokens_BT)
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None], tokens_BT.shape)
        if segment_ids_BT is None:
            segment_ids_BT = jnp.zeros(tokens_BT.shape, jnp.int32)
        frequencies = jnp.asarray(inverse_frequencies(self.config))
        context = Context(positions_BT, segment_ids_BT, frequencies, self.settings.attention)
        policy = remat.resolve_policy(self.settings.use_gradient_checkpointing, tokens_BT.shape[1])
        layer_structure, stacked_params = nnx.split(self.layers)

        def layer(x_BTD, layer_inputs):
            params, key = layer_inputs
            return nnx.merge(layer_structure, params)(x_BTD, context, key), None

        x_BTD = self.embed_tokens(tokens_BT)
        layer_keys = None if dropout_key is None else jax.random.split(dropout_key, self.config.num_hidden_layers)
        x_BTD, _ = lax.scan(remat.checkpoint_layer(layer, policy), x_BTD, (stacked_params, layer_keys))
        return self.norm(x_BTD)


def _times_transposed(x: jax.Array, weight_OI: jax.Array) -> jax.Array:
    """x [..., I] times W^T, [..., O]."""
    return lax.dot_general(x, weight_OI, (((x.ndim - 1,), (1,)), ((), ())))


@jax.custom_vjp
def _expand(low_rank: jax.Array, lora_B_OR: jax.Array) -> jax.Array:
    """low_rank [..., R] times B^T, [..., O].

    Its own backward rule, for the order of one product: dB as `(low_rank^T dy)^T` transposes the thin factor, where JAX's
    `dy^T low_rank` has XLA transpose the wide one (on a CPU a quarter of the whole step).
    """
    return _times_transposed(low_rank, lora_B_OR)


def _expand_forward(low_rank, lora_B_OR):
    return _expand(low_rank, lora_B_OR), (low_rank, lora_B_OR)


def _expand_backward(residuals, dy):
    low_rank, lora_B_OR = residuals
    tokens = tuple(range(dy.ndim - 1))
    dB_RO = lax.dot_general(low_rank, dy, ((tokens, tokens), ((), ())))
    return jnp.matmul(dy, lora_B_OR), dB_RO.T


_expand.defvjp(_expand_forward, _expand_backward)


def _split_key(key: jax.Array | None, count: int):
    return [None] * count if key is None else list(jax.random.split(key, count))
