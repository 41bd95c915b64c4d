"""The record of a complete run of the test suite."""

from __future__ import annotations

import json

import pytest

import release_tests

PASSING = "def test_one(): pass\n\ndef test_two(): pass\n"


@pytest.mark.parametrize(("failing", "code"), [("", 0), ("\ndef test_three(): assert False\n", 1)])
def test_a_run_is_recorded_with_date_commit_and_counts(failing, code, tmp_path):
    suite = tmp_path / "test_small.py"
    suite.write_text(PASSING + failing)
    path = tmp_path / "record.json"
    assert release_tests.main(["--record", str(path), "-n", "0", str(suite)]) == code
    record = json.loads(path.read_text())
    assert record["exit_code"] == record["failures"] == code
    assert record["tests"] == 2 + code
    assert record["errors"] == record["skipped"] == 0
    assert record["seconds"] >= 0
    assert len(record["commit"]) == 40
    assert {"date", "uncommitted_changes", "python", "packages", "cores"} < record.keys()


def test_a_run_that_never_starts_does_not_change_the_record(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("the last one")
    assert release_tests.main(["--record", str(path), "--no-such-flag"]) == 4
    assert path.read_text() == "the last one"
