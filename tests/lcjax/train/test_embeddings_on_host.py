"""A run with its embedding in host memory has the same losses as one without."""

from __future__ import annotations

import numpy as np

from lcjax.report.records import read_rows
from lcjax.train.__main__ import main


def test_it_trains_as_without(short, finished, tmp_path):
    flags = "--use-gradient-checkpointing offload --memory tile=16,embeddings_on_host=true".split()
    assert main([*short, *flags, "--output-dir", str(tmp_path / "run")]) == 0
    for name, key in (("metrics", "loss"), ("evaluation", "eval_loss")):
        rows, plain_rows = (read_rows(run / f"{name}.jsonl") for run in (tmp_path / "run", finished))
        losses, plain = ([row[key] for row in each if key in row] for each in (rows, plain_rows))
        assert len(losses) > 2
        # Tiles sum in another order.
        np.testing.assert_allclose(losses, plain, rtol=1e-5)
