"""run.json: every argument of a run, its data, versions and date, readable without lcjax and by it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil

import jax
import pytest

from conftest import SHORT
from lcjax.errors import InputError
from lcjax.train import RunArguments
from lcjax.train.__main__ import main
from lcjax.train.reporting.run_record import RECORD, read_run_record


def test_a_run_records_all_that_it_was_started_with(finished, model_dir, data_dir):
    record = read_run_record(finished)
    assert record == json.loads((finished / RECORD).read_text())
    arguments = record["arguments"]
    assert arguments.keys() == {field.name for field in dataclasses.fields(RunArguments)}
    expected = {"model": str(model_dir), "data": [str(data_dir)], "max_seq_length": 48, "seed": 7, "output_dir": "run"}
    assert {name: arguments[name] for name in expected} == expected
    assert arguments["learning_rate"] == 2e-4  # a default
    assert record["data"]["documents"] == 24
    assert record["data"].keys() == {"fingerprint", "documents", "tokens", "training_rows", "held_out_rows"}
    assert record["max_steps"] == 4
    assert record["model"]["config"]["num_hidden_layers"] == 2
    [session] = record["sessions"]
    assert session["versions"].keys() >= {"python", "lcjax", "jax", "jaxlib", "orbax-checkpoint"}
    assert session["versions"]["jax"] == jax.__version__
    assert session["device"]["platform"] == "cpu"
    assert "-m lcjax.train" in session["command"]
    assert " ".join(SHORT) in session["command"]
    assert os.path.isdir(session["working_directory"])
    assert datetime.datetime.fromisoformat(record["started"]).tzinfo is not None


@pytest.mark.parametrize(("keeps_file", "first_steps"), [(True, [0, 2]), (False, [2])])
def test_a_resumed_run_keeps_its_date_and_lists_its_sessions(keeps_file, first_steps, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints" / "4")
    record = read_run_record(run)
    if not keeps_file:
        (run / RECORD).unlink()
    assert main(["--output-dir", str(run), "--resume-from-checkpoint", "latest"]) == 0
    resumed = read_run_record(run)
    assert resumed["started"] == record["started"] < resumed["sessions"][-1]["started"]
    assert [session["first_step"] for session in resumed["sessions"]] == first_steps
    assert resumed["data"] == record["data"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no run.json; name the output directory of a run"),
        ("", "is damaged"),
        ("[1]", "is damaged"),
        ("\0\0", "is damaged"),
        ('{"format": 1}', "parts are missing"),
        ('{"format": 7}', "has format 7, and this lcjax reads 1"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused(content, said, tmp_path):
    if content is not None:
        (tmp_path / RECORD).write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        read_run_record(tmp_path)
    assert "\n" not in str(caught.value)
