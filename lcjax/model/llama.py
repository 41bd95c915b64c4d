"""The whole decoder: embedding, a scan over the stacked layers, the final norm, logits.

Shapes: B batch, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lcjax.config import LlamaConfig
from lcjax.config.parallel.mesh import ONE_DEVICE, MeshShape
from lcjax.config.policies import OFFLOADING
from lcjax.errors import InputError
from lcjax.memory import Parameters, fetched, layer_at, layer_numbers, run_stack, scan_layers, tiled_stack
from lcjax.memory.checkpoint import checkpoint_layer
from lcjax.model.context import Context
from lcjax.model.decoder import DecoderLayer, LayerFunctions
from lcjax.model.ids import check_ids
from lcjax.model.linear import Linear
from lcjax.model.lora import adapters_only
from lcjax.model.norm import RMSNorm
from lcjax.model.rotation import Rotation
from lcjax.model.settings import ModelSettings
from lcjax.ops.cross_entropy import capped
from lcjax.ops.dropout import DropoutKey
from lcjax.ops.four_bits import has_quantized
from lcjax.ops.grouped import ExpertLoad
from lcjax.parallel.collectives import largest_over, places_of
from lcjax.parallel.weights import gather_layer, gather_rows

Tree = dict[str, Any]


class Embedding(nnx.Module):
    """Looks up the row of `weight` [V, D] for each token, and multiplies it by `scale`.

    The scale is rounded to the dtype of the weights, as in transformers.
    """

    def __init__(self, tree: Tree, scale: float):
        self.weight = nnx.Param(tree["weight"])
        self.scale = scale

    def __call__(self, tokens_BT: jax.Array, mesh: MeshShape = ONE_DEVICE) -> jax.Array:
        rows_BTD = jnp.take(gather_rows(mesh, fetched(self.weight[...])), tokens_BT, axis=0)
        return rows_BTD if self.scale == 1.0 else rows_BTD * jnp.float32(self.scale).astype(rows_BTD.dtype)


class Llama(nnx.Module):
    """A decoder of the Llama family: `logits_BTV = model(tokens_BT)`.

    The module contains only shapes and parameters, and the computation is a pure function of them.
    So `nnx.split` and `nnx.merge` cost nothing, and the tree of the parameters is that of the
    checkpoint (see `lcjax.model.params`).
    """

    def __init__(self, config: LlamaConfig, params: Tree, settings: ModelSettings):
        """Wraps a tree of arrays from `lcjax.weights`.

        Base weights are all float32 or all bfloat16; adapters are float32.
        """
        self.config = config
        self.settings = settings
        self.embed_tokens = Embedding(params["embed_tokens"], config.family.embedding_scale(config))
        self.layers = DecoderLayer(params["layers"], config, settings.lora)
        self.norm = RMSNorm(params["norm"], config)
        self.lm_head = None if config.tie_word_embeddings else Linear(params["lm_head"])

    @property
    def params(self) -> Tree:
        """The tree of arrays that the model was built from, with its adapters; not copied."""
        return nnx.to_pure_dict(nnx.state(self))

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the base weights that are not quantized."""
        return self.stored_head_VD.dtype

    @property
    def head_VD(self) -> jax.Array:
        """The output projection [V, D] on the device; the embedding if the two are tied."""
        return fetched(self.stored_head_VD)

    @property
    def stored_head_VD(self) -> jax.Array:
        """The output projection [V, D] in the memory where it is stored."""
        return (self.embed_tokens if self.lm_head is None else self.lm_head).weight[...]

    def __call__(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits float32 [B, T, V] for int32 tokens; raises the same errors as `hidden_states`.

        For training use `hidden_states` and the chunked loss instead.
        """
        return self.logits(self.hidden_states(tokens_BT, positions_BT, segment_ids_BT))

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """The logits of hidden states, float32 [B, T, V]."""
        logits_BTV = jnp.einsum("btd,vd->btv", hidden_BTD, self.head_VD, preferred_element_type=jnp.float32)
        return capped(logits_BTV, self.logit_cap)

    @property
    def logit_cap(self) -> float | None:
        """The limit of the logits; None if they have none."""
        return self.config.family.logit_cap(self.config)

    def context(
        self, positions_BT: jax.Array, segment_ids_BT: jax.Array | None, sequence_length: jax.Array | None = None
    ) -> Context:
        """What the layers read in addition to the residual stream of these tokens.

        Without `sequence_length`, the sequence ends at the highest position.
        """
        mesh = self.settings.execution.mesh
        length = sequence_length
        if length is None:
            length = largest_over(mesh, jnp.max(positions_BT)) + 1
        runs, config = self.settings.execution, self.config
        return Context(
            positions_BT,
            segment_ids_BT,
            Rotation.of_model(config, length),
            None,
            runs.attention,
            runs.rope,
            config.views,
            config.view_of_layer,
            mesh,
        )

    def hidden_states(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """The residual stream after the final norm, [B, T, D] in the weights' dtype.

        Args:
          tokens_BT: int32 in [0, V).
          positions_BT: int32; 0, 1, 2, ... when None. A packed document's positions restart at 0.
          segment_ids_BT: int32, ascending along T; one document when None. Attention is limited to
            a segment.
          dropout_key: enables the adapter's dropout.

        Raises:
          InputError: the ids are not rows of tokens, or an id is outside the vocabulary. A traced
            call cannot check ids; there the embedding of such an id is NaN.
        """
        return self.hidden_states_and_load(tokens_BT, positions_BT, segment_ids_BT, dropout_key)[0]

    def hidden_states_and_load(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        counted_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, ExpertLoad | None]:
        """(`hidden_states`, the load of experts over all layers).

        Other arguments and errors are those of `hidden_states`.

        Args:
          counted_BT: bool, the tokens that count in the load; if None, the load is None. The model
            must have experts.
        """
        tokens_BT = jnp.asarray(tokens_BT)
        check_ids(tokens_BT, self.config.vocab_size)
        if tokens_BT.ndim != 2 or not tokens_BT.size:
            raise InputError(f"token ids have the shape {tokens_BT.shape}; give rows of tokens: [batch, tokens]")
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None], tokens_BT.shape)
        # Padding comes after the document, whose tokens do not see later tokens.
        context = self.context(positions_BT, None if self.settings.one_document_a_row else segment_ids_BT)
        context = dataclasses.replace(context, counted_BT=counted_BT)
        load = None if counted_BT is None else ExpertLoad.zeros(self.config.experts.count)
        form = self.settings.execution.form(tokens_BT.shape[1])
        layer_structure, stacked_params = nnx.split(self.layers)

        x_BTD = self.embed_tokens(tokens_BT, context.mesh)
        layer_keys = None
        if dropout_key is not None:
            layer_keys = jax.random.split(dropout_key, self.config.num_hidden_layers)
            context = dataclasses.replace(context, places_T=places_of(context.mesh, tokens_BT.shape[1]))
        if form.memory is not None:
            stack = tiled_stack(
                LayerFunctions(layer_structure, self.layers.norms),
                context.attention,
                form.policy,
                form.memory,
                context.mesh,
            )
            stream: Any = run_stack(stack, x_BTD, load, stacked_params, layer_keys, context)
            return self.norm(stream[0]), stream[1]
        # The scan itself must slice trainable weights, so that it accumulates their gradients. The
        # kernels that dequantize quantized weights read them from their stack.
        learns, quantized = self.settings.lora is None, has_quantized(nnx.to_pure_dict(stacked_params))
        by_number = form.policy in OFFLOADING and not learns and not quantized
        params = Parameters.of(stacked_params, [not by_number or adapts for adapts in _of_adapters(stacked_params)])

        def layer(stream, number, inputs):
            (x_BTD, load), (trainable, key) = stream, inputs
            layer_params = params.with_leaves(trainable, layer_at(params.frozen, number))
            layer_params = gather_layer(context.mesh, layer_params)
            places_T = context.places_T
            dropout_key = None if key is None or places_T is None else DropoutKey(key, places_T)
            return nnx.merge(layer_structure, layer_params)(x_BTD, context.of_layer(number), dropout_key, load), None

        layers = layer_numbers(self.config.num_hidden_layers)
        checkpoint = functools.partial(checkpoint_layer, policy=form.policy)
        (x_BTD, load), _ = scan_layers(
            layer, (x_BTD, load), layers, (params.trainable, layer_keys), checkpoint=checkpoint
        )
        return self.norm(x_BTD), load


def _of_adapters(params: nnx.State) -> list[bool]:
    """Whether each leaf belongs to an adapter."""
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    return [adapters_only(tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))) for path in paths]
