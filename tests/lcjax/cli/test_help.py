"""The imports needed to parse a command's flags."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lcjax.__main__ import COMMANDS

HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "transformers", "torch", "matplotlib", "pyarrow", "tensorboardX"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_no_jax(name):
    """Without these libraries, the help takes 0.2 s of CPU time. JAX alone would add one second."""
    program = (
        f"import sys; from {COMMANDS[name][0]} import main; code = main(['--help']); "
        f"loaded = {HEAVY!r} & set(sys.modules); "
        "sys.exit(f'{code} {sorted(loaded)}')"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert process.stderr.splitlines()[-1] == "0 []"
    assert f"usage: python -m lcjax.{name}" in process.stdout
