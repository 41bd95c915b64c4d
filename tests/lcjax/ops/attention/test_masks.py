"""Masks: compares their block bounds with their values for every pair."""

from __future__ import annotations

import numpy as np
import pytest

from lcjax.ops.attention import masks
from lcjax.ops.attention.masks import Band, Mask
from tests.support.mask_cases import (
    ASCENDING,
    BATCH,
    BLOCKS,
    EXACT,
    HEADS,
    SAFE,
    every_pair,
    true_bounds,
)


def bounds(mask: Mask) -> list[np.ndarray]:
    shape = (BATCH, HEADS, BLOCKS.query_count, BLOCKS.key_count)
    return [np.broadcast_to(np.asarray(x), shape) for x in mask.bounds(BLOCKS)]


@pytest.mark.parametrize("name", EXACT)
def test_bounds_are_exact(name):
    for claimed, true in zip(bounds(EXACT[name]), true_bounds(EXACT[name]), strict=True):
        np.testing.assert_array_equal(claimed, true)


@pytest.mark.parametrize("name", SAFE)
def test_bounds_include_every_visible_block(name):
    (some, every), (true_some, true_every) = bounds(SAFE[name]), true_bounds(SAFE[name])
    assert not np.any(true_some & ~some)
    assert not np.any(every & ~true_every)


@pytest.mark.parametrize(("offset", "wrong_offset"), [(17, 16), (16, 17)])
def test_a_band_one_off_has_other_bounds(offset, wrong_offset):
    """If the diagonal passes the corner of a block, an error of one token changes the bounds."""
    wrong = bounds(Band(after=0, static_offset=wrong_offset))
    true = true_bounds(Band(after=0, static_offset=offset))
    assert any(np.any(a != b) for a, b in zip(wrong, true, strict=True))


def test_and_or():
    one, other = Band(after=0), Band(before=5, after=9, static_offset=30)
    np.testing.assert_array_equal(every_pair(one & other), every_pair(one) & every_pair(other))
    np.testing.assert_array_equal(every_pair(one | other), every_pair(one) | every_pair(other))
    assert (one & ASCENDING).contiguous
    assert not (one | other).contiguous
    assert not (one & EXACT["prefix"]).contiguous


def test_bounds_depend_on_the_same_axes_as_the_mask():
    """A mask that ignores sequence and head has one schedule for all of them."""
    assert EXACT["prefix"].bounds(BLOCKS)[0].shape[:2] == (1, 1)
    assert EXACT["dilated by head"].bounds(BLOCKS)[0].shape[:2] == (1, HEADS)
    assert ASCENDING.bounds(BLOCKS)[0].shape[:2] == (BATCH, 1)


def test_a_mask_is_returned_unchanged():
    assert masks.function(ASCENDING) is ASCENDING
