"""Compares MXFP4 with transformers and its definition, for every code and exponent, bit for bit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from lcjax.errors import InputError
from lcjax.ops import mxfp4

# Of OCP's specification: a sign, two bits of an exponent and one of a fraction.
MAGNITUDES = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
# Smaller ones give denormal values, and larger ones infinite ones.
EXPONENTS = np.arange(3, 253, dtype=np.uint8)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def every_value() -> tuple[np.ndarray, np.ndarray]:
    """Returns blocks [E, O, I / 2] and exponents [E, O, I / 32], as of two experts.

    A row has one exponent and every byte, so that every code is in both halves of a byte.
    """
    shape = (2, len(EXPONENTS) // 2)
    blocks = np.broadcast_to(np.random.default_rng(0).permutation(256).astype(np.uint8), (*shape, 256))
    return blocks, np.broadcast_to(EXPONENTS.reshape(*shape, 1), (*shape, 16))


def defined(blocks: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Returns the values in float64, from the definition."""
    codes = np.stack([blocks % 16, blocks // 16], axis=-1).reshape(*blocks.shape[:-1], -1)
    signed = np.array([*MAGNITUDES, *(-x for x in MAGNITUDES)])
    return signed[codes] * 2.0 ** (np.repeat(exponents, 32, axis=-1).astype(np.float64) - 127)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_code_with_every_exponent(dtype):
    blocks, exponents = every_value()
    weight = {"blocks": jnp.asarray(blocks), "exponents": jnp.asarray(exponents)}
    found = jax.jit(mxfp4.dequantize, static_argnums=1)(weight, dtype)
    assert (found.shape, found.dtype) == ((2, 125, 512), jnp.dtype(dtype))
    np.testing.assert_array_equal(np.asarray(found).astype(np.float64), defined(blocks, exponents))
    grouped = torch.from_numpy(blocks.reshape(2, 125, 16, 16).copy())
    theirs = convert_moe_packed_tensors(grouped, torch.from_numpy(exponents.copy()), dtype=DTYPES[dtype])
    np.testing.assert_array_equal(np.asarray(found).astype(np.float32), theirs.mT.float().numpy())
    assert len(np.unique(defined(blocks, exponents))) > 2 * len(EXPONENTS)


def test_other_orders_of_codes_have_other_values():
    """The comparison detects swapped halves of a byte, and a block that is a row too far."""
    blocks, exponents = every_value()
    right = defined(blocks, exponents)
    swapped = (blocks << 4) | (blocks >> 4)
    for other in ((swapped, exponents), (blocks, np.roll(exponents, 1, axis=1))):
        weight = dict(zip(("blocks", "exponents"), map(jnp.asarray, other), strict=True))
        assert (np.asarray(mxfp4.dequantize(weight, "float32")) != right).any()


def test_rows_are_whole_blocks():
    assert {name: shape for name, (shape, _) in mxfp4.leaf_types(5, 96).items()} == {
        "blocks": (5, 48),
        "exponents": (5, 3),
    }
    with pytest.raises(
        InputError, match=r"a weight \[5, 80\] in MXFP4 needs rows of a multiple of 32 values"
    ) as caught:
        mxfp4.leaf_types(5, 80)
    assert "\n" not in str(caught.value)
