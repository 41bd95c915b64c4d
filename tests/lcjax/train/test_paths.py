"""Paths may be strings or Path objects, and a stopped run prints the call that resumes it."""

from __future__ import annotations

import io
import os
import re
import signal

import numpy as np
import pytest
from rich.console import Console

import lcjax
from lcjax.report.records import read_rows
from lcjax.train.interrupt import StopRequest

FLAGS = {"max_steps": 3, "eval_fraction": 0.2, "eval_batches": 1, "save_steps": 3, "skip_leak_check": True}


@pytest.fixture(scope="module")
def pretrained(model_dir):
    model, tokenizer = lcjax.from_pretrained(str(model_dir), max_seq_length=48)
    return lcjax.get_peft_model(model, r=2), tokenizer


def quiet() -> Console:
    return Console(file=io.StringIO(), width=1000)


@pytest.fixture(scope="module")
def whole(pretrained, data_dir, tmp_path_factory):
    """An uninterrupted run. All of its paths are strings."""
    folder = str(tmp_path_factory.mktemp("whole") / "run")
    return lcjax.train(*pretrained, data=str(data_dir), output_dir=folder, console=quiet(), **FLAGS)


def test_every_path_may_be_a_string(whole, pretrained, model_dir, data_dir, tmp_path):
    """Other tests use Path objects."""
    model, tokenizer = pretrained
    again = lcjax.train(
        *(model, tokenizer),
        data=[str(data_dir)],
        output_dir=str(tmp_path / "again"),
        resume_from_checkpoint=whole.output_dir / "checkpoints" / "3",
        console=quiet(),
        **FLAGS,
    )
    assert again.output_dir == tmp_path / "again"
    lcjax.save_pretrained(whole.model, str(tmp_path / "adapter"))
    lcjax.save_merged(whole.model, str(tmp_path / "merged"), tokenizer)
    base, _ = lcjax.from_pretrained(str(model_dir), max_seq_length=48)
    loaded = lcjax.load_adapter(base, str(tmp_path / "adapter"))
    merged, _ = lcjax.from_pretrained(str(tmp_path / "merged"), max_seq_length=48)
    ids = np.arange(9, dtype=np.int32)[None]
    expected = np.asarray(whole.model(ids))
    np.testing.assert_array_equal(np.asarray(loaded(ids)), expected)
    np.testing.assert_allclose(np.asarray(merged(ids)), expected, atol=1e-5)


class StopAfter(StopRequest):
    """Simulates a SIGINT at the nth poll of the run."""

    def __init__(self, polls: int):
        self._polls = polls
        super().__init__()

    @property
    def requested(self) -> str | None:
        self._polls -= 1
        if self._polls == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return self._requested

    @requested.setter
    def requested(self, value: str | None) -> None:
        self._requested = value


@pytest.mark.parametrize(("polls", "saved"), [(1, 0), (4, 2)])
def test_the_call_that_a_stopped_run_names_resumes_it(polls, saved, whole, pretrained, data_dir, tmp_path, monkeypatch):
    model, tokenizer = pretrained
    monkeypatch.chdir(tmp_path)
    console = quiet()
    with StopAfter(polls) as stop:
        stopped = lcjax.train(
            model, tokenizer, data=[data_dir], output_dir="runs/it's", console=console, stop=stop, **FLAGS
        )
    assert (stopped.steps, stopped.stopped_by) == (saved, "SIGINT")
    (call,) = re.findall(r"resume with: (lcjax\.train\(.*\))$", console.file.getvalue(), re.MULTILINE)
    assert ("resume_from_checkpoint" in call) == (saved > 0)
    result = eval(call, {"lcjax": lcjax, "model": model, "tokenizer": tokenizer})
    assert (result.steps, result.stopped_by) == (3, None)
    losses = [[row["loss"] for row in read_rows(run.output_dir / "metrics.jsonl")] for run in (result, whole)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
