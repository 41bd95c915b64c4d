"""Where values of the kernels can be computed: in the interpreter of JAX 0.11.2 and later, which needs Python 3.12."""

from __future__ import annotations

import os

import jax

# The interpreter's threads wait for each other; with fewer than a program has, it hangs.
os.environ.setdefault("NPROC", "16")

collect_ignore = [] if jax.__version_info__ >= (0, 11, 2) else ["test_values.py"]
