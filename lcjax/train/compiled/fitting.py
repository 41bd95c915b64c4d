"""Chooses the form of the step with which it fits this GPU, and says what was chosen."""

from __future__ import annotations

from rich.console import Console

from lcjax.cli.terminal import say
from lcjax.errors import InputError
from lcjax.model import ModelSettings
from lcjax.plan.choosing.budget import Budget
from lcjax.plan.compiling.run import Run
from lcjax.plan.fit import fit
from lcjax.plan.report import trial_table
from lcjax.train.compiled.execution import SavedExecution

COMPILED_AGAIN = "on a GPU the numbers then agree up to rounding, not bit for bit"
"""What follows if a resumed run computes with other programs than before."""


def fitting_settings(
    run: Run, settings: ModelSettings, saved: SavedExecution | None, budget: Budget, console: Console
) -> ModelSettings:
    """The settings with which the step fits the GPU; if possible, those that a resumed run had.

    Args:
      run: the run, its weights placed as the step needs them.
      settings: the requested settings.
      saved: how a resumed run has computed so far.
      budget: the memory that is available.
      console: for what was chosen.

    Raises:
      InputError: the step does not fit.
    """
    as_before = settings if saved is None else saved.applied(settings)
    with console.status("compiling"):
        try:
            found = fit(run, as_before, budget)
        except InputError as error:
            if as_before == settings:
                raise
            say(
                console,
                f"warning: the step no longer fits in the form that the run began with ({error}); {COMPILED_AGAIN}",
            )
            found = fit(run, settings, budget)
    say(console, found.describe(budget))
    if len(found.tuning.trials) > 1:
        console.print(trial_table(found.tuning))
    return found.settings
