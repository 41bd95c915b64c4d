"""The kernels' code for an H100: tensor cores, spills and budgets; readers of PTX and SASS."""

from __future__ import annotations

import dataclasses
import functools
import re

import pytest

from lcjax.errors import InputError
from lcjax.pallas.triton.scores import LONGEST_SUM
from lcjax_scripts.codegen import budgets, compile_mosaic, ptx, sass, toolchain
from lcjax_scripts.codegen.analysis import Codegen, analyze
from lcjax_scripts.codegen.compile_pallas import compile_attention, compile_rope
from lcjax_scripts.codegen.compiled import ATTENTION_KERNELS, CompiledKernel
from lcjax_scripts.codegen.triton_process import triton_process
from tests.support.small_kernels import product_ptx
from tests.support.thin import thinned

GPU, DTYPE = "h100-80gb", "bfloat16"
HEAD_DIMS = (64, 128)


@functools.cache
def pallas_attention(head_dim: int) -> dict[str, CompiledKernel]:
    return {kernel.kernel: kernel for kernel in compile_attention(GPU, head_dim, DTYPE)}


@functools.cache
def pallas_rope(head_dim: int) -> CompiledKernel:
    return compile_rope(GPU, head_dim, DTYPE)


@functools.cache
def triton_kernels(head_dim: int) -> dict[str, CompiledKernel]:
    with triton_process(GPU, [head_dim], DTYPE) as kernels:
        return {kernel.kernel: kernel for kernel in kernels()}


def codegen_of(kernel: CompiledKernel) -> Codegen:
    return analyze(kernel.ptx)[kernel.entry]


def check_attention(kernel: CompiledKernel) -> None:
    codegen = codegen_of(kernel)
    assert codegen.counts.wgmma > 0
    assert codegen.counts.mma == 0
    assert (codegen.spill_stores, codegen.spill_loads) == (0, 0)
    assert codegen.serialized == ()
    assert codegen.main_loop > 0
    check_budget(kernel, codegen)


def check_budget(kernel: CompiledKernel, codegen: Codegen) -> None:
    limits = budgets.read(GPU)
    assert budgets.excesses(codegen, limits[budgets.budget_key(kernel)]) == []


@pytest.mark.parametrize("head_dim", thinned(HEAD_DIMS, lambda head_dim: head_dim == 128))
@pytest.mark.parametrize("kernel", ATTENTION_KERNELS)
def test_pallas_attention(kernel, head_dim):
    check_attention(pallas_attention(head_dim)[kernel])


@pytest.mark.parametrize("head_dim", thinned([80, 96, 256], lambda head_dim: head_dim == 96))
def test_pallas_attention_of_other_widths_keeps_its_budget(head_dim):
    for kernel in ATTENTION_KERNELS:
        compiled = pallas_attention(head_dim)[kernel]
        check_budget(compiled, codegen_of(compiled))


def test_float32_attention_has_short_sums_and_no_spills():
    for kernel in compile_attention(GPU, 128, "float32"):
        codegen = codegen_of(kernel)
        assert (codegen.spill_stores, codegen.spill_loads) == (0, 0)
        assert LONGEST_SUM - 2 <= longest_chain(kernel.ptx) <= LONGEST_SUM
    # What the compiler makes of a product over 128 columns that is added to a sum.
    assert longest_chain("fma.rn.f32 %r1, %r5, %r6, 0f00000000;" + "fma.rn.f32 %r1, %r5, %r6, %r1;" * 127) == 128


@pytest.mark.parametrize("head_dim", thinned(HEAD_DIMS, lambda head_dim: head_dim == 128))
def test_the_forward_kernel_waits_for_products_before_each_fence(head_dim):
    kernels = pallas_attention(head_dim)
    assert set(waits_before_fences(kernels["attention_forward"].ptx)) == {True}
    assert set(waits_before_fences(kernels["attention_dq"].ptx)) == {False}


def waits_before_fences(text: str) -> list[bool]:
    """Returns, for every fence in a loop, whether there is a wait between it and the copies."""
    pieces = re.findall(r"cp\.async\.wait_group\s+[1-9]\d*;(.*?)fence\.proxy\.async", text, re.DOTALL)
    return ["wgmma.wait_group.sync.aligned 0" in piece for piece in pieces]


