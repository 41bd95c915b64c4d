"""The test files that take longest, in the order in which workers of pytest-xdist get them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

# From about 70 to 20 seconds of CPU time. The order decides only how long the last worker is alone.
LONGEST = """
tests/scripts/verify/test_parity.py
tests/triton_ref/test_triton_attention.py
tests/lcjax/train/test_resume.py
tests/scripts/codegen/test_codegen.py
tests/lcjax/ops/test_implementations.py
tests/docs/test_documents.py
tests/lcjax/model/test_model.py
tests/lcjax/memory/test_layers.py
tests/lcjax/pallas/test_mods.py
tests/lcjax/plan/test_plan_command.py
tests/lcjax/train/test_fit.py
tests/lcjax/plan/test_offload.py
tests/lcjax/plan/test_tuner.py
tests/lcjax/optim/test_layerwise.py
tests/lcjax/memory/test_compiled_memory.py
tests/lcjax/train/test_full_disk.py
tests/lcjax/pallas/test_compiled_step.py
tests/lcjax/pallas/test_block_sizes.py
tests/lcjax/convert/test_convert.py
tests/lcjax/model/test_toy_family.py
tests/lcjax/memory/test_checkpoint_policies.py
tests/lcjax/memory/test_embeddings.py
tests/lcjax/train/test_bad_input.py
tests/lcjax/ops/cross_entropy/test_linear_cross_entropy.py
tests/lcjax/pallas/test_pallas_rope.py
tests/lcjax/train/test_run_record.py
tests/lcjax/step/test_step.py
""".split()


def place_of(path: Path) -> int:
    """The place of a test file in the order: the longest ones first, and then all others."""
    name = path.relative_to(ROOT).as_posix()
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)
