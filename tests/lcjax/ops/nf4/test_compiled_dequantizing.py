"""Quantized linear layers compiled for an H100: one kernel dequantizes, without other buffers."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from lcjax.model.linear import Linear
from lcjax.ops import nf4
from lcjax.plan.compiling.aot import abstract, compile_lowered, gpu_sharding

# The gate projections of Llama-3.1-8B and 70B. The stack of codes of 70B has more than 2^32 bytes.
WEIGHTS = {"8B": (4, 14_336, 4096), "70B": (80, 28_672, 8192)}
TOKENS = 1024


def products(x_TI, stack, dy_TO):
    """Computes the product of every layer and its gradient with respect to x.

    Both dequantize the weight, as in a recomputed layer.
    """

    def layer(carry, weight):
        linear = jax.checkpoint(lambda x: Linear({"weight": weight})(x), prevent_cse=False)
        y_TO, pull_back = jax.vjp(linear, carry)
        return pull_back(y_TO * dy_TO)[0], None

    return lax.scan(layer, x_TI, stack)[0]


@pytest.fixture(scope="module", params=WEIGHTS)
def compiled(request):
    """(compiled program, O, I)."""
    layers, out_features, in_features = WEIGHTS[request.param]
    stack = {
        name: jax.ShapeDtypeStruct((layers, *shape), dtype)
        for name, (shape, dtype) in nf4.leaf_types(out_features, in_features).items()
    }
    x_TI, dy_TO = (jax.ShapeDtypeStruct((TOKENS, features), jnp.bfloat16) for features in (in_features, out_features))
    arguments = abstract((x_TI, stack, dy_TO), gpu_sharding("h100-80gb"))
    return compile_lowered(jax.jit(products).lower(*arguments)), out_features, in_features


def results(text: str) -> list[tuple[str, int, str]]:
    """Returns (dtype, elements, opcode) of each result, except those within kernels."""
    body = re.sub(r"^%fused_\S+ .*?^}$", "", text, flags=re.M | re.S)
    found = re.findall(r"= (\w+)\[([\d,]+)\]\S* ([a-z][\w-]*)\(", body)
    return [(dtype, math.prod(map(int, shape.split(","))), opcode) for dtype, shape, opcode in found]


def test_one_kernel_dequantizes_the_weight_directly_to_bfloat16(compiled):
    program, out_features, in_features = compiled
    large = [result for result in results(program.as_text()) if result[1] == out_features * in_features]
    made = [
        (dtype, opcode) for dtype, _, opcode in large if opcode not in ("bitcast", "get-tuple-element", "parameter")
    ]
    assert made
    assert set(made) == {("bf16", "fusion")}


def test_no_more_memory_than_the_weight_its_scales_and_one_activation(compiled):
    program, out_features, in_features = compiled
    weight_bytes = 2 * out_features * in_features
    scale_bytes = 4 * out_features * in_features // 64
    assert program.memory_analysis().temp_size_in_bytes <= weight_bytes + scale_bytes + 2 * TOKENS * out_features
