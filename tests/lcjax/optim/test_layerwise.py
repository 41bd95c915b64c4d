"""lcjax.optim.layerwise: float32 master weights, and state in host memory."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lcjax.config.parallel.mesh import ONE_DEVICE
from lcjax.optim.adamw import make_optimizer
from lcjax.optim.layerwise import host_bytes
from lcjax.optim.schedules import make_schedule
from lcjax.parallel.weights import global_norm
from lcjax.plan.choosing.settings import requested_settings
from lcjax.plan.compiling.compile import compile_step
from lcjax.plan.compiling.parameters import abstract_params
from lcjax.plan.workload import Workload
from tests.support import tiny_model
from tests.support.thin import thinned

STEPS, RATE = 6, 1e-3
SHAPES = {"layers": {"up": {"weight": (5, 12, 8)}, "norm": {"weight": (5, 8)}}, "head": {"weight": (30, 8)}}
EVERYTHING = jax.tree.map(lambda _: True, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def random_tree(seed: int, dtype) -> dict:
    keys = iter(jax.random.split(jax.random.key(seed), 3))
    draw = lambda shape: jax.random.normal(next(keys), shape, jnp.float32).astype(dtype)  # noqa: E731
    return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def trained(dtype, **where):
    """Returns (weights, state) after some steps with gradients that are exact in bfloat16."""
    schedule = make_schedule("linear", RATE, STEPS)
    optimizer = make_optimizer(schedule, EVERYTHING, weight_decay=0.1, **where)
    weights = jax.tree.map(lambda x: x.astype(dtype), random_tree(0, jnp.bfloat16))
    state = optimizer.init(weights)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(weights, state, grads):
        updates, state = optimizer.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state

    for seed in range(1, STEPS + 1):
        grads = jax.tree.map(lambda x: x.astype(dtype), random_tree(seed, jnp.bfloat16))
        weights, state = update(weights, state, grads)
    return weights, state


@pytest.mark.parametrize("where", [{"by_layers": True}, {"on_host": True}], ids=str)
def test_a_bfloat16_weight_is_its_rounded_master_weight(where):
    twin, _ = trained(jnp.float32, by_layers=True)
    weights, state = trained(jnp.bfloat16, **where)
    masters = state.inner_state.masters
    masters = masters.arrays if "on_host" in where else masters
    jax.tree.map(np.testing.assert_array_equal, masters, twin)
    jax.tree.map(lambda w, m: np.testing.assert_array_equal(w, m.astype(jnp.bfloat16)), weights, twin)


def test_without_master_weights_bfloat16_gives_a_different_result():
    twin, _ = trained(jnp.float32, by_layers=True)
    weights, _ = trained(jnp.bfloat16)
    equal = jax.tree.map(lambda w, m: np.mean(np.asarray(w == m.astype(jnp.bfloat16))), weights, twin)
    assert max(jax.tree.leaves(equal)) < 0.9


def test_state_stays_in_host_memory():
    _, state = trained(jnp.bfloat16, on_host=True)
    kinds = jax.tree.map(lambda x: x.sharding.memory_kind, state.inner_state)
    assert set(jax.tree.leaves(kinds[1:])) == {"pinned_host"}
    assert host_bytes(state) == 3 * 4 * sum(leaf.size for leaf in jax.tree.leaves(random_tree(0, jnp.float32)))
    _, on_device = trained(jnp.bfloat16, by_layers=True)
    assert host_bytes(on_device) == 0


def test_the_norm_of_bfloat16_gradients_is_summed_in_float32():
    tree = random_tree(3, jnp.bfloat16)
    exact = np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(tree)))
    np.testing.assert_allclose(global_norm(ONE_DEVICE, tree), exact, rtol=1e-6)
    assert global_norm(ONE_DEVICE, tree).dtype == jnp.float32


# Its kernels are those of other tests.
TINY = dataclasses.replace(tiny_model.TINY, num_hidden_layers=16)
TOKENS = tiny_model.TOKENS


@functools.cache
def planned(where: str, layers: int, lora_r: int):
    config = dataclasses.replace(TINY, num_hidden_layers=layers)
    workload = Workload("tiny", config, "h100-80gb", lora_r, None, "offload", "tile=1024", optimizer_memory=where)
    return compile_step(workload, requested_settings(workload, TOKENS)).memory


@pytest.mark.parametrize("lora_r", thinned([0, 8], lambda lora_r: lora_r == 0))
def test_a_compiled_step_has_the_state_on_the_host_and_a_layer_of_it_on_the_device(lora_r):
    here, there = (planned(where, 16, lora_r) for where in ("device", "host"))
    params = abstract_params(TINY, Workload("tiny", TINY, "h100-80gb", lora_r).lora, None)
    learning = params if lora_r == 0 else [x for x in jax.tree.leaves(params) if x.dtype == jnp.float32]
    state = (12 if lora_r == 0 else 8) * sum(leaf.size for leaf in jax.tree.leaves(learning))
    inputs = 16 * TOKENS * TINY.hidden_size * 2
    # The buffers of the update may or may not share the memory of the layers' inputs.
    assert inputs + 2 * state >= there.host_bytes >= here.host_bytes + state == inputs + state
    assert here.argument_bytes - there.argument_bytes == pytest.approx(state, rel=1e-3)
    assert there.temp_bytes <= here.temp_bytes + state // 16


def test_full_fine_tuning_needs_four_bytes_per_weight_on_the_device():
    """They are the weight and its gradient, both in bfloat16; by default there is no state."""
    layer = sum(math.prod(shape) for shape in TINY.linear_shapes().values())
    # If "auto" were not "host" here, there would be 12 more bytes per weight of the larger model.
    many, few = planned("auto", 32, 0), planned("host", 16, 0)
    assert (many.device_bytes - few.device_bytes) / 16 == pytest.approx(4 * layer, rel=0.02)
