"""Token ids that a model can embed."""

from __future__ import annotations

import jax
import numpy as np
from jax.core import Tracer

from lcjax.errors import InputError


def check_ids(ids: jax.Array | np.ndarray, vocabulary: int) -> None:
    """Checks that ids are integers in [0, vocabulary); for traced ids it checks only the type.

    Raises:
      InputError: an id is out of range, or the ids are not integers.
    """
    if not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"token ids are {ids.dtype}; use integers, such as the tokenizer's input_ids")
    if isinstance(ids, Tracer) or ids.size == 0:
        return
    for extreme in (int(ids.min()), int(ids.max())):
        if not 0 <= extreme < vocabulary:
            raise InputError(
                f"the token id {extreme} is outside the model's vocabulary of {vocabulary:,}; "
                "use the tokenizer that belongs to the model"
            )
