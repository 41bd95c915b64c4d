"""Refused calls, and the error messages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.tree_util import Partial

from lcjax import ops
from lcjax.errors import InputError
from lcjax.ops.attention import fa3, registry
from lcjax.ops.rope.api import rope_for

X = jnp.zeros((1, 4, 2, 8))
HALF = X.astype(jnp.bfloat16)
SEGMENTS = jnp.zeros((1, 4), jnp.int32)
TABLE = jnp.arange(4.0)


def wide(head_dim: int, dtype=jnp.bfloat16):
    return jnp.zeros((1, 4, 2, head_dim), dtype)


@pytest.mark.parametrize(
    ("implementation", "x", "options", "message"),
    [
        ("pallas", wide(264), {}, "'pallas' does not support head_dim=264; use at most 256"),
        ("cudnn", X, {}, "'cudnn' does not support dtype float32; use bfloat16 or float16"),
        ("cudnn", HALF, {"soft_cap": 3.0, "return_lse": True}, "does not support soft_cap, return_lse; use attention="),
        ("cudnn", HALF, {"query_segments_BT": SEGMENTS, "key_segments_BS": SEGMENTS}, "does not support segment ids"),
        ("cudnn", HALF, {"mask_mod": lambda b, h, q, k: q > k}, "does not support mask_mod"),
        ("cudnn", HALF, {"query_offset": 2}, "does not support causal masks and windows with query_offset=2"),
        ("cudnn", HALF, {"window": 2, "causal": False}, "does not support window=2 without causal"),
        ("cudnn", HALF[:, :3], {}, "does not support 3 queries and 3 keys; pad both to even numbers"),
        ("cudnn", wide(20), {}, "does not support head_dim=20; use a multiple of 8 up to 128"),
        ("fa3", HALF, {}, "'fa3' is not installed; pip install flash-attn3-jax"),
    ],
)
def test_a_named_implementation_states_why_it_refuses(implementation, x, options, message):
    with pytest.raises(InputError, match=message) as raised:
        ops.attention(x, x, x, implementation=implementation, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"causal": False}, "wrong gradients without causal"),
        ({"query_offset": 1}, "does not support query_offset=1, only that of the last query at the last key, 0"),
        ({"sinks_H": jnp.zeros(2)}, "does not support sinks"),
    ],
)
def test_fa3_where_it_is_installed(monkeypatch, options, message):
    monkeypatch.setattr(fa3, "INSTALLED", True)
    with pytest.raises(InputError, match=message):
        ops.attention(HALF, HALF, HALF, implementation="fa3", **options)


def test_sizes_that_are_not_known_to_be_safe_are_refused():
    """Uses shapes beyond 2^31 elements, without allocating arrays."""
    q = jax.ShapeDtypeStruct((1, 2**20, 32, 64), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, 2**20, 8, 64), jnp.bfloat16)
    with pytest.raises(InputError, match="not known to be safe at 1,048,576 tokens x 32 heads x 64"):
        jax.eval_shape(lambda q, k: ops.attention(q, k, k, implementation="cudnn"), q, k)
    out = jax.eval_shape(lambda q, k: ops.attention(q, k, k, implementation="pallas"), q, k)
    assert out.shape == q.shape


def test_unknown_names():
    with pytest.raises(
        InputError, match="attention='triton' is unknown; use one of auto, pallas, mosaic, cudnn, fa3, xla"
    ):
        ops.attention(X, X, X, implementation="triton")
    with pytest.raises(InputError, match="rope='cudnn' is unknown; use one of auto, pallas, xla"):
        ops.rope(X, X, SEGMENTS, jnp.ones(4), implementation="cudnn")


def test_auto():
    assert registry.default_implementation() == registry.default_implementation("cpu") == "xla"
    assert registry.default_implementation("gpu") == "pallas"
    assert rope_for("cudnn") == "xla"
    assert rope_for("cudnn", "gpu") == rope_for("pallas", "cpu") == "pallas"
    assert rope_for("xla", "gpu") == "xla"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0 hides every key; give at least 1 token"),
        ({"window": -3}, "window=-3 hides every key"),
        ({"soft_cap": 0.0}, "soft_cap=0.0 is not positive"),
        ({"scale": -1.0}, "scale=-1.0 is not positive; negate q instead"),
        ({"sinks_H": jnp.zeros(3)}, r"sinks \(3,\) do not fit 2 query heads"),
        ({"mask_mod": lambda b, h, q, k: q - k}, "mask_mod returns int32.* for one pair; expected a bool"),
        ({"score_mod": lambda s, b, h, q, k: q}, "score_mod returns int32.* for one pair; expected a float"),
        ({"score_mod": lambda s, b, h, q, k: s + TABLE}, r"captures an array of shape \(4,\); bind it instead"),
        ({"mask_mod": lambda b, h, q, k: TABLE[q] > 0}, r"mask_mod captures an array of shape \(4,\); bind it"),
    ],
)
def test_numbers_and_mods_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message) as raised:
        ops.attention(X, X, X, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("q", "k", "message"),
    [
        (X.astype(jnp.int32), X.astype(jnp.int32), "dtype int32 is not floating point"),
        (X[:, :0], X, "are empty; give at least one query and one key"),
    ],
)
def test_arrays_that_do_not_fit(q, k, message):
    with pytest.raises(ValueError, match=message):
        ops.attention(q, k, k)


@pytest.mark.parametrize("implementation", ["xla", "pallas"])
def test_no_silent_gradient_of_a_constant(implementation):
    def loss(table):
        mod = Partial(lambda table, s, b, h, q, k: s + table[k], table)
        return ops.attention(X, X, X, score_mod=mod, implementation=implementation).sum()

    with pytest.raises(
        ValueError, match="cannot differentiate with respect to an array that mask_mod or score_mod reads"
    ):
        jax.grad(loss)(TABLE)
    assert jnp.isfinite(loss(TABLE))
    assert jnp.all(jax.grad(lambda table: loss(jax.lax.stop_gradient(table)))(TABLE) == 0)
