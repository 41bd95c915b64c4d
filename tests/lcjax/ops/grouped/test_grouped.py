"""lcjax.ops.grouped: products with the matrices of experts and their gradients, against float64."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcjax.ops.grouped import collect, dispatch, grouped_product, route
from lcjax.ops.grouped.routing import rows_per_block
from tests.support.compiling import QUICKEST_TO_COMPILE
from tests.support.numerics import tree_error_ratio
from tests.support.thin import thinned


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes, and the experts that tokens may choose; all of them if `chosen` is empty."""

    tokens: int
    choices: int
    experts: int
    outputs: int
    inputs: int
    chosen: tuple[int, ...] = ()

    def routes(self) -> jax.Array:
        """int32 [T, C]: distinct experts, the first of them chosen most often."""
        rng, among = np.random.default_rng(0), np.array(self.chosen or range(self.experts))
        share = 1 / np.arange(1, len(among) + 1)
        rows = [rng.choice(among, self.choices, replace=False, p=share / share.sum()) for _ in range(self.tokens)]
        return jnp.asarray(np.stack(rows), jnp.int32)


# No size is a multiple of a tile, except in the second case.
CASES = {
    "unequal counts": Case(37, 2, 5, 48, 40),
    "whole tiles, experts without rows": Case(64, 2, 6, 64, 128, chosen=(1, 2, 4)),
    "one token": Case(1, 3, 16, 33, 20),
    "one expert has all": Case(61, 1, 4, 19, 70, chosen=(2,)),
    "large blocks, several tiles": Case(203, 2, 3, 130, 66),
    "all experts": Case(23, 3, 3, 36, 24),
}
DTYPES = ("float32", "bfloat16")
IMPLEMENTATIONS = ("xla", "pallas")
IN_EVERY_RUN = ("unequal counts", "whole tiles, experts without rows", "one token")


def by_blocks(implementation: str, x_TI, weight_EOI, share_TC, expert_TC):
    """The sum over a token's experts of `share W_e x`, with the operations that are tested."""
    rows = route(expert_TC, len(weight_EOI))
    y_RO = grouped_product(dispatch(x_TI, rows), weight_EOI, rows, implementation=implementation)
    return added_up(collect(y_RO, rows), share_TC)


def plainly(x_TI, weight_EOI, share_TC, expert_TC):
    """The same with every expert's product for every token."""
    y_TCO = jnp.zeros((*expert_TC.shape, weight_EOI.shape[1]), x_TI.dtype)
    for expert in range(len(weight_EOI)):
        y_TO = jnp.matmul(x_TI, weight_EOI[expert].T, precision="highest")
        y_TCO += jnp.where((expert_TC == expert)[..., None], y_TO[:, None], jnp.zeros((), x_TI.dtype))
    return added_up(y_TCO, share_TC)


def added_up(y_TCO, share_TC):
    return jnp.einsum("tco,tc->to", y_TCO.astype(share_TC.dtype), share_TC, precision="highest")


def inputs_of(case: Case, dtype) -> tuple:
    rng = np.random.default_rng(1)
    shapes = (case.tokens, case.inputs), (case.experts, case.outputs, case.inputs)
    x_TI, weight_EOI = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    share_TC, dout_TO = (
        jnp.asarray(rng.normal(size=(case.tokens, size)), jnp.float32) for size in (case.choices, case.outputs)
    )
    return x_TI, weight_EOI, share_TC, dout_TO


def value_and_gradients(function, inputs, expert_TC) -> tuple:
    def compute(x_TI, weight_EOI, share_TC, dout_TO):
        out, pull_back = jax.vjp(lambda *arrays: function(*arrays, expert_TC), x_TI, weight_EOI, share_TC)
        return out, *pull_back(dout_TO)

    return jax.jit(compute, compiler_options=QUICKEST_TO_COMPILE)(*inputs)


@functools.cache
def references(name: str, dtype: str) -> tuple:
    """(value and gradients of `plainly` in the dtype, and in float64)."""
    case = CASES[name]
    inputs = inputs_of(case, dtype)
    plain = value_and_gradients(plainly, inputs, case.routes())
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in inputs]
        return plain, jax.tree.map(np.asarray, value_and_gradients(plainly, wide, case.routes()))


def ratio(name: str, dtype: str, implementation: str) -> float:
    case = CASES[name]
    actual = value_and_gradients(functools.partial(by_blocks, implementation), inputs_of(case, dtype), case.routes())
    assert actual[1].dtype == actual[2].dtype == dtype
    return tree_error_ratio(actual, *references(name, dtype))


ALL = [(name, dtype, how) for name in CASES for dtype in DTYPES for how in IMPLEMENTATIONS]


@pytest.mark.parametrize(
    ("name", "dtype", "implementation"),
    thinned(ALL, lambda case: case[0] in IN_EVERY_RUN or case == ("large blocks, several tiles", "bfloat16", "pallas")),
)
def test_value_and_gradients(name, dtype, implementation):
    assert ratio(name, dtype, implementation) <= 1


