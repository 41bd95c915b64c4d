"""The rows of metrics.jsonl: time, memory, tokens, and the share of the GPU's peak."""

from __future__ import annotations

import types

import numpy as np
import pytest

from lcjax.config import LoraConfig
from lcjax.model import ModelSettings
from lcjax.plan.choosing.flops import PEAK_BF16_TFLOPS, step_flops
from lcjax.plan.compiling.aot import gpu_names, gpu_of_kind
from lcjax.report.records import read_rows
from lcjax.train.reporting.measuring import MEASURED, batch_flops, memory, peak_flops, piece_lengths, resident_bytes
from tests.support.tiny_model import TINY


def test_the_rows_of_a_run(finished):
    rows = read_rows(finished / "metrics.jsonl")
    seen = np.cumsum([row["tokens"] for row in rows])
    assert [row["num_input_tokens_seen"] for row in rows] == seen.tolist()
    assert all(row["seconds"] > 0 for row in rows)
    elapsed = [row["elapsed_seconds"] for row in rows]
    assert elapsed == sorted(elapsed)
    # Evaluations and checkpoints take time, too.
    assert elapsed[-1] > sum(row["seconds"] for row in rows)
    assert rows[3]["epoch"] == pytest.approx(4 * rows[0]["epoch"], abs=1e-5)
    assert all(row["host_memory_bytes"] > 2**26 for row in rows)
    assert not {"mfu", "device_memory_bytes", "device_memory_peak_bytes"} & rows[0].keys()
    assert rows[0].keys() - set(MEASURED) == {
        "step", "loss", "grad_norm", "learning_rate", "tokens", "epoch", "num_input_tokens_seen",
    }  # fmt: skip


def test_every_gpu_of_the_table_is_known_by_its_kind():
    assert gpu_of_kind("NVIDIA H100 80GB HBM3") == "h100-80gb"
    assert gpu_of_kind("NVIDIA RTX PRO 6000 Blackwell Server Edition") == "rtx-pro-6000"
    for kind in ("cpu", "NVIDIA H100 PCIe", "NVIDIA H200 NVL", "NVIDIA A100", "NVIDIA L4"):
        assert gpu_of_kind(kind) is None
    assert set(gpu_names()) == PEAK_BF16_TFLOPS.keys()
    assert peak_flops(types.SimpleNamespace(device_kind="NVIDIA H200"), 2) == 2 * 989.4e12  # pyright: ignore
    assert peak_flops(types.SimpleNamespace(device_kind="cpu"), 2) is None  # pyright: ignore


def test_the_flops_of_a_step_are_those_of_its_pieces():
    segment_ids = np.array([[[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]])
    assert piece_lengths(segment_ids).tolist() == [3, 2, 6, 1]
    for lora in (None, LoraConfig(4, target_modules=("q_proj", "v_proj"))):
        model = types.SimpleNamespace(config=TINY, settings=ModelSettings(6, lora=lora))
        rank, targets = (4, lora.target_modules) if lora else (0, None)
        expected = sum(step_flops(TINY, tokens, rank, targets).total for tokens in (3, 2, 6, 1))
        assert batch_flops(model, {"segment_ids": segment_ids}) == expected  # pyright: ignore
        assert expected < step_flops(TINY, 12, rank, targets).total


def test_memory_is_that_which_is_reported():
    host = resident_bytes()
    assert host is not None
    found = memory({"bytes_in_use": 5, "peak_bytes_in_use": 7, "bytes_limit": 9})
    assert (found["device_memory_bytes"], found["device_memory_peak_bytes"]) == (5, 7)
    assert memory(None).keys() == memory({}).keys() == {"host_memory_bytes"}
    assert abs(found["host_memory_bytes"] - host) < 2**30
