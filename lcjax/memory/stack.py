"""All layers with one derivative rule, which saves only the input of every layer or of every g-th.

The inputs are saved in host memory or on the device. With `fetch_ahead`, the carry of the backward
scan has the saved input of the current layer. The scan first starts to fetch the input of the layer
below, so that the copy from the host runs at the same time as the computation of the current layer.

Shapes: L layers, g layers per saved input, S = L / g saved inputs, B batch, T tokens, D hidden
size.
Source: Chen et al., arXiv 1604.06174.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from lcjax.config.execution import check_tiles
from lcjax.config.memory import MemorySettings
from lcjax.config.parallel.mesh import ONE_DEVICE, MeshShape
from lcjax.errors import InputError
from lcjax.memory.grouped_layer import GroupedLayer
from lcjax.memory.layer import TiledLayer
from lcjax.memory.parts import LayerInputs, LayerParts, Load
from lcjax.memory.stacked import layer_at, layer_numbers, scan_layers
from lcjax.memory.trainable import Parameters
from lcjax.ops.attention.parallel import passes_over
from lcjax.ops.attention.passes import backend_with_passes
from lcjax.parallel.memories import to_device, to_host
from lcjax.parallel.weights import scatter_layer

Tree = Any


@dataclasses.dataclass(frozen=True)
class Stack:
    """How the stack runs.

    Attributes:
      offload: whether saved arrays are in host memory.
      save_attention: whether attention's output and log-sum-exp are saved too, for every layer.
      fetch_ahead: whether saved arrays are fetched before the layer that needs them runs.
      save_every: the number of layers in a group; only the input of its first layer is saved.
    """

    layer: TiledLayer | GroupedLayer
    offload: bool
    save_attention: bool
    fetch_ahead: bool
    save_every: int


def tiled_stack(
    parts: LayerParts, attention: str, policy: str, settings: MemorySettings, mesh: MeshShape = ONE_DEVICE
) -> Stack:
    """The stack of layers made of `parts`, over the tokens of one device of a mesh.

    Raises:
      InputError: the implementation of attention or the policy does not support tiles.
    """
    check_tiles(policy, settings)
    layer = TiledLayer(parts, passes_over(mesh, backend_with_passes(attention)), settings.tile)
    if settings.head_groups > 1:
        layer = GroupedLayer(**vars(layer), groups=settings.head_groups)
    return Stack(
        layer,
        offload=policy != "full",
        save_attention=policy == "offload_attn",
        fetch_ahead=settings.fetch_ahead,
        save_every=settings.save_every,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_stack(
    stack: Stack, x_BTD: jax.Array, load: Load, params: Tree, dropout_keys: jax.Array | None, context: Any
) -> tuple[jax.Array, Load]:
    """(the residual stream after all layers, `load` plus that of all layers).

    `params` and `dropout_keys` are stacked, L first. Differentiable in x and params. Gradients are
    computed only for those leaves of params that JAX differentiates with respect to.
    """
    layers = LayerInputs(Parameters.of(params, [False] * len(jax.tree.leaves(params))), dropout_keys, context)

    def one_layer(stream, layer, _):
        x_BTD, load = stream
        return stack.layer.forward(x_BTD, load, layers.of(layer))[0], None

    return scan_layers(one_layer, (x_BTD, load), layer_numbers(_layer_count(params)))[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Residuals:
    saved_SBTD: jax.Array
    attended_L: Any
    layers: LayerInputs


def _forward(stack, x_BTD, load, params, dropout_keys, context):
    # With symbolic_zeros, `perturbed` tells for every array whether its gradient is needed.
    learns = [leaf.perturbed for leaf in jax.tree.leaves(params)]
    x_BTD, load, params, dropout_keys, context = jax.tree.map(
        lambda leaf: leaf.value, (x_BTD, load, params, dropout_keys, context)
    )
    layers = LayerInputs(Parameters.of(params, learns), dropout_keys, context)

    def save(tree):
        return to_host(tree) if stack.offload else tree

    def one_layer(stream, layer, _):
        x_BTD, load = stream
        stream, attended = stack.layer.forward(x_BTD, load, layers.of(layer))
        return stream, save(attended) if stack.save_attention else None

    def save_and_run(stream, group, _):
        after, attended = scan_layers(one_layer, stream, group)
        return after, (save(stream[0]), attended)

    count, size = _layer_count(params), stack.save_every
    if count % size:
        raise InputError(f"save_every={size} does not divide {count} layers; use one of {_divisors(count)}")
    groups = layer_numbers(count).reshape(count // size, size)
    stream, (saved_SBTD, attended) = scan_layers(save_and_run, (x_BTD, load), groups)
    attended_L = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), attended)
    return stream, _Residuals(saved_SBTD, attended_L, layers)


def _layer_count(stacked: Tree) -> int:
    return len(jax.tree.leaves(stacked)[0])


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _backward(stack, residuals, dstream):
    dy_BTD, dload = jax.tree.map(_instantiated, dstream, is_leaf=_is_symbolic)
    params, size = residuals.layers.params, stack.save_every
    count = len(residuals.saved_SBTD) * size

    def fetch(saved: Tree) -> Tree:
        return to_device(saved) if stack.offload else saved

    def fetch_for(layer: jax.Array) -> tuple[jax.Array, Any]:
        """(input of the first layer of its group, what was saved of the layer's own attention)."""
        return fetch((layer_at(residuals.saved_SBTD, layer // size), layer_at(residuals.attended_L, layer)))

    def rerun(i: jax.Array, x_BTD: jax.Array) -> jax.Array:
        attended = fetch(layer_at(residuals.attended_L, i))
        return stack.layer.forward(x_BTD, None, residuals.layers.of(i), attended)[0][0]

    def one_layer(carry, layer, _):
        dy_BTD, fetched = carry
        if stack.fetch_ahead:
            (x_BTD, attended), below = fetched, fetch_for(jnp.maximum(layer - 1, 0))
        else:
            (x_BTD, attended), below = fetch_for(layer), None
        if size > 1:
            x_BTD = lax.fori_loop(layer - layer % size, layer, rerun, x_BTD)
        dx_BTD, gradients = stack.layer.backward(x_BTD, residuals.layers.of(layer), dy_BTD, dload, attended)
        gradients = scatter_layer(residuals.layers.context.mesh, params.trainable_paths, gradients)
        # Convert to the weights' dtype now. The gradients of all layers together are as large as
        # the weights, and twice that in float32.
        dtypes = [x.dtype for x in params.trainable]
        return (dx_BTD, below), [g.astype(dtype) for g, dtype in zip(gradients, dtypes, strict=True)]

    start = dy_BTD, fetch_for(jnp.int32(count - 1)) if stack.fetch_ahead else None
    (dx_BTD, _), gradients = scan_layers(one_layer, start, layer_numbers(count), reverse=True)
    return dx_BTD, dload, params.with_leaves(gradients, [None] * len(params.frozen)), None, None


def _is_symbolic(leaf: Any) -> bool:
    return isinstance(leaf, SymbolicZero)


def _instantiated(cotangent: Any) -> jax.Array:
    return jnp.zeros(cotangent.shape, cotangent.dtype) if _is_symbolic(cotangent) else cotangent


run_stack.defvjp(_forward, _backward, symbolic_zeros=True)
