"""A run on a mixture of completions, a parquet file and a repository: output and exact resume."""

from __future__ import annotations

import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from lcjax.train.__main__ import main
from tests.support.processes import records

FLAGS = "--documents repository --data-weights 2 1 1 --max-seq-length 48 --max-steps 4 --save-steps 2 --eval-fraction 0.1".split()


@pytest.fixture(scope="module")
def paths(texts, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("mixed")
    pairs = [{"prompt": text[:40], "completion": text[40:]} for text in texts[:10]]
    (folder / "pairs.jsonl").write_text("\n".join([*map(json.dumps, pairs), "torn"]))
    parquet.write_table(pyarrow.Table.from_pylist([{"text": text} for text in texts[10:20]]), folder / "rows.parquet")
    for name in "abc":
        (folder / "code" / name / ".git").mkdir(parents=True)
        (folder / "code" / name / f"{name}.py").write_text(texts[20])
    return [str(folder / name) for name in ("pairs.jsonl", "rows.parquet", "code")]


def test_a_mixture_trains_and_resumes_exactly(model_dir, paths, tmp_path, capsys):
    run, resumed = str(tmp_path / "run"), str(tmp_path / "resumed")
    assert main(["--model", str(model_dir), "--data", *paths, *FLAGS, "--output-dir", run]) == 0
    said = capsys.readouterr().err
    assert f"warning: skipped 1 bad records of 11 of {paths[0]}: {paths[0]}:11 is not JSON" in said
    assert "23 documents, " in said
    assert "the loss is on " in said
    for path, share in zip(paths, ("50.0%", "25.0%", "25.0%"), strict=True):
        assert f"{path}: {share} of the tokens, " in said
    assert main(["--resume-from-checkpoint", f"{run}/checkpoints/2", "--output-dir", resumed]) == 0
    assert records(tmp_path / "resumed") == records(tmp_path / "run")
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert np.all(np.isfinite([step["loss"] for step in steps]))


def test_other_weights_are_another_run(model_dir, paths, tmp_path, capsys):
    run = str(tmp_path / "run")
    flags = [*FLAGS, "--max-steps", "1", "--save-steps", "1"]
    assert main(["--model", str(model_dir), "--data", *paths, *flags, "--output-dir", run]) == 0
    assert main(["--output-dir", run, "--resume-from-checkpoint", "latest", "--data-weights", "1", "2", "1"]) == 2
    assert "the data was different" in capsys.readouterr().err.splitlines()[-1]
    assert main(["--model", str(model_dir), "--data", *paths, "--data-weights", "1", "2"]) == 2
    assert "error: --data-weights has 2 weights for 3 paths of --data" in capsys.readouterr().err
