"""The buffers that are alive at a step's peak of memory, and the code that made each of them.

The buffers come from XLA's report of live ranges, the lines of code from the optimized program.
"""

from __future__ import annotations

import dataclasses
import re

from lcjax.plan.compiling.hlo import Instruction, Program

_PEAK = re.compile(r"^  Live ranges at \d+ \(peak\):\n((?:    .*\n)*)", re.M)
_HOST_SPACE = "S(5)"  # in a layout: pinned host memory
_LIVE = re.compile(r"^    ([\w.-]+)\{(\d*)[\d,]*\}: (\d+) bytes", re.M)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array that is alive at the peak.

    `source` is the Python code that made it, as "file:line function"; "" for an argument.
    """

    name: str
    bytes: int
    shape: str
    on_host: bool
    source: str


def largest_buffers(live_ranges: str, program: Program, count: int) -> list[Buffer]:
    """The `count` largest arrays at the peak, largest first.

    An array that reuses the memory of another is listed as well as that one.
    """
    peak = _PEAK.search(live_ranges)
    found = _LIVE.findall(peak.group(1)) if peak else []
    largest = sorted(found, key=lambda entry: -int(entry[2]))[:count]
    return [_buffer(program, name, index, int(size)) for name, index, size in largest]


def _buffer(program: Program, name: str, index: str, size: int) -> Buffer:
    held, part = program.instructions[name].arrays, int(index or 0)
    # A tuple's own buffer is its table of addresses.
    shape, layout = held[part] if index or len(held) == 1 else ("table", "")
    producer = program.producer(name, part if index else None)
    return Buffer(_readable(producer), size, shape, _HOST_SPACE in layout, program.source(producer))


def _readable(producer: Instruction) -> str:
    """A name for people.

    An argument such as frozen['layers']['mlp']['up_proj']['weight'] becomes
    layers.mlp.up_proj.weight; an operation is named by its kind and its pass.
    """
    path = producer.op_name
    if producer.opcode == "parameter":
        keys = re.findall(r"\['(\w+)'\]", path)
        moment = re.search(r"\.(mu|nu)\[", path)
        return ".".join(keys) + (f" ({moment.group(1)})" if moment else "") if keys else path
    if not path:
        return producer.opcode
    kernel = re.search(r"/(\w+)/pallas_call", path)
    operation = kernel.group(1) if kernel else path.rsplit("/", 1)[-1]
    if "rematted_computation" in path:
        return f"{operation}, recomputed"
    return f"{operation}, {'backward' if 'transpose(' in path else 'forward'}"
