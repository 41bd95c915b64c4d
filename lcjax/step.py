"""The loss and the training step: what training, planning, evaluation and the tests all compile.

Shapes: A micro-batches of one step, B sequences, T tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Sharding

from lcjax import lora
from lcjax.config import LlamaConfig
from lcjax.layerwise import global_norm, place
from lcjax.loss import IGNORE, TokenScores, linear_cross_entropy, token_cross_entropy
from lcjax.memory import fetched_for
from lcjax.model import Llama, ModelSettings
from lcjax.remat import OFFLOADING

Tree = dict[str, Any]
Batch = dict[str, jax.Array]
"""int32 arrays `tokens`, `labels` (the next token, or IGNORE), `positions` and `segment_ids`, each [B, T]; see `lcjax.data`."""

BATCH_KEYS = ("tokens", "labels", "positions", "segment_ids")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes. `trainable` comes from `lcjax.lora.partition`; `key` seeds the adapters' dropout."""

    step: jax.Array
    trainable: Tree
    optimizer: optax.OptState
    key: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """float32 scalars of one step: mean loss in nats a token, norm of its gradient before clipping, counted tokens."""

    loss: jax.Array
    grad_norm: jax.Array
    tokens: jax.Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """`objective.loss(trainable, frozen, batch)` for models of one config and settings; a pure function, made to be jitted."""

    config: LlamaConfig
    settings: ModelSettings

    def loss(
        self, trainable: Tree, frozen: Tree, batch: Batch, dropout_key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """(sum of the negative log-likelihood in nats, number of tokens it runs over), float32 and int32 scalars.

        A sum, so that micro-batches with different numbers of labels add up to the gradient of the whole.
        """
        model = Llama(self.config, lora.combine(trainable, frozen), self.settings)
        hidden_ND, head_VD, labels_N = _predictions(model, batch, dropout_key)
        loss = linear_cross_entropy(hidden_ND, head_VD, labels_N, self.settings.loss_chunk)
        return loss, jnp.sum(labels_N != IGNORE)


def token_scores(model: Llama, batch: Batch) -> TokenScores:
    """The terms of `Objective.loss` without dropout, each [B, T]: losses in nats and whether the label was the likeliest token."""
    scores_N = token_cross_entropy(*_predictions(model, batch))
    return jax.tree.map(lambda x_N: x_N.reshape(batch["labels"].shape), scores_N)


def _predictions(
    model: Llama, batch: Batch, dropout_key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(hidden states [N, D], head [V, D], labels [N]) of all tokens of a batch: what the cross-entropy takes."""
    hidden_BTD = model.hidden_states(batch["tokens"], batch["positions"], batch["segment_ids"], dropout_key)
    hidden_BTD, head_VD = fetched_for(hidden_BTD, model.stored_head_VD)
    return hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), head_VD, batch["labels"].reshape(-1)


def gradients(
    objective: Objective, trainable: Tree, frozen: Tree, batches: Batch, dropout_key: jax.Array | None
) -> tuple[jax.Array, jax.Array, Tree]:
    """(mean loss, tokens, its gradient with respect to `trainable`) over micro-batches [A, B, T], one at a time.

    The mean runs over all counted tokens of all micro-batches, so any split of a batch gives the same gradient. Sums over
    micro-batches are float32; the gradient of a single one has the parameters' dtypes.
    """
    count = batches["tokens"].shape[0]
    keys = None if dropout_key is None else jax.random.split(dropout_key, count)
    batches = {name: batches[name] for name in BATCH_KEYS}
    tokens = jnp.sum(batches["labels"] != IGNORE)
    counted = jnp.maximum(tokens, 1).astype(jnp.float32)

    def share(trainable, batch, key):
        return objective.loss(trainable, frozen, batch, key)[0] / counted

    def of_micro_batch(inputs):
        return jax.value_and_grad(share)(trainable, *inputs)

    def add(sums, inputs):
        return jax.tree.map(lambda total, new: total + new.astype(total.dtype), sums, of_micro_batch(inputs)), None

    micro_batches = batches, keys
    if count == 1:  # whose gradient stays in its dtype, with no sum beside it
        loss, grads = of_micro_batch(jax.tree.map(lambda x: x[0], micro_batches))
    else:
        # All in one loop: what a pass keeps in host memory would be there twice for two programs.
        start = jnp.float32(0), jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trainable)
        (loss, grads), _ = lax.scan(add, start, micro_batches)
    return loss, tokens, grads


def train_step(
    objective: Objective, optimizer: optax.GradientTransformation, state: TrainState, frozen: Tree, batches: Batch
) -> tuple[TrainState, StepMetrics]:
    """One optimizer step over micro-batches [A, B, T]; jit it with `jit_train_step`."""
    uses_dropout = objective.settings.lora is not None and objective.settings.lora.lora_dropout > 0
    dropout_key = jax.random.fold_in(state.key, state.step) if uses_dropout else None
    loss, tokens, grads = gradients(objective, state.trainable, frozen, batches, dropout_key)
    updates, optimizer_state = optimizer.update(grads, state.optimizer, state.trainable)
    trainable = cast(Tree, optax.apply_updates(state.trainable, updates))
    metrics = StepMetrics(loss=loss, grad_norm=global_norm(grads), tokens=tokens)
    return TrainState(state.step + 1, trainable, optimizer_state, state.key), metrics


def jit_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, platform: str | None = None
) -> jax.stages.Wrapped:
    """The compiled step `(state, frozen, batches) -> (state, metrics)`; the old state's buffers are reused for the new.

    `platform` is what it is compiled for: the default backend when None.
    """
    step = functools.partial(train_step, objective, optimizer)
    policy = objective.settings.policy_for(objective.settings.max_seq_length)
    options = _compiler_options(platform) | (_WITH_OFFLOAD if policy in OFFLOADING else {})
    sums_in_any_order = objective.settings.lora is None or objective.settings.attention == "cudnn"
    if sums_in_any_order and (platform or jax.default_backend()) != "cpu":
        options |= _IN_FIXED_ORDER
    return jax.jit(step, donate_argnums=0, compiler_options=options)


def init_state(optimizer: optax.GradientTransformation, trainable: Tree, seed: int) -> TrainState:
    """The state before the first step. `trainable` is copied, since the step donates it."""
    trainable = jax.tree.map(jnp.copy, trainable)
    return TrainState(jnp.int32(0), trainable, optimizer.init(trainable), jax.random.key_data(jax.random.key(seed)))


def abstract_state(optimizer: optax.GradientTransformation, trainable: Tree, sharding: Sharding) -> TrainState:
    """The shapes of `init_state`'s result, on the devices of `sharding` and in their host memory; nothing is computed."""
    state = jax.eval_shape(functools.partial(init_state, optimizer, seed=0), trainable)
    return place(state, sharding)


def jit_token_scores() -> jax.stages.Wrapped:
    """The compiled `token_scores`; what is compiled serves every call of this."""
    return jax.jit(token_scores, compiler_options=_compiler_options())


# XLA's rematerialisation counts what is in host memory as the device's. It finds the device too full and computes fusions again,
# hugely spilling ones (12 KB a thread at 1,048,576 tokens), and the device's memory stays as it was.
# A command buffer (a CUDA graph) runs what it holds one after another: copies between kernels, not beside them.
_WITH_OFFLOAD = {"xla_disable_hlo_passes": "rematerialization", "xla_gpu_enable_command_buffer": ""}

# The gradient of an embedding is a sum by token, and cuDNN's gradient of queries one over blocks of keys. A GPU would take both
# with atomic additions, in any order. Products are still tuned, unlike with xla_gpu_deterministic_ops.
_IN_FIXED_ORDER = {"xla_gpu_exclude_nondeterministic_ops": True}


def _compiler_options(platform: str | None = None) -> dict[str, Any]:
    """On a CPU: vectors as wide as the machine has them. XLA's default of 256 bits halves the speed of AVX-512's exponentials."""
    return {"xla_cpu_prefer_vector_width": 512} if (platform or jax.default_backend()) == "cpu" else {}
