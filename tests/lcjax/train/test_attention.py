"""Training with another implementation of attention gives the same losses."""

from __future__ import annotations

import numpy as np

from lcjax.report.records import read_rows
from lcjax.train.__main__ import main


def test_pallas_trains_as_xla_does(short, finished, tmp_path, capsys):
    assert main([*short, "--attention", "pallas", "--output-dir", str(tmp_path / "run")]) == 0
    assert "attention pallas" in capsys.readouterr().err
    rows, xla_rows = (read_rows(run / "metrics.jsonl") for run in (tmp_path / "run", finished))
    losses, xla_losses = ([row["loss"] for row in each if "loss" in row] for each in (rows, xla_rows))
    assert len(losses) == 4
    # Four float32 steps differ by the rounding of sums. A wrong mask or scale changes the third
    # digit.
    np.testing.assert_allclose(losses, xla_losses, rtol=1e-5)
