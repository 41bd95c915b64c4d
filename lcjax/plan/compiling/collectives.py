"""The collective operations of a compiled program, and whether it computes while they run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from lcjax.plan.compiling.hlo import Instruction, Program

KINDS = ("all-to-all", "all-gather", "reduce-scatter", "all-reduce", "collective-permute")

_START = re.compile(rf"({'|'.join(KINDS)})-start\b")


@dataclasses.dataclass(frozen=True)
class Collectives:
    """The operations of one kind; one in the body of a loop counts once.

    Attributes:
      kind: one of `KINDS`.
      calls: how many there are.
      overlapped: how many run at the same time as a kernel, a matrix product or a loop.
    """

    kind: str
    calls: int
    overlapped: int

    def __str__(self) -> str:
        return f"{self.calls} x {self.kind} ({self.overlapped} overlapped)"


def collectives(program: Program) -> tuple[Collectives, ...]:
    """All collective operations of a scheduled program, by kind."""
    found = list(_operations(program))
    return tuple(
        Collectives(kind, len(mine), sum(mine))
        for kind in KINDS
        if (mine := [overlapped for other, overlapped in found if other == kind])
    )


def _operations(program: Program) -> Iterator[tuple[str, bool]]:
    """(kind, whether it is overlapped) of each operation."""
    names = list(program.instructions)
    place = {name: number for number, name in enumerate(names)}
    done = {
        instruction.operands[0]: name
        for name, instruction in program.instructions.items()
        if instruction.opcode.endswith("-done") and instruction.operands
    }
    for name, instruction in program.instructions.items():
        if (match := _START.match(name)) and name in done:
            # Instructions are listed in the order in which they start.
            between = names[place[name] + 1 : place[done[name]]]
            yield match.group(1), any(_is_work(other, program.instructions[other]) for other in between)
        elif instruction.opcode in KINDS and not instruction.computation.startswith("async_computation"):
            yield instruction.opcode, False


def _is_work(name: str, instruction: Instruction) -> bool:
    return instruction.opcode in ("while", "custom-call") or name.startswith("gemm_fusion")
