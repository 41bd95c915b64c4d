"""Chooses settings for a memory budget, that of this machine's GPU or of an absent one."""

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
    """The fastest settings with which the step fits the budget, among those that `settings` allow.

    Args:
      run: the run whose step is measured.
      settings: the requested settings; "auto" allows any.
      budget: the memory that is available.
      measure: the memory of a step; None if it is even too large to be compiled. This is the
        expensive part.
    """

    def attempt(candidate: Candidate) -> tuple[Memory | None, bool]:
        memory = measure(candidate.applied(settings))
        return memory, memory is not None and budget.holds(memory)

    def seconds(candidate: Candidate) -> float:
        return run.seconds(candidate.applied(settings))

    return tune(possible_candidates(run, settings, budget), seconds, attempt)


def settings_of_least_memory(run: Run, settings: ModelSettings, budget: Budget) -> ModelSettings:
    """The settings that need the least device memory, among those that `settings` allow.

    Compiles nothing.
    """
    return least_memory(possible_candidates(run, settings, budget)).applied(settings)


def possible_candidates(run: Run, settings: ModelSettings, budget: Budget) -> list[Candidate]:
    """The candidates, each with as many saved inputs as the host can hold."""

    def host_fits(settings: ModelSettings) -> bool:
        return budget.host is None or budget.holds_on_host(run.pinned_bytes(settings))

    return candidates(run.config, settings, host_fits, embeddings_may_be_on_host=run.embeddings_may_be_on_host)
