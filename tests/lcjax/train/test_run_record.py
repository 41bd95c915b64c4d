"""run.json: all arguments of a run, its data, versions and date."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shlex
import shutil
import sys

import jax
import pytest

from lcjax.config.run_record import RECORD, read_run_record
from lcjax.errors import InputError
from lcjax.train import RunArguments
from lcjax.train.__main__ import main
from tests.support.processes import SHORT, records


def test_a_run_records_all_of_its_arguments(finished, model_dir, data_dir):
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
    assert session["command"] == shlex.join(sys.orig_argv)
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
        (None, "has no run.json; give the output directory of a run"),
        ("", "is damaged"),
        ("[1]", "is damaged"),
        ("\0\0", "is damaged"),
        ('{"format": 1}', "parts are missing"),
        ('{"format": 7}', "has format 7, but this lcjax reads format 1"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused(content, said, tmp_path):
    if content is not None:
        (tmp_path / RECORD).write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        read_run_record(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (("started",), 5),
        (("started",), "yesterday"),
        (("data",), 5),
        (("sessions",), 5),
        (("sessions",), []),
        (("sessions", -1, "working_directory"), None),
        (("arguments",), []),
        (("arguments", "data"), None),
        (("arguments", "data", 0), 5),
        (("arguments", "seed"), "seven"),
    ],
)
def test_a_record_with_a_part_of_the_wrong_type_is_refused(part, value, finished, tmp_path):
    node = record = json.loads((finished / RECORD).read_text())
    for key in part[:-1]:
        node = node[key]
    node[part[-1]] = value
    (tmp_path / RECORD).write_text(json.dumps(record))
    with pytest.raises(InputError, match="damaged"):
        read_run_record(tmp_path)


def test_a_run_resumes_from_another_working_directory(finished, short, model_dir, data_dir, tmp_path, monkeypatch):
    """Its paths are relative to the directory in which the run was started."""
    (tmp_path / "first" / "links").mkdir(parents=True)
    (tmp_path / "first" / "links" / "model").symlink_to(model_dir)
    (tmp_path / "first" / "links" / "data").symlink_to(data_dir)
    # Another folder with the same name.
    (tmp_path / "second" / "links" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "first")
    paths = ["--model", "links/model", "--data", "links/data", "--output-dir", "run"]
    assert main([*paths, *SHORT]) == 0
    shutil.rmtree(tmp_path / "first" / "run" / "checkpoints" / "4")
    shutil.rmtree(tmp_path / "first" / "run" / "adapter")
    monkeypatch.chdir(tmp_path / "second")
    assert main(["--output-dir", "../first/run", "--resume-from-checkpoint", "latest"]) == 0
    assert records(tmp_path / "first" / "run") == records(finished)
