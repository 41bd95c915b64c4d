"""The context lengths at which a model is evaluated, in tokens."""

from __future__ import annotations

SHORTEST_ROW = 2
"""A token and the next one."""
SHORTEST_CONTEXT = 16
SHORTEST_NEEDLE = 256
"""Needles, question and answer take about a hundred tokens."""


def contexts_up_to(max_seq_length: int) -> list[int]:
    """The powers of two from 16 to `max_seq_length`."""
    return [2**n for n in range(SHORTEST_CONTEXT.bit_length() - 1, max_seq_length.bit_length())]