def longest_chain(text: str) -> int:
    """Returns the length of the longest chain of dependent fused multiply-adds in PTX."""
    lengths: dict[str, int] = {}
    for result, addend in re.findall(r"fma\.rn\.f32 \s*(%\w+), [%\w]+, [%\w]+, ([%\w]+);", text):
        lengths[result] = lengths.get(addend, 0) + 1
    return max(lengths.values())


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_pallas_rope(head_dim):
    kernel = pallas_rope(head_dim)
    codegen = codegen_of(kernel)
    assert (codegen.spill_stores, codegen.spill_loads) == (0, 0)
    assert codegen.counts.wide > 0
    check_budget(kernel, codegen)


@pytest.mark.parametrize("head_dim", thinned(compile_mosaic.HEAD_DIMS, lambda head_dim: head_dim == 128))
def test_mosaic_attention(head_dim):
    for kernel in compile_mosaic.compile_attention(GPU, head_dim, DTYPE):
        codegen = codegen_of(kernel)
        assert codegen.serialized == ()
        check_budget(kernel, codegen)
        if kernel.kernel == "attention_forward":
            assert codegen.main_loop_spills == 0


@pytest.mark.parametrize("head_dim", thinned(HEAD_DIMS, lambda head_dim: head_dim == 128))
@pytest.mark.parametrize("kernel", ATTENTION_KERNELS)
def test_triton_attention(kernel, head_dim):
    check_attention(triton_kernels(head_dim)[kernel])


# A budget that the good product meets exactly, and ways to exceed it.

GOOD = {"tile": 64}
SPOILT = {
    "tiles too narrow for wgmma": ({"tile": 32}, {"products"}),
    "accumulators that overflow the registers": ({"tile": 256}, {"registers", "spills", "main_loop", "wgmma"}),
}


@functools.cache
def product(**options) -> Codegen:
    return analyze(product_ptx(**options))["product"]


def test_a_good_kernel_is_within_its_budget():
    codegen = product(**GOOD)
    # A tile of 64 x 64 elements of 2 bytes is four times 16 bytes for each of 128 threads. Two
    # arrays are copied twice before the loop and once in it, and the result is stored.
    copies = 4 * 2 * 3
    assert codegen.counts == ptx.PtxCounts(wgmma=4, mma=0, tcgen05=0, cp_async=copies, tma=0, wide=copies + 4, narrow=0)
    assert codegen.loops == (codegen.main_loop,)
    assert (codegen.stack, codegen.spill_stores, codegen.spill_loads, codegen.serialized) == (0, 0, 0, ())
    for budget in (budgets.measured(codegen), budgets.with_slack(budgets.measured(codegen))):
        assert budgets.excesses(codegen, budget) == []


@pytest.mark.parametrize("mutant", SPOILT)
def test_a_bad_kernel_is_flagged(mutant):
    options, expected = SPOILT[mutant]
    budget = budgets.with_slack(budgets.measured(product(**GOOD)))
    found = budgets.excesses(product(**options), budget)
    assert {fault.split()[0] for fault in found} >= expected, found


def test_one_more_than_the_budget_is_flagged():
    codegen = product(**GOOD)
    exact = budgets.measured(codegen)
    for name, change in (("registers", -1), ("main_loop", -1), ("narrow", -1), ("spills", -1), ("products", 1)):
        tight = dataclasses.replace(exact, **{name: getattr(exact, name) + change})
        [fault] = budgets.excesses(codegen, tight)
        assert fault.split()[0] == name


def test_budgets_are_read_as_written(tmp_path):
    path = tmp_path / "budgets.json"
    kernel, codegen = pallas_rope(64), product(**GOOD)
    assert budgets.read(GPU, path) == {}
    budgets.write(GPU, [(kernel, codegen)], path)
    budgets.write("h200", [], path)
    assert budgets.read(GPU, path) == {"rope 64 bfloat16 pallas": budgets.with_slack(budgets.measured(codegen))}
    assert budgets.read("h200", path) == {}


