"""Peak memory: loading needs the model and less than two tensors; saving, less than two tensors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lcjax.config import LlamaConfig
from lcjax.weights.hf import write_checkpoint
from tests.support.thin import thinned

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """About 400 MB of random float32 weights in files of 100 MB."""
    directory = tmp_path_factory.mktemp("sharded")
    config = LlamaConfig(
        vocab_size=30_000,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=3,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
    )
    generator = np.random.default_rng(0)
    write_checkpoint(
        directory,
        lambda name: generator.random(name.shape, np.float32),
        config,
        None,
        dtype=np.dtype(np.float32),
        max_shard_bytes=10**8,
    )
    assert len(list(directory.glob("*.safetensors"))) >= 4
    return directory


def measure(path: Path, dtype: str, *saved_or_quantize: Path | str) -> dict[str, int]:
    script = Path(__file__).parents[2] / "support" / "peak_memory.py"
    command = [sys.executable, script, path, dtype, *saved_or_quantize]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def check_load(peak: dict[str, int], extra: int) -> None:
    """Loading needed the model and less than `extra` bytes.

    The lower bound only proves that the measurement sees the model. It leaves 5% because the kernel
    counts resident memory (VmHWM, VmRSS) for each CPU and sums late, which proc(5) calls
    inaccurate, and because the model can reuse pages that were freed before.
    """
    assert 0.95 * peak["model"] < peak["load"] < peak["model"] + extra


@pytest.mark.parametrize("dtype", thinned(["float32", "bfloat16"], lambda dtype: dtype == "bfloat16"))
def test_sharded_hugging_face_checkpoint(sharded, dtype, tmp_path):
    peak = measure(sharded, dtype, tmp_path / "saved")
    assert peak["model"] > (300 if dtype == "float32" else 150) * 10**6
    check_load(peak, 2 * peak["tensor"])
    assert peak["save"] < 2 * peak["tensor"]


@pytest.mark.parametrize("dtype", thinned(["float32", "bfloat16"], lambda dtype: dtype == "bfloat16"))
def test_gguf(smollm2, dtype, tmp_path):
    peak = measure(smollm2, dtype, tmp_path / "saved")
    check_load(peak, 2 * peak["tensor"])
    assert peak["save"] < 2 * peak["tensor"]


def test_quantized_while_loading(sharded):
    """Neither the bfloat16 model nor a bfloat16 stack of its layers ever exists."""
    peak = measure(sharded, "bfloat16", "--quantize", "nf4")
    check_load(peak, 2 * peak["linear"])


def test_gguf_quantized_while_loading(smollm2):
    peak = measure(smollm2, "bfloat16", "--quantize", "nf4")
    check_load(peak, peak["tensor"])
