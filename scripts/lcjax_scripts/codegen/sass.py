"""Finds the loops of a kernel's machine code in the output of nvdisasm."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

_SECTION = re.compile(r"^\.text\.(\w+):")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_BRANCH = re.compile(r"\bBRA\b.*`\((\.L_x_\d+)\)")


@dataclasses.dataclass(frozen=True)
class Loop:
    """A backward branch and everything between its target and itself."""

    first: int
    """Index of the target instruction of the branch."""
    last: int
    """Index of the branch."""
    products: int
    """Number of tensor-core instructions inside the loop."""
    stores: int
    """Number of stores to global memory inside the loop."""
    spills: int
    """Number of accesses of local memory inside the loop."""

    @property
    def instructions(self) -> int:
        return self.last + 1 - self.first

    def encloses(self, other: Loop) -> bool:
        return self != other and self.first <= other.first and other.last <= self.last

    def ends_within(self, other: Loop) -> bool:
        return self.first < other.first <= self.last < other.last


def functions(disassembly: str) -> dict[str, list[str]]:
    """Returns the lines of every kernel of a disassembly, by name."""
    result: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in disassembly.splitlines():
        if match := _SECTION.match(line):
            lines = result[match.group(1)] = []
        elif line.lstrip().startswith(".section"):
            lines = []
        lines.append(line)
    return result


def loops(lines: Sequence[str]) -> list[Loop]:
    """Returns every loop of one kernel, in the order of their branches."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in lines:
        if match := _LABEL.match(line):
            labels[match.group(1)] = len(code)
        elif match := _INSTRUCTION.match(line):
            code.append(_PREDICATE.sub("", match.group(1)))
    opcodes = [instruction.split()[0].split(".")[0] for instruction in code]
    found = []
    for last, instruction in enumerate(code):
        match = _BRANCH.search(instruction)
        # A branch to itself is padding after the end of a kernel.
        if match and (first := labels.get(match.group(1), last)) < last:
            body = opcodes[first : last + 1]
            products = sum(opcode.endswith("MMA") for opcode in body)
            spills = body.count("STL") + body.count("LDL")
            found.append(Loop(first, last, products, body.count("STG"), spills))
    return found


def work_loops(found: Sequence[Loop]) -> list[Loop]:
    """Returns the innermost loops that do a kernel's work.

    These are loops that multiply or, in a kernel without products, write results. Inner loops that
    do neither, such as waiting for a barrier or reducing a large angle, count as part of them.
    """
    # A wait that is placed after all other code, and branches back to where it was, is no loop.
    found = [loop for loop in found if not any(other.ends_within(loop) for other in found)]
    work = [loop for loop in found if loop.products] or [loop for loop in found if loop.stores]
    return [loop for loop in work if not any(loop.encloses(other) for other in work)]


def main_loop(found: Sequence[Loop]) -> Loop | None:
    """Returns the loop that dominates the time of a long sequence.

    It is the shortest of the loops with the most products: attention has a loop over fully visible
    blocks, and a longer one that evaluates the mask.
    """
    return min(work_loops(found), key=lambda loop: (-loop.products, loop.instructions), default=None)
