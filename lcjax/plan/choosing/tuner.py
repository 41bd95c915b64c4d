"""Finds the fastest settings with which a step fits by compiling candidates, the fastest first.

Time is estimated. A candidate is not compiled if it needs at least as much memory as one that did
not fit, so a few compilations are enough. The result is deterministic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from lcjax.plan.choosing.candidates import Candidate
from lcjax.plan.compiling.memory import Memory


@dataclasses.dataclass(frozen=True)
class Trial:
    """A candidate and the result of trying it.

    Attributes:
      candidate: the settings.
      seconds: the estimated time of one step.
      memory: the memory of the step; None if it was not compiled or is too large to be compiled.
      fits: whether the step fits.
      ruled_out_by: a candidate that needs no more memory and did not fit, so that this one was not
        compiled; None if it was.
    """

    candidate: Candidate
    seconds: float
    memory: Memory | None
    fits: bool
    ruled_out_by: Candidate | None = None


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The trials, fastest first, and the chosen candidate.

    That is the fastest one that fits, or else the one that needs the least memory.
    """

    chosen: Candidate
    trials: tuple[Trial, ...]


def tune(
    candidates: Sequence[Candidate],
    seconds: Callable[[Candidate], float],
    compiled: Callable[[Candidate], tuple[Memory | None, bool]],
) -> Tuning:
    """Chooses among candidates.

    Args:
      candidates: the settings to choose from.
      seconds: estimates the time of a candidate's step.
      compiled: compiles a candidate's step; returns its memory, None if it is too large to be
        compiled, and whether it fits. This is the expensive part.
    """
    search = _Search(sorted(candidates, key=lambda candidate: (seconds(candidate), str(candidate))), compiled)
    chosen = search.run()
    trials = (
        Trial(c, seconds(c), *search.tried.get(c, (None, False)), search.ruled_out.get(c))
        for c in search.ordered
        if c in search.tried or c in search.ruled_out
    )
    return Tuning(chosen, tuple(trials))


class _Search:
    """The state of a search among `ordered`, the candidates sorted with the fastest first."""

    def __init__(self, ordered: list[Candidate], compiled: Callable[[Candidate], tuple[Memory | None, bool]]):
        self.ordered = ordered
        self.tried: dict[Candidate, tuple[Memory | None, bool]] = {}
        self.ruled_out: dict[Candidate, Candidate] = {}
        self._compiled = compiled

    def run(self) -> Candidate:
        least = least_memory(self.ordered)
        # The fastest usually fits. If it does not, the one that needs the least memory shows
        # whether any can.
        if not self._fits(self.ordered[0]) and not self._fits(least):
            return least
        for candidate in self.ordered:
            if candidate not in self.tried and (smaller := self._smaller_failure(candidate)):
                self.ruled_out[candidate] = smaller
            elif self._fits(candidate):
                return candidate
        return least

    def _fits(self, candidate: Candidate) -> bool:
        if candidate not in self.tried:
            self.tried[candidate] = self._compiled(candidate)
        return self.tried[candidate][1]

    def _smaller_failure(self, candidate: Candidate) -> Candidate | None:
        """A candidate that does not fit although it needs no more memory; None if there is none.

        Compiles the one of the same kind, and then of the same form, that needs the least memory.
        If it does not fit, none of them does.
        """
        for other in [c for c, (_, fits) in self.tried.items() if not fits]:
            if candidate.needs_at_least(other):
                return other
        for alike in ("kind", "form"):
            least = least_memory([c for c in self.ordered if getattr(c, alike) == getattr(candidate, alike)])
            if least != candidate and not self._fits(least):
                return least
        return None


def least_memory(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate that needs the least device memory, judged by its settings alone."""
    return min(candidates, key=Candidate.device_memory)
