"""lcjax.pallas.mosaic.backend: the calls that it refuses, and its name."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from lcjax import ops
from lcjax.config.parallel.mesh import HEADS, MeshShape
from lcjax.errors import InputError
from lcjax.ops.attention.registry import backend_of, takes_segments
from lcjax.pallas.mosaic import launch
from lcjax.pallas.mosaic.attention_backward import KEY_BLOCK, heads_together
from lcjax.parallel.devices import Devices
from lcjax.plan.compiling.aot import abstract, gpu_sharding, lowering_for

INSTEAD = "use attention='pallas' or attention='xla'"
OR_INSTEAD = "or attention='pallas' or attention='xla'"


def traced(gpu: str, head_dim: int = 128, dtype="bfloat16", **options) -> None:
    """Traces a call for an absent GPU."""
    sharding = gpu_sharding(gpu)
    q, k = (jax.ShapeDtypeStruct((1, 200, heads, head_dim), dtype) for heads in (4, 2))

    def attend(q, k):
        return ops.attention(q, k, k, implementation="mosaic", **options)

    with lowering_for(sharding):
        jax.jit(attend).trace(*abstract((q, k), sharding))


def test_the_registry_has_it():
    assert backend_of("mosaic").name == "mosaic"
    assert takes_segments("mosaic")
    assert backend_of("mosaic").has_passes
    assert backend_of("mosaic").order_of_sums == "fixed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float32"}, f"does not support dtype float32; use bfloat16 or float16, {OR_INSTEAD}"),
        ({"head_dim": 96}, f"does not support head_dim=96; use 64 or 128, {OR_INSTEAD}"),
        ({"soft_cap": 3.0, "return_lse": True}, f"does not support soft_cap; {INSTEAD}"),
        ({"score_mod": lambda s, b, h, q, k: s * 2}, f"does not support score_mod; {INSTEAD}"),
        ({"mask_mod": lambda b, h, q, k: q > k}, f"does not support mask_mod; {INSTEAD}"),
    ],
)
def test_what_it_refuses(options, message):
    with pytest.raises(InputError, match=re.escape(f"attention='mosaic' {message}") + r"(\n|$)"):
        traced("h100-80gb", **options)


@pytest.mark.parametrize("gpu", ["b200", "rtx4090"])
def test_other_gpus(gpu):
    with pytest.raises(InputError, match=re.escape(f"runs on Hopper GPUs (H100, H200) only; {INSTEAD}")):
        traced(gpu)


def test_a_cpu():
    x = jnp.zeros((1, 128, 2, 128), jnp.bfloat16)
    with pytest.raises(InputError, match=re.escape(f"runs on Hopper GPUs (H100, H200) only; {INSTEAD}")):
        ops.attention(x, x, x, implementation="mosaic")


@pytest.mark.parametrize("gpu", ["h100-80gb", "h200"])
def test_what_it_supports(gpu):
    ids = jnp.zeros((1, 200), jnp.int32)
    traced(gpu, return_lse=True, query_segments_BT=ids, key_segments_BS=ids, window=70)
    traced(gpu, head_dim=64, dtype="float16", causal=False)
    traced(gpu, query_offset=jnp.int32(3), sinks_H=jnp.zeros(4))


@pytest.mark.parametrize(
    ("tokens", "kv_heads", "together"), [(4096, 8, 8), (8192, 8, 4), (16_384, 8, 2), (65_536, 8, 1), (16_384, 3, 3)]
)
def test_as_many_heads_start_together_as_fill_the_gpu_twice(tokens, kv_heads, together):
    assert heads_together(tokens // KEY_BLOCK, kv_heads) == together


def test_no_axis_of_the_grid_is_an_axis_of_the_devices():
    """Inside shard_map a kernel would take the device's index along the axis for its own.

    `launch` compares the names where the kernels are traced.
    """
    shape = MeshShape(heads=2)
    sharding = gpu_sharding("h100-80gb", 2, 1, shape)
    devices, of_heads = Devices(shape, sharding.mesh), P(None, None, HEADS)

    def gradient(q, k):
        return jax.grad(lambda q: ops.attention(q, k, k, implementation="mosaic").astype(jnp.float32).sum())(q)

    q, k = (jax.ShapeDtypeStruct((1, 256, heads, 128), jnp.bfloat16) for heads in (8, 4))
    with lowering_for(sharding):
        jax.jit(devices.over(gradient, of_heads, of_heads)).trace(*abstract((q, k), sharding))
    with pytest.raises(AssertionError, match="axes of devices"):
        jax.eval_shape(devices.over(launched_over_heads, P(), P()), q)


def launched_over_heads(x):
    out = jax.ShapeDtypeStruct((8,), jnp.float32)
    return launch.launch(
        lambda *refs: None, x, name="test", grid={HEADS: 2}, outputs=[out], scratch={}, copying_warps=1
    )
