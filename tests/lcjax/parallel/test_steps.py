"""Twenty steps of AdamW on eight devices are those of one: every weight, an adapter and NF4."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.mesh_runs import DEVICES
from tests.support.thin import thinned
from tests.support.tiny_llama import save_tiny_llama

RATE, STEPS = 1e-3, 20
RUN = (
    f"--max-seq-length 64 --max-steps {STEPS} --eval-fraction 0 --save-steps {STEPS} --gradient-accumulation-steps 2 "
    f"--learning-rate {RATE} --lr-scheduler-type constant --max-grad-norm 0.5 --skip-leak-check"
).split()
KINDS = {
    "adapter": ["--lora-r", "4"],
    "every weight": ["--full-finetuning"],
    "nf4, weights cut": ["--quantize", "nf4", "--lora-r", "4", "--shard-weights", "layers"],
}
SIZES = {1: ["--context-parallel-size", "1", "--data-parallel-size", "1"], DEVICES: []}
# One process for all runs: JAX fixes the number of CPU devices when it starts.
PROGRAM = """
import json, sys
from lcjax.train.__main__ import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    assert code == 0, (code, arguments)
"""


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory, texts, data_dir) -> Path:
    """The folder of the selected runs, each in a folder `KIND/DEVICES`.

    Eight devices can share the rows of the model's matrices and its vocabulary.
    """
    folder = tmp_path_factory.mktemp("runs")
    wanted = {item.callspec.params["kind"] for item in request.session.items if item.path == request.path}
    fields = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8}
    save_tiny_llama(folder / "model", texts, **fields, num_key_value_heads=4)
    common = ["--model", str(folder / "model"), "--data", str(data_dir), *RUN]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    arguments = [
        [*common, *kind_flags, *size_flags, "--output-dir", str(folder / kind / str(size))]
        for kind, kind_flags in KINDS.items()
        if kind in wanted
        for size, size_flags in SIZES.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(arguments)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count(f"{DEVICES} devices: 2 data x 4 context") == len(wanted)
    idle = "7 of the 8 devices stay idle; to use them, omit --context-parallel-size 1 and --data-parallel-size 1\n"
    assert done.stderr.count(idle) == len(wanted)
    return folder


# That of NF4 trains an adapter, too.
@pytest.mark.parametrize("kind", thinned(KINDS, lambda kind: kind != "adapter"))
def test_twenty_steps(kind, runs):
    rows = {size: _metrics(runs / kind / str(size)) for size in SIZES}
    for name in ("loss", "grad_norm"):
        found, expected = ([row[name] for row in rows[size]] for size in (DEVICES, 1))
        assert len(found) == STEPS
        assert found == pytest.approx(expected, rel=3e-5)
    weights = {size: _weights(runs / kind / str(size)) for size in SIZES}
    largest = max(np.abs(weights[DEVICES][name] - x).max() for name, x in weights[1].items())
    # AdamW divides by the gradient's size, so a gradient of nearly 0 may move a weight either way.
    assert largest < 0.05 * STEPS * RATE


def _metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _weights(run: Path) -> dict[str, np.ndarray]:
    [path] = [*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")]
    return load_file(path)
