"""run.yaml: all arguments of a run, its data, versions and date."""

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
import yaml

from lcjax.config.run_record import RECORD, read_run_record
from lcjax.config.yaml_files import as_yaml
from lcjax.errors import InputError
from lcjax.train import RunArguments
from lcjax.train.__main__ import main, parse
from tests.support.processes import SHORT, records


def test_a_run_records_all_of_its_arguments(finished, model_dir, data_dir):
    record = read_run_record(finished)
    assert record == yaml.safe_load((finished / RECORD).read_text())
    arguments = record["arguments"]
    assert arguments.keys() == {field.name for field in dataclasses.fields(RunArguments)}
    expected = {"model": str(model_dir), "data": [str(data_dir)], "max_seq_length": 48, "seed": 7, "output_dir": "run"}
    assert {name: arguments[name] for name in expected} == expected
    assert arguments["learning_rate"] == 2e-4  # a default
    assert record["data"]["documents"] == 24
    assert record["data"].keys() == {"fingerprint", "documents", "tokens", "training_rows", "held_out_rows"}
    assert record["max_steps"] == 4
    assert record["model"]["config"]["num_hidden_layers"] == 2
    assert "auto" in arguments.values()
    assert "auto" not in record["resolved"].values()
    expected = {"max_steps": 4, "attention": "xla", "dtype": "float32", "memory": "none", "optimizer_memory": "device"}
    assert {name: record["resolved"][name] for name in expected} == expected
    assert "q_proj" in record["resolved"]["target_modules"]
    [session] = record["sessions"]
    assert session["versions"].keys() >= {"python", "lcjax", "jax", "jaxlib", "orbax-checkpoint"}
    assert session["versions"]["jax"] == jax.__version__
    assert session["device"]["platform"] == "cpu"
    assert session["host"]["memory_bytes"] > 2**20
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


def test_a_run_is_repeated_from_its_record(finished, tmp_path, monkeypatch, capsys):
    """In a folder of its own, and with the same numbers; flags override the record."""
    monkeypatch.chdir(tmp_path)
    config = parse(["--config", str(finished / RECORD), "--lora-r", "3"])
    assert (config.output_dir, config.lora_r, config.max_steps) == (None, 3, 4)
    assert main(["--config", str(finished / RECORD)]) == 0
    [again] = (tmp_path / "runs").iterdir()
    assert f"a new run with the settings of {finished / RECORD}, in runs/{again.name}\n" in capsys.readouterr().err
    assert records(again) == records(finished)
    first, second = read_run_record(finished), read_run_record(again)
    assert first["resolved"] == second["resolved"]
    different = {name for name, value in first["arguments"].items() if second["arguments"][name] != value}
    assert different == {"output_dir", "config"}


def test_nothing_of_the_environment_is_recorded(finished, monkeypatch):
    """Tokens of hubs are environment variables."""
    text = (finished / RECORD).read_text()
    assert [name for name in ("PATH", "HOME", "XDG_CACHE_HOME") if f"{name}=" in text or f"{name}:" in text] == []
    assert os.environ["XDG_CACHE_HOME"] not in text


def test_the_record_of_an_earlier_version_is_read_and_replaced(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints" / "4")
    record = read_run_record(run)
    (run / RECORD).unlink()
    (run / "run.json").write_text(json.dumps(record | {"format": 1}))
    assert read_run_record(run)["arguments"] == record["arguments"]
    assert parse(["--config", str(run / "run.json")]).max_seq_length == 48
    assert main(["--output-dir", str(run), "--resume-from-checkpoint", "latest"]) == 0
    assert not (run / "run.json").exists()
    assert [session["first_step"] for session in read_run_record(run)["sessions"]] == [0, 2]


def test_settings_of_a_file_act_like_flags_when_a_run_is_resumed(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (tmp_path / "more.yaml").write_text("save_steps: 1\n")
    (tmp_path / "other.yaml").write_text("learning_rate: 0.5\n")
    resume = ["--output-dir", str(run), "--resume-from-checkpoint", "latest", "--config"]
    assert parse([*resume, str(tmp_path / "more.yaml")]).save_steps == 1
    assert parse([*resume, str(tmp_path / "more.yaml"), "--save-steps", "2"]).save_steps == 2
    assert main([*resume, str(tmp_path / "other.yaml")]) == 2
    assert "--learning-rate was 0.0002 and is 0.5; give the same" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no run.yaml; give the output directory of a run"),
        ("", "is damaged"),
        ("[1]", "is damaged"),
        ("\0\0", "is damaged"),
        ("format: [", "is damaged"),
        ("format: 2", "parts are missing"),
        ("format: 7", "has format 7, but this lcjax reads format 2"),
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
    node = record = read_run_record(finished)
    for key in part[:-1]:
        node = node[key]
    node[part[-1]] = value
    (tmp_path / RECORD).write_text(as_yaml(record))
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
