"""The smallest possible training state."""

from __future__ import annotations

import jax.numpy as jnp

from lcjax.step import TrainState


def tiny_state() -> TrainState:
    return TrainState(jnp.int32(1), {"a": jnp.arange(3.0)}, (), jnp.zeros(2, jnp.uint32))
