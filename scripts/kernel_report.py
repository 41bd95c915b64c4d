"""Reports the machine code of every kernel, without a GPU, for Pallas, Mosaic and Triton.

    python scripts/kernel_report.py --gpu h100-80gb

Compiles attention (32 query and 8 key/value heads, 8,192 tokens, causal, forward and backward) and
RoPE for a named GPU. All implementations are assembled by the same ptxas. The report lists
registers, spills, tensor-core instructions, copies and loops. The exit code is 1 if a kernel
exceeds its budget (scripts/lcjax_scripts/codegen/budgets.json). Triton's rows need the extra `ref`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Literal

# These must be set before JAX starts. Compiling for a GPU needs no GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

import tyro
from rich.console import Console

from lcjax.cli.entry import entry_point
from lcjax.errors import InputError
from lcjax.plan.compiling.aot import gpu_sharding
from lcjax_scripts.codegen import budgets
from lcjax_scripts.codegen.compiled import HEAD_DIMS, KERNELS
from lcjax_scripts.codegen.report import as_json, broken_budgets, compile_all, versions
from lcjax_scripts.codegen.report_table import report_table
from lcjax_scripts.codegen.triton_process import has_triton


@dataclasses.dataclass(frozen=True)
class Report:
    """Registers, spills, tensor-core products and loops of every kernel, compiled without a GPU."""

    gpu: str = "h100-80gb"
    """A target in lcjax/plan/targets."""
    kernel: tuple[Literal["attention_forward", "attention_dq", "attention_dkv", "attention_backward", "rope"], ...] = ()
    """Report only these kernels."""
    head_dim: tuple[Literal[64, 80, 96, 128, 256], ...] = HEAD_DIMS
    """Report only these head dimensions."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of q, k and v. Budgets exist for bfloat16."""
    json: Path | None = None
    """Also write every figure to this file."""
    write_budgets: bool = False
    """Replace the budgets by what is compiled now, instead of checking them."""


@entry_point
def main(argv: list[str] | None) -> int:
    report = tyro.cli(Report, args=argv, description=__doc__)
    check(report)
    rows = compile_all(report.gpu, report.head_dim, report.dtype, report.kernel or KERNELS)
    limits = {} if report.write_budgets else budgets.read(report.gpu)
    broken = broken_budgets(rows, limits)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(report_table(rows, broken, title=f"{report.gpu}, {report.dtype}; {versions()}"))
    if report.json:
        report.json.write_text(json.dumps(as_json(report.gpu, rows, broken), indent=1), encoding="utf-8")
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
    """Raises InputError for arguments that would fail only after minutes of compiling."""
    gpu_sharding(report.gpu)
    if report.json and not report.json.parent.is_dir():
        raise InputError(f"--json {report.json}: the directory {report.json.parent} does not exist")
    if report.write_budgets:
        if report != dataclasses.replace(Report(), gpu=report.gpu, json=report.json, write_budgets=True):
            raise InputError("--write-budgets writes all budgets of a GPU: leave --kernel, --head-dim and --dtype out")
        if not has_triton():
            raise InputError("--write-budgets writes Triton's budgets too: pip install triton torch==2.13.0")


if __name__ == "__main__":
    sys.exit(main())
