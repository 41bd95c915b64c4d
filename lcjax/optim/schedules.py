"""The learning rate of each step, with the options of the Hugging Face trainer."""

from __future__ import annotations

import math

import optax

from lcjax.config.training import SCHEDULES
from lcjax.errors import InputError


def make_schedule(
    kind: str, learning_rate: float, max_steps: int, *, warmup_steps: int = 0, warmup_ratio: float = 0.0
) -> optax.Schedule:
    """The learning rate of step 0, 1, ...: a linear warm-up from 0, then `kind`.

    `linear` and `cosine` decay to 0 at `max_steps`. As in the Hugging Face trainer, the first
    update with a warm-up has rate 0, `warmup_steps` takes precedence over `warmup_ratio`, and
    `constant` ignores both.

    Raises:
      InputError: the kind is unknown.
    """
    if kind not in SCHEDULES:
        raise InputError(f"lr_scheduler_type={kind!r} is unknown; use one of {', '.join(SCHEDULES)}")
    warmup = warmup_length(kind, max_steps, warmup_steps, warmup_ratio)
    remaining = max(1, max_steps - warmup)
    after = {
        "linear": lambda: optax.linear_schedule(learning_rate, 0.0, remaining),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, remaining),
        "constant": lambda: optax.constant_schedule(learning_rate),
        "constant_with_warmup": lambda: optax.constant_schedule(learning_rate),
    }[kind]()
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), after], [warmup])


def warmup_length(kind: str, max_steps: int, warmup_steps: int, warmup_ratio: float) -> int:
    """The number of steps over which the rate rises from 0; see `make_schedule`."""
    return 0 if kind == "constant" else warmup_steps or math.ceil(max_steps * warmup_ratio)
