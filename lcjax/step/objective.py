"""The loss and its gradient over micro-batches.

Shapes: A micro-batches per step, B sequences, T tokens, N tokens of a batch, D hidden size,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.config import LlamaConfig
from lcjax.memory import fetched_for
from lcjax.model import Llama, ModelSettings, lora
from lcjax.ops.cross_entropy import IGNORE, TokenScores, linear_cross_entropy, token_cross_entropy
from lcjax.ops.grouped import ExpertLoad, load_balancing_loss
from lcjax.parallel.collectives import all_tokens, own_part, sum_over, sum_over_context
from lcjax.parallel.weights import gather_rows, sum_gradients

Tree = dict[str, Any]
Batch = dict[str, jax.Array]
"""int32 arrays [B, T]: `tokens`, `labels`, `positions` and `segment_ids`; see `lcjax.data`.

A label is the next token, or IGNORE.
"""

BATCH_KEYS = ("tokens", "labels", "positions", "segment_ids")


class Losses(NamedTuple):
    """What a micro-batch adds to the objective.

    Attributes:
      likelihood: the sum of the negative log-likelihood in nats, a float32 scalar.
      tokens: the number of tokens in the sum, an int32 scalar.
      balance: this device's part of `load_balancing_loss` of the micro-batch, a float32 scalar;
        None if the objective does not balance experts.
    """

    likelihood: jax.Array
    tokens: jax.Array
    balance: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Objective:
    """`objective.loss(trainable, frozen, batch)` for a config and settings.

    The loss is a pure function, to be compiled by `jax.jit`. What is minimized is the mean loss of
    a token plus `router_aux_loss_coef` times the loss that balances experts.
    """

    config: LlamaConfig
    settings: ModelSettings
    router_aux_loss_coef: float = 0.0

    def loss(
        self, trainable: Tree, frozen: Tree, batch: Batch, dropout_key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """(sum of the negative log-likelihood in nats, number of tokens in the sum).

        The results are float32 and int32 scalars. It is a sum and not a mean, so that the gradients
        of micro-batches with different numbers of labels add up to the gradient of the batch.
        """
        losses = self.losses(trainable, frozen, batch, dropout_key)
        return losses.likelihood, losses.tokens

    def losses(self, trainable: Tree, frozen: Tree, batch: Batch, dropout_key: jax.Array | None = None) -> Losses:
        """`loss`, and the loss that balances experts over the tokens that are not padding."""
        model = Llama(self.config, lora.combine(trainable, frozen), self.settings)
        counted_BT = batch["segment_ids"] > 0 if self.router_aux_loss_coef else None
        (hidden_ND, head_VD, labels_N), load = _predictions(model, batch, dropout_key, counted_BT)
        loss = linear_cross_entropy(hidden_ND, head_VD, labels_N, self.settings.execution.loss_chunk, model.logit_cap)
        balance = None if counted_BT is None or load is None else self._balance(load, counted_BT)
        return Losses(loss, jnp.sum(labels_N != IGNORE), balance)

    def _balance(self, load: ExpertLoad, counted_BT: jax.Array) -> jax.Array:
        """Devices that share a sequence count together; each has its tokens' probabilities."""
        mesh = self.settings.execution.mesh
        choices_E = sum_over_context(mesh, lax.stop_gradient(load.choices_E))
        tokens = sum_over_context(mesh, jnp.sum(counted_BT, dtype=jnp.int32)).astype(jnp.float32)
        tokens = jnp.maximum(tokens, 1) * self.config.num_hidden_layers
        return load_balancing_loss(dataclasses.replace(load, choices_E=choices_E), tokens)


def token_scores(model: Llama, batch: Batch) -> TokenScores:
    """The terms of `Objective.loss` without dropout, each [B, T].

    They are losses in nats, and whether the label was the most likely token. On a mesh of several
    devices, the batch is that of one device, and the scores are those of all tokens, in the order
    of the devices.
    """
    scores_N, mesh = (
        token_cross_entropy(*_predictions(model, batch)[0], cap=model.logit_cap),
        model.settings.execution.mesh,
    )
    return jax.tree.map(lambda x_N: all_tokens(mesh, x_N.reshape(batch["labels"].shape), axis=1), scores_N)


def _predictions(
    model: Llama, batch: Batch, dropout_key: jax.Array | None = None, counted_BT: jax.Array | None = None
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], ExpertLoad | None]:
    """((hidden states [N, D], head [V, D], labels [N]) of a batch, the load of experts).

    The first are inputs of the cross-entropy.
    """
    inputs = batch["tokens"], batch["positions"], batch["segment_ids"]
    hidden_BTD, load = model.hidden_states_and_load(*inputs, dropout_key, counted_BT)
    hidden_BTD, head_VD = fetched_for(hidden_BTD, model.stored_head_VD)
    head_VD = gather_rows(model.settings.execution.mesh, head_VD)
    return (hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), head_VD, batch["labels"].reshape(-1)), load


def gradients(
    objective: Objective, trainable: Tree, frozen: Tree, batches: Batch, dropout_key: jax.Array | None
) -> tuple[jax.Array, jax.Array | None, jax.Array, Tree]:
    """(mean loss, mean balance, number of tokens, gradient with respect to `trainable`).

    Micro-batches [A, B, T] are processed one at a time. The mean is over all counted tokens of all
    micro-batches, so any split of a batch gives the same gradient. Sums over micro-batches are
    float32. The gradient of a single micro-batch has the dtypes of the parameters.

    The balance is None if the objective does not balance experts. Otherwise it is the mean over
    micro-batches, weighted by their tokens, because experts are balanced in each of them.

    On a mesh of several devices, inside `jax.shard_map`, the batches are those of one device, and
    the results are those of all devices.
    """
    mesh, count = objective.settings.execution.mesh, batches["tokens"].shape[0]
    keys = None if dropout_key is None else own_part(mesh, jax.random.split(dropout_key, mesh.data * count))
    batches = {name: batches[name] for name in BATCH_KEYS}
    tokens = sum_over(mesh, jnp.sum(batches["labels"] != IGNORE))
    counted = jnp.maximum(tokens, 1).astype(jnp.float32)

    def share(trainable, batch, key):
        losses = objective.losses(trainable, frozen, batch, key)
        loss = losses.likelihood / counted
        if losses.balance is None:
            return loss, (loss, None)
        balance = losses.balance * (sum_over_context(mesh, losses.tokens) / counted)
        return loss + objective.router_aux_loss_coef * balance, (loss, balance)

    def of_micro_batch(inputs):
        (_, means), gradient = jax.value_and_grad(share, has_aux=True)(trainable, *inputs)
        return means, gradient

    def add(sums, inputs):
        return jax.tree.map(lambda total, new: total + new.astype(total.dtype), sums, of_micro_batch(inputs)), None

    micro_batches = batches, keys
    if count == 1:  # the gradient needs no float32 sum and keeps its dtype
        means, grads = of_micro_batch(jax.tree.map(lambda x: x[0], micro_batches))
    else:
        # All micro-batches run in one loop. With two copies of the pass in the program, what a pass
        # saves in host memory would be allocated twice.
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trainable)
        start = (jnp.float32(0), jnp.float32(0) if objective.router_aux_loss_coef else None), zeros
        (means, grads), _ = lax.scan(add, start, micro_batches)
    return *sum_over(mesh, means), tokens, sum_gradients(mesh, grads)
