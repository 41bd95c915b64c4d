"""Settings for a memory budget: chosen in the same way for a GPU that is here and for one that is not."""

from __future__ import annotations

from collections.abc import Callable

from lcjax.model import ModelSettings
from lcjax.plan.choosing.budget import Budget
from lcjax.plan.choosing.candidates import Candidate, candidates
from lcjax.plan.choosing.tuner import Tuning, least_memory, tune
from lcjax.plan.compiling.memory import Memory
from lcjax.plan.compiling.run import Run


def choose(
    run: Run,
    settings: ModelSettings,
    budget: Budget,
    measure: Callable[[ModelSettings], Memory | None],
) -> Tuning:
    """The fastest settings with which the step fits the budget, of those that `settings` leave open.

    Args:
      measure: what a step takes, None where it is too large even to be compiled; the expensive part.
    """

    def attempt(candidate: Candidate) -> tuple[Memory | None, bool]:
        memory = measure(candidate.applied(settings))
        return memory, memory is not None and budget.holds(memory)

    def seconds(candidate: Candidate) -> float:
        return run.seconds(candidate.applied(settings))

    return tune(possible_candidates(run, settings, budget), seconds, attempt)


def settings_of_least_memory(run: Run, settings: ModelSettings, budget: Budget) -> ModelSettings:
    """The settings that need least device memory, of those that `settings` leave open; nothing is compiled."""
    return least_memory(possible_candidates(run, settings, budget)).applied(settings)


def possible_candidates(run: Run, settings: ModelSettings, budget: Budget) -> list[Candidate]:
    """The candidates, each with as many saved inputs as the host takes."""

    def host_fits(settings: ModelSettings) -> bool:
        return budget.host is None or budget.holds_on_host(run.pinned_bytes(settings))

    return candidates(run.config, settings, host_fits, embeddings_may_be_on_host=run.embeddings_may_be_on_host)
