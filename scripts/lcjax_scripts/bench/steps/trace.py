"""Analyzes the trace of a step: kernels, overlapping copies, and idle time on the GPU.

Source: the XSpace that JAX's profiler writes (`jax.profiler.trace`), read with
`jax.profiler.ProfileData`.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# The kind of a kernel is the first entry with a part that its name contains. The names of matrix
# products come from cuBLAS, CUTLASS and XLA's Triton.
_KINDS = (
    ("attention forward", ("attention_forward",)),
    ("attention dq", ("attention_dq",)),
    ("attention dk/dv", ("attention_dkv",)),
    ("RoPE", ("rope",)),
    ("copies to the host", ("MemcpyD2H",)),
    ("copies from the host", ("MemcpyH2D",)),
    ("copies on the device", ("Memcpy", "Memset")),
    ("products", ("gemm", "nvjet", "cutlass", "cublas", "xmma", "cudnn")),
)
ELEMENTWISE = "norms, SwiGLU, dequantization"
HOST_COPIES = ("copies to the host", "copies from the host")
EXPOSED, IDLE = "waiting for copies", "nothing runs"


@dataclasses.dataclass(frozen=True)
class Event:
    """A kernel or a copy. Times are nanoseconds since the start of the trace."""

    name: str
    start: float
    stop: float

    @property
    def kind(self) -> str:
        for kind, parts in _KINDS:
            if any(part in self.name for part in parts):
                return kind
        return ELEMENTWISE


def read(folder: Path) -> list[Event]:
    """Returns everything that ran on the first GPU, ordered by start time.

    Raises:
      ValueError: the folder has no trace, or a trace without a GPU.
    """
    import jax

    paths = sorted(folder.rglob("*.xplane.pb"))
    if not paths:
        raise ValueError(f"{folder} holds no *.xplane.pb; record a step first")
    plane: Any = jax.profiler.ProfileData.from_file(str(paths[-1])).find_plane_with_name("/device:GPU:0")
    if plane is None:
        raise ValueError(f"{paths[-1]} has no /device:GPU:0; record on a machine with a GPU")
    # Use the lines of streams. The other lines repeat the same events by XLA operation.
    events = [
        Event(event.name, event.start_ns, event.start_ns + event.duration_ns)
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    ]
    return sorted(events, key=lambda event: event.start)


def seconds_by_kind(events: Sequence[Event]) -> dict[str, float]:
    """Divides the time from the first start to the last stop among the kinds of work.

    The time of a kernel counts for its kind; where kernels overlap, it counts for the one that
    started first. Copies to and from the host count only while no kernel runs, as `EXPOSED`. The
    remaining time is `IDLE`.
    """
    spent: dict[str, float] = defaultdict(float)
    kernels = [event for event in events if event.kind not in HOST_COPIES]
    copies = [event for event in events if event.kind in HOST_COPIES]
    reached = min(event.start for event in events)
    gaps = []
    for event in kernels:
        if event.start > reached:
            gaps.append((reached, event.start))
        spent[event.kind] += max(0.0, event.stop - max(event.start, reached))
        reached = max(reached, event.stop)
    end = max(event.stop for event in events)
    if end > reached:
        gaps.append((reached, end))
    waiting = sum(_covered(gap, copies) for gap in gaps)
    spent[EXPOSED] = waiting
    spent[IDLE] = sum(stop - start for start, stop in gaps) - waiting
    return {kind: nanoseconds / 1e9 for kind, nanoseconds in spent.items()}


def seconds_by_name(events: Iterable[Event]) -> dict[str, tuple[int, float]]:
    """Returns (count, total seconds) of every kernel and copy by name, the longest first."""
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        found[event.name].append((event.stop - event.start) / 1e9)
    return {name: (len(times), sum(times)) for name, times in sorted(found.items(), key=lambda item: -sum(item[1]))}


def _covered(gap: tuple[float, float], copies: Sequence[Event]) -> float:
    """Returns how much of a time interval is covered by copies."""
    reached, covered = gap[0], 0.0
    for copy in copies:
        start, stop = max(copy.start, reached), min(copy.stop, gap[1])
        if stop > start:
            covered, reached = covered + stop - start, stop
    return covered
