"""lcjax.pallas.mosaic.ranges: visible pairs are visited, and the order of sums has no gaps."""

from __future__ import annotations

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from lcjax.ops.attention.masks import AllOf, Band, Blocks, Documents, Mask, function
from lcjax.pallas.mosaic import ranges
from lcjax.pallas.mosaic.ranges import Seen
from tests.support.thin import thinned

QUERY_BLOCK, KEY_BLOCK = 4, 8
DRAW = np.random.default_rng(0)

BANDS = [
    Band(before, after, offset)
    for before, after, offset in itertools.product((None, 1, 5, 9), (None, 0, 8), (-30, -7, 0, 1, 12, 60))
]
LENGTHS = [(16, 16), (13, 30), (30, 13), (1, 21), (24, 24), (23, 64)]


def documents(tokens: int, keys: int, *, ascending: bool) -> Documents:
    draws = [DRAW.integers(0, 4, (2, length)) for length in (tokens, keys)]
    return Documents(*(jnp.asarray(np.sort(x, axis=1) if ascending else x, jnp.int32) for x in draws))


def in_two_parts(tokens: int) -> Mask:
    """Returns a causal mask with a document that is interrupted by another one."""
    ids = jnp.asarray(np.repeat([1, 2, 1], [8, 8, tokens - 16])[None], jnp.int32)
    return Band(after=0) & Documents(ids, ids)


MASKS = {
    "documents": lambda t, s: AllOf((documents(t, s, ascending=True),)),
    "causal documents": lambda t, s: Band(after=0, static_offset=s - t) & documents(t, s, ascending=True),
    "documents in no order": lambda t, s: Band(after=0, static_offset=s - t) & documents(t, s, ascending=False),
    "window of documents": lambda t, s: Band(5, 0, s - t) & documents(t, s, ascending=True),
    "offset at run time": lambda t, s: Band(9, 0, offset=jnp.asarray([s - t], jnp.int32)),
    "no key before the offset": lambda t, s: Band(None, 0, offset=jnp.asarray([-7], jnp.int32)),
}


def every_pair(mask: Mask, batch: int, tokens: int, keys: int) -> np.ndarray:
    """bool [B, T, S]."""
    b, _, q, k = (jnp.asarray(x) for x in np.ogrid[:batch, :1, :tokens, :keys])
    return np.broadcast_to(np.asarray(mask(b, 0, q, k)), (batch, 1, tokens, keys))[:, 0]


def seen_by_kernel(mask: Mask, batch: int, tokens: int, keys: int, rows: str) -> Seen:
    view = ranges.view_of(mask, tokens, keys, QUERY_BLOCK, KEY_BLOCK)
    return Seen(view, [np.asarray(x) for x in ranges.operands(view, mask, batch, rows=rows)], rows=rows)


def check_rows(ends, of_row, pairs_of_block, columns: int) -> None:
    """Checks that all visible blocks are visited, and that full blocks are fully visible."""
    first, full_first, full_last, last = (int(x) for x in ends)
    for column in range(columns):
        pairs = pairs_of_block(column)
        is_visited = first <= column < last
        assert is_visited or not pairs.any(), (of_row, column)
        if full_first <= column < full_last:
            assert pairs.all(), (of_row, column)
            # Keys beyond the last one are zeros, which must be masked.
            assert pairs.shape[1] == KEY_BLOCK, (of_row, column)


def check_visits(mask: Mask, batch: int, tokens: int, keys: int) -> None:
    pairs = every_pair(mask, batch, tokens, keys)
    for rows in ("queries", "keys"):
        seen = seen_by_kernel(mask, batch, tokens, keys, rows)
        view = seen.view
        for b in range(batch):
            for row in range(view.query_blocks if rows == "queries" else view.key_blocks):

                def block(column, b=b, row=row, rows=rows):
                    i, j = (row, column) if rows == "queries" else (column, row)
                    return pairs[b, i * QUERY_BLOCK : (i + 1) * QUERY_BLOCK, j * KEY_BLOCK : (j + 1) * KEY_BLOCK]

                ends = seen.ends_of_queries(b, row) if rows == "queries" else seen.ends_of_keys(b, row)
                check_rows(ends, rows, block, view.key_blocks if rows == "queries" else view.query_blocks)


