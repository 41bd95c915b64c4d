"""Schedules visit exactly the visible blocks, once each; full blocks are fully visible."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from lcjax.pallas.schedule import Lists, Ranges, schedule
from tests.support.mask_cases import BATCH, BLOCKS, EXACT, HEADS, SAFE, true_bounds


@dataclasses.dataclass
class Clamped:
    """An array that is read as in a kernel (see `lcjax.pallas.triton.launch.Table`)."""

    array: np.ndarray

    def __getitem__(self, index):
        return self.array[tuple(min(int(i), size - 1) for i, size in zip(index, self.array.shape, strict=True))]


def visited(mask, rows: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns how often each block is visited as (full, partial), [B, H, rows, columns]."""
    visits = jax.tree.map(lambda x: Clamped(np.asarray(x)), schedule(mask, BLOCKS, rows=rows))
    counts = BLOCKS.query_count, BLOCKS.key_count
    shape = BATCH, HEADS, *(counts if rows == "queries" else counts[::-1])
    times = np.zeros((2, *shape), int)
    for b, h, row in np.ndindex(*shape[:3]):
        for kind, (count, column) in enumerate((visits.full(b, h, row), visits.partial(b, h, row))):
            for n in range(int(count)):
                times[kind, b, h, row, int(column(n))] += 1
    return times[0], times[1]


@pytest.mark.parametrize("rows", ["queries", "keys"])
@pytest.mark.parametrize("name", EXACT)
def test_exactly_the_visible_blocks(name, rows):
    full, partial = visited(EXACT[name], rows)
    some, every = true_bounds(EXACT[name])
    if rows == "keys":
        some, every = np.swapaxes(some, 2, 3), np.swapaxes(every, 2, 3)
    # The last block extends beyond the sequence, so it is never full.
    every = np.concatenate([every[..., :-1], np.zeros_like(every[..., -1:])], axis=-1)
    np.testing.assert_array_equal(full, every)
    np.testing.assert_array_equal(partial, some & ~every)


@pytest.mark.parametrize("rows", ["queries", "keys"])
@pytest.mark.parametrize("name", SAFE)
def test_no_visible_block_is_left_out(name, rows):
    full, partial = visited(SAFE[name], rows)
    some, every = true_bounds(SAFE[name])
    if rows == "keys":
        some, every = np.swapaxes(some, 2, 3), np.swapaxes(every, 2, 3)
    assert np.all((full + partial)[some] == 1)
    assert np.max(full + partial) == 1
    assert not np.any(full.astype(bool) & ~every)


def test_ranges_have_four_numbers_per_row():
    ranges = schedule(EXACT["causal"], BLOCKS, rows="queries")
    assert isinstance(ranges, Ranges)
    assert ranges.ends.shape == (1, 1, BLOCKS.query_count, 4)
    lists = schedule(EXACT["dilated by head"], BLOCKS, rows="keys")
    assert isinstance(lists, Lists)
    assert lists.columns.shape == (1, HEADS, BLOCKS.key_count, BLOCKS.query_count)
