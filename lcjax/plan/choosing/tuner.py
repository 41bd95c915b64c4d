"""The fastest settings with which a step fits, found by compiling candidates in the order of their estimated time.

A candidate that needs no less memory than one that did not fit is passed over, so a handful of compilations is enough. The same
question always has the same answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from lcjax.plan.choosing.candidates import Candidate
from lcjax.plan.compiling.memory import Memory


@dataclasses.dataclass(frozen=True)
class Trial:
    """A candidate and what became of it; `memory` None: passed over, since `needs` did not fit, or too large to be compiled."""

    candidate: Candidate
    seconds: float
    """Estimated, of one step."""
    memory: Memory | None
    fits: bool
    ruled_out_by: Candidate | None = None


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The trials, fastest first, and the one that is chosen: the fastest that fits, or else the one that needs least."""

    chosen: Candidate
    trials: tuple[Trial, ...]


def tune(
    candidates: Sequence[Candidate],
    seconds: Callable[[Candidate], float],
    compiled: Callable[[Candidate], tuple[Memory | None, bool]],
) -> Tuning:
    """The tuning of candidates.

    Args:
      seconds: the estimated time of a candidate's step.
      compiled: what a candidate takes, None where it is too large even to be compiled, and whether that fits; the expensive one.
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
    """`ordered` are the candidates, fastest first."""

    def __init__(self, ordered: list[Candidate], compiled: Callable[[Candidate], tuple[Memory | None, bool]]):
        self.ordered = ordered
        self.tried: dict[Candidate, tuple[Memory | None, bool]] = {}
        self.ruled_out: dict[Candidate, Candidate] = {}
        self._compiled = compiled

    def run(self) -> Candidate:
        least = least_memory(self.ordered)
        # The fastest usually fits. Where it does not, the one that needs least says whether anything can.
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
        """One that does not fit and needs no more memory.

        Tries the one of its kind, and then of its form, that needs least: it speaks for all of them.
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
    """The one than which none needs less device memory, by its choices."""
    return min(candidates, key=Candidate.device_memory)
