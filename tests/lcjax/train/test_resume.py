"""A run that is killed or stopped at any moment continues as if it had not been interrupted."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from lcjax.config.run_record import read_run_record
from lcjax.train.__main__ import main
from tests.support.processes import (
    complete_saves,
    finish,
    kill,
    kill_during_save,
    launch,
    lines,
    metrics_of,
    records,
    start,
    torn_saves,
    wait_until,
)

MAX_STEPS, SAVE_STEPS = 40, 10
# Dropout tests the random key; accumulation and 1.6 shuffled epochs test the data iterator.
RUN = (
    f"--max-seq-length 48 --max-steps {MAX_STEPS} --save-steps {SAVE_STEPS} --eval-steps 6 --eval-fraction 0.2 "
    "--gradient-accumulation-steps 2 --lora-dropout 0.1 --lora-r 4 --learning-rate 1e-3 --warmup-steps 3"
).split()


@pytest.fixture(scope="session")
def arguments(model_dir, data_dir) -> list[str]:
    return ["--model", str(model_dir), "--data", str(data_dir), *RUN]


def records_without_interruption(arguments: list[str], folder: Path) -> dict:
    """The records of a run in the process of the tests."""
    assert main([*arguments, "--output-dir", str(folder / "run")]) == 0
    return records(folder / "run")


@pytest.fixture(scope="module")
def uninterrupted(arguments, tmp_path_factory) -> dict:
    return records_without_interruption(arguments, tmp_path_factory.mktemp("uninterrupted"))


def resume_flags(run: Path) -> list[str]:
    return ["--output-dir", str(run), "--resume-from-checkpoint", "latest"]


@pytest.mark.slow
def test_five_kills_change_nothing(arguments, cache, tmp_path, capsys):
    arguments = [*arguments, "--max-steps", "70", "--save-steps", "4"]
    uninterrupted = records_without_interruption(arguments, tmp_path)
    seed = 20250
    draw = random.Random(seed)
    run = tmp_path / "killed"
    checkpoints, metrics = run / "checkpoints", run / "metrics.jsonl"
    kills = []

    def kill_after_a_step(process):
        done = lines(metrics)
        target = max(complete_saves(checkpoints), default=0) + draw.randint(1, 7)
        wait_until(lambda: lines(metrics) >= target and lines(metrics) != done, process)
        time.sleep(draw.uniform(0, 0.05))
        kill(process)
        kills.append(f"step {lines(metrics)}")

    # 1: before the first checkpoint.
    process = start([*arguments, "--output-dir", run], tmp_path, cache)
    wait_until(metrics.exists, process)
    time.sleep(draw.uniform(0, 0.5))
    kill(process)
    kills.append(f"before the first checkpoint, after {lines(metrics)} steps")
    assert complete_saves(checkpoints) == []
    assert main(resume_flags(run)) == 2
    assert "has no checkpoint to resume from; start without --resume-from-checkpoint" in capsys.readouterr().err

    # 2: in a new run in the same folder.
    process = start([*arguments, "--output-dir", run], tmp_path, cache)
    wait_until(lambda: complete_saves(checkpoints) != [], process)
    kill_after_a_step(process)

    # 3: during a save.
    process = start(resume_flags(run), tmp_path, cache)
    torn = kill_during_save(process, checkpoints)
    kills.append(f"during the save {torn.name}")
    assert int(torn.name.split(".")[1]) not in complete_saves(checkpoints)

    # 4 and 5.
    for _ in range(2):
        process = start(resume_flags(run), tmp_path, cache)
        kill_after_a_step(process)

    code, output = finish(start(resume_flags(run), tmp_path, cache))
    print(f"seed {seed}, killed {'; '.join(kills)}")
    assert code == 0, output
    assert records(run) == uninterrupted
    assert torn_saves(checkpoints) == []
    assert complete_saves(checkpoints) == [64, 68, 70]


# All lines of a run, apart from the last one of a stopped run.
PROGRESS = (
    r"importing .*|24 documents, .*|loading .*|reading .*|checking .*|measuring .*|compiling .*|start: .*|resumed .*"
    r"|step \d+/40  loss .* tok/s.*|held-out loss .*"
)
FILES = r"(model|data|time|loss|held out|adapter|report|also there) +\S.*"


def test_a_signal_saves_and_prints_how_to_resume(arguments, uninterrupted, cache, tmp_path, monkeypatch, capsys):
    """SIGINT stops the run, and SIGTERM the process that continues it as it was printed."""
    run = tmp_path / "a run: {1} :+1:"
    monkeypatch.chdir(tmp_path)
    printed = stopped_here([*arguments, "--output-dir", run.name], signal.SIGINT, run, capsys)
    # The process that gets the signal replaces the shell.
    process = launch(f"exec {printed}", tmp_path, cache)
    resume = stop(process, signal.SIGTERM, run)
    assert read_run_record(run)["sessions"][-1]["command"].endswith(printed.removeprefix("lcjax"))
    assert main(shlex.split(resume)[2:]) == 0
    output = "".join(capsys.readouterr())
    assert [line for line in output.splitlines() if not re.fullmatch(f"{PROGRESS}|{FILES}", line)] == []
    assert records(run) == uninterrupted


def stop(process: subprocess.Popen[str], number: signal.Signals, run: Path) -> str:
    """Sends a run a signal after five more steps; returns the command that resumes it."""
    metrics = run / "metrics.jsonl"
    target = lines(metrics) + 5
    wait_until(lambda: lines(metrics) >= target, process)
    process.send_signal(number)
    code, output = finish(process)
    assert code == 0, output
    return resume_command(output, number, run)


def stopped_here(arguments: list[str], number: signal.Signals, run: Path, capsys) -> str:
    """Sends a run in this process a signal after five steps; returns how it is resumed."""
    ended = threading.Event()

    def send() -> None:
        while lines(run / "metrics.jsonl") < 5 and not ended.wait(0.01):
            pass
        os.kill(os.getpid(), number)

    before = signal.signal(number, lambda *_: None)  # of a signal that comes after the run
    sender = threading.Thread(target=send)
    sender.start()
    try:
        assert main(arguments) == 0
    finally:
        ended.set()
        sender.join()
        signal.signal(number, before)
    return resume_command("".join(capsys.readouterr()), number, run)


def resume_command(output: str, number: signal.Signals, run: Path) -> str:
    """The command that a stopped run has printed in its last line."""
    metrics = run / "metrics.jsonl"
    *before, last = output.splitlines()
    assert [line for line in before if not re.fullmatch(PROGRESS, line)] == []
    said = re.fullmatch(rf"{number.name}: saved after step (\d+); resume with: (.*)", last)
    assert said, output
    assert max(complete_saves(run / "checkpoints")) == int(said[1]) == lines(metrics) < MAX_STEPS
    assert said[2].startswith("lcjax train --output-dir ")
    return said[2]


def test_an_uninterrupted_run_learns(uninterrupted):
    rows = uninterrupted["metrics"]
    assert [row["step"] for row in rows] == list(range(1, MAX_STEPS + 1))
    assert len({row["loss"] for row in rows}) == MAX_STEPS
    before, *_, after = (json.loads(row)["eval_loss"] for row in uninterrupted["evaluation"])
    assert after < before


def test_master_weights_in_host_memory_resume_exactly(model_dir, data_dir, cache, tmp_path):
    """In full fine-tuning with bfloat16, the weights alone do not determine the master weights."""
    flags = (
        f"--model {model_dir} --data {data_dir} --full-finetuning --dtype bfloat16 --max-seq-length 48 --save-steps 3"
    )

    def read(run):
        return metrics_of(run), (run / "model" / "model.safetensors").read_bytes()

    assert main([*flags.split(), "--max-steps", "6", "--output-dir", str(tmp_path / "whole")]) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "6")
    shutil.rmtree(tmp_path / "cut" / "model")
    assert main(resume_flags(tmp_path / "cut")) == 0
    cut, whole = (read(tmp_path / name) for name in ("cut", "whole"))
    assert cut == whole
