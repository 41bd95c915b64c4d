"""Compiles the Triton kernels for an H100, in a separate process, because this one interprets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROGRAM = """
import json, re, torch
from triton_ref.compile import compiled, ptxas_log

report = {}
for kernel in ("forward", "dq", "dkv", "rope"):
    for head_dim in (64, 128):
        code = compiled(kernel, head_dim, torch.bfloat16)
        log = ptxas_log(code)
        report[f"{kernel} {head_dim}"] = {
            "wgmma": len(re.findall(r"wgmma\\.mma_async", code.asm["ptx"])),
            "spills": [int(n) for n in re.findall(r"(\\d+) bytes spill", log)],
            "serialized": "serialized" in log,
            "vectors": re.findall(r"(?:ld|st)\\.global\\.v\\S*", code.asm["ptx"]),
        }
        assert len(code.asm["cubin"]) > 0
code = compiled("dkv", 128, torch.float32, window=True, segments=True, soft_cap=30.0, lse_cotangent=True)
report["float32 dkv 128"] = {"tf32": "tf32" in code.asm["ptx"]}
try:
    compiled("backward", 64, torch.bfloat16)
except ValueError as error:
    report["refusal"] = str(error)
print(json.dumps(report))
"""


def run(**variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    return subprocess.run(command, cwd=REPOSITORY, env=environment | variables, capture_output=True, text=True)


@pytest.fixture(scope="module")
def report():
    result = run()
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kernel", ["forward", "dq", "dkv"])
def test_attention_uses_hoppers_tensor_cores_without_spills(report, kernel, head_dim):
    figures = report[f"{kernel} {head_dim}"]
    assert figures["wgmma"] > 0
    assert figures["spills"]
    assert not any(figures["spills"])
    assert not figures["serialized"]


def test_rope_moves_16_bytes_at_a_time(report):
    vectors = report["rope 128"]["vectors"]
    assert set(vectors) == {"ld.global.v4.b32", "st.global.v4.b32"}
    assert not any(report["rope 128"]["spills"])


def test_float32_is_not_rounded_to_tf32(report):
    assert not report["float32 dkv 128"]["tf32"]


def test_an_unknown_kernel_is_refused(report):
    assert report["refusal"] == "compiled: kernel 'backward' is unknown; use one of forward, dq, dkv, rope"


def test_interpreting_is_refused():
    result = run(TRITON_INTERPRET="1")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("ValueError: compiled: TRITON_INTERPRET is set; unset it")
