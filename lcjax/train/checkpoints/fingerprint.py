"""A digest of every byte of a model's base weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from lcjax.parallel.host_blocks import host_blocks
from lcjax.train.checkpoints.checksums import hashing_threads

# The number of bytes hashed at a time; it is part of the definition of a fingerprint.
BLOCK_BYTES = 32 * 2**20

# The number of blocks that wait for a thread, in memory if other processes have sent them.
_AHEAD = 32


def fingerprint(params: Any) -> str:
    """32 hexadecimal digits that depend on every bit, path, shape and dtype of a tree of arrays.

    The arrays may be in device or host memory, on one device or on several. Each is read in blocks
    along its first axis, which threads read and hash; the blocks' digests are joined in a fixed
    order. On a GPU no thread needs more than one block of memory, on the device and on the host. An
    array in pinned host memory is copied as a whole. If processes have different parts of the
    arrays, all of them must call this.
    """
    jobs = (job for path, leaf in jax.tree.leaves_with_path(params) for job in (_heading(path, leaf), *_blocks(leaf)))
    with hashing_threads() as threads:
        digests = []
        for job in jobs:
            digests.append(threads.submit(job))
            if len(digests) > _AHEAD:
                digests[-_AHEAD].result()
        return hashlib.sha256(b"".join(digest.result() for digest in digests)).hexdigest()[:32]


def _heading(path: Any, leaf: jax.Array) -> Callable[[], bytes]:
    heading = f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode()
    return lambda: hashlib.sha256(heading).digest()


def _blocks(leaf: jax.Array) -> Iterator[Callable[[], bytes]]:
    """Functions that return the digest of each piece, about BLOCK_BYTES, of the first axis."""
    if leaf.ndim == 0:
        yield lambda: _digest(np.asarray(leaf)[None])
        return
    for block in host_blocks(leaf, max(1, BLOCK_BYTES * leaf.shape[0] // max(1, leaf.nbytes))):
        yield lambda block=block: _digest(block())


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).digest()
