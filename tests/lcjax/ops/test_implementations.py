"""Compares ops.attention with the plain float64 reference."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcjax import ops
from lcjax.errors import InputError
from lcjax.ops.attention import reference
from tests.support.compiling import QUICKEST_TO_COMPILE
from tests.support.numerics import error_ratio, error_ratios, tree_error_ratio
from tests.support.shapes import ATTENTION, ATTENTION_BFLOAT16, AttentionShape
from tests.support.thin import thinned

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Call:
    """Random inputs of a call, and a random cotangent of its result."""

    shape: AttentionShape
    q: jax.Array
    k: jax.Array
    v: jax.Array
    dout: jax.Array
    query_segments: jax.Array | None
    key_segments: jax.Array | None

    @property
    def keys(self) -> int:
        return self.k.shape[1]

    @property
    def query_offset(self) -> int:
        return self.keys - self.shape.tokens if self.shape.query_offset is None else self.shape.query_offset

    def with_gradients(self, attention, dtype=None):
        """Returns (out, dq, dk, dv) of `attention(q, k, v)`, in `dtype` or that of the inputs."""

        def forward_and_backward(q, k, v, dout):
            out, pull_back = jax.vjp(attention, q, k, v)
            return out, *pull_back(dout)

        inputs = (x if dtype is None else x.astype(dtype) for x in (self.q, self.k, self.v, self.dout))
        return jax.jit(forward_and_backward, compiler_options=QUICKEST_TO_COMPILE)(*inputs)

    def implementation(self, **overrides):
        options = {
            "causal": self.shape.causal,
            "query_offset": self.shape.query_offset,
            "query_segments_BT": self.query_segments,
            "key_segments_BS": self.key_segments,
        }
        return functools.partial(ops.attention, **(options | overrides))

    def mask(self) -> jax.Array:
        batch = self.q.shape[0]
        zeros = jnp.zeros((batch, self.shape.tokens), jnp.int32), jnp.zeros((batch, self.keys), jnp.int32)
        segments = zeros if self.query_segments is None else (self.query_segments, self.key_segments)
        return reference.attention_mask(*segments, causal=self.shape.causal, query_offset=self.query_offset)

    @functools.cached_property
    def plain_and_exact(self):
        """Returns (out, dq, dk, dv) of the plain reference, in the inputs' dtype and in float64."""
        return self.references(self.mask())

    def references(self, mask):
        def plain(q, k, v):
            return reference.attention(q, k, v, mask, scale=self.shape.head_dim**-0.5)[0]

        in_dtype = self.with_gradients(plain)
        with jax.enable_x64(True):
            exact = self.with_gradients(plain, jnp.float64)
            return in_dtype, jax.tree.map(np.asarray, exact)

    def ratio(self, attention) -> float:
        """Returns the error ratio of `attention` and its gradients."""
        actual = self.with_gradients(attention)
        return tree_error_ratio(actual, *self.plain_and_exact)

    def ratios(self, attention) -> list[float]:
        """Returns the error ratio of each of (out, dq, dk, dv) of a mutant."""
        return error_ratios(self.with_gradients(attention), *self.plain_and_exact)


def make_call(shape: AttentionShape, dtype=jnp.float32, seed: int = 0, sharpness: float = 1.0) -> Call:
    rng = np.random.default_rng(seed)
    keys = shape.tokens if shape.keys is None else shape.keys

    def normal(tokens, heads):
        return jnp.asarray(rng.normal(size=(shape.batch, tokens, heads, shape.head_dim)), dtype)

    q, dout = normal(shape.tokens, shape.heads) * sharpness, normal(shape.tokens, shape.heads)
    k, v = normal(keys, shape.kv_heads), normal(keys, shape.kv_heads)
    query_segments = key_segments = None
    if shape.segments is not None:
        key_segments = rng.integers(-1, 4, (shape.batch, keys))
        if shape.segments == "packed":
            key_segments = np.sort(key_segments, axis=1)
        query_segments = key_segments if keys == shape.tokens else rng.integers(-1, 4, (shape.batch, shape.tokens))
        query_segments, key_segments = (jnp.asarray(x, jnp.int32) for x in (query_segments, key_segments))
    return Call(shape, q, k, v, dout, query_segments, key_segments)


CASES = [("float32", name) for name in ATTENTION] + [("bfloat16", name) for name in ATTENTION_BFLOAT16]
# Every kind of mask and of lengths, and every GQA ratio ("arbitrary segments" has 4). The other
# shapes combine them differently. In bfloat16, extreme head counts with queries without keys.
COMBINED = ("gqa 4", "packed full", "arbitrary segments full", "decoding", "queries from the start")
COMBINED = (*COMBINED, "fewer keys, later queries")
CASES = thinned(
    CASES, lambda case: case[1] not in COMBINED if case[0] == "float32" else case[1] in ("gqa 8", "fewer keys")
)


