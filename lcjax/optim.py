"""The learning-rate schedule and the optimizer, in the words of the Hugging Face trainer."""

from __future__ import annotations

import math
from typing import Any

import jax
import optax

from lcjax.errors import InputError
from lcjax.layerwise import AdamW, layerwise

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
LEVEL_SCHEDULES = ("constant", "constant_with_warmup")
"""Those whose rates after the warm-up do not depend on the number of steps."""


def make_schedule(
    kind: str, learning_rate: float, max_steps: int, *, warmup_steps: int = 0, warmup_ratio: float = 0.0
) -> optax.Schedule:
    """The learning rate at step 0, 1, ...: a linear warm-up from 0, then `kind` down to 0 at `max_steps`.

    As in the Hugging Face trainer the first update with a warm-up has rate 0, `warmup_steps` beats `warmup_ratio`, and
    `constant` ignores both.

    Raises:
      InputError: an unknown kind.
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
    """The steps over which the rate rises from 0; see `make_schedule`."""
    return 0 if kind == "constant" else warmup_steps or math.ceil(max_steps * warmup_ratio)


def make_optimizer(
    schedule: optax.Schedule,
    mask: dict[str, Any],
    *,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    by_layers: bool = False,
    on_host: bool = False,
) -> optax.GradientTransformation:
    """AdamW (0.9, 0.999, 1e-8) behind a clip by global norm, for the parameters that `mask` marks and no others.

    Biases and norm weights are not decayed. `max_grad_norm=0` does not clip.

    `by_layers` goes through the layers one at a time, with float32 masters of weights in bfloat16 (see `lcjax.layerwise`), and
    `on_host` keeps masters and moments in host memory besides; the numbers are the same but for rounding.

    Give `init` and `update` trees as `lcjax.lora.partition` makes them: `optax.masked` passes the updates of unmarked leaves
    through unchanged, so a frozen weight must have no leaf there in the first place.

    Source: Loshchilov & Hutter, arXiv 1711.05101.
    """
    if by_layers or on_host:
        adamw = AdamW(schedule, _path_is_decayed, weight_decay)
        return optax.masked(layerwise(adamw, max_grad_norm=max_grad_norm, on_host=on_host), mask)
    adamw = optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay, mask=_decayed)
    clip = optax.clip_by_global_norm(max_grad_norm) if max_grad_norm > 0 else optax.identity()
    return optax.masked(optax.chain(clip, adamw), mask)


def _decayed(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: _path_is_decayed(path), params)


def _path_is_decayed(path: Any) -> bool:
    names = [entry.key for entry in path]
    return names[-1] != "bias" and not any("norm" in name for name in names)
