"""A Flax NNX Llama over one stack of layers: the layers' parameters carry a leading axis L and a scan runs through it.

Shapes: B batch, T tokens, D hidden size, H query heads, K key/value heads, V vocabulary, F rotated pairs, L layers; a linear map's
weight is [O, I] (out, in), its adapter A [R, I] and B [O, R].
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from lcjax import ops, quant, remat
from lcjax.attention_halves import runs_in_halves
from lcjax.config import LlamaConfig, LoraConfig
from lcjax.errors import InputError
from lcjax.memory import MemorySettings, fetched, resolve_memory, run_stack, tiled_stack
from lcjax.rope import attention_factor, inverse_frequencies

Tree = dict[str, Any]


class Linear(nnx.Module):
    """`y = x W^T + b`, plus the adapter `scaling * (dropout(x) A^T) B^T` where one is attached.

    Where the tree has W quantised (see `lcjax.quant.nf4`), every call makes its values anew: under the layer's checkpoint they are
    made again in the backward pass and never kept.
    """

    def __init__(self, tree: Tree, lora: LoraConfig | None = None):
        weight = tree["weight"]
        self.weight = nnx.Dict(jax.tree.map(nnx.Param, weight)) if quant.is_quantised(weight) else nnx.Param(weight)
        self.bias = nnx.Param(tree["bias"]) if "bias" in tree else None
        self.lora_A = nnx.LoRAParam(tree["lora_A"]) if "lora_A" in tree else None
        self.lora_B = nnx.LoRAParam(tree["lora_B"]) if "lora_B" in tree else None
        self.lora = lora

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """x [..., I] to [..., O], in x's dtype; products accumulate in float32."""
        weight = self._weight()
        y = _times_transposed(x, quant.dequantise(weight, x.dtype) if quant.is_quantised(weight) else weight)
        if self.bias is not None:
            y = y + jnp.expand_dims(self.bias[...], range(x.ndim - 1))
        if self.lora is not None and self.lora_A is not None and self.lora_B is not None:
            # Adapters are float32 masters; their products run in the activations' dtype.
            low_rank = _times_transposed(self._dropout(x, dropout_key), self.lora_A[...].astype(x.dtype))
            low_rank = remat.name_residual(low_rank, remat.LOW_RANK)
            y = y + _expand(low_rank * self.lora.scaling, self.lora_B[...].astype(x.dtype))
        return y

    def rows(self, part: jax.Array, parts: int) -> Linear:
        """The map to one of `parts` equal parts of the outputs."""
        return Linear(self._sliced(part, parts, {"weight": 0, "bias": 0, "lora_B": 0}), self.lora)

    def columns(self, part: jax.Array, parts: int) -> Linear:
        """The map from one of `parts` equal parts of the inputs: these maps' results add up to the whole's."""
        tree = self._sliced(part, parts, {"weight": 1, "lora_A": 1})
        if "bias" in tree:  # enters once
            tree["bias"] = jnp.where(part == 0, tree["bias"], jnp.zeros_like(tree["bias"]))
        return Linear(tree, self.lora)

    def _sliced(self, part: jax.Array, parts: int, axes: dict[str, int]) -> Tree:
        """The parameters, those named in `axes` cut along their axis."""
        leaves = {"weight": self._weight()}
        leaves |= {name: x[...] for name in ("bias", "lora_A", "lora_B") if (x := getattr(self, name)) is not None}
        return {name: _part_of(x, part, parts, axes[name]) if name in axes else x for name, x in leaves.items()}

    def _weight(self) -> Any:
        """The array, or the dictionary of a quantised one."""
        if isinstance(self.weight, nnx.Dict):
            return {name: leaf[...] for name, leaf in self.weight.items()}
        return self.weight[...]

    def _dropout(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        if key is None or self.lora is None or self.lora.lora_dropout == 0.0:
            return x
        keep = 1.0 - self.lora.lora_dropout
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
        self.kv_heads = config.num_key_value_heads

    def project(self, x_BTD: jax.Array, context: Context, dropout_key: jax.Array | None) -> tuple[jax.Array, ...]:
        """(queries [B, T, H, d], keys [B, T, K, d], values [B, T, K, d]), rotated to their positions."""
        q_key, k_key, v_key = _split_key(dropout_key, 3)
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTHd = self.q_proj(x_BTD, q_key).reshape(heads)
        k_BTKd = self.k_proj(x_BTD, k_key).reshape(heads)
        v_BTKd = self.v_proj(x_BTD, v_key).reshape(heads)
        q_BTHd, k_BTKd = ops.rope(
            q_BTHd,
            k_BTKd,
            context.positions_BT,
            context.inverse_frequencies_F,
            attention_factor=context.attention_factor,
            implementation=ops.rope_beside(context.attention),
        )
        q_BTHd, k_BTKd, v_BTKd = (remat.name_residual(x, remat.PROJECTION) for x in (q_BTHd, k_BTKd, v_BTKd))
        return q_BTHd, k_BTKd, v_BTKd

    def heads(self, group: jax.Array, groups: int) -> SelfAttention:
        """One of `groups` equal groups of the key/value heads, with their queries: the groups' outputs add up to the whole's.

        Raises:
          InputError: the number of groups does not divide that of the heads.
        """
        if self.kv_heads % groups:
            raise InputError(f"head_groups={groups} does not divide {self.kv_heads} key/value heads")
        own = copy.copy(self)
        own.kv_heads = self.kv_heads // groups
        own.q_proj, own.k_proj, own.v_proj = (x.rows(group, groups) for x in (self.q_proj, self.k_proj, self.v_proj))
        own.o_proj = self.o_proj.columns(group, groups)
        return own

    def output(self, out_BTHd: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        return self.o_proj(out_BTHd.reshape(*out_BTHd.shape[:2], -1), dropout_key)


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
    """Pre-norm attention and MLP, each added to the residual stream.

    In three parts, of which the first and the last work position by position: `lcjax.memory` runs them over tiles of the sequence.
    """

    def __init__(self, tree: Tree, config: LlamaConfig, lora: LoraConfig | None):
        self.input_layernorm = RMSNorm(tree["input_layernorm"], config.rms_norm_eps)
        self.self_attn = SelfAttention(tree["self_attn"], config, lora)
        self.post_attention_layernorm = RMSNorm(tree["post_attention_layernorm"], config.rms_norm_eps)
        self.mlp = MLP(tree["mlp"], lora)

    def __call__(self, x_BTD: jax.Array, context: Context, dropout_key: jax.Array | None) -> jax.Array:
        before_key, after_key = _split_key(dropout_key, 2)
        x_BTD = remat.name_residual(x_BTD, remat.LAYER_INPUT)
        q_BTHd, k_BTKd, v_BTKd = self.before_attention(x_BTD, context, before_key)
        return self.after_attention(x_BTD, attend(q_BTHd, k_BTKd, v_BTKd, context), after_key)

    def before_attention(
        self, x_BTD: jax.Array, context: Context, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, ...]:
        """Queries, keys and values of a part of the residual stream; `context` is of the same positions."""
        return self.self_attn.project(self.input_layernorm(x_BTD), context, dropout_key)

    def after_attention(self, x_BTD: jax.Array, out_BTHd: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        """What the layer makes of the residual stream and of attention's output at the same positions."""
        output_key, mlp_key = _split_key(dropout_key, 2)
        x_BTD = remat.name_residual(x_BTD + self.self_attn.output(out_BTHd, output_key), remat.MIDDLE)
        return self.feed_forward(x_BTD, mlp_key)

    def feed_forward(self, x_BTD: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD), dropout_key)


def attend(q_BTHd: jax.Array, k_BTKd: jax.Array, v_BTKd: jax.Array, context: Context) -> jax.Array:
    """The layer's attention over whole sequences: causal, inside segments."""
    return ops.attention(
        q_BTHd,
        k_BTKd,
        v_BTKd,
        query_segments_BT=context.segment_ids_BT,
        key_segments_BS=context.segment_ids_BT,
        implementation=context.attention,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer reads besides the residual stream; int32 [B, T] positions and segment ids."""

    positions_BT: jax.Array
    segment_ids_BT: jax.Array
    inverse_frequencies_F: jax.Array
    attention_factor: float = dataclasses.field(metadata={"static": True})
    attention: str = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What a model is besides its shape and weights: how it is run and what its adapter is.

    `max_seq_length` is in tokens; `use_gradient_checkpointing` is a name that `lcjax.remat.resolve_policy` knows; `name_or_path` is
    where the base weights came from, for the adapter's own config; `memory` says how layers run in tiles: MemorySettings, "none" or
    "auto" (see `lcjax.memory`).
    """

    max_seq_length: int
    name_or_path: str = ""
    lora: LoraConfig | None = None
    use_gradient_checkpointing: str = "auto"
    attention: str = "auto"
    memory: MemorySettings | str = "auto"

    def memory_for(self, tokens: int) -> MemorySettings | None:
        """How layers run over sequences of that many tokens; None: without tiles."""
        return resolve_memory(self.memory, tokens, attention_in_halves=runs_in_halves(self.attention))

    def policy_for(self, tokens: int) -> str:
        """The gradient checkpointing of sequences of that many tokens, one of `lcjax.remat.POLICIES`."""
        in_tiles = self.memory_for(tokens) is not None
        return remat.resolve_policy(self.use_gradient_checkpointing, tokens, in_tiles=in_tiles)


class Embedding(nnx.Module):
    """Rows of `weight` [V, D] by token."""

    def __init__(self, tree: Tree):
        self.weight = nnx.Param(tree["weight"])

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        return jnp.take(fetched(self.weight[...]), tokens_BT, axis=0)


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
    def dtype(self) -> np.dtype:
        """Of the base weights, but for quantised ones."""
        return self.stored_head_VD.dtype

    @property
    def head_VD(self) -> jax.Array:
        """The output projection [V, D] on the device: the embedding where the two are tied."""
        return fetched(self.stored_head_VD)

    @property
    def stored_head_VD(self) -> jax.Array:
        """The same in whatever memory it is."""
        return (self.embed_tokens if self.lm_head is None else self.lm_head).weight[...]

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits float32 [B, T, V] for int32 tokens. For training use `hidden_states` and the chunked loss instead."""
        return self.logits(self.hidden_states(tokens_BT, positions_BT, segment_ids_BT))

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """float32 [B, T, V] of hidden states."""
        return jnp.einsum("btd,vd->btv", hidden_BTD, self.head_VD, preferred_element_type=jnp.float32)

    def context(
        self, positions_BT: jax.Array, segment_ids_BT: jax.Array, sequence_length: jax.Array | None = None
    ) -> Context:
        """What the layers read besides those tokens' residual stream; the sequence ends with the furthest unless it is said."""
        length = jnp.max(positions_BT) + 1 if sequence_length is None else sequence_length
        frequencies_F = jnp.asarray(inverse_frequencies(self.config, length))
        factor = attention_factor(self.config)
        return Context(positions_BT, segment_ids_BT, frequencies_F, factor, self.settings.attention)

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
        context = self.context(positions_BT, segment_ids_BT)
        tokens = tokens_BT.shape[1]
        memory, policy = self.settings.memory_for(tokens), self.settings.policy_for(tokens)
        layer_structure, stacked_params = nnx.split(self.layers)

        def layer(x_BTD, layer_inputs):
            params, key = layer_inputs
            return nnx.merge(layer_structure, params)(x_BTD, context, key), None

        x_BTD = self.embed_tokens(tokens_BT)
        layer_keys = None if dropout_key is None else jax.random.split(dropout_key, self.config.num_hidden_layers)
        if memory is not None:
            stack = tiled_stack(_LayerParts(layer_structure), context.attention, policy, memory)
            return self.norm(run_stack(stack, x_BTD, stacked_params, layer_keys, context))
        x_BTD, _ = lax.scan(remat.checkpoint_layer(layer, policy), x_BTD, (stacked_params, layer_keys))
        return self.norm(x_BTD)


@dataclasses.dataclass(frozen=True)
class _LayerParts:
    """A layer as functions of its parameters, for the memory engine."""

    structure: nnx.GraphDef

    def before_attention(self, params: Any, x_BtD: jax.Array, context: Context, key: jax.Array | None):
        return nnx.merge(self.structure, params).before_attention(x_BtD, context, key)

    def attention_output(self, params: Any, out_BtHd: jax.Array, key: jax.Array | None):
        return nnx.merge(self.structure, params).self_attn.output(out_BtHd, key)

    def feed_forward(self, params: Any, x_BtD: jax.Array, key: jax.Array | None):
        return nnx.merge(self.structure, params).feed_forward(x_BtD, key)

    def heads(self, params: Any, group: jax.Array, groups: int):
        layer = nnx.merge(self.structure, params)
        layer.self_attn = layer.self_attn.heads(group, groups)
        structure, params = nnx.split(layer)
        return params, _LayerParts(structure)


def _part_of(x: Any, part: jax.Array, parts: int, axis: int) -> Any:
    """One of equal parts of an array along an axis, or of a quantised weight."""
    if quant.is_quantised(x):
        return quant.part_of(x, part, parts, axis)
    size = x.shape[axis] // parts
    return lax.dynamic_slice_in_dim(x, part * size, size, axis)


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
