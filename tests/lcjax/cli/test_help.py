"""What the help of a command prints, and the imports that it needs."""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
import sys

import pytest

from lcjax.__main__ import COMMANDS

HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "transformers", "torch", "matplotlib", "pyarrow", "tensorboardX"}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_line_breaks_a_value(name, monkeypatch, capsys):
    """tyro broke lines inside of 32,768, and commands to copy were broken too."""
    main = importlib.import_module(COMMANDS[name][0]).main
    whole = re.compile(r"\d+,\d{3}|\w+=\w+,[\w=,]+|^  lcjax .*")
    found = []
    for columns in (400, 72):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        found.append({value.strip(" │") for line in lines for value in whole.findall(line)})
        after = [line for before, line in itertools.pairwise(lines) if before.startswith("  lcjax ")]
        assert [line for line in after if line and not line.startswith("  lcjax ")] == []
        assert [line for line in lines if "\ue000" in line] == []
        assert [line for line in lines[1:] if line[:1].isalpha() and len(line) > columns] == []
    assert found[0] == found[1]
    assert found[0]


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
    assert f"usage: lcjax {name}" in process.stdout
