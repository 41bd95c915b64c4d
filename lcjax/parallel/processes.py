"""Which process of a run does the work that is needed only once."""

from __future__ import annotations

import jax


def writes_files() -> bool:
    """Whether this process writes the run's files (the first does). Initializes JAX's backend."""
    return jax.process_index() == 0
