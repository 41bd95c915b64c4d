"""Training with another implementation of attention gives the same losses."""

from __future__ import annotations

import numpy as np

from lcjax.train.reporting.metrics import read_rows
from tests.support.processes import finish, start


def test_pallas_trains_as_xla_does(short, finished, cache, tmp_path):
    code, output = finish(start([*short, "--attention", "pallas", "--output-dir", "run"], tmp_path, cache))
    assert code == 0, output
    assert "attention pallas" in output
    rows, xla_rows = (read_rows(run / "metrics.jsonl") for run in (tmp_path / "run", finished))
    losses, xla_losses = ([row["loss"] for row in each if "loss" in row] for each in (rows, xla_rows))
    assert len(losses) == 4
    # Four float32 steps differ by the rounding of sums. A wrong mask or scale changes the third
    # digit.
    np.testing.assert_allclose(losses, xla_losses, rtol=1e-5)
