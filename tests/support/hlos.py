"""Reads XLA's optimized programs: operands of a Triton kernel, and whether it works in place."""

from __future__ import annotations

import dataclasses
import re

_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%([\w.-]+) = .*?\s([a-z][\w-]*)\((.*?)\)(?:, (.*))?$")
_NAME = re.compile(r"%([\w.-]+)")
_VIEWS = ("bitcast", "get-tuple-element")  # instructions that move no data


@dataclasses.dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: tuple[str, ...]
    attributes: str


class Program:
    """The instructions of `compiled.as_text()` by name."""

    def __init__(self, text: str):
        self.instructions: dict[str, Instruction] = {}
        self.root_of: dict[str, Instruction] = {}
        computation = ""
        for line in text.splitlines():
            if match := _COMPUTATION.match(line):
                computation = match.group(1)
            elif match := _INSTRUCTION.match(line):
                root, name, opcode, operands, attributes = match.groups()
                instruction = Instruction(opcode, tuple(_NAME.findall(operands)), attributes or "")
                self.instructions[name] = instruction
                if root:
                    self.root_of[computation] = instruction

    def kernel_calls(self, kernel: str) -> list[Instruction]:
        """Returns every launch of the named Triton kernel."""
        marks = ('custom_call_target="__gpu$xla.gpu.triton"', f'name = "{kernel}"')
        return [call for call in self.instructions.values() if all(mark in call.attributes for mark in marks)]

    def copied_operands(self, call: Instruction) -> list[int]:
        """Returns the numbers of the operands that are copies made for the call."""
        return [number for number, name in enumerate(call.operands) if self._is_copy(name)]

    def _is_copy(self, name: str) -> bool:
        instruction = self.instructions[name]
        if instruction.opcode in _VIEWS:
            return self._is_copy(instruction.operands[0])
        if instruction.opcode == "fusion":
            called = re.search(r"calls=%([\w.-]+)", instruction.attributes)
            assert called is not None
            return self.root_of[called.group(1)].opcode == "copy"
        return instruction.opcode in ("copy", "copy-done")


def aliases(call: Instruction) -> dict[int, int]:
    """Returns a map from the number of an output to the operand whose memory it uses."""
    match = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", call.attributes)
    pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}\)", match.group(1)) if match else []
    return {int(output): int(operand) for output, operand in pairs}
