"""AdamW that goes through a model layer by layer, its float32 masters and moments in host memory where they are too many.

A weight in bfloat16 cannot learn by itself: an update under its last bit is lost. Its float32 master learns, and the weight is the
master rounded. Masters and two moments take 12 bytes a weight, six times the weight's own; they pass over the device a layer at a
time, so that it needs memory for one of a leaf's layers and not for all of them.

Shapes: a leaf [L, ...] of stacked layers is worked through along L; leaves with fewer than three axes are taken whole.
Sources: Loshchilov & Hutter, arXiv 1711.05101; masters: Micikevicius et al., arXiv 1710.03740, section 3.1.
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

from lcjax.parallel.memories import PINNED, to_device, to_host

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OnHost:
    """Arrays that are in pinned host memory between steps."""

    arrays: Tree


class LayerwiseState(NamedTuple):
    """Number of steps taken, and float32 trees like the parameters: `masters` has leaves where a parameter is not float32 itself.

    Each tree is an OnHost where it is in host memory.
    """

    steps: jax.Array
    masters: Tree
    mu: Tree
    nu: Tree


@dataclasses.dataclass(frozen=True)
class AdamW:
    """`m -= rate (mu' / (sqrt(nu') + eps) + decay m)` with the moments' averages mu', nu' freed of their start at zero.

    `schedule` gives the rate of step 0, 1, ...; `decays` takes a leaf's path and says whether it decays.
    """

    schedule: optax.Schedule
    decays: Callable[[Any], bool]
    weight_decay: float
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def update(self, count, grad, mu, nu, master, decays: bool):
        """(master, mu, nu) after step `count` + 1; arrays float32 of one shape."""
        mu = self.b1 * mu + (1 - self.b1) * grad
        nu = self.b2 * nu + (1 - self.b2) * jnp.square(grad)
        step = (count + 1).astype(jnp.float32)
        direction = (mu / (1 - self.b1**step)) / (jnp.sqrt(nu / (1 - self.b2**step)) + self.eps)
        if decays:
            direction = direction + self.weight_decay * master
        return master - self.schedule(count) * direction, mu, nu


def layerwise(adamw: AdamW, *, max_grad_norm: float, on_host: bool) -> optax.GradientTransformation:
    """AdamW behind a clip by global norm, one layer of one leaf after another.

    Args:
      max_grad_norm: gradients with a larger global norm are scaled down to it; 0 does not clip.
      on_host: whether masters and moments are in host memory between steps.

    Returns:
      A transformation of gradients of the parameters' dtypes, or float32. Its updates have the gradients' dtypes; added to a
      bfloat16 weight they give its master, rounded.
    """

    def init(params: Tree) -> LayerwiseState:
        def kept(leaf: jax.Array) -> jax.Array:
            # One after another: the device has no room for all of them.
            return jax.block_until_ready(to_host(leaf)) if on_host else leaf

        masters = jax.tree.map(lambda x: None if x.dtype == jnp.float32 else kept(x.astype(jnp.float32)), params)
        mu, nu = (jax.tree.map(lambda x: kept(jnp.zeros(x.shape, jnp.float32)), params) for _ in range(2))
        return LayerwiseState(jnp.int32(0), *(OnHost(tree) if on_host else tree for tree in (masters, mu, nu)))

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, LayerwiseState]:
        assert params is not None, "a master is rounded to its parameter"
        structure = jax.tree.structure(params)
        trees = [tree.arrays if on_host else tree for tree in state[1:]]
        columns = [structure.flatten_up_to(tree) for tree in (updates, *trees)]
        scale = _clip_factor(updates, max_grad_norm)
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
        """(update, master or None, mu, nu), the last three where they are kept."""
        master, mu, nu = to_device(state) if self.on_host else state
        weight = leaf if master is None else master
        grad, grad_dtype = grad.astype(jnp.float32) * self.scale, grad.dtype
        new, mu, nu = self.adamw.update(self.count, grad, mu, nu, weight, self.decays)
        # The difference of neighbours in bfloat16 is exact. Elsewhere the next update mends it, which starts from the weight.
        update = new.astype(leaf.dtype).astype(jnp.float32) - leaf.astype(jnp.float32)
        state = (None if master is None else new), mu, nu
        return update.astype(grad_dtype), *(to_host(state) if self.on_host else state)

    def by_layers(self, leaf, grad, *state):
        """The same, along the first axis of each array; the update takes the gradient's memory."""

        def one_layer(grad, inputs):
            i, leaf, *state = inputs
            update, *state = self.whole(leaf, grad[i], *state)
            return lax.dynamic_update_index_in_dim(grad, update, i, 0), tuple(state)

        update, state = lax.scan(one_layer, grad, (jnp.arange(len(leaf)), leaf, *state))
        return update, *state


def place(state: Tree, sharding: Sharding) -> Tree:
    """ShapeDtypeStructs like `state`, on the devices of `sharding`: what is `OnHost` in those devices' host memory."""

    def placed(node: Any) -> Any:
        memory = sharding.with_memory_kind(PINNED) if isinstance(node, OnHost) else sharding
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=memory), node)

    return jax.tree.map(placed, state, is_leaf=_is_on_host)


def host_bytes(state: Tree) -> int:
    """Bytes of what is `OnHost` in a tree."""
    nodes = list(filter(_is_on_host, jax.tree.leaves(state, is_leaf=_is_on_host)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nodes))


def global_norm(tree: Tree) -> jax.Array:
    """The Euclidean norm of all leaves together, summed in float32 whatever their dtype."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))


def _clip_factor(grads: Tree, max_grad_norm: float) -> jax.Array:
    if max_grad_norm == 0:
        return jnp.float32(1)
    return jnp.minimum(1.0, max_grad_norm / global_norm(grads))


def _is_on_host(node: Any) -> bool:
    return isinstance(node, OnHost)
