"""The kernels of grouped products compiled for GPUs, and the arrays of compiled programs."""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from lcjax.ops.grouped import collect, dispatch, grouped_product, route
from lcjax.pallas.triton.block_sizes import traced_for, traced_gpu
from lcjax_scripts.codegen.analysis import analyze
from lcjax_scripts.codegen.compile_pallas import Emitted, device_of, emitted
from tests.support.thin import thinned

# (tokens, choices, experts, outputs, inputs): Qwen3-30B-A3B; no multiples of tiles and few rows.
SIZES = {"qwen3-30b-a3b": (4096, 8, 128, 768, 2048), "small": (61, 3, 7, 50, 36)}
KERNELS = {"grouped_product": 2, "grouped_outer_product": 1}


def value_and_gradients(implementation, x_TI, weight_EOI, dy_TCO, expert_TC):
    rows = route(expert_TC, len(weight_EOI))

    def compute(x_TI, weight_EOI):
        return collect(grouped_product(dispatch(x_TI, rows), weight_EOI, rows, implementation=implementation), rows)

    y_TCO, pull_back = jax.vjp(compute, x_TI, weight_EOI)
    return y_TCO, pull_back(dy_TCO)


def arguments(sizes: tuple[int, ...], dtype) -> list[jax.ShapeDtypeStruct]:
    tokens, choices, experts, outputs, inputs = sizes
    shapes = (tokens, inputs), (experts, outputs, inputs), (tokens, choices, outputs)
    return [*(jax.ShapeDtypeStruct(x, dtype) for x in shapes), jax.ShapeDtypeStruct((tokens, choices), jnp.int32)]


def kernels_for(gpu: str, sizes: tuple[int, ...], dtype: str) -> dict[str, Emitted]:
    found = emitted(functools.partial(value_and_gradients, "pallas"), arguments(sizes, dtype), gpu)
    return {name: kernel for name, kernel in found.items() if name.startswith("grouped_")}


COMPILED = [
    (gpu, size, dtype) for gpu in ("h100-80gb", "rtx4090") for size in SIZES for dtype in ("bfloat16", "float32")
]


@pytest.mark.parametrize(
    ("gpu", "size", "dtype"),
    thinned(
        COMPILED,
        lambda case: case in [("h100-80gb", "qwen3-30b-a3b", "bfloat16"), ("rtx4090", "qwen3-30b-a3b", "float32")],
    ),
)
def test_kernels_fit_without_spills(gpu, size, dtype):
    kernels = kernels_for(gpu, SIZES[size], dtype)
    assert len(kernels) == sum(KERNELS.values())
    with traced_for(device_of(gpu)):
        limit = traced_gpu().shared_memory
    for name, kernel in kernels.items():
        assert 0 < kernel.shared_memory <= limit, name
        codegen = analyze(kernel.ptx)[name]
        assert codegen.spill_stores == codegen.spill_loads == 0, name


def narrow_products(kernels: dict[str, Emitted], *factors: int) -> set[int]:
    """Which of the factors some number is multiplied by in 32 bits."""
    found = re.findall(r"\bm(?:ul|ad)\.lo\.s32\s.*?, (\d+)[,;]", "".join(kernel.ptx for kernel in kernels.values()))
    return {*map(int, found)} & {*factors}


def test_offsets_beyond_2_to_the_31_elements_have_64_bits():
    """An expert's matrix is 2,000,000 elements after the one before it, and a row 2,000."""
    few, many = (kernels_for("h100-80gb", (tokens, 2, experts, 1000, 2000), "bfloat16")
                 for tokens, experts in ((40, 5), (700_000, 1100)))  # fmt: skip
    assert 1100 * 2_000_000 > 2**31
    assert narrow_products(few, 2000, 2_000_000) == {2000, 2_000_000}
    assert not narrow_products(many, 2000, 2_000_000)


def test_no_array_has_an_axis_of_tokens_and_one_of_experts():
    """Neither tokens nor rows meet experts, so memory does not grow with their number."""
    tokens, choices, experts, outputs, inputs = sizes = (256, 2, 32, 24, 16)
    compute = jax.jit(functools.partial(value_and_gradients, "xla"))
    text = str(compute.lower(*arguments(sizes, jnp.float32)).compile().as_text())
    shapes = re.findall(r"\b(?:f32|s32|pred)\[([\d,]+)\]", text)
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    blocks = (tokens * choices + experts * 15) // 16
    assert largest == blocks * 16 * outputs < tokens * experts * inputs
