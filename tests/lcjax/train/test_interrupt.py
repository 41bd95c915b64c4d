"""Signals before there is anything to save, and during evaluations."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from lcjax.train import TrainingArguments, train
from lcjax.train.__main__ import main, parse
from lcjax.train.command import load
from lcjax.train.interrupt import Interrupted, StopRequest
from tests.support.processes import SHORT, complete_saves, lines, records
from tests.support.thin import thinned


def feed(pipe: Path, content: bytes, number: signal.Signals) -> threading.Thread:
    """Starts a thread that writes to a named pipe, and sends this process a signal 0.3 s later.

    This process reads the pipe. Without content, it is still waiting at the signal; otherwise it is
    processing the content.
    """

    def write_and_signal():
        file = pipe.open("wb")  # returns when there is a reader
        file.write(content)
        if content:
            file.close()
        time.sleep(0.3)
        os.kill(os.getpid(), number)
        file.close()

    thread = threading.Thread(target=write_and_signal)
    thread.start()
    return thread


PHASES = ("loading the model", "reading the data", "working on the data")
EACH_SIGNAL_IN_EACH_PHASE = [(phase, number) for phase in PHASES for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize(
    ("phase", "number"),
    thinned(EACH_SIGNAL_IN_EACH_PHASE, lambda case: (case[0] == PHASES[1]) == (case[1] == signal.SIGINT)),
)
def test_before_the_first_step(phase, number, model_dir, data_dir, tmp_path, capsys):
    model, data = model_dir, data_dir
    if phase == "loading the model":
        model = tmp_path / "model"
        model.mkdir()
        for file in model_dir.iterdir():
            (model / file.name).symlink_to(file)
        pipe = model / "config.json"
        pipe.unlink()
    else:
        pipe = data = tmp_path / "text.jsonl"
    os.mkfifo(pipe)
    content = (
        b"" if phase != "working on the data" else b'{"text": "the old river carried seven small boats"}\n' * 200_000
    )
    thread = feed(pipe, content, number)
    began = time.monotonic()
    code = main(["--model", str(model), "--data", str(data), *SHORT, "--output-dir", str(tmp_path / "run")])
    elapsed = time.monotonic() - began
    thread.join()
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == (
        f"{number.name}: stopped before a step was taken; nothing is lost, start again with the same command"
    )
    assert "Traceback" not in said
    assert elapsed < 30
    assert not (tmp_path / "run").exists()


class StopAtPoll(StopRequest):
    """Requests a stop from the nth poll on. The run polls before every step and held-out batch."""

    def __init__(self, polls: int):
        self._polls_left = polls

    @property
    def requested(self) -> str | None:
        self._polls_left -= 1
        return "SIGTERM" if self._polls_left < 0 else None

    def defer(self) -> None:
        pass


@pytest.fixture(scope="module")
def arguments(short):
    return parse(short)


@pytest.fixture(scope="module")
def model_and_tokenizer(arguments):
    return load(arguments)


# With 8 held-out batches, polls 1 to 8 are the first evaluation, 9 and 10 are steps 1 and 2, 11 to
# 18 are the next evaluation, and so on to poll 28.
@pytest.mark.parametrize(
    ("polls", "steps"),
    thinned([(0, 0), (3, 0), (9, 1), (14, 2), (24, 4), (28, 4)], lambda case: case in [(3, 0), (14, 2)]),
)
def test_an_evaluation_cut_short_is_made_up_for(
    polls, steps, arguments, model_and_tokenizer, finished, tmp_path, capsys
):
    run = tmp_path / "run"
    stopping = dataclasses.replace(arguments, output_dir=run)
    result = train(*model_and_tokenizer, arguments.data, stopping, stop=StopAtPoll(polls))
    assert (result.stopped_by, result.steps) == ("SIGTERM", steps)
    assert lines(run / "metrics.jsonl") == steps
    evaluated = [] if polls < 8 else [0] if polls < 18 else [0, 2] if polls < 28 else [0, 2, 4]
    assert [line[:11] for line in (run / "evaluation.jsonl").read_text().splitlines()] == [
        f'{{"step": {step},' for step in evaluated
    ]
    assert complete_saves(run / "checkpoints") == sorted({2, steps} - {0} if steps >= 2 else {steps} - {0})
    assert not (run / "adapter").exists()
    last = capsys.readouterr().err.splitlines()[-1]
    if steps:
        assert f"saved after step {steps}; resume with: lcjax train --output-dir {run} --resume" in last
    else:
        assert last == "SIGTERM: stopped before the first step; resume with: the same command"

    resuming = dataclasses.replace(stopping, resume_from_checkpoint="latest" if steps else None)
    train(*model_and_tokenizer, arguments.data, resuming)
    assert records(run) == records(finished)


def test_a_program_gets_the_call_that_resumes(model_and_tokenizer, data_dir, tmp_path, capsys):
    model, tokenizer = model_and_tokenizer
    arguments = TrainingArguments(output_dir=tmp_path / "run", max_steps=3, eval_fraction=0.0, seed=7)
    result = train(model, tokenizer, [data_dir], arguments, stop=StopAtPoll(2))
    assert (result.steps, result.loss_before, result.loss_after) == (2, None, None)
    assert re.search(
        r"lcjax.train\(model, tokenizer, .*output_dir='\S+/run', .*resume_from_checkpoint='latest'\)$",
        capsys.readouterr().err.strip(),
    )
    assert main(["--output-dir", str(tmp_path / "run"), "--resume-from-checkpoint", "latest"]) == 2
    assert "was written by lcjax.train() in a program" in capsys.readouterr().err


def test_the_second_interrupt_is_not_deferred():
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        with pytest.raises(Interrupted, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        stop.defer()
        assert stop.requested is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
