"""The state of a run before its first step: new, or carried over from a checkpoint."""

from __future__ import annotations

import dataclasses

import jax

from lcjax.parallel.devices import Devices
from lcjax.parallel.placement import committed
from lcjax.step import TrainState, init_state
from lcjax.step.program import Program
from lcjax.train.checkpoints.checkpoint import Checkpoints
from lcjax.train.start.point import Start


def initial_state(program: Program, seed: int, devices: Devices, start: Start | None) -> TrainState:
    """The state before the first step, on its devices.

    From a checkpoint come the trained weights, and the optimizer's state if that is requested. The
    number of steps and the random key are always those of a new run.

    Raises:
      InputError: the checkpoint is damaged, or has other arrays.
    """
    state = init_state(program.optimizer, program.trainable, seed)
    # Committed to its devices, as a restored state is. Otherwise JAX would compile a separate step
    # for each of the two.
    state = committed(devices.distribute(state))
    if start is None:
        return state
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    step, key = state.step, state.key
    # The device may not have enough memory for two states.
    del state
    checkpoints = Checkpoints(start.point.directory)
    if start.optimizer_state:
        trainable, optimizer = checkpoints.restore_parts(start.point.step, like, "trainable", "optimizer")
        return TrainState(step, trainable, optimizer, key)
    [trainable] = checkpoints.restore_parts(start.point.step, like, "trainable")
    # Master copies of the weights are part of the optimizer's state.
    new = init_state(program.optimizer, trainable, seed)
    return committed(devices.distribute(dataclasses.replace(new, step=step, key=key)))
