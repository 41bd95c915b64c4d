"""metrics.jsonl and evaluation.jsonl can be restored, because checkpoints have a copy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lcjax.train.__main__ import main
from lcjax.train.reporting.metrics import RECORDS
from tests.support.processes import contents, records


@pytest.fixture
def cut_run(finished, tmp_path) -> Path:
    """A run that continues from step 2 of 4."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "4")
    shutil.rmtree(run / "adapter")
    return run


def resume_flags(run: Path) -> list[str]:
    return ["--output-dir", str(run), "--resume-from-checkpoint", "latest"]


DAMAGES = {
    "was missing": lambda path: path.unlink(),
    "was cut short": lambda path: os.truncate(path, 150),
    "was changed": lambda path: path.write_bytes(os.urandom(1000)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_lost_records_are_restored_and_existing_files_are_renamed(damage, cut_run, finished, capsys):
    saved = {name: (cut_run / "checkpoints/2" / name).read_bytes() for name in RECORDS}
    found = {}
    for name in RECORDS:
        DAMAGES[damage](cut_run / name)
        found[name] = (cut_run / name).read_bytes() if damage != "was missing" else None
    assert main(resume_flags(cut_run)) == 0
    lines = capsys.readouterr().err.splitlines()
    for name in RECORDS:
        line = f"{cut_run / name} {damage}; it is restored from checkpoint 2"
        if found[name] is not None:
            line += f", and its former content is in {name}.damaged"
            assert (cut_run / f"{name}.damaged").read_bytes() == found[name]
        assert line in lines
        assert (cut_run / name).read_bytes().startswith(saved[name])
    assert records(cut_run) == records(finished)


def test_later_rows_are_dropped_without_a_message(cut_run, finished, capsys):
    assert main(resume_flags(cut_run)) == 0
    assert "restored" not in capsys.readouterr().err
    assert records(cut_run) == records(finished)
    assert not list(cut_run.glob("*.damaged*"))


def test_a_finished_run_gets_its_lost_records_back(finished, tmp_path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "metrics.jsonl").unlink()
    assert main(resume_flags(run)) == 0
    assert f"{run}/metrics.jsonl was missing; it is restored from checkpoint 4\n" in capsys.readouterr().err
    assert records(run) == records(finished)


@pytest.mark.parametrize("name", [*RECORDS, "loss.png", "run.yaml"])
def test_a_folder_in_place_of_a_file_is_refused(name, cut_run, short, tmp_path, capsys):
    fresh = tmp_path / "fresh"
    (fresh / name).mkdir(parents=True)
    (cut_run / name).unlink()
    (cut_run / name).mkdir()
    for run, command in ((cut_run, resume_flags(cut_run)), (fresh, [*short, "--output-dir", str(fresh)])):
        before = contents(run)
        assert main(command) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line == (
            f"error: {run / name} is a folder, where a run writes a file; move it, or choose another --output-dir"
        )
        assert contents(run) == before


def test_a_new_run_uses_nothing_from_an_earlier_one(short, finished, tmp_path):
    """The first evaluation of a run that was killed early may be that of another model."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "evaluation.jsonl").write_text('{"step": 0, "eval_loss": 1.0}\n')
    assert main([*short, "--output-dir", str(run)]) == 0
    assert records(run) == records(finished)
