"""One optimizer step: its state, its metrics, and how it is compiled.

Shapes: A micro-batches per step, B sequences, T tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding

from lcjax.config.parallel.mesh import ONE_DEVICE, MeshShape
from lcjax.config.policies import OFFLOADING
from lcjax.model import Llama
from lcjax.ops.attention.registry import backend_of
from lcjax.ops.cross_entropy import TokenScores
from lcjax.optim.layerwise import place
from lcjax.parallel.devices import ON_ONE, STEP, WHOLE, Devices, rows
from lcjax.parallel.weights import global_norm, specs_of
from lcjax.step.objective import Batch, Objective, Tree, gradients, token_scores


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    `trainable` comes from `lcjax.model.lora.partition`. `key` is the seed of the adapters' dropout.
    """

    step: jax.Array
    trainable: Tree
    optimizer: optax.OptState
    key: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """Scalars of one step.

    They are the mean loss in nats per token and the norm of the gradient before clipping, both
    float32, and the number of counted tokens, an integer. `router_aux_loss`, float32, is the mean
    of `load_balancing_loss` before its weight; None if experts are not balanced.
    """

    loss: jax.Array
    grad_norm: jax.Array
    tokens: jax.Array
    router_aux_loss: jax.Array | None = None


def train_step(
    objective: Objective, optimizer: optax.GradientTransformation, state: TrainState, frozen: Tree, batches: Batch
) -> tuple[TrainState, StepMetrics]:
    """One optimizer step over micro-batches [A, B, T]; jit it with `jit_train_step`."""
    uses_dropout = objective.settings.lora is not None and objective.settings.lora.lora_dropout > 0
    dropout_key = jax.random.fold_in(state.key, state.step) if uses_dropout else None
    loss, balance, tokens, grads = gradients(objective, state.trainable, frozen, batches, dropout_key)
    updates, optimizer_state = optimizer.update(grads, state.optimizer, state.trainable)
    trainable = cast(Tree, optax.apply_updates(state.trainable, updates))
    grad_norm = global_norm(objective.settings.execution.mesh, grads)
    metrics = StepMetrics(loss=loss, grad_norm=grad_norm, tokens=tokens, router_aux_loss=balance)
    return TrainState(state.step + 1, trainable, optimizer_state, state.key), metrics


def _orders_on_request(attention: str) -> bool:
    return backend_of(attention).order_of_sums == "on request"


def init_state(optimizer: optax.GradientTransformation, trainable: Tree, seed: int) -> TrainState:
    """The state before the first step. `trainable` is copied, since the step donates it."""
    trainable = jax.tree.map(jnp.copy, trainable)
    return TrainState(jnp.int32(0), trainable, optimizer.init(trainable), jax.random.key_data(jax.random.key(seed)))


def abstract_state(
    optimizer: optax.GradientTransformation, trainable: Tree, sharding: Sharding, mesh: MeshShape = ONE_DEVICE
) -> TrainState:
    """The shapes of `init_state`, on the devices of `sharding` and in their host memory.

    Nothing is computed. The devices form `mesh`.
    """
    state = jax.eval_shape(functools.partial(init_state, optimizer, seed=0), trainable)
    return place(state, sharding, mesh)


def jit_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    platform: str | None = None,
    devices: Devices = ON_ONE,
) -> jax.stages.Wrapped:
    """The compiled step `(state, frozen, batches) -> (state, metrics)`.

    The new state reuses the buffers of the old one.

    Args:
      platform: the platform to compile for; None means the default backend.
      devices: their mesh has the shape in the objective's settings. Batches are divided by
        `Devices.divide_step`; every device has the whole state.
    """
    step = functools.partial(train_step, objective, optimizer)
    settings = objective.settings
    assert devices.shape == settings.execution.mesh
    step = _divided(step, devices)
    options = _compiler_options(platform) | (_WITH_OFFLOAD if settings.form.policy in OFFLOADING else {})
    in_fixed_order = settings.lora is None or _orders_on_request(settings.execution.attention)
    if in_fixed_order and (platform or jax.default_backend()) != "cpu":
        options |= IN_FIXED_ORDER
    if settings.execution.mesh.ring > 1 and (platform or jax.default_backend()) == "gpu":
        options |= WITH_RING
    return jax.jit(step, donate_argnums=0, compiler_options=options)


def _divided(step: Callable[..., Any], devices: Devices) -> Callable[..., Any]:
    """The step over arrays of which every device has its part."""

    def over_all(state: TrainState, frozen: Tree, batches: Batch) -> tuple[TrainState, StepMetrics]:
        parts = specs_of(devices.shape, (state, frozen))
        return devices.over(step, (*parts, STEP), (parts[0], WHOLE))(state, frozen, batches)

    return step if devices.mesh is None else over_all


def jit_token_scores(devices: Devices = ON_ONE) -> jax.stages.Wrapped:
    """The compiled `token_scores`; those for one device share one compilation cache.

    Batches are divided by `Devices.divide_rows`.
    """

    def scores(model: Llama, batch: Batch) -> TokenScores:
        return devices.over(token_scores, (specs_of(devices.shape, model), rows(2)), WHOLE)(model, batch)

    return jax.jit(scores, compiler_options=_compiler_options())


# XLA's rematerialization counts arrays in host memory as device memory. It concludes that the
# device is full and recomputes fusions, with large register spills (12 KB per thread at 1,048,576
# tokens), and device memory does not decrease. A command buffer (a CUDA graph) runs its operations
# one after another, so copies run between kernels and not at the same time.
_WITH_OFFLOAD = {"xla_disable_hlo_passes": "rematerialization", "xla_gpu_enable_command_buffer": ""}

# By default only one of several exchanges along a ring runs at the same time as a kernel.
WITH_RING = {"xla_gpu_experimental_parallel_collective_overlap_limit": 4}

# The gradient of an embedding is a sum for each token, and cuDNN's gradient of the queries is a sum
# over blocks of keys. A GPU would compute both with atomic additions, in any order. Matrix products
# are still autotuned, unlike with xla_gpu_deterministic_ops.
IN_FIXED_ORDER = {"xla_gpu_exclude_nondeterministic_ops": True}


def _compiler_options(platform: str | None = None) -> dict[str, Any]:
    """On a CPU, vectors of 512 bits, if the machine has them.

    With XLA's default of 256 bits, exponentials on machines with AVX-512 run at half the speed.
    """
    return {"xla_cpu_prefer_vector_width": 512} if (platform or jax.default_backend()) == "cpu" else {}
