"""Compiles and assembles every kernel of all implementations, and checks the budgets."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions

from rich.console import Console
from rich.progress import Progress

from lcjax_scripts.codegen import budgets, compile_mosaic
from lcjax_scripts.codegen.analysis import Codegen, analyze
from lcjax_scripts.codegen.compile_pallas import compile_attention, compile_rope
from lcjax_scripts.codegen.compiled import ATTENTION_KERNELS, KERNELS, CompiledKernel
from lcjax_scripts.codegen.report_table import instructions_a_score
from lcjax_scripts.codegen.triton_process import triton_process

Rows = list[tuple[CompiledKernel, Codegen]]


def compile_all(gpu: str, head_dims: Sequence[int], dtype: str, wanted: Sequence[str] = KERNELS) -> Rows:
    """Compiles and assembles the wanted kernels of all implementations.

    Triton compiles in a separate process.
    """
    with triton_process(gpu, head_dims, dtype) as triton_kernels, _progress() as progress:
        compiled: list[CompiledKernel] = []
        for head_dim in progress.track(head_dims, description="Pallas"):
            if "rope" in wanted:
                compiled.append(compile_rope(gpu, head_dim, dtype))
            if set(wanted) & set(ATTENTION_KERNELS):
                compiled += compile_attention(gpu, head_dim, dtype)
            if set(wanted) & set(compile_mosaic.KERNELS) and compile_mosaic.supports(gpu, head_dim, dtype):
                compiled += compile_mosaic.compile_attention(gpu, head_dim, dtype)
        for kernels in progress.track([triton_kernels], description="Triton"):
            compiled += kernels()
        chosen = [kernel for kernel in compiled if kernel.kernel in wanted]
        chosen.sort(key=lambda k: (KERNELS.index(k.kernel), k.head_dim, k.implementation))
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # ptxas and nvdisasm are processes
            facts = pool.map(lambda kernel: analyze(kernel.ptx)[kernel.entry], chosen)
            return list(zip(chosen, progress.track(facts, total=len(chosen), description="ptxas"), strict=True))


def broken_budgets(rows: Rows, limits: budgets.Budgets) -> dict[str, list[str]]:
    """Returns how each kernel exceeds its budget.

    A kernel without a budget is reported too, if there are budgets for its dtype.
    """
    dtypes = {key.split()[2] for key in limits}
    broken = {}
    for kernel, codegen in rows:
        key = budgets.budget_key(kernel)
        if kernel.dtype in dtypes and key not in limits:
            broken[key] = ["has no budget"]
        elif key in limits and (faults := budgets.excesses(codegen, limits[key])):
            broken[key] = faults
    return broken


def as_json(gpu: str, rows: Rows, broken: dict[str, list[str]]) -> dict:
    """Returns every figure, without the assembly."""
    kernels = []
    for kernel, codegen in rows:
        fields = dataclasses.asdict(kernel) | dataclasses.asdict(codegen) | dataclasses.asdict(codegen.counts)
        fields["instructions_a_score"] = instructions_a_score(kernel, codegen)
        kernels.append({name: value for name, value in fields.items() if name not in ("ptx", "counts")})
    return {"gpu": gpu, "versions": versions(), "kernels": kernels, "over_budget": broken}


def versions() -> str:
    """Returns the versions of the compilers."""
    packages = ("jax", "jax-cuda13-plugin", "nvidia-cuda-nvcc", "triton")
    installed = {d.name: d.version for name in packages for d in distributions(name=name)}
    return ", ".join(f"{name} {installed[name]}" for name in packages if name in installed)


def _progress() -> Progress:
    return Progress(console=Console(stderr=True), transient=True)
