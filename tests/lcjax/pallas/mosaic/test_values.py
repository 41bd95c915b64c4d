"""Compares the interpreted kernels' values and gradients with float64; mutants must fail.

JAX's interpreter executes programs sequentially. Effects of concurrent programs or of the hardware
need a GPU: see `scripts/parity.py` and the tests marked `gpu`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcjax import ops
from lcjax.ops.attention import reference
from lcjax.ops.attention.call import AttentionCall
from lcjax.pallas.mosaic import attention, launch, softmax
from lcjax.pallas.mosaic.backend import BACKEND
from lcjax.pallas.mosaic.ranges import Seen
from lcjax_scripts.verify.parity.interpreter.mosaic import interpreted
from tests.support.numerics import error_ratios
from tests.support.thin import thinned


@dataclasses.dataclass(frozen=True, eq=False)  # the key of a cache by identity: options are a dict
class Case:
    tokens: int
    keys: int
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 128
    dtype: Any = jnp.bfloat16
    batch: int = 1
    documents: tuple[int, ...] = ()  # ids
    sinks: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def segments(self) -> jax.Array | None:
        """The ids of documents with different lengths, [B, T]."""
        if not self.documents:
            return None
        lengths = np.random.default_rng(1).permutation(self.tokens - 1)[: len(self.documents) - 1] + 1
        ends = np.array([0, *sorted(lengths), self.tokens])
        ids = np.repeat(self.documents, np.diff(ends))
        return jnp.asarray(np.stack([ids] * self.batch), jnp.int32)

    def inputs(self) -> list[jax.Array]:
        """q, k, v, sinks if there are any, and the cotangents of out and of the log-sum-exp."""
        draw = np.random.default_rng(0)
        heads = [(self.tokens, self.heads), (self.keys, self.kv_heads), (self.keys, self.kv_heads)]
        shapes = [(self.batch, length, count, self.head_dim) for length, count in [*heads, heads[0]]]
        *arrays, dout = [jnp.asarray(draw.normal(size=shape), self.dtype) for shape in shapes]
        dlse = jnp.asarray(draw.normal(size=(self.batch, self.heads, self.tokens)), jnp.float32)
        sinks = [jnp.asarray(draw.normal(size=self.heads), jnp.float32)] if self.sinks else []
        return [*arrays, *sinks, dout, dlse]

    def visible(self) -> jax.Array:
        """bool [B, 1, T, S]."""
        offset = int(self.options.get("query_offset", self.keys - self.tokens))
        segments = self.segments
        ids = [jnp.zeros((self.batch, n), jnp.int32) for n in (self.tokens, self.keys)]
        ids = ids if segments is None else [segments, segments]
        causal = self.options.get("causal", True)
        mask = reference.attention_mask(*ids, causal=causal, query_offset=offset)
        if window := self.options.get("window"):
            q, k = jnp.ogrid[: self.tokens, : self.keys]
            mask &= (abs(k - q - offset) < window)[None, None]
        return mask


CASES = {
    "causal": Case(256, 256),
    "group of 3, ragged": Case(200, 200, heads=3),
    "group of 4, two sequences": Case(130, 130, heads=4, batch=2),
    "equal heads, not causal": Case(129, 300, kv_heads=2, options={"causal": False}),
    "more keys": Case(128, 300),
    "queries without keys": Case(300, 130, options={"query_offset": -140}),
    "offset at run time": Case(140, 200, options={"query_offset": jnp.int32(77)}),
    "window": Case(330, 330, options={"window": 70}),
    "window on both sides": Case(330, 330, options={"window": 70, "causal": False}),
    "documents": Case(330, 330, documents=(0, 1, 4, 5)),
    "documents in no order": Case(330, 330, documents=(3, 1, 3, 0)),
    "documents and a window": Case(330, 330, documents=(0, 1, 2), options={"window": 50}),
    "head_dim 64": Case(300, 300, heads=4, head_dim=64),
    "head_dim 64, documents in no order": Case(300, 300, head_dim=64, documents=(3, 1, 3, 0)),
    "float16": Case(130, 130, dtype=jnp.float16),
    "float16, head_dim 64": Case(136, 136, head_dim=64, dtype=jnp.float16),
    "sinks": Case(200, 200, heads=4, head_dim=64, documents=(0, 1, 2), sinks=True, options={"window": 50}),
    "sinks of queries without keys": Case(300, 130, sinks=True, options={"query_offset": -140}),
    "few tokens": Case(5, 13),
    "one query": Case(1, 300, head_dim=64),
}
QUICK = ("group of 3, ragged", "head_dim 64, documents in no order", "window", "sinks")


def value_and_gradients(attend, *inputs):
    """Returns (out, lse, dq, dk, dv), and dsinks if the inputs have sinks.

    The log-sum-exp is zero for queries that see no key and no sink.
    """
    *arrays, dout, dlse = inputs
    (out, lse), pull_back = jax.vjp(attend, *arrays)
    sees = ~jnp.isneginf(lse)
    return out, jnp.where(sees, lse, 0), *pull_back((dout, jnp.where(sees, dlse, 0).astype(lse.dtype)))


def by_mosaic(case: Case, **changes):
    segments = case.segments
    options = {"query_segments_BT": segments, "key_segments_BS": segments, **case.options, **changes}

    def attend(q, k, v, sinks_H=None):
        return ops.attention(q, k, v, sinks_H=sinks_H, return_lse=True, implementation="mosaic", **options)

    return interpreted(functools.partial(value_and_gradients, attend), *case.inputs())


def ratios(case: Case, actual) -> list[float]:
    """Returns the errors of out, lse, dq, dk, dv and dsinks, divided by the allowed errors."""
    return error_ratios(list(actual), *expected(case))


@functools.cache
def expected(case: Case) -> tuple[list, list]:
    """The results of a plain computation in the inputs' dtype, and in float64."""
    visible = case.visible()

    def attend(q, k, v, sinks_H=None):
        return reference.attention(q, k, v, visible, scale=case.head_dim**-0.5, sinks_H=sinks_H)

    run = jax.jit(functools.partial(value_and_gradients, attend))
    inputs = case.inputs()
    plain = run(*inputs)
    with jax.enable_x64(True):
        exact = [np.asarray(x) for x in run(*(x.astype(jnp.float64) for x in inputs))]
        in_float32 = run(*(x.astype(jnp.float32) for x in inputs))
    # The log-sum-exp is always float32.
    return [plain[0], np.asarray(in_float32[1]), *plain[2:]], exact


