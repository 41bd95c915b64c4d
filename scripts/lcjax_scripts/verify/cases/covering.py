"""A few rows of a product of axes in which all small combinations of values meet."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any


def covering(strength: int, *axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows of the product of axes in which any `strength` values of as many different axes meet; few, and always the same.

    Greedy: first all rows that bring nothing but new meetings, in an order that mixes the axes, then those that bring one less.
    Source: Cohen et al., The AETG System, IEEE Transactions on Software Engineering 23(7), 1997.
    """
    product = list(itertools.product(*axes))
    random.Random(0).shuffle(product)
    met: set[tuple] = set()
    rows = []
    for wanted in range(math.comb(len(axes), strength), 0, -1):
        for row in product:
            new = set(itertools.combinations(enumerate(row), strength)) - met
            if len(new) >= wanted:
                rows.append(row)
                met |= new
    return rows
