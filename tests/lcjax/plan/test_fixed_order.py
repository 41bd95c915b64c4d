"""A GPU's step computes every sum in a fixed order.

With atomic additions, the last bits would differ from run to run.
"""

from __future__ import annotations

import pytest

from lcjax.plan.compiling.compile import CompiledStep
from lcjax.step import update
from tests.support.thin import thinned
from tests.support.tiny_model import compiled


def scatters(step: CompiledStep) -> list[str]:
    """The attributes of all scatter instructions in a step that is compiled for a GPU."""
    return [call.attributes for call in step.program.instructions.values() if call.opcode == "scatter"]


def test_the_gradient_of_an_embedding_adds_to_each_row_once():
    found = scatters(compiled("full", lora_r=0))
    assert found
    assert all("unique_indices=true" in scatter for scatter in found)


def test_without_the_option_rows_are_added_to_in_any_order(monkeypatch):
    monkeypatch.setattr(update, "IN_FIXED_ORDER", {})
    assert any("unique_indices=true" not in scatter for scatter in scatters(compiled.__wrapped__("full", lora_r=0)))


@pytest.mark.parametrize("policy", thinned(["none", "offload_attn"], lambda policy: policy == "offload_attn"))
def test_the_step_of_an_adapter_has_no_scatter(policy):
    assert scatters(compiled(policy)) == []
