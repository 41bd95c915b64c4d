"""The kernels compiled for an absent H100: registers, spills and serialized products."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lcjax import ops
from lcjax.pallas.mosaic import softmax
from lcjax.pallas.mosaic.attention_forward import KEY_BLOCK
from lcjax.plan.compiling.aot import abstract, compile_lowered, gpu_sharding, lowering_for
from lcjax_scripts.codegen import ptx, sass, toolchain
from lcjax_scripts.verify.parity.interpreter.mosaic import OLDEST_JAX
from tests.support.thin import thinned

TOKENS, HEADS, KV_HEADS = 8192, 32, 8

# Bytes that the forward and the backward kernel may spill, measured with JAX 0.10.2 and 0.11.2 and
# ptxas 13. More spills are due to a change of the code or the compiler, and should be investigated.
CASES = {
    "causal": ({}, 128, "bfloat16", False, (32, 160)),
    "float16": ({}, 128, "float16", False, (32, 160)),
    "not causal": ({"causal": False}, 128, "bfloat16", False, (32, 160)),
    "window": ({"window": 1000}, 128, "bfloat16", False, (64, 160)),
    "documents": ({}, 128, "bfloat16", True, (64, 160)),
    "head_dim 64": ({}, 64, "bfloat16", False, (32, 256)),
    "head_dim 64, documents": ({}, 64, "bfloat16", True, (32, 512)),
}

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")


@dataclasses.dataclass(frozen=True)
class Kernel:
    spilled: int
    """Bytes per thread that are stored because registers ran out."""
    serialized: list[str]
    """ptxas' warnings that products are serialized."""
    products: int
    """Tensor-core instructions of the main loop."""
    spills_in_main_loop: int
    """Accesses of local memory in the main loop."""


def compiled(folder: Path, options, head_dim: int, dtype: str, with_documents: bool) -> dict[str, Kernel]:
    """Returns the kernels of a call and its derivative by name: "forward" and "backward"."""
    sharding = gpu_sharding("h100-80gb")

    def run(q, k, v, dout, ids):
        segments = {"query_segments_BT": ids, "key_segments_BS": ids} if with_documents else {}
        out, pull_back = jax.vjp(
            lambda q, k, v: ops.attention(q, k, v, implementation="mosaic", **options, **segments), q, k, v
        )
        return out, pull_back(dout)

    heads = HEADS, KV_HEADS, KV_HEADS, HEADS
    arguments = [jax.ShapeDtypeStruct((1, TOKENS, count, head_dim), dtype) for count in heads]
    with lowering_for(sharding):
        lowered = jax.jit(run).lower(*abstract([*arguments, jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)], sharding))
    compile_lowered(lowered)
    kernels = [examined(path) for path in sorted(folder.glob("*.ptx"))]
    # JAX 0.10 loses the name of the backward kernel, which is the one with more products.
    return dict(zip(("forward", "backward"), sorted(kernels, key=lambda kernel: kernel.products), strict=True))


# In the branch that evaluates the mask, which a few blocks of each row take. That of a window has
# two comparisons for each pair; it is known to spill, and a limit so that it does not spill more.
SPILLS_OF_MASKS = {"documents": 2, "window": 15}


def examined(path: Path) -> Kernel:
    module, cubin = path.read_text(encoding="utf-8"), path.with_suffix(".cubin")
    report = toolchain.assemble(path, cubin, architecture=ptx.target(module))
    [lines] = [body for body in sass.functions(toolchain.disassemble(cubin)).values() if sass.loops(body)]
    main = sass.main_loop(sass.loops(lines))
    code = [match.group(1) for line in lines if (match := _INSTRUCTION.match(line))]
    assert main is not None
    return Kernel(
        spilled=max(int(size) for size in re.findall(r"(\d+) bytes spill stores", report)),
        serialized=re.findall(r"C75\d\d.*serialized.*", report),
        products=main.products,
        spills_in_main_loop=sum(bool(re.search(r"\b(LDL|STL)\b", line)) for line in code[main.first : main.last + 1]),
    )


@pytest.fixture
def dumps(tmp_path, monkeypatch):
    """The folder to which Mosaic writes the PTX of its kernels."""
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(tmp_path))
    return tmp_path


# On a JAX with the interpreter, `test_values.py` runs kernels with documents as well. On an older
# one, `tests/scripts/codegen/test_codegen.py` examines the causal kernels.
IN_EVERY_RUN = ("causal" if jax.__version_info__ >= OLDEST_JAX else "head_dim 64, documents",)


@pytest.mark.slow
def test_a_compensated_sum_fits_in_the_registers(dumps, monkeypatch):
    """With a scale of its own: the compiler writes nothing for a kernel that it has seen before."""
    monkeypatch.setattr(softmax, "MANY_KEYS", 0)
    kernels = compiled(dumps, {"scale": 0.1}, 128, "bfloat16", False)
    assert not kernels["forward"].serialized
    assert kernels["forward"].spilled <= CASES["causal"][-1][0]
    assert kernels["forward"].spills_in_main_loop == 0


@pytest.mark.parametrize("name", thinned(CASES, lambda name: name in IN_EVERY_RUN))
def test_registers_are_sufficient(name, dumps):
    *call, budgets = CASES[name]
    kernels = compiled(dumps, *call)
    for kernel, budget in zip(kernels.values(), budgets, strict=True):
        assert not kernel.serialized
        assert kernel.spilled <= budget, kernels
    # Of 16 columns of q and k, and of 16 keys, each.
    head_dim = call[1]
    assert kernels["forward"].products >= (head_dim + KEY_BLOCK) // 16
    assert kernels["backward"].products >= 32
    [allowed] = [count for words, count in SPILLS_OF_MASKS.items() if words in name] or [0]
    assert kernels["forward"].spills_in_main_loop <= allowed, kernels
