"""Values of the kernels need the interpreter of JAX 0.11.2 or later, and thus Python 3.12."""

from __future__ import annotations

import os

import jax

# The interpreter's threads wait for each other. With fewer threads than a program has, it hangs.
os.environ.setdefault("NPROC", "16")

collect_ignore = [] if jax.__version_info__ >= (0, 11, 2) else ["test_values.py"]
