"""What a kernel's PTX says: tensor-core products, copies, and how wide global memory is accessed."""

from __future__ import annotations

import dataclasses
import re

_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(")
_TARGET = re.compile(r"^\.target\s+(\w+)", re.MULTILINE)
# Not `.nc`: such a load reads the table of 2 / pi with which sines of large angles are reduced, not
# the kernel's arrays.
_GLOBAL_ACCESS = re.compile(r"\b(?:ld|st)\.global(?!\.nc\b)([\w.:]*)\s")
_ASYNC_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\S*\s+([^;]*);")

WIDE_BYTES = 16  # the widest access of one thread on Ampere and Hopper


@dataclasses.dataclass(frozen=True)
class PtxCounts:
    """Instructions in the text of one kernel, each counted once however often it runs."""

    wgmma: int
    """Asynchronous products of a warp group: Hopper's full rate."""
    mma: int
    """`mma.sync`: the products of Ampere, about 60% of Hopper's rate."""
    tcgen05: int
    """Products of Blackwell's fifth generation of tensor cores."""
    cp_async: int
    """Asynchronous copies from global to shared memory, 4 to 16 bytes a thread."""
    tma: int
    """Bulk copies by the tensor memory accelerator."""
    wide: int
    """Accesses of global memory of 16 bytes or more a thread."""
    narrow: int
    """Accesses of global memory of fewer bytes."""


def count(body: str) -> PtxCounts:
    """Counts the instructions of one kernel's text."""
    widths = access_widths(body)
    wide = sum(width >= WIDE_BYTES for width in widths)
    return PtxCounts(
        wgmma=len(re.findall(r"\bwgmma\.mma_async", body)),
        mma=len(re.findall(r"\bmma\.sync", body)),
        tcgen05=len(re.findall(r"\btcgen05\.mma", body)),
        cp_async=len(_ASYNC_COPY.findall(body)),
        tma=len(re.findall(r"\bcp\.async\.bulk\.(?!commit|wait)", body)),
        wide=wide,
        narrow=len(widths) - wide,
    )


def access_widths(body: str) -> list[int]:
    """Bytes a thread of every load, store and asynchronous copy of global memory, in no particular order."""
    return [_access_bytes(qualifiers) for qualifiers in _GLOBAL_ACCESS.findall(body)] + [
        # `[to], [from], bytes` and, where predicated, the bytes to read.
        int(operands.split(",")[2].strip(), 0)
        for operands in _ASYNC_COPY.findall(body)
    ]


def entries(module: str) -> dict[str, str]:
    """The text of every kernel of a PTX module, by name."""
    starts = [(match.group(1), match.start()) for match in _ENTRY.finditer(module)]
    return {name: module[start : module.index("\n}", start)] for name, start in starts}


def target(module: str) -> str:
    """The architecture that a module is written for, such as "sm_90a"."""
    match = _TARGET.search(module)
    if match is None:
        raise ValueError("no .target directive: this is no PTX module")
    return match.group(1)


def _access_bytes(qualifiers: str) -> int:
    """The width of `.nc.L1::evict_last.v4.b32`: vector length times the bytes of its type."""
    parts = qualifiers.split(".")
    vector = next((int(part[1:]) for part in parts if re.fullmatch(r"v\d", part)), 1)
    bits = next(int(part[1:]) for part in reversed(parts) if re.fullmatch(r"[bufs]\d+", part))
    return vector * bits // 8