@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_value_and_gradients(dtype, name):
    call = make_call(ATTENTION[name], DTYPES[dtype])
    assert call.ratio(call.implementation()) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(dtype):
    """Scores in the hundreds: the softmax must subtract its maximum, and most weights underflow."""
    call = make_call(AttentionShape(600, 3, 1, 64), DTYPES[dtype], sharpness=50.0)
    assert call.ratio(call.implementation()) <= 1


def test_one_token_attends_to_itself():
    call = make_call(AttentionShape(1, 3, 1, 16, batch=2))
    out, dq, dk, dv = call.with_gradients(call.implementation())
    np.testing.assert_array_equal(out, jnp.repeat(call.v, 3, axis=2))
    (_, _, _, plain), (_, _, _, exact) = call.plain_and_exact
    assert error_ratio(dv, plain, exact) <= 1
    # The weight is 1 for any score, so dq and dk are 0 except for the rounding of
    # `dout v - dout out` in 16 terms.
    rounding = 16 * jnp.finfo(jnp.float32).eps * jnp.abs(call.dout).max() * jnp.abs(call.v).max()
    assert max(jnp.abs(dq).max(), jnp.abs(dk).max()) <= rounding * max(jnp.abs(call.q).max(), jnp.abs(call.k).max())


def test_queries_without_keys_give_zero():
    call = make_call(ATTENTION["fewer keys"])
    blind = call.shape.tokens - call.keys
    out, dq, *_ = call.with_gradients(call.implementation())
    np.testing.assert_array_equal(out[:, :blind], 0)
    np.testing.assert_array_equal(dq[:, :blind], 0)
    assert jnp.abs(out[:, blind:]).max(axis=-1).min() > 0


def test_no_query_sees_a_key():
    call = make_call(AttentionShape(17, 2, 1, 16, query_offset=-20))
    for result in call.with_gradients(call.implementation()):
        np.testing.assert_array_equal(result, 0)


MUTANTS = {
    "mask one further": {"query_offset": 1},
    "mask one short": {"query_offset": -1},
    "no scale": {"scale": 1.0},
    "not causal": {"causal": False},
    "segments ignored": {"query_segments_BT": None, "key_segments_BS": None},
}


@pytest.mark.parametrize(("dtype", "mutants"), [("float32", list(MUTANTS)), ("bfloat16", ["mask one further"])])
def test_mutants_fail(dtype, mutants):
    call = make_call(ATTENTION["packed"], DTYPES[dtype])
    for mutant in mutants:
        assert min(call.ratios(call.implementation(**MUTANTS[mutant]))) > 1, mutant


def test_mutants_of_heads_fail():
    call = make_call(ATTENTION["gqa 3"])

    def dropped(q, k, v):
        return ops.attention(q, k.at[:, :, -1].set(0), v)

    def swapped(q, k, v):
        return ops.attention(q, k[:, :, ::-1], v[:, :, ::-1])

    def interleaved(q, k, v):
        """Assigns query heads to key/value heads round-robin instead of in groups."""
        group = jnp.arange(q.shape[2]).reshape(k.shape[2], -1).T.reshape(-1)
        return ops.attention(q[:, :, group], k, v)

    for mutant in (dropped, swapped, interleaved):
        assert min(call.ratios(mutant)) > 1, mutant


def test_mutants_of_the_backward_pass_fail():
    """The output is correct; only the gradients are wrong."""
    call = make_call(ATTENTION["gqa 8"])

    def dropped_head(q, k, v):
        return ops.attention(jnp.concatenate([q[:, :, :-1], jax.lax.stop_gradient(q[:, :, -1:])], axis=2), k, v)

    def incomplete_group_sum(q, k, v):
        """Computes dk and dv without the last of eight query heads."""
        most = ops.attention(q, k, v)[:, :, :-1]
        last = ops.attention(q, jax.lax.stop_gradient(k), jax.lax.stop_gradient(v))[:, :, -1:]
        return jnp.concatenate([most, last], axis=2)

    out, dq, dk, dv = call.ratios(dropped_head)
    assert dq > 1
    assert max(out, dk, dv) <= 1
    out, dq, dk, dv = call.ratios(incomplete_group_sum)
    assert min(dk, dv) > 1
    assert max(out, dq) <= 1


