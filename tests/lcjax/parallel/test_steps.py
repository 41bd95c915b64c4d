"""Twenty steps of AdamW on eight devices are those of one: every weight, an adapter and NF4.

The eight devices belong to one process, or to two with four each.
"""

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
from tests.support.several_processes import free_port
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
    arguments = [
        [*common, *kind_flags, *size_flags, "--output-dir", str(folder / kind / str(size))]
        for kind, kind_flags in KINDS.items()
        if kind in wanted
        for size, size_flags in SIZES.items()
    ]
    process = _start(arguments, DEVICES)
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    assert errors.count(f"{DEVICES} devices: 2 data x 4 context") == len(wanted)
    idle = "7 of the 8 devices stay idle; to use all, omit --context-parallel-size 1 and --data-parallel-size 1\n"
    assert errors.count(idle) == len(wanted)
    return folder


# That of NF4 trains an adapter, too.
@pytest.mark.parametrize("kind", thinned(KINDS, lambda kind: kind != "adapter"))
def test_twenty_steps(kind, runs):
    _require_the_same(runs / kind / str(DEVICES), runs / kind / "1")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_with_four_devices_each(kind, runs, data_dir, tmp_path):
    common = ["--model", str(runs / "model"), "--data", str(data_dir), *RUN, *KINDS[kind]]
    cluster = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2", "--process-id"]
    both = [_start([[*common, "--output-dir", str(tmp_path), *cluster, str(n)]], DEVICES // 2) for n in range(2)]
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]
    _require_the_same(tmp_path, runs / kind / "1")


def _start(runs: list[list[str]], devices: int) -> subprocess.Popen[str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(runs)],
        env={**os.environ, "XLA_FLAGS": flags},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _require_the_same(run: Path, expected: Path) -> None:
    rows, expected_rows = _metrics(run), _metrics(expected)
    for name in ("loss", "grad_norm"):
        assert len(rows) == STEPS
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in expected_rows], rel=3e-5)
    weights = _weights(run)
    largest = max(np.abs(weights[name] - x).max() for name, x in _weights(expected).items())
    # AdamW divides by the gradient's size, so a gradient of nearly 0 may move a weight either way.
    assert largest < 0.05 * STEPS * RATE


def _metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _weights(run: Path) -> dict[str, np.ndarray]:
    [path] = [*run.glob("adapter/*.safetensors"), *run.glob("model/*.safetensors")]
    return load_file(path)
