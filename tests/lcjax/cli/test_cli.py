"""What all command lines share (`lcjax.cli.entry`)."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lcjax import __main__ as lcjax_main
from lcjax.__main__ import COMMANDS
from lcjax.cli.entry import entry_point


def test_the_plugin_for_planning_prints_nothing_without_a_gpu():
    """On a machine with JAX's GPU compiler but no GPU, every command used to print a traceback."""
    code = "import jax; from lcjax.cli.entry import entry_point; entry_point(lambda _: print(jax.default_backend()) or 0)([])"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() in {"cpu", "gpu"}


def test_a_notebooks_matplotlib_backend_is_not_needed():
    """Commands in a notebook's shell inherit MPLBACKEND, and used to fail at the first picture."""
    code = "from lcjax.cli.startup import importing\nwith importing(True):\n    import matplotlib\nprint(matplotlib.get_backend())"
    environment = os.environ | {"MPLBACKEND": "module://of_a_notebook"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout.strip().lower(), done.stderr) == ("agg", "")


@pytest.mark.parametrize("words", [[], ["--version"]])
def test_the_list_of_commands_may_be_piped_to_a_closed_reader(words):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "lcjax", *words], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_missing_folder_is_named(tmp_path, monkeypatch, capsys):
    """The message used to be that the tokenizer is damaged."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert entry_point(lambda argv: 0)([]) == 2
    assert capsys.readouterr().err == ("error: the current folder no longer exists; change to another\n")


def test_the_installed_names_are_those_of_the_help():
    """The scripts next to this Python, not those of another installation on the PATH."""
    scripts = Path(sys.executable).parent
    for words in (["lcjax", "train"], ["lcjax-train"]):
        command = [str(scripts / words[0]), *words[1:], "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("usage: lcjax train ")
    done = subprocess.run([str(scripts / "lcjax"), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"lcjax {importlib.metadata.version('lcjax')}\n"


def test_every_command_has_an_installed_name():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    expected = {f"lcjax-{name}": f"lcjax.__main__:{name}" for name in COMMANDS}
    assert project["scripts"] == {"lcjax": "lcjax.__main__:script"} | expected
    assert all(callable(getattr(lcjax_main, name)) for name in COMMANDS)