@pytest.mark.parametrize("dtype", thinned(DTYPES, lambda dtype: dtype == "float32"))
def test_long(dtype):
    """8,229 tokens in packed documents, compared with float64 on 61 rows.

    The other rows have no cotangent, so dk and dv can be compared completely.
    """
    tokens = 8229
    call = make_call(AttentionShape(tokens, 3, 1, 32), DTYPES[dtype])
    rows = np.sort(np.random.default_rng(1).choice(tokens, 61, replace=False))
    rows[-1] = tokens - 1
    segments = jnp.asarray(np.searchsorted([100, 5000, 5513], np.arange(tokens), side="right"), jnp.int32)[None]
    dout = jnp.zeros_like(call.dout).at[:, rows].set(call.dout[:, rows])
    call = dataclasses.replace(call, dout=dout, query_segments=segments, key_segments=segments)
    out, dq, dk, dv = call.with_gradients(call.implementation())
    hidden = np.delete(np.asarray(dq), rows, axis=1)
    np.testing.assert_array_equal(hidden, 0)

    sampled = dataclasses.replace(call, q=call.q[:, rows], dout=dout[:, rows])
    mask = (segments[0, rows][:, None] == segments[0][None]) & (jnp.arange(tokens)[None] <= jnp.asarray(rows)[:, None])
    assert tree_error_ratio((out[:, rows], dq[:, rows], dk, dv), *sampled.references(mask[None, None])) <= 1


@pytest.mark.parametrize("offset", [2**31 - 1, 2**31 - 600, -(2**31)])
def test_query_offset_at_the_ends_of_int32(offset):
    """Key indices `t + query_offset` beyond int32 must not overflow."""
    call = make_call(AttentionShape(600, 2, 1, 16, query_offset=offset))

    def attend(**overrides):
        attention = call.implementation(**overrides)
        return jax.jit(attention, compiler_options=QUICKEST_TO_COMPILE)(call.q, call.k, call.v)

    np.testing.assert_array_equal(attend(), 0 if offset < 0 else attend(query_offset=600))


def compiled_gradients(tokens: int):
    def loss(q, k, v, dout):
        return jnp.vdot(ops.attention(q, k, v), dout)

    like = jax.ShapeDtypeStruct((1, tokens, 2, 16), jnp.float32)
    return jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(like, like, like, like).compile()


def test_memory_is_linear():
    tokens = 16_384
    long, half = compiled_gradients(tokens), compiled_gradients(tokens // 2)
    bytes_long, bytes_half = (c.memory_analysis().temp_size_in_bytes for c in (long, half))
    assert bytes_long <= 2 * bytes_half
    assert largest_array(long) < tokens * tokens // 64


def test_memory_check_sees_a_quadratic_array():
    def loss(q, k, v):
        mask = jnp.ones((1, 1, 512, 512), bool)
        return reference.attention(q, k, v, mask, scale=1.0)[0].sum()

    like = jax.ShapeDtypeStruct((1, 512, 2, 16), jnp.float32)
    assert largest_array(jax.jit(jax.grad(loss)).lower(like, like, like).compile()) >= 512 * 512


def largest_array(compiled) -> int:
    """Returns the number of elements of the largest array in the compiled program."""
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", compiled.as_text())
    return max(int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 4, 3, 8), (1, 4, 2, 8), (1, 4, 2, 8)), "3 query heads are not a multiple of 2"),
        (((1, 4, 2, 8), (1, 4, 2, 6), (1, 4, 2, 6)), "do not fit"),
        (((1, 4, 2, 8), (1, 4, 2, 8), (1, 5, 2, 8)), "do not fit"),
        (((2, 4, 2, 8), (1, 4, 2, 8), (1, 4, 2, 8)), "do not fit"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        ops.attention(*(jnp.zeros(shape) for shape in shapes))


def test_more_tokens_than_positions_are_refused():
    def arrays(tokens):
        return [jax.ShapeDtypeStruct((1, tokens, 1, 4), jnp.bfloat16) for _ in range(3)]

    for implementation in ("xla", "pallas"):
        attention = functools.partial(ops.attention, implementation=implementation)
        with pytest.raises(ValueError, match=r"positions beyond int32; use at most 2\^31 - 1 tokens"):
            jax.eval_shape(attention, *arrays(2**31))


def test_other_bad_arguments_are_refused():
    x = jnp.zeros((1, 4, 2, 8))
    segments = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="dtypes float32, bfloat16, float32 differ"):
        ops.attention(x, x.astype(jnp.bfloat16), x)
    with pytest.raises(ValueError, match="both queries and keys"):
        ops.attention(x, x, x, query_segments_BT=segments)
    with pytest.raises(ValueError, match="do not fit"):
        ops.attention(x, x, x, query_segments_BT=segments[:, :3], key_segments_BS=segments)
    with pytest.raises(InputError, match="'triton' is unknown; use one of auto, pallas, mosaic, cudnn, fa3, xla"):
        ops.attention(x, x, x, implementation="triton")


def test_error_ratio_detects_errors():
    """Half the allowed error passes, twice the allowed error fails, and nan fails."""
    exact = np.linspace(1, 2, 7)
    plain = exact + 1e-3
    assert error_ratio(np.float32(exact + 1e-3), plain, exact) == pytest.approx(0.5, rel=1e-3)
    assert error_ratio(np.float32(exact + 4e-3), plain, exact) == pytest.approx(2.0, rel=1e-3)
    assert error_ratio(np.float32(exact) * np.float32(np.nan), plain, exact) == float("inf")
