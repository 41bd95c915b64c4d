"""lcjax.plan.compiling.buffers: names and origins of the arrays that are alive at the peak."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lcjax
from lcjax.plan.compiling.buffers import largest_buffers
from tests.support.tiny_model import TOKENS, compiled

EVERYTHING = 10_000


def lines_of(path: Path, qualified_name: str) -> range:
    """The line numbers of a function with that qualified name."""
    tree: ast.AST = ast.parse(path.read_text(encoding="utf-8"))
    for name in qualified_name.split("."):
        [tree] = [node for node in ast.walk(tree) if getattr(node, "name", None) == name]
    assert isinstance(tree, ast.FunctionDef)
    return range(tree.lineno, (tree.end_lineno or 0) + 1)


def buffers(policy: str):
    step = compiled(policy)
    return largest_buffers(step.live_ranges, step.program, EVERYTHING)


@pytest.mark.parametrize("policy", ["full", "offload"])
def test_every_source_is_a_line_of_its_function(policy):
    found = [buffer.source for buffer in buffers(policy) if buffer.source.startswith("lcjax/")]
    assert any(source.startswith("lcjax/model/") for source in found)
    for source in found:
        path, line, function = re.fullmatch(r"(.+\.py):(\d+) ([\w.<>]+)", source).groups()
        assert int(line) in lines_of(Path(lcjax.__file__).parents[1] / path, function)


def test_the_saved_inputs_are_where_the_policy_puts_them():
    """One array [L, B, T, D] from the scan over layers.

    It is in host memory under `offload` and on the device under `full`.
    """
    for policy, on_host in (("full", False), ("offload", True)):
        [saved] = [buffer for buffer in buffers(policy) if buffer.shape == f"bf16[3,1,{TOKENS},128]"]
        assert (saved.bytes, saved.on_host) == (3 * TOKENS * 128 * 2, on_host)
        assert saved.source.startswith("lcjax/")


def test_arguments_have_the_names_of_the_tree():
    named = {buffer.name: buffer for buffer in buffers("offload")}
    assert named["embed_tokens.weight"].bytes == 1000 * 128 * 2
    assert named["layers.mlp.down_proj.weight"].shape == "bf16[3,128,384]"
    assert named["layers.mlp.down_proj.lora_A"].shape == "f32[3,8,384]"
    assert {"layers.mlp.down_proj.lora_A (mu)", "tokens", "labels"} <= set(named)


def test_all_frozen_weights_are_listed():
    weights = [buffer.bytes for buffer in buffers("offload") if buffer.name.endswith("weight")]
    assert sum(weights) == compiled("offload").memory.weights_bytes


def test_only_the_largest_are_named():
    step = compiled("offload")
    assert largest_buffers(step.live_ranges, step.program, 5) == buffers("offload")[:5]


def test_the_kernels_are_counted():
    """The backward pass recomputes the layer, except for what the policy saves.

    RoPE also has a backward pass of its own, so it runs three times.
    """
    once = {"attention_dq": 1, "attention_dkv": 1, "rope": 3}
    assert compiled("offload").program.kernels() == {**once, "attention_forward": 2}
    assert compiled("offload_attn").program.kernels() == {**once, "attention_forward": 1}
