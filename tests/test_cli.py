"""What all command lines share (`lcjax.cli`)."""

from __future__ import annotations

import os
import subprocess
import sys


def test_the_plugin_to_plan_with_is_no_news_without_a_gpu():
    """Every command on a machine that has JAX's compiler for a GPU, and no GPU, used to begin with JAX's traceback."""
    code = "import jax; from lcjax.cli import entry_point; entry_point(lambda _: print(jax.default_backend()) or 0)([])"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() in {"cpu", "gpu"}
