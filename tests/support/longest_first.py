"""The test files that take longest, in the order in which workers of pytest-xdist get them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

# From about 60 to 20 seconds of CPU time. The order decides only how long the last worker is alone.
LONGEST = """
tests/lcjax/parallel/test_processes.py
tests/lcjax/train/test_fit.py
tests/lcjax/train/test_resume.py
tests/triton_ref/test_triton_attention.py
tests/lcjax/plan/test_offload.py
tests/lcjax/ops/test_implementations.py
tests/scripts/verify/test_parity.py
tests/docs/test_documents.py
tests/lcjax/pallas/test_mods.py
tests/lcjax/train/test_data_first.py
tests/scripts/codegen/test_codegen.py
tests/lcjax/test_api.py
tests/lcjax/train/test_run_record.py
tests/lcjax/train/test_programs.py
tests/lcjax/plan/test_plan_command.py
tests/lcjax/train/test_attention.py
tests/lcjax/pallas/test_pallas_rope.py
tests/lcjax/parallel/test_meshes.py
tests/lcjax/plan/test_several_gpus.py
tests/lcjax/parallel/test_steps.py
tests/lcjax/model/test_model.py
tests/lcjax/train/test_divergence.py
tests/lcjax/ops/cross_entropy/test_linear_cross_entropy.py
tests/lcjax/memory/test_layers.py
tests/lcjax/plan/test_buffers.py
tests/lcjax/train/test_full_disk.py
tests/lcjax/model/test_toy_family.py
tests/lcjax/optim/test_layerwise.py
tests/lcjax/memory/test_checkpoint_policies.py
tests/lcjax/train/test_checkpoint.py
tests/lcjax/train/test_bad_input.py
""".split()


def place_of(path: Path) -> int:
    """The place of a test file in the order: the longest ones first, and then all others."""
    name = path.relative_to(ROOT).as_posix()
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)
