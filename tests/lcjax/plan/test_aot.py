"""lcjax.plan.compiling.aot: machine code and exact memory figures for absent GPUs."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from lcjax import ops
from lcjax.errors import InputError
from lcjax.plan.compiling.aot import (
    abstract,
    compile_lowered,
    gpu_memory_bytes,
    gpu_names,
    gpu_sharding,
    lowering_for,
)
from tests.support.hlos import Program, aliases

ARCHITECTURES = {
    "a100-40gb": "8.0",
    "a100-80gb": "8.0",
    "b200": "10.0",
    "h100-80gb": "9.0",
    "h200": "9.0",
    "l40s": "8.9",
    "rtx-pro-6000": "12.0",
    "rtx3090": "8.6",
    "rtx4090": "8.9",
}
GIB = {
    "a100-40gb": 39,
    "a100-80gb": 79,
    "b200": 178,
    "h100-80gb": 79,
    "h200": 139,
    "l40s": 44,
    "rtx-pro-6000": 94,
    "rtx3090": 23,
    "rtx4090": 23,
}


def test_every_gpu_is_tested():
    assert gpu_names() == tuple(ARCHITECTURES)


@pytest.mark.parametrize("gpu", ARCHITECTURES)
def test_compiles_for(gpu, tmp_path):
    sharding = gpu_sharding(gpu)
    [device] = sharding.device_set
    assert device.platform == "gpu"
    assert device.compute_capability == ARCHITECTURES[gpu]
    x = abstract(jnp.zeros((1000, 3), jnp.bfloat16), sharding)
    lowered = jax.jit(lambda x: x.astype(jnp.float32).T @ x).lower(x)
    compiled = compile_lowered(lowered, {"xla_dump_to": str(tmp_path)})
    memory = compiled.memory_analysis()
    assert (memory.argument_size_in_bytes, memory.output_size_in_bytes) == (1000 * 3 * 2, 3 * 3 * 4)
    [target] = tmp_path.glob("*gpu_target_config.pbtxt")
    [size] = [line.split()[1] for line in target.read_text().splitlines() if "device_memory_size" in line]
    assert int(size) == gpu_memory_bytes(gpu)
    assert gpu_memory_bytes(gpu) >> 30 == GIB[gpu]


def test_products_without_blocks_are_compiled_by_cublas(monkeypatch):
    """The first compilation fails as XLA's does on some machines; the second one is real."""
    compile_once = jax.stages.Lowered.compile

    def without_triton_alone(lowered, compiler_options=None):
        if (compiler_options or {}).get("xla_gpu_enable_triton_gemm", True):
            raise jax.errors.JaxRuntimeError("No supported config found for HLO: %gemm_fusion_dot")
        return compile_once(lowered, compiler_options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", without_triton_alone)
    x = abstract(jnp.zeros((256, 256), jnp.bfloat16), gpu_sharding("h100-80gb"))
    assert "cublas" in (compile_lowered(jax.jit(lambda x: x @ x.T).lower(x)).as_text() or "")


def test_other_faults_of_the_compiler_are_reported():
    x = abstract(jnp.zeros((8, 8)), gpu_sharding("h100-80gb"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        compile_lowered(jax.jit(lambda x: x + 1).lower(x), {"xla_no_such_option": True})


def test_abstract_keeps_shapes_and_dtypes():
    sharding = gpu_sharding("h100-80gb")
    tree = {"a": jnp.zeros((2, 3), jnp.int8), "b": [jax.ShapeDtypeStruct((), jnp.bfloat16)]}
    placed = abstract(tree, sharding)
    assert placed == {
        "a": jax.ShapeDtypeStruct((2, 3), jnp.int8, sharding=sharding),
        "b": [jax.ShapeDtypeStruct((), jnp.bfloat16, sharding=sharding)],
    }


def test_an_argument_in_host_memory_is_typed_and_counted_there():
    sharding = gpu_sharding("h100-80gb")
    on_host = sharding.with_memory_kind("pinned_host")
    assert (sharding.memory_kind, on_host.memory_kind) == ("device", "pinned_host")
    assert sharding == on_host.with_memory_kind("device") != on_host
    assert len({sharding, on_host, on_host.with_memory_kind("device")}) == 2
    arguments = [jax.ShapeDtypeStruct((1000, 3), "float32", sharding=place) for place in (sharding, on_host)]

    def sum_of_both(here, there):
        return here + jax.device_put(there, jax.memory.Space.Device)

    memory = compile_lowered(jax.jit(sum_of_both).lower(*arguments)).memory_analysis()
    assert memory.argument_size_in_bytes == memory.host_argument_size_in_bytes == 1000 * 3 * 4
    with pytest.raises(ValueError, match="memory_space"):
        jax.jit(lambda here, there: here + there).lower(*arguments)


def test_the_cpu_stays_the_default():
    gpu_sharding("h100-80gb")
    assert {device.platform for device in jax.devices()} == {"cpu"}
    assert float(jnp.ones(3).sum()) == 3


def test_a_folder_of_compiled_programs_is_left_alone(tmp_path):
    """JAX could write such a program to its cache, but not load it from there."""
    compilation_cache.reset_cache()
    options = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compile_lowered(
            jax.jit(jnp.sin).lower(abstract(jax.ShapeDtypeStruct((3,), jnp.float32), gpu_sharding("h100-80gb")))
        )
        assert list(tmp_path.iterdir()) == []
        assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
        jax.jit(jnp.cos).lower(jnp.ones(3)).compile()
        assert list(tmp_path.iterdir()) != []
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_several_gpus_of_several_hosts():
    sharding = gpu_sharding("h100-80gb", gpus=4, hosts=2)
    assert len(sharding.device_set) == 8
    assert sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("name", "nearest"), [("h100", "h100-80gb"), ("H200", "h200"), ("rtx", "rtx-pro-6000 or rtx3090 or rtx4090")]
)
def test_an_unknown_gpu_is_refused(name, nearest):
    message = rf"^gpu='{name}' is unknown; did you mean {nearest}\? use one of a100-40gb, .*, rtx4090$"
    for function in (gpu_sharding, gpu_memory_bytes):
        with pytest.raises(InputError, match=message):
            function(name)


@pytest.mark.parametrize(
    ("installed", "remedy"), [(False, "pip install --no-deps jax-cuda13-plugin=="), (True, "JAX_PLATFORMS=cpu")]
)
def test_what_is_missing_is_named(installed, remedy, monkeypatch):
    def unknown_platform(**_):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", unknown_platform)
    monkeypatch.setattr(
        "lcjax.plan.compiling.aot.find_spec", lambda name: importlib.util.find_spec("jax") if installed else None
    )
    with pytest.raises(InputError, match=remedy) as caught:
        gpu_sharding("h100-80gb")
    assert "\n" not in str(caught.value)


TOKENS, WIDTH, HEADS, KEY_VALUE_HEADS, HEAD_DIM = 2048, 512, 8, 2, 64


def projected_attention(x_BTW, weights, positions_BT, inverse_frequencies_F):
    """A layer's use of RoPE, between projections and attention.

    Returns attention's output, and q and k before the rotation.
    """
    q_BTHD, k_BTKD, v_BTKD = (
        (x_BTW @ weight).reshape(1, TOKENS, heads, HEAD_DIM)
        for weight, heads in zip(weights, (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS), strict=True)
    )
    rotated = ops.rope(q_BTHD, k_BTKD, positions_BT, inverse_frequencies_F, implementation="pallas")
    return ops.attention(*rotated, v_BTKD, implementation="pallas"), (q_BTHD, k_BTKD)


def compile_step(step) -> Program:
    heads = (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS)
    weights = [jax.ShapeDtypeStruct((WIDTH, count * HEAD_DIM), "bfloat16") for count in heads]
    arguments = (
        jax.ShapeDtypeStruct((1, TOKENS, WIDTH), "bfloat16"),
        weights,
        jax.ShapeDtypeStruct((1, TOKENS), "int32"),
        jax.ShapeDtypeStruct((HEAD_DIM // 2,), "float32"),
    )
    sharding = gpu_sharding("h100-80gb")
    with lowering_for(sharding):
        lowered = jax.jit(step).lower(*abstract(arguments, sharding))
    text = compile_lowered(lowered).as_text()
    assert text is not None
    return Program(text)


def test_rope_is_in_place_in_a_step():
    """Forward and backward: q, k and their cotangents are not copied for it."""

    def step(x_BTW, weights, *rest):
        def loss(weights):
            out, _ = projected_attention(x_BTW, weights, *rest)
            return jnp.vdot(out, out, preferred_element_type=jnp.float32)

        return jax.value_and_grad(loss)(weights)

    program = compile_step(step)
    calls = program.kernel_calls("rope")
    assert len(calls) == 2
    for call in calls:
        assert aliases(call) == {0: 0, 1: 1}
        assert program.copied_operands(call) == []


def test_a_copy_is_found():
    """Mutants: if q, or q and k, are needed later without rotation, XLA must copy them."""
    for needed, copied in ((lambda q, k: q, [0]), (lambda q, k: (q, k), [0, 1])):

        def step(*arguments, needed=needed):
            out, before = projected_attention(*arguments)
            return out, needed(*before)

        program = compile_step(step)
        [call] = program.kernel_calls("rope")
        assert program.copied_operands(call) == copied


def test_a_kernel_that_is_not_in_place_is_found():
    program = compile_step(lambda *arguments: projected_attention(*arguments)[0])
    [call] = program.kernel_calls("attention_forward")
    assert aliases(call) == {}
    assert program.kernel_calls("attention_dq") == []
