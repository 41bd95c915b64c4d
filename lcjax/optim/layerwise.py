"""AdamW layer by layer, optionally with its float32 master weights and moments in host memory.

A bfloat16 weight cannot be trained directly, because an update smaller than its last bit is lost.
Instead its float32 master copy is trained, and the weight is the rounded master. Master and two
moments take 12 bytes per weight, six times as much as the weight itself. One layer at a time is
copied to the device, which therefore needs memory for one layer of a leaf and not for all of them.

Shapes: a leaf [L, ...] of stacked layers is processed along L; leaves with fewer than three axes
are processed as a whole. Sources: Loshchilov & Hutter, arXiv 1711.05101; masters: Micikevicius et
al., arXiv 1710.03740, section 3.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Sharding

from lcjax.config.parallel.mesh import ONE_DEVICE, MeshShape
from lcjax.parallel.memories import PINNED, to_device, to_host
from lcjax.parallel.weights import divided, global_norm, part_bytes

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OnHost:
    """Arrays that stay in pinned host memory between steps."""

    arrays: Tree


class LayerwiseState(NamedTuple):
    """The number of completed steps, and float32 trees with the structure of the parameters.

    `masters` has leaves only for parameters that are not float32. A tree in host memory is an
    OnHost.
    """

    steps: jax.Array
    masters: Tree
    mu: Tree
    nu: Tree


@dataclasses.dataclass(frozen=True)
class AdamW:
    """`m -= rate (mu' / (sqrt(nu') + eps) + decay m)` with the bias-corrected moments mu' and nu'.

    `schedule` returns the rate of step 0, 1, ...; `decays` returns whether weight decay applies to
    the leaf with a given path.
    """

    schedule: optax.Schedule
    decays: Callable[[Any], bool]
    weight_decay: float
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def update(self, count, grad, mu, nu, master, decays: bool):
        """(master, mu, nu) after step `count` + 1; float32 arrays of equal shape."""
        mu = self.b1 * mu + (1 - self.b1) * grad
        nu = self.b2 * nu + (1 - self.b2) * jnp.square(grad)
        step = (count + 1).astype(jnp.float32)
        direction = (mu / (1 - self.b1**step)) / (jnp.sqrt(nu / (1 - self.b2**step)) + self.eps)
        if decays:
            direction = direction + self.weight_decay * master
        return master - self.schedule(count) * direction, mu, nu


def layerwise(
    adamw: AdamW, *, max_grad_norm: float, on_host: bool, mesh: MeshShape = ONE_DEVICE
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW, for one layer of one leaf after another.

    Args:
      adamw: the update rule and its constants.
      max_grad_norm: gradients with a larger global norm are scaled down to it; 0 does not clip.
      on_host: whether masters and moments are in host memory between steps.
      mesh: the devices that may share the weights.

    Returns:
      A transformation of gradients that are float32 or have the dtypes of the parameters. Its
      updates have the dtypes of the gradients. The sum of a bfloat16 weight and its update is the
      rounded master.
    """

    def init(params: Tree) -> LayerwiseState:
        def placed(leaf: jax.Array) -> jax.Array:
            # Wait for each copy: the device does not have enough memory for all of them at once.
            return jax.block_until_ready(to_host(leaf)) if on_host else leaf

        masters = jax.tree.map(lambda x: None if x.dtype == jnp.float32 else placed(x.astype(jnp.float32)), params)
        mu, nu = (jax.tree.map(lambda x: placed(jnp.zeros(x.shape, jnp.float32)), params) for _ in range(2))
        return LayerwiseState(jnp.int32(0), *(OnHost(tree) if on_host else tree for tree in (masters, mu, nu)))

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, LayerwiseState]:
        assert params is not None, "a master is rounded to its parameter"
        structure = jax.tree.structure(params)
        trees = [tree.arrays if on_host else tree for tree in state[1:]]
        columns = [structure.flatten_up_to(tree) for tree in (updates, *trees)]
        scale = clip_factor(mesh, updates, max_grad_norm)
        results = []
        for (path, leaf), *arrays in zip(jax.tree.leaves_with_path(params), *columns, strict=True):
            step = _Step(adamw, state.steps, scale, adamw.decays(path), on_host)
            results.append(step.by_layers(leaf, *arrays) if leaf.ndim >= 3 else step.whole(leaf, *arrays))
        updates, *trees = (structure.unflatten(column) for column in zip(*results, strict=True))
        return updates, LayerwiseState(state.steps + 1, *(OnHost(tree) if on_host else tree for tree in trees))

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class _Step:
    """One step of one leaf."""

    adamw: AdamW
    count: jax.Array
    scale: jax.Array
    decays: bool
    on_host: bool

    def whole(self, leaf, grad, *state):
        """(update, master or None, mu, nu), the last three in the memory where they are stored."""
        master, mu, nu = to_device(state) if self.on_host else state
        weight = leaf if master is None else master
        grad, grad_dtype = grad.astype(jnp.float32) * self.scale, grad.dtype
        new, mu, nu = self.adamw.update(self.count, grad, mu, nu, weight, self.decays)
        # The difference of adjacent bfloat16 numbers is exact. Otherwise the next update, which
        # starts from the weight, corrects the rounding error.
        update = new.astype(leaf.dtype).astype(jnp.float32) - leaf.astype(jnp.float32)
        state = (None if master is None else new), mu, nu
        return update.astype(grad_dtype), *(to_host(state) if self.on_host else state)

    def by_layers(self, leaf, grad, *state):
        """The same for each entry of the first axis; the update overwrites the gradient."""

        def one_layer(grad, inputs):
            i, leaf, *state = inputs
            update, *state = self.whole(leaf, grad[i], *state)
            return lax.dynamic_update_index_in_dim(grad, update, i, 0), tuple(state)

        update, state = lax.scan(one_layer, grad, (jnp.arange(len(leaf)), leaf, *state))
        return update, *state


def place(state: Tree, sharding: Sharding, mesh: MeshShape = ONE_DEVICE) -> Tree:
    """ShapeDtypeStructs like `state`, on the devices of `sharding`, which form `mesh`.

    Trees that are `OnHost` are in the host memory of these devices.
    """

    def placed(path: Any, node: Any) -> Any:
        memory = sharding.with_memory_kind(PINNED) if isinstance(node, OnHost) else sharding

        def leaf(inner: Any, x: Any) -> jax.ShapeDtypeStruct:
            part = divided(memory, mesh, (*path, *inner), x)
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=part)

        return jax.tree.map_with_path(leaf, node)

    return jax.tree.map_with_path(placed, state, is_leaf=_is_on_host)


def host_bytes(state: Tree) -> int:
    """The bytes of a device's parts of the arrays in a tree that are `OnHost`."""
    nodes = list(filter(_is_on_host, jax.tree.leaves(state, is_leaf=_is_on_host)))
    return sum(part_bytes(leaf) for leaf in jax.tree.leaves(nodes))


def clip_factor(mesh: MeshShape, grads: Tree, max_grad_norm: float) -> jax.Array:
    """The factor that scales a larger global norm down to `max_grad_norm`; 0 does not clip."""
    if max_grad_norm == 0:
        return jnp.float32(1)
    return jnp.minimum(1.0, max_grad_norm / global_norm(mesh, grads))


def _is_on_host(node: Any) -> bool:
    return isinstance(node, OnHost)
