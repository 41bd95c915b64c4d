"""A digest of every byte of a model's base weights."""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import lax

from lcjax.train.checksums import hashing_threads

# The bytes that are hashed at a time; it is part of what a fingerprint is.
BLOCK_BYTES = 32 * 2**20
_IN_FLIGHT = 32


def fingerprint(params: Any) -> str:
    """32 hexadecimal digits that change with any bit, path, shape or dtype of a tree of arrays.

    The arrays may be in device or host memory. Each is read in blocks along its first axis and hashed by threads, the blocks'
    digests in a fixed order; beside the weights there are never more than a few blocks in host memory, or one array that
    is in pinned host memory.
    """
    digest = hashlib.sha256()
    with hashing_threads() as threads:
        pending: collections.deque[concurrent.futures.Future[bytes]] = collections.deque()
        for path, leaf in jax.tree.leaves_with_path(params):
            heading = f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode()
            pending.append(threads.submit(_digest_of_bytes, heading))
            for block in _blocks(leaf):
                pending.append(threads.submit(_digest_of_array, block))
                while len(pending) > _IN_FLIGHT:
                    digest.update(pending.popleft().result())
        for future in pending:
            digest.update(future.result())
    return digest.hexdigest()[:32]


def _blocks(leaf: jax.Array) -> Iterator[np.ndarray]:
    """The array in pieces of its first axis, of about BLOCK_BYTES."""
    if leaf.ndim == 0:
        yield np.asarray(leaf)[None]
        return
    rows = max(1, BLOCK_BYTES * leaf.shape[0] // max(1, leaf.nbytes))
    on_device = leaf.sharding.memory_kind == "device" and next(iter(leaf.devices())).platform != "cpu"
    whole = None if on_device else np.asarray(leaf)
    for first in range(0, leaf.shape[0], rows):
        count = min(rows, leaf.shape[0] - first)
        if whole is not None:
            yield whole[first : first + count]
        else:
            yield np.asarray(lax.dynamic_slice_in_dim(leaf, first, count))


def _digest_of_array(array: np.ndarray) -> bytes:
    return _digest_of_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _digest_of_bytes(content: bytes | memoryview) -> bytes:
    return hashlib.sha256(content).digest()
