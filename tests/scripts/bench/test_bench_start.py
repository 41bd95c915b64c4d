"""The script runs a command twice and reports when its lines and its first step came."""

import csv

from bench_start import FIRST_STEP, main


def test_two_starts(model_dir, data_dir, tmp_path, capsys):
    raw = tmp_path / "raw.csv"
    flags = ["--model", str(model_dir), "--data", str(data_dir), "--max-seq-length", "48", "--runs", "2"]
    assert main([*flags, "--csv", str(raw)]) == 0
    assert capsys.readouterr().out.count(f"{FIRST_STEP} (") == 2
    rows = list(csv.DictReader(raw.read_text().splitlines()))
    for run in ("1", "2"):
        times = [float(row["seconds"]) for row in rows if row["run"] == run]
        assert times == sorted(times)
    [documents] = [row["line"] for row in rows if row["run"] == "2" and "documents, " in row["line"]]
    assert "read from the cache" in documents


def test_a_run_that_fails_is_reported(tmp_path, capsys):
    assert main(["--model", str(tmp_path / "none"), "--data", str(tmp_path)]) == 2
    assert "the run ended before its first step" in capsys.readouterr().err
