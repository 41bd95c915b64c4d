"""The backward kernel: dq, dk and dv at once, from five products per tile.

A program owns 128 keys of one key/value head, 64 in each computing warpgroup. The sums dk and dv
stay in registers over all queries and all query heads of the group. A step multiplies a tile of
queries of one head:

    s = k q^T    dp = v dout^T    dv += p dout    dk += ds q    dq += ds^T k

with `p = 2^(c s - lse)` and `ds = p (dp - delta)`. ds goes through shared memory, because each
warpgroup needs both halves of it for its part of dq. That product goes through shared memory as
well, and a warp per buffer adds it to global memory with the copy engine.

The order of these sums is fixed: the programs of one head add to a block of queries in the order of
their keys. A counter per block of queries says how many have. The first one stores instead, so that
dq needs no zeros at the start. A program waits only for programs before it in the grid; CUDA starts
programs in this order, but does not promise to. Where no block of keys visits a block of queries,
dq is not written.

Shapes: B batch, T query tokens, S key tokens, H query heads, K key/value heads, D head_dim, P query
tokens padded to whole tiles, N blocks of queries.
Source: Dao, FlashAttention-2, arXiv 2307.08691.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from lcjax.pallas.mosaic import launch
from lcjax.pallas.mosaic.attention_forward import LOG2_E
from lcjax.pallas.mosaic.launch import COLUMNS, COMPUTING, ROWS
from lcjax.pallas.mosaic.ranges import Seen, View, quotient, remainder

KEY_BLOCK = 128

_KEYS = KEY_BLOCK // COMPUTING  # of a warpgroup
_STAGES = 2
_DQ_BUFFERS = 2
_PROGRAMS_TOGETHER = 250  # nearly two for each of 132 multiprocessors
_DQ_LINE_BYTES = 128
# Rows and columns of dq that a warpgroup computes: half of the columns or of the rows.
_DQ_PART = 64


def query_block_for(head_dim: int) -> int:
    """Queries of a tile: as many as registers and shared memory hold."""
    return {64: 128, 128: 64}[head_dim]


def heads_together(key_blocks: int, kv_heads: int) -> int:
    """Of how many key/value heads the programs start together, the first keys first.

    With a causal mask the first keys have the most queries. The last programs to start are then
    short, if there are more programs of these heads than the GPU runs at once. More heads than
    that would read more from memory: programs of one head share its queries in the cache.
    """
    divisors = [n for n in range(1, kv_heads + 1) if kv_heads % n == 0]
    return next((n for n in divisors if n * key_blocks >= _PROGRAMS_TOGETHER), kv_heads)


def attention_backward(
    view: View, scale: float, q_BTHD, k_BSKD, v_BSKD, dout_BTHD, lse_BHP, delta_BHP, operands: list[jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq without the scale, float32 [B, P, H, D]; dk, dv [B, S, K, D] in k's dtype).

    Args:
      q_BTHD, k_BSKD, v_BSKD, dout_BTHD: tokens in multiples of 8, zero beyond the true numbers,
        which `view` has.
      view, operands: the mask, from `ranges.view_of` with `query_block_for` and KEY_BLOCK, and from
        `ranges.operands` with `rows="keys"`.
      lse_BHP: in base 2, +inf for queries that see no key; not nan for padding.
      delta_BHP: `sum over D of out dout`, float32, finite for padding.
    """
    batch, _, heads, head_dim = q_BTHD.shape
    kv_heads = k_BSKD.shape[2]
    dtype, queries = q_BTHD.dtype, view.query_block
    together = heads_together(view.key_blocks, kv_heads)
    static = _Static(view, scale, heads, heads // kv_heads, together)
    scratch = {
        "k_smem": launch.swizzled((KEY_BLOCK, head_dim), dtype),
        "v_smem": launch.swizzled((KEY_BLOCK, head_dim), dtype),
        "q_smem": launch.swizzled((_STAGES, queries, head_dim), dtype),
        "dout_smem": launch.swizzled((_STAGES, queries, head_dim), dtype),
        "lse_smem": plgpu.SMEM((_STAGES, queries), jnp.float32),
        "delta_smem": plgpu.SMEM((_STAGES, queries), jnp.float32),
        "ds_smem": launch.swizzled((KEY_BLOCK, queries), dtype),
        "dq_smem": launch.swizzled((_DQ_BUFFERS, COMPUTING, _DQ_PART, _DQ_PART), jnp.float32, _DQ_LINE_BYTES),
        "kv_copied": plgpu.Barrier(num_arrivals=2),
        "q_copied": plgpu.Barrier(num_arrivals=2 + view.documents, num_barriers=_STAGES),
        "dout_copied": plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES),
        **({"ids_smem": plgpu.SMEM((_STAGES, queries), jnp.int32)} if view.documents else {}),
        **launch.left_operand_scratch((_KEYS, queries), dtype),
    }

    def program(q, k, v, dout, lse, delta, *refs, **scratch_refs):
        *mask_refs, counts, dk, dv, dq = refs
        inputs = _Inputs(q, k, v, dout, lse, delta)
        _Program(static, inputs, mask_refs, counts, _Outputs(dk, dv, dq), scratch_refs).run()

    counts = jax.new_ref(jnp.zeros((batch * heads * view.query_blocks,), jnp.int32))
    dk_BSKD, dv_BSKD, dq_BPHD = launch.launch(
        program,
        q_BTHD, k_BSKD, v_BSKD, dout_BTHD, lse_BHP, delta_BHP, *operands, counts,
        name="mosaic_attention_backward",
        grid={"head_set": batch * kv_heads // together, "key_block": view.key_blocks, "head": together},
        outputs=[
            jax.ShapeDtypeStruct(k_BSKD.shape, dtype),
            jax.ShapeDtypeStruct(v_BSKD.shape, dtype),
            jax.ShapeDtypeStruct((batch, view.query_blocks * queries, heads, head_dim), jnp.float32),
        ],
        scratch=scratch,
        copying_warps=1 + _DQ_BUFFERS,
    )  # fmt: skip
    return dq_BPHD, dk_BSKD, dv_BSKD


class _Static(NamedTuple):
    view: View
    scale: float
    heads: int
    group: int  # query heads per key/value head
    together: int  # key/value heads whose programs start together


class _Inputs(NamedTuple):
    q: Any
    k: Any
    v: Any
    dout: Any
    lse: Any
    delta: Any


class _Outputs(NamedTuple):
    dk: Any
    dv: Any
    dq: Any


class _Program:
    """One program: the references of its launch, and what its warpgroups do with them."""

    def __init__(self, static: _Static, inputs: _Inputs, operands, counts, outputs: _Outputs, scratch):
        self.static, self.view = static, static.view
        self.inputs, self.counts, self.outputs, self.smem = inputs, counts, outputs, scratch
        self.seen = Seen(static.view, operands, rows="keys")
        self.dtype, self.head_dim, self.queries = inputs.q.dtype, inputs.q.shape[-1], static.view.query_block
        both = COMPUTING, 1
        self.ds_written, self.dq_written, self.dq_free, self.q_free, self.dout_free = launch.named_barriers(
            (1, COMPUTING, 0), (_DQ_BUFFERS, *both), (_DQ_BUFFERS, *both), (_STAGES, *both), (_STAGES, *both)
        )
        head_set, self.block, head = (lax.axis_index(name) for name in ("head_set", "key_block", "head"))
        sets = static.heads // static.group // static.together
        self.b, self.kv_head = quotient(head_set, sets), remainder(head_set, sets) * static.together + head
        self.first_key = self.block * KEY_BLOCK
        self.ends = self.seen.ends_of_keys(self.b, self.block)
        self.steps = (self.ends.last - self.ends.first) * static.group

    def run(self) -> None:
        add_dq = [functools.partial(self.add_dq, buffer) for buffer in range(_DQ_BUFFERS)]
        launch.by_roles(self.compute, self.copy, *add_dq)

    def place(self, step: Any) -> tuple[Any, Any]:
        """Returns (block of queries, query head): by head within a block, the last block first."""
        group = self.static.group
        return self.ends.last - 1 - quotient(step, group), self.kv_head * group + remainder(step, group)

    def copy(self) -> None:
        inputs, smem, b = self.inputs, self.smem, self.b
        keys = pl.ds(self.first_key, KEY_BLOCK)
        plgpu.copy_gmem_to_smem(inputs.k.at[b, keys, self.kv_head], smem["k_smem"], smem["kv_copied"])
        plgpu.copy_gmem_to_smem(inputs.v.at[b, keys, self.kv_head], smem["v_smem"], smem["kv_copied"])

        @pl.loop(0, self.steps)
        def _(step):
            (block, h), stage = self.place(step), remainder(step, _STAGES)
            rows = pl.ds(block * self.queries, self.queries)
            for name, of_rows, free in (("q", "lse", self.q_free), ("dout", "delta", self.dout_free)):
                copied = smem[f"{name}_copied"].at[stage]
                matrix, numbers = getattr(inputs, name), getattr(inputs, of_rows)
                free.wait(stage)
                if name == "q" and self.view.documents:
                    ids = self.seen.query_ids.at[b, rows]
                    plgpu.copy_gmem_to_smem(ids, smem["ids_smem"].at[stage], copied)
                plgpu.copy_gmem_to_smem(matrix.at[b, rows, h], smem[f"{name}_smem"].at[stage], copied)
                plgpu.copy_gmem_to_smem(numbers.at[b, h, rows], smem[f"{of_rows}_smem"].at[stage], copied)

    def add_dq(self, buffer: int) -> None:
        """Adds the tiles that pass through one of the buffers.

        A warp per buffer: the copy engine's answer takes longer than a step of the products.
        """
        pl.when(self.steps > buffer)(lambda: self.dq_free.arrive(buffer))

        @pl.loop(buffer, self.steps, step=_DQ_BUFFERS)
        def _(step):
            block, h = self.place(step)
            counter = (self.b * self.static.heads + h) * self.view.query_blocks + block
            earlier = self.block - self.seen.first_block_of_keys(self.b, block)
            self.dq_written.wait(buffer)
            launch.wait_for_count(self.counts, counter, earlier)
            pl.when(earlier == 0)(lambda: self.copy_dq(buffer, block, h, adds=False))
            pl.when(earlier > 0)(lambda: self.copy_dq(buffer, block, h, adds=True))
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            pl.when(step + _DQ_BUFFERS < self.steps)(lambda: self.dq_free.arrive(buffer))
            plgpu.wait_smem_to_gmem(0)
            launch.increase_count(self.counts, counter)

    def copy_dq(self, buffer, block, h, *, adds: bool) -> None:
        for warpgroup in range(COMPUTING):
            source = self.smem["dq_smem"].at[buffer, warpgroup]
            if self.head_dim == 128:
                rows, columns = pl.ds(block * self.queries, self.queries), pl.ds(warpgroup * _DQ_PART, _DQ_PART)
                target = self.outputs.dq.at[self.b, rows, h, columns]
            else:
                rows = pl.ds(block * self.queries + warpgroup * _DQ_PART, _DQ_PART)
                target = self.outputs.dq.at[self.b, rows, h]
            if adds:
                launch.add_to_global(source, target)
            else:
                plgpu.copy_smem_to_gmem(source, target, commit_group=False)
        plgpu.commit_smem_to_gmem_group()

    def compute(self, warpgroup: jax.Array) -> None:
        for stage in range(_STAGES):
            self.q_free.arrive(stage)
            self.dout_free.arrive(stage)
        plgpu.barrier_wait(self.smem["kv_copied"])

        def all_steps(dk, dv):
            def one_step(step, carry):
                self.compute_step(warpgroup, step, dk, dv)
                return carry

            lax.fori_loop(0, self.steps, one_step, 0)
            plgpu.wgmma_wait(0)
            return dk[...], dv[...]

        shape = _KEYS, self.head_dim
        dk_ND, dv_ND = pl.run_scoped(all_steps, launch.accumulator(shape), launch.accumulator(shape))
        self.ds_written.wait()  # The other warpgroup has read k, whose memory is used for dk.
        rows = pl.ds(warpgroup * _KEYS, _KEYS)
        dk_smem, dv_smem = self.smem["k_smem"].at[rows], self.smem["v_smem"].at[rows]
        dk_smem[...] = (dk_ND * self.static.scale).astype(self.dtype)
        dv_smem[...] = dv_ND.astype(self.dtype)
        plgpu.commit_smem()
        keys = pl.ds(self.first_key + warpgroup * _KEYS, _KEYS)
        plgpu.copy_smem_to_gmem(dk_smem, self.outputs.dk.at[self.b, keys, self.kv_head], commit_group=False)
        plgpu.copy_smem_to_gmem(dv_smem, self.outputs.dv.at[self.b, keys, self.kv_head])
        plgpu.wait_smem_to_gmem(0)

    def compute_step(self, warpgroup, step, dk, dv) -> None:
        stage, buffer = remainder(step, _STAGES), remainder(step, _DQ_BUFFERS)
        # This is always `warpgroup`, but the compiler does not know it. It computes addresses that
        # depend on it inside the loop. Outside they would need more registers than there are, and
        # then it runs the products one after another.
        warpgroup = warpgroup + lax.shift_right_logical(step, jnp.int32(30))
        rows = pl.ds(warpgroup * _KEYS, _KEYS)

        def from_scores(s, dp):
            return self.compute_ds(warpgroup, rows, step, stage, s, dp, dv)

        accumulator = launch.accumulator((_KEYS, self.queries))
        ds_NM = pl.run_scoped(from_scores, accumulator, accumulator)
        self.smem["ds_smem"][rows] = ds_NM
        launch.fence()
        # Nobody reads ds of the previous step anymore: both warpgroups have been at dq_free since.
        self.ds_written.wait()

        def from_ds(dq):
            self.multiply_dq(dq, warpgroup)
            left = self.smem["ds_smem"].at[rows] if launch.is_interpreted() else ds_NM
            plgpu.wgmma(dk, left, self.smem["q_smem"].at[stage])
            dq_MD = plgpu.wgmma_accumulator_load(dq, wait_n=1)
            self.dout_free.arrive(stage)
            return dq_MD

        dq_MD = pl.run_scoped(from_ds, launch.accumulator((_DQ_PART, _DQ_PART)))
        self.dq_free.wait(buffer)
        self.smem["dq_smem"][buffer, warpgroup] = dq_MD
        launch.fence()
        self.dq_written.arrive(buffer)
        plgpu.wgmma_wait(0)
        self.q_free.arrive(stage)

    def compute_ds(self, warpgroup, rows, step, stage, s, dp, dv) -> jax.Array:
        """ds [N, M] of this warpgroup's keys, without the scale; adds to dv."""
        smem = self.smem
        plgpu.barrier_wait(smem["q_copied"].at[stage])
        plgpu.wgmma(s, smem["k_smem"].at[rows], launch.transposed(smem["q_smem"].at[stage]))
        plgpu.barrier_wait(smem["dout_copied"].at[stage])
        plgpu.wgmma(dp, smem["v_smem"].at[rows], launch.transposed(smem["dout_smem"].at[stage]))
        s_NM = plgpu.wgmma_accumulator_load(s, wait_n=1)
        lse_M = launch.load(smem["lse_smem"].at[stage], COLUMNS)
        p_NM = jnp.exp2(s_NM * (self.static.scale * LOG2_E) - launch.over_columns(lse_M, s_NM))
        dp_NM = plgpu.wgmma_accumulator_load(dp, wait_n=0)
        p_NM = self.masked(p_NM, warpgroup, step)
        left = launch.left_operand(p_NM.astype(self.dtype), smem.get("left"), warpgroup)
        plgpu.wgmma(dv, left, smem["dout_smem"].at[stage])
        # Loaded only now, and not together with lse: it would take registers for longer.
        delta_M = launch.load(smem["delta_smem"].at[stage], COLUMNS)
        return (p_NM * (dp_NM - launch.over_columns(delta_M, dp_NM))).astype(self.dtype)

    def masked(self, p_NM, warpgroup, step) -> jax.Array:
        """p, and zero where the query does not see the key.

        This branches even if no mask is ever needed: without the branch the compiler loads delta
        earlier, and has too few registers to let products overlap.
        """
        block, _ = self.place(step)
        first_query, first_key = block * self.queries, self.first_key + warpgroup * _KEYS

        def visible():
            ids = None
            if self.view.documents:
                query_ids, key_ids = self.smem["ids_smem"], self.seen.key_ids
                ids = (
                    launch.load(query_ids.at[remainder(step, _STAGES)], COLUMNS),
                    launch.load(key_ids.at[self.b, pl.ds(first_key, _KEYS)], ROWS, is_global=True),
                )
            seen = self.seen.of_keys_and_queries(first_query, first_key, p_NM, ids)
            return jnp.where(seen, p_NM, 0.0)

        is_partial = (block < self.ends.full_first) | (block >= self.ends.full_last)
        return lax.cond(is_partial, visible, lambda: p_NM)

    def multiply_dq(self, accumulator, warpgroup) -> None:
        ds, k = self.smem["ds_smem"], self.smem["k_smem"]
        part = pl.ds(pl.multiple_of(warpgroup * _DQ_PART, _DQ_PART), _DQ_PART)
        if self.head_dim == 128:
            plgpu.wgmma(accumulator, launch.transposed(ds), k.at[:, part])
        else:
            plgpu.wgmma(accumulator, launch.transposed(ds.at[:, part]), k)
