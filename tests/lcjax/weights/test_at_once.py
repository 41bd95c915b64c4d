"""Tensors that several threads read at a time."""

from __future__ import annotations

import threading
import time

import pytest

from lcjax.weights.packing import at_once


def test_results_are_in_order_and_from_several_threads():
    both = threading.Barrier(2, timeout=60)

    def read(number: int) -> int:
        both.wait()
        return number

    assert list(at_once([lambda i=i: read(i) for i in range(20)])) == list(range(20))


def test_the_first_error_is_raised_and_ends_the_rest():
    begun = []

    def read(number: int) -> None:
        begun.append(number)
        if number in (2, 3):
            raise ValueError(number)
        if number > 3:
            time.sleep(0.01)

    with pytest.raises(ValueError, match="2"):
        list(at_once([lambda i=i: read(i) for i in range(1000)]))
    assert len(begun) < 1000
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reading")]
