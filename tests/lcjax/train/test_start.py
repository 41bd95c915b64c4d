"""The start of a run: what happens at the same time, and what the next run need not do again."""

from __future__ import annotations

import dataclasses
import json
import threading

import numpy as np
import pytest

from lcjax import weights
from lcjax.errors import InputError
from lcjax.train import command
from lcjax.train.__main__ import main, parse
from lcjax.train.compiled.programs import Programs
from lcjax.train.running.early_weights import EarlyWeights, Placement
from lcjax.weights import Checkpoint
from tests.support.processes import SHORT


@pytest.fixture
def flags(model_dir, data_dir, tmp_path):
    return ["--model", str(model_dir), "--data", str(data_dir), *SHORT, "--output-dir", str(tmp_path / "run")]


def test_weights_are_loaded_while_the_data_is_read(flags, monkeypatch, capsys):
    load, read = Checkpoint.load, command.load_run_data
    began, is_read = threading.Event(), threading.Event()
    threads = []

    def load_after_the_data(self, *args, **kwargs):
        threads.append(threading.current_thread())
        began.set()
        assert is_read.wait(60)
        return load(self, *args, **kwargs)

    def read_after_loading_began(*args):
        assert began.wait(60)
        data = read(*args)
        is_read.set()
        return data

    monkeypatch.setattr(Checkpoint, "load", load_after_the_data)
    monkeypatch.setattr(command, "load_run_data", read_after_loading_began)
    assert main([*flags, "--max-steps", "1", "--skip-leak-check"]) == 0
    assert [thread is threading.main_thread() for thread in threads] == [False]  # once
    said = capsys.readouterr().err
    assert said.index("documents,") < said.index("loading ") < said.index("start: ")


def test_an_error_of_the_data_ends_the_loading_of_weights(flags, monkeypatch, capsys):
    load = Checkpoint.load
    began, has_failed = threading.Event(), threading.Event()
    read: list[str] = []

    def load_slowly(self, *args, **kwargs):
        began.set()
        assert has_failed.wait(60)
        counted = dataclasses.replace(self, read=lambda name, out, start=0: read.append(name.name))
        return load(counted, *args, **kwargs)

    def fail(*args):
        assert began.wait(60)
        raise InputError("the data is bad; change it")

    leave = EarlyWeights.__exit__

    def left(self, *error):
        self._ends.set()  # as `leave` does first, before it waits for the thread
        has_failed.set()
        leave(self, *error)

    monkeypatch.setattr(Checkpoint, "load", load_slowly)
    monkeypatch.setattr(command, "load_run_data", fail)
    monkeypatch.setattr(EarlyWeights, "__exit__", left)
    before = set(threading.enumerate())
    assert main(flags) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: the data is bad; change it"
    assert not read
    assert not {thread for thread in threading.enumerate() if thread.name.startswith("weights")} - before


def test_an_error_of_the_weights_is_reported_after_those_of_the_data(flags, monkeypatch, capsys):
    def refuse(self, *args, **kwargs):
        raise InputError("weights/0 is damaged; download it again")

    monkeypatch.setattr(Checkpoint, "load", refuse)
    assert main(flags) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "error: weights/0 is damaged; download it again"
    assert said.index("documents,") < said.index("loading ")
    assert "Traceback" not in said


@pytest.mark.parametrize("changed", [{}, {"dtype": "bfloat16"}])
def test_weights_loaded_early_are_those_that_are_asked_for(model_dir, flags, changed):
    arguments = parse(flags)
    checkpoint = weights.open_model_files(model_dir)
    placement = Placement.of(checkpoint, arguments)
    dtype = changed.get("dtype", "float32")
    wanted = checkpoint.load(dtype, devices=placement.devices)
    with EarlyWeights() as early:
        opened = early.started(checkpoint, arguments)
        for _ in range(2):  # the second time, they are read again
            found = opened.load(np.dtype("float32") if not changed else dtype, devices=placement.devices)
            assert found["norm"]["weight"].dtype == wanted["norm"]["weight"].dtype
            np.testing.assert_array_equal(found["embed_tokens"]["weight"], wanted["embed_tokens"]["weight"])


def test_a_run_that_ends_before_a_checkpoint_leaves_its_programs(flags, tmp_path, monkeypatch):
    published = []
    publish = Programs.publish

    def note(self):
        found = publish(self)
        published.append(
            (found, (tmp_path / "run/checkpoints").exists() and any((tmp_path / "run/checkpoints").iterdir()))
        )
        return found

    monkeypatch.setattr(Programs, "publish", note)
    # A rank that nothing else in this process has compiled for.
    assert main([*flags, "--max-steps", "2", "--lora-r", "5", "--programs-dir", str(tmp_path / "programs")]) == 0
    steps = [had_checkpoint for names, had_checkpoint in published if any("train_step" in name for name in names)]
    assert steps == [False]
    names = [json.loads(path.read_text())["files"] for path in (tmp_path / "programs").glob("*/programs.json")]
    assert sum(any(name.startswith("jit__uniform") for name in files) for files in names) == 1
