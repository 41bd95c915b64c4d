"""Attention over sequences that several devices share, inside `jax.shard_map` over a mesh.

by_heads.py   devices exchange tokens for heads (all-to-all)
ring.py       keys and values travel from device to device, and partial results are joined
pieces.py     the mask between tokens of which every device has some pieces of the sequence

Everything else in a model works position by position and needs no communication.
"""

from __future__ import annotations

from lcjax.config.parallel.mesh import MeshShape
from lcjax.ops.attention.backend import Backend
from lcjax.ops.attention.parallel.by_heads import ByHeads
from lcjax.ops.attention.parallel.ring import Ring
from lcjax.ops.attention.passes import OnOneDevice, Passes


def passes_over(mesh: MeshShape, backend: Backend) -> Passes:
    """A layer's attention over the context of a mesh; each device has its tokens of a sequence."""
    passes = OnOneDevice(backend) if mesh.ring == 1 else Ring(backend, mesh.ring)
    return passes if mesh.heads == 1 else ByHeads(passes, mesh.heads)
