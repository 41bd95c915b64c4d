"""Parses the text of an optimized program: its instructions and the Python code behind them."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path

_PACKAGE = Path(__file__).parents[2]

_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.-]+) \(")
# %name = type opcode(operands), attributes. The type of a tuple is in parentheses; tuples are not
# nested.
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*?)\)(?:, (.*))?$")
_NAME = re.compile(r"%([\w.-]+)")
_ARRAY = re.compile(r"(\w+\[[\d,]*\])(?:\{([^}]*)\})?")
# Kernels of Pallas' two backends. A Mosaic kernel's name is a part of the path of its operation.
_MOSAIC_NAME = re.compile(r"/(mosaic_\w+)(?:/|$)")
_KERNEL = re.compile(r'custom_call_target="__gpu\$xla\.gpu\.triton".*?name = "(\w+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program.

    `arrays` are the (shape, layout) of its result, e.g. ("bf16[8,128]", "1,0"): several if the
    result is a tuple, else one.
    """

    computation: str
    arrays: tuple[tuple[str, str], ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def attribute(self, pattern: str) -> str | None:
        """The first group of the pattern's first match in the attributes; None without a match."""
        match = re.search(pattern, self.attributes)
        return match.group(1) if match else None

    @property
    def is_mosaic_kernel(self) -> bool:
        return "mosaic_gpu" in (self.attribute(r'custom_call_target="(\w+)"') or "")

    @property
    def op_name(self) -> str:
        """The JAX operation, e.g. jit(step)/while/body/dot_general, or an argument's name."""
        return (self.attribute(r'op_name="((?:[^"\\]|\\.)*)"') or "").replace("\\'", "'")


class Program:
    """The instructions of an HLO module by name."""

    def __init__(self, text: str):
        self.instructions: dict[str, Instruction] = {}
        self.root_of: dict[str, Instruction] = {}
        self.loop_of_body: dict[str, Instruction] = {}
        computation = ""
        for line in text.splitlines():
            if match := _COMPUTATION.match(line):
                computation = match.group(1)
            elif match := _INSTRUCTION.match(line):
                root, name, result, opcode, operands, attributes = match.groups()
                found = Instruction(
                    computation, tuple(_ARRAY.findall(result)), opcode, tuple(_NAME.findall(operands)), attributes or ""
                )
                self.instructions[name] = found
                if root:
                    self.root_of[computation] = found
                if opcode == "while" and (body := found.attribute(r"body=%([\w.-]+)")):
                    self.loop_of_body[body] = found
        self._frames = _Frames(text)
        self._text = text

    def kernels(self) -> Counter[str]:
        """The number of calls of each Pallas kernel in the program; a loop's body counts once."""
        paths = [call.op_name for call in self.instructions.values() if call.is_mosaic_kernel]
        return Counter(_KERNEL.findall(self._text)) + Counter(
            found[-1] if (found := _MOSAIC_NAME.findall(path)) else "mosaic kernel without a name" for path in paths
        )

    def producer(self, name: str, index: int | None) -> Instruction:
        """The instruction that computes the value of `name`, or its element `index` if a tuple.

        Follows values through copies, tuples and loops.
        """
        seen: set[tuple[str, int | None]] = set()
        while (name, index) not in seen:
            seen.add((name, index))
            instruction = self.instructions[name]
            if instruction.opcode == "get-tuple-element":
                name, index = instruction.operands[0], int(instruction.attribute(r"index=(\d+)") or 0)
            elif instruction.opcode == "tuple" and index is not None:
                name, index = instruction.operands[index], None
            elif instruction.opcode in ("bitcast", "copy", "copy-start", "copy-done", "opt-barrier"):
                name = instruction.operands[0]
            elif index is not None and (tuple_ := self._loop_value(name, index, seen)) is not None:
                name, index = tuple_, None
            else:
                break
        return self.instructions[name]

    def source(self, instruction: Instruction) -> str:
        """The Python code of an instruction, as "file:line function"; "" if that is not known.

        It is the innermost stack frame in lcjax if there is one.
        """
        frame = instruction.attribute(r"stack_frame_id=(\d+)")
        return self._frames.describe(int(frame)) if frame else ""

    def _loop_value(self, name: str, index: int, seen: set[tuple[str, int | None]]) -> str | None:
        """The value that the body of a loop returns at `index`.

        If the body returns its input there unchanged, the loop's initial value instead.
        """
        instruction = self.instructions[name]
        if instruction.opcode == "while":
            body = instruction.attribute(r"body=%([\w.-]+)") or ""
        elif instruction.opcode == "parameter":
            body = instruction.computation
        else:
            return None
        loop, root = self.loop_of_body.get(body), self.root_of.get(body)
        if loop is None or root is None or root.opcode != "tuple":
            return None
        returned = root.operands[index]
        is_the_input = self.instructions[returned].opcode == "get-tuple-element" and (returned, None) in seen
        if not is_the_input:
            return returned
        start = self.instructions[loop.operands[0]]
        return start.operands[index] if start.opcode == "tuple" else None


class _Frames:
    """The tables of Python stack frames in a module's header; parents are numbered from one."""

    def __init__(self, text: str):
        head = text[: text.find("\n%")]
        self._files = {int(n): name for n, name in re.findall(r'^(\d+) "(.*)"$', _section(head, "FileNames"), re.M)}
        names = re.findall(r'^(\d+) "(.*)"$', _section(head, "FunctionNames"), re.M)
        self._functions = {int(n): name for n, name in names}
        location = r"^(\d+) \{file_name_id=(\d+) function_name_id=(\d+) line=(\d+)"
        self._locations = {
            int(n): (int(file), int(function), int(line))
            for n, file, function, line in re.findall(location, _section(head, "FileLocations"), re.M)
        }
        frame = r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)\}"
        self._frames = {
            int(n): (int(place), int(parent) - 1)
            for n, place, parent in re.findall(frame, _section(head, "StackFrames"), re.M)
        }

    def describe(self, frame: int) -> str:
        chain = []
        while frame in self._frames:
            place, frame = self._frames[frame]
            chain.append(place)
        ours = (place for place in chain if Path(self._files[self._locations[place][0]]).is_relative_to(_PACKAGE))
        place = next(ours, chain[0] if chain else None)
        if place is None:
            return ""
        file, function, line = self._locations[place]
        path = Path(self._files[file])
        shown = path.relative_to(_PACKAGE.parent) if path.is_relative_to(_PACKAGE) else path.name
        return f"{shown}:{line} {self._functions[function].replace('.<locals>', '')}"


def _section(head: str, title: str) -> str:
    match = re.search(rf"^{title}\n((?:\d+ .*\n?)+)", head, re.M)
    return match.group(1) if match else ""
