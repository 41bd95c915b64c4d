"""A small Pallas matrix product for an H100, to test the checks of generated code."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from lcjax_scripts.codegen.compile_pallas import emitted

SIZE, DEPTH, STEP = 1024, 4096, 64


def _product(
    a_ref,
    b_ref,
    out_ref,
):
    def add(n, sum_MN):
        a_MK = plt.load(a_ref.at[:, pl.ds(n * STEP, STEP)])
        b_KN = plt.load(b_ref.at[pl.ds(n * STEP, STEP), :])
        return sum_MN + lax.dot(a_MK, b_KN, preferred_element_type=jnp.float32)

    zeros_MN = jnp.zeros(out_ref.shape, jnp.float32)
    plt.store(out_ref, lax.fori_loop(0, DEPTH // STEP, add, zeros_MN).astype(out_ref.dtype))


@functools.cache
def product_ptx(tile: int) -> str:
    """Returns the PTX of [1024, 4096] times [4096, 1024] in bfloat16 by 4 warps."""

    def multiply(a, b):
        return pl.pallas_call(
            _product,
            grid=(SIZE // tile, SIZE // tile),
            in_specs=[
                pl.BlockSpec((tile, DEPTH), lambda i, j: (i, 0)),
                pl.BlockSpec((DEPTH, tile), lambda i, j: (0, j)),
            ],
            out_specs=pl.BlockSpec((tile, tile), lambda i, j: (i, j)),
            out_shape=jax.ShapeDtypeStruct((SIZE, SIZE), "bfloat16"),
            compiler_params=plt.CompilerParams(num_warps=4, num_stages=3),
            name="product",
        )(a, b)

    arguments = [jax.ShapeDtypeStruct(shape, "bfloat16") for shape in ((SIZE, DEPTH), (DEPTH, SIZE))]
    return emitted(multiply, arguments, "h100-80gb")["product"].ptx
