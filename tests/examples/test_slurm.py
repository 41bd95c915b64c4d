"""The SLURM script of examples/eight-gpus, as far as one machine without SLURM can run it."""

from __future__ import annotations

import re
import subprocess

import pytest

from lcjax.train.__main__ import parse
from tests.support.document_commands import ROOT
from tests.support.processes import finish
from tests.support.several_processes import start_together

FOLDER = ROOT / "examples" / "eight-gpus"
SCRIPT = FOLDER / "train.slurm"


@pytest.fixture
def words(tmp_path):
    """Runs the script in an empty folder with a replacement for srun; returns what it starts."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    srun.chmod(0o755)

    def run() -> list[str]:
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        done = subprocess.run(
            ["bash", str(SCRIPT)], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    return run


def test_the_script_starts_a_run_and_resumes_it(words, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    lcjax, train, *flags = words()
    assert (lcjax, train) == ("lcjax", "train")
    arguments = parse(flags)
    assert arguments.resume_from_checkpoint is None
    assert arguments == parse(["--config", "examples/eight-gpus/config.yaml"])
    assert arguments.output_dir is not None
    (tmp_path / arguments.output_dir / "checkpoints").mkdir(parents=True)
    assert words() == [lcjax, train, *flags, "--resume-from-checkpoint", "latest"]


def test_the_options_are_those_that_the_page_explains():
    text = SCRIPT.read_text()
    assert text.startswith("#!/bin/bash\n#SBATCH ")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", text, re.MULTILINE))
    assert options["ntasks-per-node"] == "1"
    assert options["gpus-per-node"] == "8"
    assert options["dependency"] == "singleton"
    minutes = int(options["signal"].removeprefix("TERM@")) // 60
    page = (FOLDER / "README.md").read_text()
    assert f"SIGTERM {minutes} minutes before the end" in page
    [step] = re.findall(r"^step +(\d+) min", page, re.MULTILINE)
    assert minutes > int(step)


@pytest.mark.slow
def test_the_command_runs_in_connected_processes(words, model_dir, tmp_path):
    """Of two nodes with two devices each, at small size."""
    _, _, *flags = words()
    flags[flags.index("--config") + 1] = str(FOLDER / "small.yaml")
    flags[flags.index("--output-dir") + 1] = str(tmp_path / "run")
    flags += ["--model", str(model_dir), "--max-seq-length", "128"]
    for code, output in map(finish, start_together(flags, ROOT, tmp_path / "cache")):
        assert code == 0, output
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
