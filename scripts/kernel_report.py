"""What the compilers make of every kernel, on a machine without a GPU: Pallas beside Triton.

    python scripts/kernel_report.py --gpu h100-80gb

Compiles attention (32 query and 8 key/value heads, 8,192 tokens, causal, forward and backward) and RoPE for a named GPU,
assembles both implementations with one ptxas, and reads registers, spills, tensor-core products, copies and loops off the
result. Exits with 1 when a kernel breaks its budget (`scripts/lcjax_scripts/codegen/budgets.json`). Triton's rows need the
extra `ref`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions
from pathlib import Path
from typing import Literal

# Before JAX starts: a machine without a GPU, or without one to spare, compiles for one just as well.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

import tyro
from rich.console import Console
from rich.progress import Progress

from lcjax.cli.entry import entry_point
from lcjax.errors import InputError
from lcjax.plan.aot import gpu_sharding
from lcjax_scripts.codegen import budgets
from lcjax_scripts.codegen.analysis import Codegen, analyse
from lcjax_scripts.codegen.compile_pallas import compile_attention, compile_rope
from lcjax_scripts.codegen.compiled import ATTENTION_KERNELS, HEAD_DIMS, KERNELS, CompiledKernel
from lcjax_scripts.codegen.report_table import instructions_a_score, report_table
from lcjax_scripts.codegen.triton_process import has_triton, triton_process

Rows = list[tuple[CompiledKernel, Codegen]]


@dataclasses.dataclass(frozen=True)
class Report:
    """Registers, spills, tensor-core products and loops of every kernel, compiled without a GPU."""

    gpu: str = "h100-80gb"
    """A target in lcjax/plan/targets."""
    kernel: tuple[Literal["attention_forward", "attention_dq", "attention_dkv", "rope"], ...] = ()
    """Only these."""
    head_dim: tuple[Literal[64, 80, 96, 128, 256], ...] = HEAD_DIMS
    """Only these."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of q, k and v; budgets are for bfloat16."""
    json: Path | None = None
    """Also write every figure to this file."""
    write_budgets: bool = False
    """State the budgets anew from what is compiled now, instead of checking them."""


@entry_point
def main(argv: list[str] | None) -> int:
    report = tyro.cli(Report, args=argv, description=__doc__)
    check(report)
    rows = compile_all(report)
    limits = {} if report.write_budgets else budgets.read(report.gpu)
    broken = broken_budgets(rows, limits)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(report_table(rows, broken, title=f"{report.gpu}, {report.dtype}; {_versions()}"))
    if report.json:
        report.json.write_text(json.dumps(as_json(report, rows, broken), indent=1), encoding="utf-8")
    if report.write_budgets:
        budgets.write(report.gpu, rows)
        print(f"{len(rows)} budgets written to {budgets.PATH}")
        return 0
    for key, faults in broken.items():
        print(f"over budget: {key}: {'; '.join(faults)}")
    if not has_triton():
        print("Triton is not installed, so its rows are missing: pip install triton torch==2.13.0")
    checked = sum(budgets.budget_key(kernel) in limits for kernel, _ in rows)
    print(f"kernels {len(rows)}, with a budget {checked}, over it {len(broken)}")
    return 1 if broken else 0


def check(report: Report) -> None:
    """Raises InputError for what would fail after minutes of compiling."""
    gpu_sharding(report.gpu)
    if report.json and not report.json.parent.is_dir():
        raise InputError(f"--json {report.json}: the directory {report.json.parent} does not exist")
    if report.write_budgets:
        if report != dataclasses.replace(Report(), gpu=report.gpu, json=report.json, write_budgets=True):
            raise InputError(
                "--write-budgets states all of a GPU's budgets: leave --kernel, --head-dim and --dtype out"
            )
        if not has_triton():
            raise InputError("--write-budgets states Triton's budgets too: pip install triton torch==2.13.0")


def compile_all(report: Report) -> Rows:
    """Both implementations compiled and assembled, Triton's in a process of its own meanwhile."""
    wanted = report.kernel or KERNELS
    with triton_process(report.gpu, report.head_dim, report.dtype) as triton_kernels, _progress() as progress:
        compiled: list[CompiledKernel] = []
        for head_dim in progress.track(report.head_dim, description="Pallas"):
            if "rope" in wanted:
                compiled.append(compile_rope(report.gpu, head_dim, report.dtype))
            if set(wanted) & set(ATTENTION_KERNELS):
                compiled += compile_attention(report.gpu, head_dim, report.dtype)
        for kernels in progress.track([triton_kernels], description="Triton"):
            compiled += kernels()
        chosen = [kernel for kernel in compiled if kernel.kernel in wanted]
        chosen.sort(key=lambda k: (KERNELS.index(k.kernel), k.head_dim, k.implementation))
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # ptxas and nvdisasm are processes of their own
            facts = pool.map(lambda kernel: analyse(kernel.ptx)[kernel.entry], chosen)
            return list(zip(chosen, progress.track(facts, total=len(chosen), description="ptxas"), strict=True))


def broken_budgets(rows: Rows, limits: budgets.Budgets) -> dict[str, list[str]]:
    """What is over budget, by kernel; a kernel without one counts where its dtype has any."""
    dtypes = {key.split()[2] for key in limits}
    broken = {}
    for kernel, codegen in rows:
        key = budgets.budget_key(kernel)
        if kernel.dtype in dtypes and key not in limits:
            broken[key] = ["has no budget"]
        elif key in limits and (faults := budgets.excesses(codegen, limits[key])):
            broken[key] = faults
    return broken


def as_json(report: Report, rows: Rows, broken: dict[str, list[str]]) -> dict:
    """Every figure, without the assembly."""
    kernels = []
    for kernel, codegen in rows:
        fields = dataclasses.asdict(kernel) | dataclasses.asdict(codegen) | dataclasses.asdict(codegen.counts)
        fields["instructions_a_score"] = instructions_a_score(kernel, codegen)
        kernels.append({name: value for name, value in fields.items() if name not in ("ptx", "counts")})
    return {"gpu": report.gpu, "versions": _versions(), "kernels": kernels, "over_budget": broken}


def _progress() -> Progress:
    return Progress(console=Console(stderr=True), transient=True)


def _versions() -> str:
    packages = ("jax", "jax-cuda13-plugin", "nvidia-cuda-nvcc", "triton")
    installed = {d.name: d.version for name in packages for d in distributions(name=name)}
    return ", ".join(f"{name} {installed[name]}" for name in packages if name in installed)


if __name__ == "__main__":
    sys.exit(main())