def check_order(mask: Mask, batch: int, tokens: int, keys: int) -> None:
    """Checks the number of earlier blocks of keys that the backward kernel computes."""
    seen = seen_by_kernel(mask, batch, tokens, keys, "keys")
    for b in range(batch):
        counts = np.zeros(seen.view.query_blocks, int)
        for n in range(seen.view.key_blocks):
            ends = seen.ends_of_keys(b, n)
            for m in range(int(ends.first), int(ends.last)):
                assert n - int(seen.first_block_of_keys(b, m)) == counts[m], (n, m)
                counts[m] += 1


@pytest.mark.parametrize(("tokens", "keys"), thinned(LENGTHS, lambda lengths: lengths in [(13, 30), (30, 13)]))
def test_bands(tokens, keys):
    for band in BANDS:
        check_visits(AllOf((band,)), 1, tokens, keys)
        check_order(AllOf((band,)), 1, tokens, keys)


@pytest.mark.parametrize(
    ("tokens", "keys"), thinned([(13, 30), (30, 13), (24, 24)], lambda lengths: lengths != (24, 24))
)
@pytest.mark.parametrize("name", MASKS)
def test_masks_with_tables(name, tokens, keys):
    mask = MASKS[name](tokens, keys)
    check_visits(mask, 2, tokens, keys)
    check_order(mask, 2, tokens, keys)


def test_a_document_in_two_parts():
    check_visits(in_two_parts(30), 1, 30, 30)
    check_order(in_two_parts(30), 1, 30, 30)


def test_bands_visit_only_visible_blocks():
    band = AllOf((Band(5, 0, 0),))
    seen = seen_by_kernel(band, 1, 64, 64, "queries")
    some, every = band.bounds(Blocks(1, 1, 64, 64, QUERY_BLOCK, KEY_BLOCK))
    for row in range(16):
        first, full_first, full_last, last = (int(x) for x in seen.ends_of_queries(0, row))
        assert np.flatnonzero(some[0, 0, row]).tolist() == list(range(first, last))
        assert np.flatnonzero(every[0, 0, row]).tolist() == list(range(full_first, full_last))


def test_a_gap_in_the_order_is_detected(monkeypatch):
    """Without extended ends, unordered documents would wait for blocks that are not visited."""
    monkeypatch.setattr(ranges.lax, "cummax", lambda x, **_: x)
    with pytest.raises(AssertionError):
        check_order(in_two_parts(24), 1, 24, 24)


def test_an_offset_off_by_one_is_detected(monkeypatch):
    view_of = ranges.view_of
    monkeypatch.setattr(ranges, "view_of", lambda mask, *sizes: dataclasses.replace(view_of(mask, *sizes), offset=0))
    with pytest.raises(AssertionError):
        check_visits(AllOf((Band(after=0, static_offset=1),)), 1, 24, 24)


def test_which_masks_are_bands_and_documents():
    band, ids = Band(after=0), documents(8, 8, ascending=True)
    assert ranges.parts_of(AllOf()) == (Band(), None)
    assert ranges.parts_of(band & ids) == (band, ids)
    assert ranges.parts_of(AllOf((band, function(lambda b, h, q, k: q > k)))) is None
    assert ranges.parts_of(AllOf((band, Band(5, 0, 0)))) is None


def test_when_every_query_certainly_sees_a_key():
    def sure(band, tokens=10, keys=10):
        return ranges.every_query_sees_a_key(ranges.view_of(band, tokens, keys, QUERY_BLOCK, KEY_BLOCK))

    for band, (tokens, keys) in itertools.product(BANDS, LENGTHS):
        visible = every_pair(band, 1, tokens, keys).any(axis=2).all()
        assert sure(band, tokens, keys) == visible, (band, tokens, keys)
    assert not sure(Band(after=0, offset=jnp.zeros(1, jnp.int32)))
