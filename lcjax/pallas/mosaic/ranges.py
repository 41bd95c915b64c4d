"""Which keys a query sees: the blocks that a kernel visits, and the mask of one tile.

A band and documents are supported. Where the band is known when the program is traced and there are
no documents, kernels compute the blocks of a row themselves. Otherwise they read tables from
`lcjax.pallas.schedule`.

Shapes: B batch (1 for tables of all sequences), T query tokens, S key tokens, N blocks of queries,
M blocks of keys.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lcjax.ops.attention.masks import AllOf, Band, Blocks, Documents, Mask
from lcjax.pallas.mosaic import launch
from lcjax.pallas.schedule import Ranges, schedule


class Ends(NamedTuple):
    """A row of blocks visits the columns `first..last - 1`; `full_first..full_last - 1` are full.

    In a full block every pair of tokens is visible.
    """

    first: Any
    full_first: Any
    full_last: Any
    last: Any


@dataclasses.dataclass(frozen=True)
class View:
    """The static part of a mask.

    Query t sees the keys `t + offset - before + 1..t + offset + after`. None means no limit on that
    side. `offset` is None if it is known at run time only. With `documents` a query sees the keys
    of its own document alone.
    """

    tokens: int
    keys: int
    before: int | None
    after: int | None
    offset: int | None
    documents: bool
    query_block: int
    key_block: int

    @property
    def needs_table(self) -> bool:
        # Without limits the number of visits would be a constant, from which the compiler derives
        # too much: see the comment on `warpgroup` in attention_backward.py.
        return self.documents or self.offset is None or not self.is_limited

    @property
    def is_limited(self) -> bool:
        return self.before is not None or self.after is not None

    @property
    def hides_keys(self) -> bool:
        """Whether some block may need the mask."""
        return self.is_limited or self.documents or self.keys % self.key_block != 0

    @property
    def hides_first_keys(self) -> bool:
        """Whether blocks before the full ones may need the mask."""
        return self.before is not None or self.documents

    @property
    def query_blocks(self) -> int:
        return -(-self.tokens // self.query_block)

    @property
    def key_blocks(self) -> int:
        return -(-self.keys // self.key_block)

    def ends_of_queries(self, block: Any) -> Ends:
        """The blocks of keys that a block of queries visits, for a static band."""
        first_query, last_query = _ends(block, self.query_block, self.tokens)
        return Ends(
            quotient(self._first_key(first_query), self.key_block),
            _quotient_up(self._first_key(last_query), self.key_block),
            quotient(self._keys_end(first_query), self.key_block),
            _quotient_up(self._keys_end(last_query), self.key_block),
        )

    def ends_of_keys(self, block: Any) -> Ends:
        """The blocks of queries that visit a block of keys, for a static band.

        Blocks of keys in ascending order have ascending ends.
        """
        first_key, last_key = _ends(block, self.key_block, self.keys)
        first = quotient(self._first_query(first_key), self.query_block)
        last = _quotient_up(self._queries_end(last_key), self.query_block)
        full_first = _quotient_up(self._first_query(last_key), self.query_block)
        full_last = quotient(self._queries_end(first_key), self.query_block)
        return Ends(first, full_first, full_last, jnp.maximum(last, first))

    def first_block_of_keys(self, block: Any) -> Any:
        """The first block of keys that a block of queries visits, for a static band."""
        first_key = self._first_key(jnp.int32(block) * self.query_block)
        return quotient(jnp.minimum(first_key, self.keys - 1), self.key_block)

    def _first_key(self, query):
        if self.before is None:
            return jnp.int32(0)
        return jnp.clip(query + (self._static_offset - self.before + 1), 0, self.keys)

    def _keys_end(self, query):
        if self.after is None:
            return jnp.int32(self.keys)
        return jnp.clip(query + (self._static_offset + self.after + 1), 0, self.keys)

    def _first_query(self, key):
        if self.after is None:
            return jnp.int32(0)
        return jnp.clip(key - (self._static_offset + self.after), 0, self.tokens)

    def _queries_end(self, key):
        if self.before is None:
            return jnp.int32(self.tokens)
        return jnp.clip(key - (self._static_offset - self.before), 0, self.tokens)

    @property
    def _static_offset(self) -> int:
        assert self.offset is not None
        return self.offset


def parts_of(mask: Mask) -> tuple[Band, Documents | None] | None:
    """The band and the documents that a mask consists of; None if it has other parts."""
    parts = mask.masks if isinstance(mask, AllOf) else (mask,)
    bands = [part for part in parts if isinstance(part, Band)]
    documents = [part for part in parts if isinstance(part, Documents)]
    if len(bands) + len(documents) != len(parts) or len(bands) > 1 or len(documents) > 1:
        return None
    return bands[0] if bands else Band(), documents[0] if documents else None


def view_of(mask: Mask, tokens: int, keys: int, query_block: int, key_block: int) -> View:
    """The static part of a supported mask, for blocks of these sizes."""
    parts = parts_of(mask)
    assert parts is not None
    band, documents = parts
    offset = band.static_offset if band.offset is None else None
    return View(tokens, keys, band.before, band.after, offset, documents is not None, query_block, key_block)


def every_query_sees_a_key(view: View) -> bool:
    """Whether it is certain when the program is traced."""
    if view.documents or view.offset is None:
        return False
    first_query, last_query = 0, view.tokens - 1
    offset = view.offset or 0
    begins = view.after is None or first_query + offset + view.after >= 0
    return begins and (view.before is None or last_query + offset - view.before + 1 < view.keys)


def operands(view: View, mask: Mask, batch: int, *, rows: str) -> list[jax.Array]:
    """The arrays that a kernel reads the mask from; `rows` is "queries" or, for dk/dv, "keys".

    They are the offset, the document ids padded to whole blocks, and the tables.
    """
    parts = parts_of(mask)
    assert parts is not None
    band, documents = parts
    arrays = [] if band.offset is None else [band.offset]
    if documents is not None:
        arrays.append(_padded(documents.query_ids, view.query_blocks * view.query_block))
        arrays.append(_padded(documents.key_ids, view.key_blocks * view.key_block))
    if view.needs_table:
        blocks = Blocks(batch, 1, view.tokens, view.keys, view.query_block, view.key_block)
        visits = schedule(mask, blocks, rows=rows)
        assert isinstance(visits, Ranges)
        ends_BN4 = visits.ends[:, 0]
        arrays += [ends_BN4] if rows == "queries" else in_ascending_order(ends_BN4, view.query_blocks)
    return arrays


def in_ascending_order(ends_BM4: jax.Array, columns: int) -> list[jax.Array]:
    """Returns (the ends of every block of keys, the first key block for each block of queries).

    The ends are extended where necessary, so that blocks of keys in ascending order have ascending
    ends. The blocks of keys that visit a block of queries are then adjacent, which the order of
    sums relies on. Document ids in ascending order need no extension.

    Returns int32 [B, M, 4] and [B, N].
    """
    first, full_first, full_last, last = (ends_BM4[..., n] for n in range(4))
    is_empty = first >= last
    first = lax.cummin(jnp.where(is_empty, columns, first), axis=1, reverse=True)
    last = jnp.maximum(lax.cummax(jnp.where(is_empty, 0, last), axis=1), first)
    lead_BN = jnp.sum(last[:, :, None] <= jnp.arange(columns)[None, None], axis=1, dtype=jnp.int32)
    return [jnp.stack([first, full_first, full_last, last], axis=-1).astype(jnp.int32), lead_BN]


class Seen:
    """A view inside a kernel: its arrays are references to global memory.

    Attributes:
      query_ids, key_ids: document ids of whole blocks, int32 [B, P], or None without documents.
    """

    def __init__(self, view: View, refs: list[Any], *, rows: str):
        refs = list(refs)
        self.view = view
        self._offset = refs.pop(0)[0] if view.offset is None else view.offset
        self.query_ids: Any = refs.pop(0) if view.documents else None
        self.key_ids: Any = refs.pop(0) if view.documents else None
        self._table = refs.pop(0) if view.needs_table else None
        self._lead = refs.pop(0) if view.needs_table and rows == "keys" else None
        assert not refs

    def ends_of_queries(self, b: Any, block: Any) -> Ends:
        """Returns at least one block of keys per block of queries, so that results are written."""
        ends = self.view.ends_of_queries(block) if self._table is None else self._read(self._table, b, block)
        first = jnp.minimum(ends.first, self.view.key_blocks - 1)
        # Without full blocks, all are after the full ones.
        full_last = jnp.where(ends.full_first < ends.full_last, ends.full_last, first)
        return ends._replace(first=first, full_last=full_last, last=jnp.maximum(ends.last, first + 1))

    def ends_of_keys(self, b: Any, block: Any) -> Ends:
        ends = self.view.ends_of_keys(block) if self._table is None else self._read(self._table, b, block)
        if self.view.keys % self.view.key_block == 0:
            return ends
        # The copy of a last block that extends beyond the end contains zeros, which need the mask.
        is_whole = block < self.view.key_blocks - 1
        return ends._replace(full_last=jnp.where(is_whole, ends.full_last, ends.full_first))

    def first_block_of_keys(self, b: Any, block: Any) -> Any:
        """The first block of keys that visits a block of queries."""
        if self._lead is None:
            return self.view.first_block_of_keys(block)
        return self._lead[_batch_index(self._lead, b), block]

    def of_queries_and_keys(self, first_query, first_key, tile, ids) -> jax.Array:
        """Whether the query of a row sees the key of a column, bool like the tile.

        `ids` has the document ids of the queries and of the keys, or is None without documents.
        """
        if ids is not None:
            ids = launch.over_rows(ids[0], tile), launch.over_columns(ids[1], tile)
        return self._visible(0, 1, first_query, first_key, tile, ids)

    def of_keys_and_queries(self, first_query, first_key, tile, ids) -> jax.Array:
        """The same for keys in the rows and queries in the columns."""
        if ids is not None:
            ids = launch.over_columns(ids[0], tile), launch.over_rows(ids[1], tile)
        return self._visible(1, 0, first_query, first_key, tile, ids)

    def _visible(self, query_axis, key_axis, first_query, first_key, tile, ids) -> jax.Array:
        view, conditions = self.view, []
        query, key = (launch.index_along(axis, tile.shape) for axis in (query_axis, key_axis))
        # Everything that is the same for the whole tile is added to the query's index, and so
        # depends on the step. Otherwise the compiler keeps one number per element through the loop.
        position = query + (first_query - first_key + self._offset)
        if view.after is not None:
            conditions.append(key <= position + view.after)
        if view.before is not None:
            conditions.append(key > position - view.before)
        if ids is not None:
            conditions.append(ids[0] == ids[1])
        if view.keys % view.key_block or not conditions:
            conditions.append(key < view.keys - first_key)
        visible, *others = conditions
        for condition in others:
            visible = visible & condition
        return visible

    def _read(self, table: Any, b: Any, block: Any) -> Ends:
        b = _batch_index(table, b)
        return Ends(*(table[b, block, n] for n in range(4)))


def _batch_index(table: Any, b: Any) -> Any:
    return 0 if table.shape[0] == 1 else b


def _ends(block: Any, size: int, length: int) -> tuple[Any, Any]:
    """The first and the last token of a block, which may extend beyond the end."""
    first = jnp.int32(block) * size
    return first, jnp.minimum(first + size, length) - 1


def quotient(x: Any, size: int) -> Any:
    """x // size of int32 without the cases of negative numbers."""
    return lax.div(jnp.asarray(x, jnp.int32), jnp.int32(size))


def remainder(x: Any, size: int) -> Any:
    return lax.rem(jnp.asarray(x, jnp.int32), jnp.int32(size))


def _quotient_up(x: Any, size: int) -> Any:
    return quotient(x + (size - 1), size)


def _padded(ids_BT: jax.Array, length: int) -> jax.Array:
    return jnp.pad(ids_BT, ((0, 0), (0, length - ids_BT.shape[1])), mode="edge")
