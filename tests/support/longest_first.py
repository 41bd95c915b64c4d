"""The test files that take longest, in the order in which workers of pytest-xdist get them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

# From about 60 to 10 seconds of CPU time. The order decides only how long the last worker is alone.
LONGEST = """
tests/lcjax/parallel/test_processes.py
tests/lcjax/train/test_fit.py
tests/lcjax/model/test_families.py
tests/scripts/codegen/test_codegen.py
tests/scripts/verify/test_parity.py
tests/lcjax/model/test_model.py
tests/docs/test_documents.py
tests/lcjax/plan/test_plan_command.py
tests/lcjax/ops/test_implementations.py
tests/lcjax/memory/test_compiled_memory.py
tests/lcjax/parallel/test_meshes.py
tests/triton_ref/test_triton_attention.py
tests/lcjax/memory/test_layers.py
tests/lcjax/optim/test_layerwise.py
tests/lcjax/plan/test_several_gpus.py
tests/lcjax/pallas/test_compiled_step.py
tests/lcjax/train/test_resume.py
tests/lcjax/plan/test_offload.py
tests/lcjax/model/test_quantized_model.py
tests/lcjax/model/test_sinks.py
tests/lcjax/pallas/test_mods.py
tests/lcjax/parallel/test_steps.py
tests/lcjax/pallas/test_block_sizes.py
tests/lcjax/step/test_step.py
tests/lcjax/weights/test_mxfp4.py
tests/lcjax/weights/test_peak_memory.py
tests/lcjax/train/test_programs.py
tests/lcjax/model/test_toy_family.py
tests/scripts/bench/test_bench_kernels.py
tests/lcjax/ops/grouped/test_compiled_grouped.py
tests/lcjax/weights/test_rope_export.py
tests/lcjax/parallel/test_experts.py
tests/lcjax/generate/test_on_devices.py
tests/lcjax/plan/test_tuner.py
tests/lcjax/weights/test_tokenizer.py
tests/lcjax/plan/test_fixed_order.py
tests/lcjax/model/test_rotation.py
tests/lcjax/plan/test_memory.py
tests/lcjax/memory/test_embeddings.py
""".split()


def place_of(path: Path) -> int:
    """The place of a test file in the order: the longest ones first, and then all others."""
    name = path.relative_to(ROOT).as_posix()
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)
