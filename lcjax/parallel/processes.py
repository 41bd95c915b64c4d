"""Which of a run's processes does what all of them need once."""

from __future__ import annotations

import jax


def writes_files() -> bool:
    """Whether this process writes what a run leaves behind: the first one does. Starts JAX's devices."""
    return jax.process_index() == 0