def test_the_same_bits_twice():
    case = CASES["unequal counts"]
    inputs, expert_TC = inputs_of(case, jnp.bfloat16), case.routes()
    for implementation in IMPLEMENTATIONS:
        runs = [value_and_gradients(functools.partial(by_blocks, implementation), inputs, expert_TC) for _ in range(2)]
        jax.tree.map(np.testing.assert_array_equal, *runs)


def test_experts_without_rows_have_gradients_of_zero():
    case = CASES["whole tiles, experts without rows"]
    for implementation in IMPLEMENTATIONS:
        function = functools.partial(by_blocks, implementation)
        _, _, dweight_EOI, _ = value_and_gradients(function, inputs_of(case, jnp.float32), case.routes())
        without = sorted(set(range(case.experts)) - set(case.chosen))
        assert not np.asarray(dweight_EOI)[without].any()
        assert all(np.asarray(dweight_EOI)[expert].any() for expert in case.chosen)


@pytest.mark.parametrize("name", CASES)
def test_every_choice_is_a_row_in_a_block_of_its_expert(name):
    case = CASES[name]
    expert_TC = np.asarray(case.routes())
    rows = jax.tree.map(np.asarray, route(jnp.asarray(expert_TC), case.experts))
    assert rows.block_rows == rows_per_block(expert_TC.size, case.experts)
    choices = np.arange(expert_TC.size)
    np.testing.assert_array_equal(rows.choice_R[rows.row_TC.ravel()], choices)
    assert sorted(rows.choice_R.tolist())[-expert_TC.size :] == choices.tolist()
    assert np.count_nonzero(rows.choice_R < 0) == len(rows.choice_R) - expert_TC.size
    np.testing.assert_array_equal(np.asarray(rows.expert_R)[rows.row_TC], expert_TC)
    for expert in range(case.experts):
        own = np.flatnonzero(rows.expert_N == expert)
        np.testing.assert_array_equal(own, np.arange(rows.first_E1[expert], rows.first_E1[expert + 1]))
        assert len(own) == -(-np.count_nonzero(expert_TC == expert) // rows.block_rows)


def neighbor(rows):
    """The second block has the matrix of the next expert."""
    return dataclasses.replace(rows, expert_N=rows.expert_N.at[1].set((rows.expert_N[1] + 1) % rows.experts))


def without_last_block(rows):
    """The last block with rows is omitted, from products and from sums."""
    used = rows.first_E1[-1]
    return dataclasses.replace(
        rows, expert_N=rows.expert_N.at[used - 1].set(rows.experts), first_E1=rows.first_E1.at[-1].set(used - 1)
    )


def one_block_too_early(rows):
    """The sum for an expert begins with the last block of the expert before it."""
    return dataclasses.replace(rows, first_E1=rows.first_E1.at[2].add(-1), expert_N=rows.expert_N.at[0].set(1))


def permuted_choices(rows):
    return dataclasses.replace(rows, row_TC=rows.row_TC[:, ::-1])


def no_empty_rows(rows):
    """Empty rows are copies of the first choice, in the inputs and in the cotangents."""
    return dataclasses.replace(rows, choice_R=jnp.maximum(rows.choice_R, 0))


MUTANTS = {f.__name__: f for f in (neighbor, without_last_block, one_block_too_early, permuted_choices, no_empty_rows)}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_fail(mutant, implementation, monkeypatch):
    changed = MUTANTS[mutant]
    monkeypatch.setitem(globals(), "route", lambda *arguments: changed(route_before(*arguments)))
    assert ratio("unequal counts", "bfloat16", implementation) > 1


route_before = route


@pytest.mark.parametrize("kind", ["rows", "inputs", "experts", "dtype"])
def test_arrays_that_do_not_fit_are_refused(kind):
    case = CASES["unequal counts"]
    rows = route(case.routes(), case.experts)
    x_RI, weight_EOI = jnp.zeros((len(rows.choice_R), 40)), jnp.zeros((5, 48, 40))
    wrong = {
        "rows": (x_RI[1:], weight_EOI),
        "inputs": (x_RI[:, 1:], weight_EOI),
        "experts": (x_RI, weight_EOI[1:]),
        "dtype": (x_RI, weight_EOI.astype(jnp.bfloat16)),
    }[kind]
    with pytest.raises(ValueError, match=r"do not fit .* rows of 5 experts"):
        grouped_product(*wrong, rows)


def test_an_unknown_implementation_is_refused():
    case = CASES["one token"]
    rows = route(case.routes(), case.experts)
    with pytest.raises(ValueError, match="implementation='triton' is unknown; use one of pallas, xla"):
        grouped_product(jnp.zeros((len(rows.choice_R), 20)), jnp.zeros((16, 33, 20)), rows, implementation="triton")
