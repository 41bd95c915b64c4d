"""The fingerprint of base weights depends on every byte of them, and on nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcjax.ops.nf4.encoding import quantize
from lcjax.train.checkpoints.fingerprint import BLOCK_BYTES, fingerprint


def tree(dtype) -> dict:
    draw = np.random.default_rng(0)
    return {
        "layers": {"weight": jnp.asarray(draw.normal(size=(3, 5, 7)), dtype), "bias": jnp.zeros((3, 5), dtype)},
        "norm": jnp.ones(4, dtype),
    }


def flipped(array: jax.Array, byte: int, bit: int = 0) -> jax.Array:
    content = bytearray(np.asarray(array).tobytes())
    content[byte] ^= 1 << bit
    return jnp.asarray(np.frombuffer(bytes(content), array.dtype).reshape(array.shape))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.uint8])
def test_every_byte_counts(dtype):
    params = tree(dtype)
    seen = {fingerprint(params)}
    weight = params["layers"]["weight"]
    for byte in range(weight.nbytes):
        params["layers"]["weight"] = flipped(weight, byte)
        seen.add(fingerprint(params))
    assert len(seen) == weight.nbytes + 1


def test_codes_and_scales_of_quantized_weights_count():
    weight = np.random.default_rng(1).normal(size=(64, 128)).astype(np.float32)
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, quantize(weight)))
    seen = {fingerprint(jax.tree.unflatten(structure, leaves))}
    for number, leaf in enumerate(leaves):
        changed = [*leaves[:number], flipped(leaf, leaf.nbytes // 2), *leaves[number + 1 :]]
        seen.add(fingerprint(jax.tree.unflatten(structure, changed)))
    assert len(seen) == len(leaves) + 1


def test_paths_shapes_and_dtypes_count():
    x = jnp.zeros((4, 6), jnp.float32)
    others = [{"a": x}, {"b": x}, {"a": x.reshape(6, 4)}, {"a": x.astype(jnp.int32)}, {"a": x.reshape(24)}]
    others += [{"a": x[:2], "b": x[2:]}, {"a": x[:, :3], "b": x[:, 3:]}]
    assert len({fingerprint(params) for params in others}) == len(others)


@pytest.mark.parametrize("shape", [(2 * BLOCK_BYTES + 7,), (3, BLOCK_BYTES + 1), (1, 1, BLOCK_BYTES + 1), ()])
def test_arrays_of_any_size(shape):
    array = jnp.zeros(shape, jnp.uint8)
    places = {0, array.nbytes // 2, array.nbytes - 1}
    found = {fingerprint([array]), *(fingerprint([flipped(array, byte)]) for byte in places)}
    assert len(found) == len(places) + 1
    assert fingerprint([array]) == fingerprint([jnp.zeros(shape, jnp.uint8)])
