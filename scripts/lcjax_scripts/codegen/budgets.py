"""Checked-in limits of the generated code, so that no change makes it worse unnoticed.

`budgets.json` has a section for each GPU, with a line for each kernel. A line limits the registers,
the bytes of spills, the instructions in the main loop and the narrow memory accesses. It also has
the minimum number of tensor-core products, and whether wgmma may be serialized.
`python scripts/kernel_report.py --write-budgets` writes new budgets; the diff shows the effect of a
change.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from lcjax_scripts.codegen.analysis import Codegen
from lcjax_scripts.codegen.compiled import CompiledKernel

PATH = Path(__file__).with_name("budgets.json")

# A GPU allocates registers in units of 8 per thread, so a smaller increase costs nothing.
_REGISTER_UNIT = 8
# Slack in the main loop for other versions of ptxas, which is not pinned.
_LOOP_SLACK = 0.05


@dataclasses.dataclass(frozen=True)
class Budget:
    """The limits of one kernel."""

    registers: int
    """Maximum number of registers per thread."""
    spills: int
    """Maximum bytes of spill stores and loads."""
    serialized: bool
    """Whether ptxas may serialize wgmma."""
    products: int
    """Minimum number of full-rate products in the text (wgmma; tcgen05 on Blackwell)."""
    main_loop: int
    """Maximum number of instructions."""
    narrow: int
    """Maximum number of global memory accesses narrower than 16 bytes per thread in the text."""


_MAXIMA = ("registers", "spills", "main_loop", "narrow")

Budgets = Mapping[str, Budget]


def budget_key(kernel: CompiledKernel) -> str:
    return f"{kernel.kernel} {kernel.head_dim} {kernel.dtype} {kernel.implementation}"


def measured(codegen: Codegen) -> Budget:
    """Returns the budget that a kernel meets exactly."""
    counts = codegen.counts
    return Budget(
        registers=codegen.registers,
        spills=codegen.spill_stores + codegen.spill_loads,
        serialized=bool(codegen.serialized),
        products=counts.wgmma + counts.tcgen05,
        main_loop=codegen.main_loop,
        narrow=counts.narrow,
    )


def with_slack(budget: Budget) -> Budget:
    """Returns a measured budget with slack added, to be checked in."""
    units = -(-budget.registers // _REGISTER_UNIT)
    loop = round(budget.main_loop * (1 + _LOOP_SLACK))
    return dataclasses.replace(budget, registers=units * _REGISTER_UNIT, main_loop=loop)


def excesses(codegen: Codegen, budget: Budget) -> list[str]:
    """Describes what exceeds the budget; empty if nothing does."""
    now = measured(codegen)
    found = [
        f"{name} {getattr(now, name)} > {getattr(budget, name)}"
        for name in _MAXIMA
        if getattr(now, name) > getattr(budget, name)
    ]
    if now.products < budget.products:
        found.append(f"products {now.products} < {budget.products}")
    if now.serialized and not budget.serialized:
        found.append(f"wgmma serialized ({', '.join(codegen.serialized)})")
    return found


def read(gpu: str, path: Path | None = None) -> Budgets:
    """Returns the budgets of one GPU; empty if there are none."""
    path = path or PATH
    if not path.exists():
        return {}
    sections = json.loads(path.read_text(encoding="utf-8"))
    return {key: Budget(**limits) for key, limits in sections.get(gpu, {}).items()}


def write(gpu: str, rows: Iterable[tuple[CompiledKernel, Codegen]], path: Path | None = None) -> None:
    """Replaces the budgets of one GPU."""
    path = path or PATH
    sections = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    sections[gpu] = {budget_key(kernel): dataclasses.asdict(with_slack(measured(codegen))) for kernel, codegen in rows}
    path.write_text(_one_line_each(sections), encoding="utf-8")


def _one_line_each(sections: dict[str, dict[str, dict]]) -> str:
    """Returns JSON with one line per kernel, so that diffs are readable."""
    parts = []
    for gpu, kernels in sections.items():
        lines = [f"    {json.dumps(key)}: {json.dumps(limits)}" for key, limits in kernels.items()]
        parts.append(f"  {json.dumps(gpu)}: {{\n" + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(parts) + "\n}\n"
