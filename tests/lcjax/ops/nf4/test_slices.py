"""Slices of quantized weights have the values of slices of the dequantized weights."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from lcjax.errors import InputError
from lcjax.ops import nf4

WEIGHT_OI = np.random.default_rng(0).normal(size=(24, 384)).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_slices_equal_those_of_the_whole(axis, parts):
    weight = {name: jnp.asarray(leaf) for name, leaf in nf4.quantize(WEIGHT_OI).items()}
    whole = np.asarray(nf4.dequantize(weight, jnp.float32))
    for part, expected in enumerate(np.split(whole, parts, axis)):
        own = nf4.part_of(weight, jnp.int32(part), parts, axis)
        assert nf4.is_quantized(own)
        np.testing.assert_array_equal(nf4.dequantize(own, jnp.float32), expected)
        other = nf4.part_of(weight, jnp.int32((part + 1) % parts), parts, axis)
        assert parts == 1 or not np.array_equal(nf4.dequantize(other, jnp.float32), expected)


def test_a_slice_of_sections_has_a_part_of_every_section():
    weight = {name: jnp.asarray(leaf) for name, leaf in nf4.quantize(WEIGHT_OI).items()}
    queries, keys, values = np.split(np.asarray(nf4.dequantize(weight, jnp.float32)), [16, 20])
    for part in range(2):
        own = nf4.part_of(weight, jnp.int32(part), 2, axis=0, sections=(16, 4, 4))
        expected = np.concatenate([np.split(x, 2)[part] for x in (queries, keys, values)])
        np.testing.assert_array_equal(nf4.dequantize(own, jnp.float32), expected)


def test_a_cut_through_a_block_is_refused():
    weight = {name: jnp.asarray(leaf) for name, leaf in nf4.quantize(WEIGHT_OI).items()}
    with pytest.raises(
        InputError, match="of 384 columns in blocks of 64 cannot be cut into 4 parts; use fewer head_groups"
    ):
        nf4.part_of(weight, jnp.int32(0), 4, axis=1)