@pytest.mark.parametrize(
    ("instruction", "widths"),
    [
        ("@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];", [16]),
        ("st.global.v2.b64 [%rd1], {%rd2, %rd3};", [16]),
        ("ld.global.L1::evict_last.L2::cache_hint.v2.b32 {%r1, %r2}, [%rd1];", [8]),
        ("st.global.b16 [%rd1], %rs1;", [2]),
        ("ld.global.v8.f32 {%f1, %f2}, [%rd1];", [32]),
        ("cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;", [16]),
        ("cp.async.ca.shared.global [%r1], [%rd1], 4;", [4]),
        ("ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r5];", []),
        ("ld.global.nc.b32 %r1, [%rd1];", []),
        ("cp.async.commit_group;", []),
    ],
)
def test_access_widths(instruction, widths):
    assert ptx.access_widths(f"\t{instruction}\n") == widths


def test_bulk_copies_are_counted():
    body = """
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group.read 0;
    """
    assert ptx.count(body).tma == 1


def test_loops_of_real_code(tmp_path):
    """Every loop body ends with the branch to its first instruction."""
    source, cubin = tmp_path / "product.ptx", tmp_path / "product.cubin"
    source.write_text(product_ptx(**GOOD))
    toolchain.assemble(source, cubin, architecture="sm_90a")
    lines = sass.functions(toolchain.disassemble(cubin))["product"]
    [loop] = sass.loops(lines)
    assert loop.products == 4
    assert loop.stores == 0
    assert sass.main_loop([loop]) == loop


def test_the_main_loop_is_the_innermost_that_multiplies():
    def line(number: int, instruction: str) -> str:
        return f"        /*{16 * number:04x}*/                   {instruction} ;"

    code = [
        ".L_x_0:",  # over heads
        line(0, "MOV R0, R1"),
        ".L_x_1:",  # over fully visible blocks
        line(1, "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24"),
        ".L_x_2:",  # waits for a barrier
        line(2, "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2], R3"),
        line(3, "@!P0 BRA `(.L_x_2)"),
        line(4, "@P1 BRA `(.L_x_1)"),
        ".L_x_3:",  # over masked blocks
        line(5, "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24"),
        line(6, "ISETP.GE.AND P2, PT, R4, R5, PT"),
        line(7, "FSEL R6, R6, -INF, P2"),
        line(8, "STG.E [R8], R9"),
        line(9, "@P2 BRA.U `(.L_x_3)"),
        line(10, "@!UP0 BRA `(.L_x_0)"),
        line(11, "EXIT"),
        ".L_x_4:",
        line(12, "BRA `(.L_x_4)"),
    ]
    loops = sass.loops(code)
    assert [loop.instructions for loop in loops] == [2, 4, 5, 11]
    assert [loop.instructions for loop in sass.work_loops(loops)] == [4, 5]
    main = sass.main_loop(loops)
    assert main is not None
    assert main.instructions == 4
    without_products = sass.loops([text.replace("HGMMA", "FADD") for text in code])
    assert [loop.instructions for loop in sass.work_loops(without_products)] == [5]
    assert sass.main_loop([]) is None


def test_a_wait_that_is_placed_after_the_code_is_no_loop():
    """The branch back to the code goes from the end of the kernel into the loop."""
    code = [
        ".L_x_0:",
        "        /*0000*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2], R3 ;",
        "        /*0010*/                   @!P0 BRA `(.L_x_2) ;",
        ".L_x_1:",
        "        /*0020*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;",
        "        /*0030*/                   LDL R4, [R1] ;",
        "        /*0040*/                   @P1 BRA `(.L_x_0) ;",
        "        /*0050*/                   EXIT ;",
        ".L_x_2:",
        "        /*0060*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2], R3 ;",
        "        /*0070*/                   BRA `(.L_x_1) ;",
    ]
    [loop] = sass.work_loops(sass.loops(code))
    assert (loop.instructions, loop.products, loop.spills) == (5, 1, 1)


def test_a_missing_assembler_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="ptxas is missing: pip install --no-deps nvidia-cuda-nvcc"):
        toolchain.assemble(tmp_path / "a.ptx", tmp_path / "a.cubin", architecture="sm_90a")


def test_refused_ptx_is_an_error(tmp_path):
    source = tmp_path / "wrong.ptx"
    source.write_text(product_ptx(**GOOD).replace("wgmma.fence", "wgmma.fnece", 1))
    with pytest.raises(RuntimeError, match="ptxas"):
        toolchain.assemble(source, tmp_path / "wrong.cubin", architecture="sm_90a")