@pytest.mark.parametrize("name", thinned(CASES, lambda name: name in QUICK))
def test_values_and_gradients(name):
    assert max(found := ratios(CASES[name], by_mosaic(CASES[name]))) <= 1, found


def test_values_with_a_compensated_sum(monkeypatch):
    """The kernel for many keys, over few: the interpreter would take hours for many."""
    monkeypatch.setattr(softmax, "MANY_KEYS", 0)
    case = CASES["more keys"]
    assert max(found := ratios(case, by_mosaic(case))) <= 1, found


MUTANT_CASE = CASES["group of 3, ragged"]


CHANGED_CALLS = {
    "scale": {"scale": 128**-0.5 * 1.05},
    "a window that hides a few": {"window": 190},
    "one key less": {"query_offset": -1},
}


@pytest.mark.parametrize("changes", thinned(CHANGED_CALLS, lambda name: name == "one key less"))
def test_other_calls_have_other_values(changes):
    assert max(ratios(MUTANT_CASE, by_mosaic(MUTANT_CASE, **CHANGED_CALLS[changes]))) > 1


def test_a_missing_block_fails(monkeypatch):
    """Without the values of the last visit, only queries that see one block are correct."""
    whole = launch.continue_sum

    def without_the_last(sum_MN, add, *initial):
        results = whole(sum_MN, add, *initial)
        return results if initial else (sum_MN, *results[1:])

    monkeypatch.setattr(launch, "continue_sum", without_the_last)
    assert ratios(MUTANT_CASE, by_mosaic(MUTANT_CASE))[0] > 1


def test_treating_every_block_as_the_first_fails(monkeypatch):
    """If every block of keys writes instead of adding, dq has only the part of the last block."""
    monkeypatch.setattr(Seen, "first_block_of_keys", lambda self, b, block: launch.lax.axis_index("key_block"))
    *others, dq, dk, dv = ratios(MUTANT_CASE, by_mosaic(MUTANT_CASE))
    assert dq > 1
    assert max(*others, dk, dv) <= 1


def test_a_sink_that_the_backward_pass_does_not_know_fails(monkeypatch):
    """Mutant: the output is scaled, but the log-sum-exp is that of the keys."""
    with_sinks = attention.with_sinks
    monkeypatch.setattr(attention, "with_sinks", lambda out, lse, sinks_H: (with_sinks(out, lse, sinks_H)[0], lse))
    out, lse, *gradients = ratios(CASES["sinks"], by_mosaic(CASES["sinks"]))
    assert out <= 1
    assert min(lse, *gradients) > 1


@pytest.mark.parametrize(
    "name", thinned(["more keys", "head_dim 64, documents in no order", "sinks"], lambda name: name == "more keys")
)
def test_the_passes_of_the_memory_engine(name):
    """Forward in the memory of q, and backward with a given delta: the same bits."""
    case = CASES[name]

    def call(q, k, v, sinks_H=None):
        return AttentionCall.checked(
            q, k, v, causal=True, window=case.options.get("window"), query_segments_BT=case.segments,
            key_segments_BS=case.segments, query_offset=None, mask_mod=None, score_mod=None, soft_cap=None,
            sinks_H=sinks_H, scale=None, return_lse=False,
        )  # fmt: skip

    def halves(*inputs):
        *arrays, dout, _ = inputs
        out, lse = BACKEND.forward(call(*arrays))
        delta = jnp.swapaxes((out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(axis=-1), 1, 2)
        gradients = BACKEND.backward(call(*arrays), lse, dout, delta)
        return out, *(x for x in gradients if x is not None)

    def whole(*inputs):
        *arrays, dout, _ = inputs
        out, pull_back = jax.vjp(lambda *arrays: BACKEND.run(call(*arrays))[0], *arrays)
        return out, *pull_back(dout)

    for a, b in zip(*(interpreted(run, *case.inputs()) for run in (halves, whole)), strict=True):
        assert np.array_equal(a, b)
