"""Counts tensor-core products, copies and global memory accesses in PTX."""

from __future__ import annotations

import dataclasses
import re

_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(")
_TARGET = re.compile(r"^\.target\s+(\w+)", re.MULTILINE)
# Loads with `.nc` are excluded. They read the table of 2 / pi that reduces large angles, not the
# kernel's arrays.
_GLOBAL_ACCESS = re.compile(r"\b(?:ld|st)\.global(?!\.nc\b)([\w.:]*)\s")
_ASYNC_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\S*\s+([^;]*);")

WIDE_BYTES = 16  # the widest access per thread on Ampere and Hopper


@dataclasses.dataclass(frozen=True)
class PtxCounts:
    """Instructions in the text of one kernel. Each counts once, however often it runs."""

    wgmma: int
    """Asynchronous warp-group products, which reach Hopper's full rate."""
    mma: int
    """`mma.sync`, the products of Ampere, with about 60% of Hopper's rate."""
    tcgen05: int
    """Products of Blackwell's fifth-generation tensor cores."""
    cp_async: int
    """Asynchronous copies from global to shared memory, 4 to 16 bytes per thread."""
    tma: int
    """Bulk copies by the tensor memory accelerator."""
    wide: int
    """Global memory accesses of 16 bytes or more per thread."""
    narrow: int
    """Global memory accesses of fewer than 16 bytes per thread."""


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
    """Returns the bytes per thread of every load, store and asynchronous copy of global memory."""
    return [_access_bytes(qualifiers) for qualifiers in _GLOBAL_ACCESS.findall(body)] + [
        # The operands are `[to], [from], bytes` and, if predicated, the bytes to read.
        int(operands.split(",")[2].strip(), 0)
        for operands in _ASYNC_COPY.findall(body)
    ]


def entries(module: str) -> dict[str, str]:
    """Returns the text of every kernel of a PTX module, by name."""
    starts = [(match.group(1), match.start()) for match in _ENTRY.finditer(module)]
    return {name: module[start : module.index("\n}", start)] for name, start in starts}


def target(module: str) -> str:
    """Returns the target architecture of a module, such as "sm_90a"."""
    match = _TARGET.search(module)
    if match is None:
        raise ValueError("no .target directive: this is not a PTX module")
    return match.group(1)


def _access_bytes(qualifiers: str) -> int:
    """Returns the width in bytes of an access such as `.nc.L1::evict_last.v4.b32`, which is 16."""
    parts = qualifiers.split(".")
    vector = next((int(part[1:]) for part in parts if re.fullmatch(r"v\d", part)), 1)
    bits = next(int(part[1:]) for part in reversed(parts) if re.fullmatch(r"[bufs]\d+", part))
    return vector * bits // 8
