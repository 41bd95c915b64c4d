"""The processes of a run: which one writes files, and how they agree.

Every process computes the same, each on its own devices. What happens outside of the devices, such
as an error in reading a file, happens in one process only, and the others must learn of it.
Otherwise they would wait for it in the next collective operation. So every exchange of values also
carries the error of a process that has none to send.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from lcjax.errors import InputError

T = TypeVar("T")


class AgreedError(InputError):
    """An error that all processes have raised, or are about to raise."""


def is_alone() -> bool:
    """Whether this process is the only one of its run."""
    return not jax.distributed.is_initialized()


def writes_files() -> bool:
    """Whether this process writes the run's files; the first does."""
    return is_alone() or jax.process_index() == 0


def leave_together() -> None:
    """Ends the connection of the processes, when all of them have raised an `AgreedError`.

    Otherwise JAX would abort those that have not yet printed it when the first one ends.
    """
    jax.distributed.shutdown()


def processes_per_host() -> int:
    """The number of processes on each host; the smallest if hosts differ."""
    if is_alone():
        return 1
    return min(Counter(_exchange(socket.gethostname())).values())


def first_before_others(function: Callable[[], T]) -> T:
    """The result of `function` in this process, which the other processes call after the first.

    They find on a shared disk what it has left there.

    Raises:
      InputError: as `together`.
    """
    first = together(lambda: (function(),) if writes_files() else None)
    return together(lambda: function() if first is None else first[0])


def together(function: Callable[[], T]) -> T:
    """The result of `function` in this process, if it succeeds in all processes.

    `function` may exchange values with the other processes itself. If it fails in one process, the
    others learn of it where they next exchange something.

    Raises:
      InputError: with the message of the first process in which it failed.
      Exception: what it has raised in this process.
    """
    if is_alone():
        return function()
    try:
        result = function()
    except (AgreedError, jax.errors.JaxRuntimeError):  # the second one if another process has ended
        raise
    except InputError as error:
        _exchange(None, str(error))
        raise AgreedError(str(error)) from error
    except Exception as error:
        _exchange(None, f"{type(error).__name__}: {error}")
        raise
    _exchange(None)
    return result


def only_first(function: Callable[[], T]) -> T | None:
    """What `function` returns in the first process; the others do not call it, and get None.

    Raises:
      InputError: as `together`.
    """
    return together(lambda: function() if writes_files() else None)


def from_first(value: T) -> T:
    """The first process's value, which JSON can represent."""
    return value if is_alone() else _exchange(value)[0]


def any_of(value: T | None) -> T | None:
    """The first value that is not None, over all processes in their order."""
    if is_alone():
        return value
    return next((found for found in _exchange(value) if found is not None), None)


def require_same(what: dict[str, Any]) -> None:
    """Checks that all processes have the same values, which JSON can represent.

    Raises:
      InputError: one differs; the message names it and both values. All processes raise it.
    """
    if is_alone():
        return
    first, *others = _exchange(what)
    for number, other in enumerate(others, start=1):
        for name, value in first.items():
            if other[name] != value:
                raise AgreedError(
                    f"{name} is {value!r} in process 0 and {other[name]!r} in process {number}; "
                    "all processes of a run need the same"
                )


def _exchange(value: Any, failure: str | None = None) -> list[Any]:
    """The values of all processes, in their order, which JSON can represent.

    Args:
      failure: why this process has no value; it then raises its own error.

    Raises:
      InputError: another process has none.
    """
    _require_equal_devices()
    message = json.dumps([failure, value]).encode()
    longest = int(multihost_utils.process_allgather(np.int32(len(message))).max())
    padded = np.frombuffer(message.ljust(longest), np.uint8)
    found = [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]
    for number, (other, _) in enumerate(found):
        if other is not None and failure is None:
            raise AgreedError(f"process {number} has stopped: {other}")
    return [value for _, value in found]


def _require_equal_devices() -> None:
    """Without equal numbers of devices, processes cannot exchange anything.

    Raises:
      InputError: the numbers differ. All processes raise it.
    """
    counts = sorted(Counter(device.process_index for device in jax.devices()).items())
    for process, count in counts:
        if count != counts[0][1]:
            raise AgreedError(
                f"process 0 has {counts[0][1]} devices and process {process} has {count}; all processes of a run need "
                "as many, see CUDA_VISIBLE_DEVICES"
            )
