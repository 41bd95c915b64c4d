"""The forward kernel: `softmax(scale * q k^T + mask) v` and the log-sum-exp.

A program computes tiles of queries of one head, one after another. Each of its computing
warpgroups has 64 of the queries. It visits blocks of 128 keys from the last to the first. While
one warpgroup computes exponentials, the products of another run; and within a warpgroup the scores
of the next block are multiplied at the same time as the values of the previous one. One warp
copies, and already copies the first blocks of the next tile while a tile ends.

Softmax is in base 2: `2^(c s - maximum)` with `c = scale * log2(e)`.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim, P query
tokens padded to whole tiles.
Source: Shah et al., FlashAttention-3, arXiv 2407.08608.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lcjax.pallas.mosaic import launch, softmax
from lcjax.pallas.mosaic.launch import COLUMNS, ROWS, TILE
from lcjax.pallas.mosaic.ranges import Ends, Seen, View, quotient, remainder

KEY_BLOCK = 128
LOG2_E = math.log2(math.e)

_QUERIES = 64  # of a warpgroup
STAGES = 2
_MULTIPROCESSORS = 132  # of an H100 or H200; another number is slower but right


def computing_for(head_dim: int) -> int:
    """How many warpgroups compute: three would fit at 64, which is not measured."""
    return {64: 2, 128: 2}[head_dim]


def query_block_for(head_dim: int) -> int:
    """Queries of a tile."""
    return _QUERIES * computing_for(head_dim)


def attention_forward(
    view: View, scale: float, q_BTHD, k_BSKD, v_BSKD, operands: list[jax.Array], *, in_place: bool = False
) -> tuple[jax.Array, jax.Array]:
    """(out [B, T, H, D] in q's dtype, log-sum-exp in base 2, float32 [B, H, P]).

    The log-sum-exp is +inf and the output zero for a query that sees no key. The log-sum-exp
    includes the scale. It is finite or +inf for padding as well.

    Args:
      q_BTHD, k_BSKD, v_BSKD: tokens in multiples of 8; `view` has the true numbers.
      view, operands: the mask, from `ranges.view_of` with `query_block_for` and KEY_BLOCK and from
        `ranges.operands` with `rows="queries"`.
      in_place: write out into q's memory.
    """
    batch, _, heads, head_dim = q_BTHD.shape
    computing = computing_for(head_dim)
    lse_shape = jax.ShapeDtypeStruct((batch, heads, view.query_blocks * view.query_block), jnp.float32)
    tiles = batch * heads * view.query_blocks
    static = _Static(view, scale, heads, heads // k_BSKD.shape[2], tiles, min(tiles, _MULTIPROCESSORS))
    dtype = q_BTHD.dtype
    scratch = {
        "q_smem": launch.swizzled((view.query_block, head_dim), dtype),
        "k_smem": launch.swizzled((STAGES, KEY_BLOCK, head_dim), dtype),
        "v_smem": launch.swizzled((STAGES, KEY_BLOCK, head_dim), dtype),
        "out_smem": launch.swizzled((computing, _QUERIES, head_dim), dtype),
        "lse_smem": plgpu.SMEM((computing, _QUERIES), jnp.float32),
        "q_copied": plgpu.Barrier(),
        "k_copied": plgpu.Barrier(num_arrivals=1 + view.documents, num_barriers=STAGES),
        "v_copied": plgpu.Barrier(num_barriers=STAGES),
        **({"ids_smem": plgpu.SMEM((STAGES, KEY_BLOCK), jnp.int32)} if view.documents else {}),
        **launch.left_operand_scratch((_QUERIES, KEY_BLOCK), dtype, computing),
    }
    outputs = [lse_shape] if in_place else [jax.ShapeDtypeStruct(q_BTHD.shape, dtype), lse_shape]

    def program(q, k, v, *refs, **scratch_refs):
        # In place, each tile of q is read by the program that overwrites it, and by no other.
        *mask_refs, out, lse = (*refs[:-1], q, refs[-1]) if in_place else refs
        _Program(static, q, k, v, mask_refs, out, lse, scratch_refs).run()

    q = jax.new_ref(q_BTHD) if in_place else q_BTHD
    results = launch.launch(
        program,
        q, k_BSKD, v_BSKD, *operands,
        name="mosaic_attention_forward",
        grid={"program": static.programs},
        outputs=outputs,
        scratch=scratch,
        copying_warps=1,
        computing=computing,
    )  # fmt: skip
    return (q[...], *results) if in_place else tuple(results)


class _Static(NamedTuple):
    view: View
    scale: float
    heads: int
    group: int  # query heads per key/value head
    tiles: int
    programs: int


class _Tile(NamedTuple):
    b: Any
    h: Any
    first_query: Any
    ends: Ends


class _Program:
    """One program: the references of its launch, and what its warpgroups do with them."""

    def __init__(self, static: _Static, q, k, v, operands, out, lse, scratch: dict[str, Any]):
        self.static = static
        self.view = static.view
        self.q, self.k, self.v, self.out, self.lse = q, k, v, out, lse
        self.seen = Seen(static.view, operands, rows="queries")
        self.smem = scratch
        self.dtype, self.head_dim = q.dtype, q.shape[-1]
        self.c = static.scale * LOG2_E
        self.sums = 2 if self.view.keys > softmax.MANY_KEYS else 1
        self.computing = computing_for(self.head_dim)
        both = self.computing, 1
        self.turn, self.q_free, self.k_free, self.v_free = launch.named_barriers(
            (self.computing, 2, 0), (1, *both), (STAGES, *both), (STAGES, *both)
        )
        self.program = lax.axis_index("program")

    def run(self) -> None:
        launch.by_roles(self.compute, self.copy, computing=self.computing)

    @property
    def tiles(self) -> jax.Array:
        """How many tiles this program has."""
        programs = self.static.programs
        return quotient(self.static.tiles - self.program + (programs - 1), programs)

    def tile(self, n: Any) -> _Tile:
        """Heads vary fastest, so that programs share keys in the cache.

        The last queries come first, because they see most keys.
        """
        number = self.program + n * self.static.programs
        heads, blocks = self.static.heads, self.view.query_blocks
        rest = quotient(number, heads)
        b, block = quotient(rest, blocks), blocks - 1 - remainder(rest, blocks)
        ends = self.seen.ends_of_queries(b, block)
        return _Tile(b, remainder(number, heads), block * self.view.query_block, ends)

    def copy(self) -> None:
        def one_tile(n, blocks_before):
            tile = self.tile(n)
            first, last = tile.ends.first, tile.ends.last
            kv_head = quotient(tile.h, self.static.group)
            pl.when(n > 0)(self.q_free.wait)
            rows = pl.ds(tile.first_query, self.view.query_block)
            plgpu.copy_gmem_to_smem(self.q.at[tile.b, rows, tile.h], self.smem["q_smem"], self.smem["q_copied"])

            @pl.loop(0, last - first)
            def _(x):
                stage = remainder(blocks_before + x, STAGES)
                keys = pl.ds((last - 1 - x) * KEY_BLOCK, KEY_BLOCK)
                for name, source, free in (("k", self.k, self.k_free), ("v", self.v, self.v_free)):
                    free.wait(stage)
                    target, copied = self.smem[f"{name}_smem"].at[stage], self.smem[f"{name}_copied"].at[stage]
                    plgpu.copy_gmem_to_smem(source.at[tile.b, keys, kv_head], target, copied)
                    if name == "k" and self.view.documents:
                        ids = self.seen.key_ids.at[tile.b, keys]
                        plgpu.copy_gmem_to_smem(ids, self.smem["ids_smem"].at[stage], copied)

            return blocks_before + (last - first)

        lax.fori_loop(0, self.tiles, one_tile, jnp.int32(0))

    def compute(self, warpgroup: jax.Array) -> None:
        for stage in range(STAGES):
            self.k_free.arrive(stage)
            self.v_free.arrive(stage)
        pl.when(warpgroup == self.computing - 1)(self.turn.arrive)  # warpgroup 0 begins
        lax.fori_loop(0, self.tiles, functools.partial(self.compute_tile, warpgroup), jnp.int32(0))
        plgpu.wait_smem_to_gmem(0)

    def compute_tile(self, warpgroup, n, blocks_before):
        """Returns how many blocks of keys this program has visited after tile n."""
        tile = self.tile(n)
        first, _, full_last, last = tile.ends
        first_query = tile.first_query + warpgroup * _QUERIES
        query_ids = None
        if self.view.documents:
            ids = self.seen.query_ids.at[tile.b, pl.ds(first_query, _QUERIES)]
            query_ids = launch.load(ids, ROWS, is_global=True)

        def masked(scores_MN, block, stage):
            ids = None
            if self.view.documents:
                ids = query_ids, launch.load(self.smem["ids_smem"].at[stage], COLUMNS)
            visible = self.seen.of_queries_and_keys(first_query, block * KEY_BLOCK, scores_MN, ids)
            return jnp.where(visible, scores_MN, softmax.HIDDEN / self.c)

        def masked_before_full(scores_MN, block, stage):
            is_partial = block < tile.ends.full_first
            return lax.cond(is_partial, lambda: masked(scores_MN, block, stage), lambda: scores_MN)

        after_full = masked if self.view.hides_keys else None
        before_full = masked_before_full if self.view.hides_first_keys else None
        plgpu.barrier_wait(self.smem["q_copied"])
        state = self.first_block(warpgroup, blocks_before, last - 1, after_full)

        def step(x, state, *, mask):
            return self.next_block(warpgroup, blocks_before + x, last - 1 - x, mask, state)

        # The first block takes the mask in any case.
        full_from = lax.clamp(jnp.int32(1), last - full_last, last - first)
        if after_full is not None:
            state = lax.fori_loop(1, full_from, functools.partial(step, mask=after_full), state)
        state = lax.fori_loop(full_from, last - first, functools.partial(step, mask=before_full), state)
        self.q_free.arrive()
        self.finish(warpgroup, tile, first_query, blocks_before + (last - first) - 1, state)
        return blocks_before + (last - first)

    def first_block(self, warpgroup, visit, block, mask) -> softmax.State:
        """The state after the last block of keys, which has no sum yet."""
        stage = remainder(visit, STAGES)

        def scores(accumulator):
            plgpu.barrier_wait(self.smem["k_copied"].at[stage])
            self.turn.wait(warpgroup)
            self.multiply_scores(accumulator, warpgroup, stage)
            self.turn.arrive(remainder(warpgroup + 1, self.computing))
            return accumulator[...]

        scores_MN = pl.run_scoped(scores, launch.accumulator((_QUERIES, KEY_BLOCK)))
        if mask is not None:
            scores_MN = mask(scores_MN, block, stage)
        self.k_free.arrive(stage)
        maximum_M, zero_M = launch.full((_QUERIES,), softmax.HIDDEN, ROWS), launch.full((_QUERIES,), 0, ROWS)
        weights_MN, maximum_M, _, *sums = softmax.step(scores_MN, self.c, maximum_M, *[zero_M] * self.sums)
        sum_MD = launch.full((_QUERIES, self.head_dim), 0, TILE)
        return softmax.State(sum_MD, maximum_M, tuple(sums), weights_MN.astype(self.dtype))

    def next_block(self, warpgroup, visit, block, mask, state: softmax.State) -> softmax.State:
        """The scores of this block, together with the values of the one visited before."""
        stage, stage_before = remainder(visit, STAGES), remainder(visit - 1, STAGES)
        plgpu.barrier_wait(self.smem["k_copied"].at[stage])

        def with_sum(sum_accumulator):
            def with_scores(accumulator):
                self.turn.wait(warpgroup)
                self.multiply_scores(accumulator, warpgroup, stage)
                plgpu.barrier_wait(self.smem["v_copied"].at[stage_before])
                self.multiply_values(sum_accumulator, warpgroup, state.weights_MN, stage_before)
                self.turn.arrive(remainder(warpgroup + 1, self.computing))
                scores_MN = plgpu.wgmma_accumulator_load(accumulator, wait_n=1)
                if mask is not None:
                    scores_MN = mask(scores_MN, block, stage)
                self.k_free.arrive(stage)
                return softmax.step(scores_MN, self.c, state.maximum_M, *state.sums)

            results = pl.run_scoped(with_scores, launch.accumulator((_QUERIES, KEY_BLOCK)))
            plgpu.wgmma_wait(0)
            self.v_free.arrive(stage_before)
            return results

        row = launch.full((_QUERIES,), 0, ROWS)
        tile = launch.full((_QUERIES, KEY_BLOCK), 0, TILE)
        rows = [row] * (2 + self.sums)
        sum_MD, weights_MN, maximum_M, factor_M, *sums = launch.continue_sum(state.sum_MD, with_sum, tile, *rows)
        sum_MD = sum_MD * launch.over_rows(factor_M, sum_MD)
        return softmax.State(sum_MD, maximum_M, tuple(sums), weights_MN.astype(self.dtype))

    def finish(self, warpgroup, tile: _Tile, first_query, visit, state: softmax.State) -> None:
        """Adds the values of the last visit, and stores the results."""
        stage = remainder(visit, STAGES)
        plgpu.barrier_wait(self.smem["v_copied"].at[stage])

        def add(accumulator):
            self.multiply_values(accumulator, warpgroup, state.weights_MN, stage)
            return ()

        [sum_MD] = launch.continue_sum(state.sum_MD, add)
        self.v_free.arrive(stage)
        total_M, *_ = state.sums
        sees_keys = state.maximum_M > softmax.HIDDEN / 2
        out_MD = sum_MD * launch.over_rows(jnp.where(sees_keys, 1 / total_M, 0.0), sum_MD)
        lse_M = jnp.where(sees_keys, state.maximum_M + jnp.log2(total_M), jnp.inf)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # of the previous tile
        out_smem, lse_smem = self.smem["out_smem"].at[warpgroup], self.smem["lse_smem"].at[warpgroup]
        out_smem[...] = out_MD.astype(self.dtype)
        lse_smem[...] = lse_M
        plgpu.commit_smem()
        rows = pl.ds(first_query, _QUERIES)
        plgpu.copy_smem_to_gmem(out_smem, self.out.at[tile.b, rows, tile.h], commit_group=False)
        plgpu.copy_smem_to_gmem(lse_smem, self.lse.at[tile.b, tile.h, rows])

    def multiply_scores(self, accumulator, warpgroup, stage) -> None:
        queries = self.smem["q_smem"].at[pl.ds(warpgroup * _QUERIES, _QUERIES)]
        plgpu.wgmma(accumulator, queries, launch.transposed(self.smem["k_smem"].at[stage]))

    def multiply_values(self, accumulator, warpgroup, weights_MN, stage) -> None:
        weights = launch.left_operand(weights_MN, self.smem.get("left"), warpgroup)
        plgpu.wgmma(accumulator, weights, self.smem["v_smem"].at[stage])
