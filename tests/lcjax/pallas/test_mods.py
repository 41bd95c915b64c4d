"""mask_mod and score_mod in every implementation, compared with the plain float64 reference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from lcjax import ops
from lcjax.ops.attention import masks, reference
from tests.support.compiling import QUICK_TO_COMPILE, QUICKEST_TO_COMPILE
from tests.support.numerics import error_ratios, tree_error_ratio
from tests.support.thin import thinned

BATCH, TOKENS, KEYS, HEADS, KV_HEADS, HEAD_DIM = 2, 150, 170, 4, 2, 20
DRAW = np.random.default_rng(0)
SLOPES = jnp.asarray([0.5, 0.1, 0.02, 0.3], jnp.float32)
BIASES = jnp.asarray(DRAW.normal(size=TOKENS + KEYS), jnp.float32)
QUERY_IDS, KEY_IDS = (jnp.asarray(DRAW.integers(0, 3, (BATCH, n)), jnp.int32) for n in (TOKENS, KEYS))


@dataclasses.dataclass(frozen=True)
class Mods:
    mask_mod: Callable[..., Any] | None = None
    score_mod: Callable[..., Any] | None = None


MODS = {
    "prefix": Mods(lambda b, h, q, k: (k <= q) | (k < 40)),
    "dilated by head": Mods(lambda b, h, q, k: (q - k) % (h + 2) == 0),
    "documents in an array": Mods(Partial(lambda a, c, b, h, q, k: a[b, q] == c[b, k], QUERY_IDS, KEY_IDS)),
    "joined masks": Mods(masks.Band(after=0) | masks.function(lambda b, h, q, k: k % 64 == 0)),
    "alibi": Mods(None, Partial(lambda slopes, s, b, h, q, k: s - slopes[h] * abs(q - k), SLOPES)),
    "relative biases": Mods(None, Partial(lambda biases, s, b, h, q, k: s * 1.5 + biases[q - k + KEYS], BIASES)),
    "asks of a table": Mods(
        Partial(lambda ids, b, h, q, k: (k <= q) | (k < ids.shape[-1] // 4 + ids.ndim), QUERY_IDS),
        Partial(
            lambda biases, s, b, h, q, k: (
                s + biases[(q - k) % biases.shape[0]] * (len(biases.shape) == biases.ndim) + jnp.zeros((), biases.dtype)
            ),
            BIASES,
        ),
    ),
    "cap in a window": Mods(lambda b, h, q, k: abs(q - k) < 30, lambda s, b, h, q, k: 2.0 * jnp.tanh(s / 2.0)),
    "odd": Mods(None, lambda s, b, h, q, k: jnp.where(k % 2 == 0, s * s, jnp.sin(s))),
}


# Without optimization, because compiling takes most of the time. The quickest code is only for
# float64 and for mutants: its float32 results have larger errors, and exceed the tolerance for the
# mod "odd".
quick = functools.partial(jax.jit, compiler_options=QUICK_TO_COMPILE)
quickest = functools.partial(jax.jit, compiler_options=QUICKEST_TO_COMPILE)


def inputs(dtype):
    draw = np.random.default_rng(1)
    shapes = (TOKENS, HEADS), (KEYS, KV_HEADS), (KEYS, KV_HEADS), (TOKENS, HEADS)
    return [jnp.asarray(draw.normal(size=(BATCH, n, heads, HEAD_DIM)), dtype) for n, heads in shapes]


def with_gradients(attention, q, k, v, dout):
    """Returns (out, lse, dq, dk, dv). The log-sum-exp has a cotangent too."""
    (out, lse), pull_back = jax.vjp(attention, q, k, v)
    dlse = jnp.where(jnp.isfinite(lse), jnp.cos(jnp.arange(lse.size, dtype=lse.dtype)).reshape(lse.shape), 0)
    return out, jnp.where(jnp.isfinite(lse), lse, 0), *pull_back((dout, dlse))


def plain(mods: Mods, q, k, v):
    b, h, t, s = jnp.ogrid[:BATCH, :HEADS, :TOKENS, :KEYS]
    mask = jnp.ones((1, 1, 1, 1), bool) if mods.mask_mod is None else mods.mask_mod(b, h, t, s)
    out, lse = reference.attention(q, k, v, mask, scale=HEAD_DIM**-0.5, score_mod=mods.score_mod)
    return out.astype(q.dtype), lse


@functools.cache
def plain_and_exact(name: str, dtype):
    arrays = inputs(dtype)
    compute = functools.partial(with_gradients, functools.partial(plain, MODS[name]))
    in_dtype = quick(compute)(*arrays)
    with jax.enable_x64(True):
        wide = (x.astype(jnp.float64) for x in arrays)
        return in_dtype, jax.tree.map(np.asarray, quickest(compute)(*wide))


def ours(name: str, implementation: str, dtype, **overrides):
    options = {"mask_mod": MODS[name].mask_mod, "score_mod": MODS[name].score_mod} | overrides
    attention = functools.partial(
        ops.attention, causal=False, return_lse=True, implementation=implementation, **options
    )
    compiled = quickest if overrides else quick
    return compiled(functools.partial(with_gradients, attention))(*inputs(dtype))


# For the kernels, all that are neither run in bfloat16 nor parts of others; for XLA a mask with a
# score, and a table.
IN_EVERY_RUN = {(name, "pallas") for name in ("joined masks", "asks of a table", "cap in a window", "odd")}
IN_EVERY_RUN |= {(name, "xla") for name in ("cap in a window", "relative biases")}
EVERY_MOD = [(name, implementation) for name in MODS for implementation in ("xla", "pallas")]


@pytest.mark.parametrize(("name", "implementation"), thinned(EVERY_MOD, lambda case: case in IN_EVERY_RUN))
def test_mods(name, implementation):
    out, lse, *gradients = ours(name, implementation, jnp.float32)
    plains, exacts = plain_and_exact(name, jnp.float32)
    assert tree_error_ratio((out, *gradients), (plains[0], *plains[2:]), (exacts[0], *exacts[2:])) <= 1
    assert max(error_ratios([lse], [plains[1]], [exacts[1]])) <= 1


@pytest.mark.parametrize("name", ["documents in an array", "alibi"])
def test_mods_in_bfloat16(name):
    actual = ours(name, "pallas", jnp.bfloat16)
    plains, exacts = plain_and_exact(name, jnp.bfloat16)
    assert tree_error_ratio((actual[0], *actual[2:]), (plains[0], *plains[2:]), (exacts[0], *exacts[2:])) <= 1


MUTANTS = {
    "prefix": {"mask_mod": lambda b, h, q, k: (k <= q) | (k < 41)},
    "dilated by head": {"mask_mod": lambda b, h, q, k: (q - k) % (h // 2 + 2) == 0},
    "documents in an array": {"mask_mod": Partial(lambda a, c, b, h, q, k: a[0, q] == c[b, k], QUERY_IDS, KEY_IDS)},
    "alibi": {"score_mod": Partial(lambda slopes, s, b, h, q, k: s - slopes[h] * (abs(q - k) + 0.1 * k), SLOPES)},
    "relative biases": {"score_mod": Partial(lambda t, s, b, h, q, k: s * 1.5 + t[q - k + KEYS - 1], BIASES)},
}


@pytest.mark.parametrize(
    ("name", "implementation"),
    thinned(
        [(name, by) for name in ("documents in an array", "relative biases") for by in ("xla", "pallas")],
        lambda case: case in [("documents in an array", "pallas"), ("relative biases", "xla")],
    ),
)
def test_mutants_fail(name, implementation):
    actual = ours(name, implementation, jnp.float32, **MUTANTS[name])
    assert min(error_ratios(list(actual), *map(list, plain_and_exact(name, jnp.float32)))) > 1


@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in ("documents in an array", "relative biases")])
def test_more_mutants_fail(name):
    actual = ours(name, "pallas", jnp.float32, **MUTANTS[name])
    assert max(error_ratios(list(actual), *map(list, plain_and_exact(name, jnp.float32)))) > 1


def test_a_missing_derivative_fails():
    """A score_mod without its derivative has the correct value, but wrong gradients."""

    def without_derivative(s, b, h, q, k):
        capped = 2.0 * jnp.tanh(s / 2.0)
        return s + jax.lax.stop_gradient(capped - s)

    actual = ours("cap in a window", "pallas", jnp.float32, score_mod=without_derivative)
    out, lse, dq, dk, dv = error_ratios(list(actual), *map(list, plain_and_exact("cap in a window", jnp.float32)))
    assert max(out, lse, dv) <= 1
    assert min(dq, dk) > 1
