"""Values of the kernels need the interpreter of JAX 0.11.2 or later, and thus Python 3.12."""

from __future__ import annotations

import jax

from lcjax_scripts.verify.parity.interpreter.mosaic import OLDEST_JAX

collect_ignore = [] if jax.__version_info__ >= OLDEST_JAX else ["test_values.py"]
