"""What all command lines share (`lcjax.cli.entry`)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lcjax.cli.entry import entry_point


def test_the_plugin_to_plan_with_is_no_news_without_a_gpu():
    """Every command on a machine that has JAX's compiler for a GPU, and no GPU, used to begin with JAX's traceback."""
    code = "import jax; from lcjax.cli.entry import entry_point; entry_point(lambda _: print(jax.default_backend()) or 0)([])"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() in {"cpu", "gpu"}


def test_a_notebooks_backend_for_pictures_is_not_needed():
    """Commands in a notebook's shell inherit MPLBACKEND; a run ended in a traceback at its first picture."""
    code = "from lcjax.cli.startup import importing\nwith importing(True):\n    import matplotlib\nprint(matplotlib.get_backend())"
    environment = os.environ | {"MPLBACKEND": "module://of_a_notebook"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout.strip().lower(), done.stderr) == ("agg", "")


@pytest.mark.parametrize("words", [[], ["--version"]])
def test_the_list_of_commands_may_go_unread(words):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "lcjax", *words], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_folder_that_is_gone_is_named(tmp_path, monkeypatch, capsys):
    """The tokenizer was said to be damaged."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert entry_point(lambda argv: 0)([]) == 2
    assert capsys.readouterr().err == (
        "error: the folder that the command runs in does not exist any more; change to another\n"
    )
