"""Runs a packed row twice, with other tokens in one document, and compares the rest bit for bit.

Shapes: T tokens of a row, D hidden size.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lcjax.config import LlamaConfig
from lcjax.data import Data, lay_out
from lcjax.model import Llama, ModelSettings
from lcjax.parallel.collectives import all_tokens
from lcjax.parallel.devices import ON_ONE, WHOLE, Devices, rows
from lcjax.parallel.weights import specs_of

# Tokens around the first boundary in the check before training: two tiles of attention, cheap
# compared with a step.
_TOKENS = 256


class PackingLeak(RuntimeError):
    """A document's logits depend on another document in its row; the message names both."""


class LeakProbe:
    """Runs rows of one length through a model, with its own attention and memory settings.

    The hidden states after the last norm are compared; each logit depends only on the hidden state
    at its position. The same compiled program computes both runs, so without a leak they are equal
    bit for bit.
    """

    def __init__(self, model: Llama, devices: Devices = ON_ONE):
        """`devices` form the mesh of the model's settings."""
        self._model = model
        self._devices = devices
        self._params = model.params
        self._shift = model.config.vocab_size // 2 or 1

    def reached(self, row: Mapping[str, Any], changed: list[int]) -> dict[int, list[int]]:
        """Which documents of a row depend on which.

        Args:
          row: int32 `tokens`, `positions` and `segment_ids`, each [T].
          changed: segments of the row; the tokens of each are replaced, one segment at a time.

        Returns:
          for each changed segment, the other segments whose hidden states change; empty if nothing
          leaks.

        Raises:
          FloatingPointError: a hidden state is not finite, so nothing can be compared.
          AssertionError: a document's own hidden states do not change with its tokens, so the probe
            cannot detect anything.
        """
        # In the order of the devices, as all arrays below.
        row = {name: self._devices.in_order(row[name]) for name in ("tokens", "positions", "segment_ids")}
        before_TD = self._run(row, row["tokens"])
        return {segment: self._reached_from(row, segment, before_TD) for segment in changed}

    def _reached_from(self, row: Mapping[str, Any], segment: int, before_TD: jax.Array) -> list[int]:
        segment_ids_T = row["segment_ids"]
        others_T = (row["tokens"] + self._shift) % self._model.config.vocab_size
        after_TD = self._run(row, np.where(segment_ids_T == segment, others_T, row["tokens"]))
        differs_T, is_finite = _compare(before_TD, after_TD)
        if not is_finite:
            raise FloatingPointError("the hidden states are not finite; check the model's weights")
        reached = set(segment_ids_T[np.asarray(differs_T)].tolist())
        assert segment in reached, f"segment {segment} does not depend on its own tokens"
        return sorted(reached - {segment, 0})  # padding has no label

    def _run(self, row: Mapping[str, Any], tokens_T: np.ndarray) -> jax.Array:
        arrays = self._devices.place({**row, "tokens": tokens_T}, rows(1)).values()
        return _hidden_states(self._model.config, self._model.settings, self._devices, self._params, *arrays)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _hidden_states(
    config: LlamaConfig, settings: ModelSettings, devices: Devices, params: Any, *arrays_T: jax.Array
) -> jax.Array:
    def compute(params, *arrays_T):
        model = Llama(config, params, settings)
        return all_tokens(devices.shape, model.hidden_states(*(x_T[None] for x_T in arrays_T))[0], axis=0)

    parts = specs_of(devices.shape, params)
    return devices.over(compute, (parts, *[rows(1)] * len(arrays_T)), WHOLE)(params, *arrays_T)


@jax.jit
def _compare(x_TD: jax.Array, y_TD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the bits differ, [T] bool, and whether all of x is finite."""
    bits = jnp.uint16 if x_TD.dtype.itemsize == 2 else jnp.uint32
    differ_TD = lax.bitcast_convert_type(x_TD, bits) != lax.bitcast_convert_type(y_TD, bits)
    return jnp.any(differ_TD, axis=1), jnp.all(jnp.isfinite(x_TD))


def refuse_leak(model: Llama, data: Data, devices: Devices = ON_ONE) -> None:
    """Probes the first packed row around its first boundary, in a fraction of a step's time.

    The first document there is changed, since what follows could see it; every other document is
    checked.

    Raises:
      PackingLeak: another document depends on the first.
    """
    for index in data.train_plan.packed_rows[:1].tolist():
        pieces = data.train_plan.row(index)
        boundary = pieces[0].stop - pieces[0].start
        start = max(0, min(boundary - _TOKENS // 2, data.train_plan.max_seq_length - _TOKENS))
        row: dict[str, Any] = {**lay_out(data.corpus, data.train_plan, np.array(index))}
        window = {name: row[name][start : start + _TOKENS] for name in ("tokens", "positions", "segment_ids")}
        # If numbers are not finite, the first step reports it and names the batch.
        with contextlib.suppress(FloatingPointError):
            if reached := LeakProbe(model, devices).reached(window, [1])[1]:
                raise PackingLeak(leak_line(data, index, 1, reached))


def leak_line(data: Data, row: int, changed: int, reached: list[int]) -> str:
    """The message for a leak in a row of the training plan; segments count from 1."""
    pieces = data.train_plan.row(row)
    cause, *effects = (data.corpus.names[pieces[segment - 1].document] for segment in (changed, *reached))
    return (
        f"packed documents leak: other tokens in {cause} change the logits of "
        f"{', '.join(effects[:3])}{' and more' if len(effects) > 3 else ''} in row {row}; choose "
        "another --attention, or report it"
    )
