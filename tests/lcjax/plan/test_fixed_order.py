"""A GPU's step takes every sum in a fixed order: what atomic additions would do differs from run to run in the last bits."""

from __future__ import annotations

import pytest

from lcjax.plan.choosing.settings import requested_settings
from lcjax.plan.compiling.compile import compile_step
from lcjax.plan.workload import Workload
from lcjax.step import update
from tests.support.thin import thinned
from tests.support.tiny_model import TINY, TOKENS


def scatters(lora_r: int, policy: str) -> list[str]:
    """The scatters of a step that is compiled for a GPU, with their attributes."""
    workload = Workload("tiny", TINY, "h100-80gb", lora_r, None, policy)
    program = compile_step(workload, requested_settings(workload, TOKENS)).program
    return [call.attributes for call in program.instructions.values() if call.opcode == "scatter"]


def test_an_embedding_s_gradient_adds_to_each_row_once():
    found = scatters(0, "none")
    assert found
    assert all("unique_indices=true" in scatter for scatter in found)


def test_without_the_option_rows_are_added_to_at_any_time(monkeypatch):
    monkeypatch.setattr(update, "IN_FIXED_ORDER", {})
    assert any("unique_indices=true" not in scatter for scatter in scatters(0, "none"))


@pytest.mark.parametrize("policy", thinned(["none", "offload_attn"], lambda policy: policy == "offload_attn"))
def test_an_adapter_s_step_has_no_sum_by_token(policy):
    assert scatters(8, policy) == []
