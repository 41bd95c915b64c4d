"""One layer's attention, causal, over a sequence that the devices of a mesh share.

Shapes: T tokens, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lcjax.config.families import AttentionView
from lcjax.config.parallel.mesh import CONTEXT, MeshShape
from lcjax.ops.attention.parallel import passes_over
from lcjax.ops.attention.registry import backend_of
from lcjax.parallel.devices import Devices, token_order
from lcjax.step.update import WITH_RING
from lcjax_scripts.bench.kernels.timing import milliseconds

TOKENS = PartitionSpec(None, CONTEXT)
"""Arrays [1, T, ...] with the tokens along the context."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """The sizes of one layer's attention."""

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int

    def inputs(self) -> tuple[jax.Array, ...]:
        """(q, k, v, dout), bfloat16 [1, T, H or K, D] on the first device."""
        counts = (self.heads, self.kv_heads, self.kv_heads, self.heads)
        keys = jax.random.split(jax.random.key(0), len(counts))
        shapes = [(1, self.tokens, count, self.head_dim) for count in counts]
        return tuple(jax.random.normal(*pair, jnp.bfloat16) for pair in zip(keys, shapes, strict=True))


@dataclasses.dataclass(frozen=True)
class Measured:
    """The milliseconds of a pass, and its results in the order of the sequence."""

    milliseconds: float
    results: tuple[np.ndarray, ...]


def measure(layer: Layer, implementation: str, shape: MeshShape, *, backward: bool, seconds: float) -> Measured:
    """Times out, or (out, dq, dk, dv) if `backward`.

    Raises:
      InputError: the implementation does not support the mesh.
    """
    passes, devices = passes_over(shape, backend_of(implementation)), Devices.of(shape)

    def attend(q, k, v, dout):
        def run(q, k, v):
            return passes.run(q, k, v, None, None, AttentionView(scale=layer.head_dim**-0.5))

        if not backward:
            return (run(q, k, v),)
        out, pull = jax.vjp(run, q, k, v)
        return out, *pull(dout)

    arguments = [_place(devices, x) for x in layer.inputs()]
    options = WITH_RING if shape.ring > 1 and jax.default_backend() == "gpu" else {}
    compiled = jax.jit(devices.over(attend, TOKENS, TOKENS), compiler_options=options).lower(*arguments).compile()
    results = compiled(*arguments)
    took = milliseconds(*_runner(compiled, arguments), seconds=seconds)
    return Measured(took, tuple(_in_sequence(shape, x) for x in results))


def _runner(compiled: Callable[..., Any], arguments: list[jax.Array]) -> tuple[Callable[[], Any], Callable[[], None]]:
    """(starts a run, waits for the last one)."""
    last: list[Any] = []

    def run() -> None:
        last[:] = [compiled(*arguments)]

    return run, lambda: jax.block_until_ready(last)


def _place(devices: Devices, x: jax.Array) -> jax.Array:
    if devices.mesh is None:
        return x
    order = token_order(devices.shape, x.shape[1])
    ordered = x if order is None else x[:, order]
    return jax.device_put(ordered, NamedSharding(devices.mesh, TOKENS))


def _in_sequence(shape: MeshShape, x: jax.Array) -> np.ndarray:
    found = np.asarray(x)
    order = token_order(shape, found.shape[1])
    return found if order is None else found[:, np.argsort(order)]


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest expected value."""
    difference = np.abs(actual.astype(np.float32) - expected.astype(np.float32)).max()
    return float(difference / np.abs(expected.astype(np.float32)).max())
