"""A resumed run with another number of steps than was planned: whether its numbers are the same."""

from __future__ import annotations

import numpy as np

from lcjax.config.training import LEVEL_SCHEDULES, TrainingArguments
from lcjax.errors import InputError
from lcjax.optim.schedules import make_schedule, warmup_length
from lcjax.train.checkpoints.resume import ResumePoint


def refuse_too_few_steps(max_steps: int, point: ResumePoint) -> None:
    """Raises InputError if the run had already taken more steps at `point`."""
    if max_steps < point.step:
        raise InputError(
            f"checkpoint {point} has taken {point.step} steps, more than the {max_steps} of --max-steps; give at least as "
            "many, resume from an earlier checkpoint, or start again with another --output-dir"
        )


def line_about_rates(before: int, max_steps: int, arguments: TrainingArguments, point: ResumePoint) -> str | None:
    """What the learning rate does in a run of `max_steps` steps that was planned for `before`.

    From `point` on, the rates are those of a run of `max_steps` steps.

    Returns:
      One line; None if the steps so far had these rates too, or if no step is left. Then the run
      has the numbers of one that was planned so.
    """
    if max_steps in (before, point.step):
        return None
    kind = arguments.lr_scheduler_type
    warmups = [
        warmup_length(kind, steps, arguments.warmup_steps, arguments.warmup_ratio) for steps in (before, max_steps)
    ]
    # A warm-up begins with 0. The step after it has the highest rate, which then falls.
    same_warmup = warmups[0] == warmups[1] or (point.step == 1 and 0 not in warmups)
    if same_warmup and (kind in LEVEL_SCHEDULES or point.step <= warmups[0] + 1):
        return None
    last = _rate(arguments, before, point.step)
    following = _rate(arguments, max_steps, point.step + 1)
    return (
        f"the learning rate ({kind}) is now that of {max_steps:,} steps instead of {before:,}: {following:.3g} in step "
        f"{point.step + 1:,}, after {last:.3g} in step {point.step:,}; the steps so far would have had other rates in a "
        f"run planned for {max_steps:,}"
    )


def _rate(arguments: TrainingArguments, max_steps: int, step: int) -> float:
    schedule = make_schedule(
        arguments.lr_scheduler_type,
        arguments.learning_rate,
        max_steps,
        warmup_steps=arguments.warmup_steps,
        warmup_ratio=arguments.warmup_ratio,
    )
    return float(np.asarray(schedule(step - 1)))
