"""The tiny model as a file, and a substitute for the compiler."""

from __future__ import annotations

import json

import pytest

from lcjax.plan.compiling import figures
from lcjax.plan.compiling.compile import CompiledStep
from lcjax.plan.compiling.hlo import Program
from lcjax.plan.compiling.memory import Memory
from lcjax.plan.workload import Workload
from tests.support.tiny_model import TINY


@pytest.fixture
def tiny_json(tmp_path) -> str:
    """The path of the tiny model's config.json."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY.to_dict()))
    return str(path)


@pytest.fixture(autouse=True)
def _empty_cache(empty_cache):
    """For every test here."""


@pytest.fixture
def compilations(monkeypatch) -> list[tuple[str, int]]:
    """Replaces the compiler by a model of memory that is linear in tokens.

    Returns the (gpu, tokens) of each compilation so far.
    """
    calls: list[tuple[str, int]] = []

    def compile_line(workload: Workload, settings) -> CompiledStep:
        tokens = settings.max_seq_length
        policy = settings.form.policy
        calls.append((workload.gpu, tokens))
        weights = 4_000_000_000 if workload.quantize else 16_000_000_000
        a_token = {"none": 2_000_000, "full": 400_000}.get(policy, 200_000)
        host = 0 if policy in ("none", "full") else 262_144 * tokens
        memory = Memory(weights, 0, weights, a_token * tokens, 0, host)
        return CompiledStep(memory, Program(""), "")

    monkeypatch.setattr(figures, "compile_step", compile_line)
    return calls
