"""The JAX implementations: lcjax's own, XLA, cuDNN, FlashAttention-3, tokamax, and JAX's examples.

Shapes: B batch, T tokens, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lcjax import ops
from lcjax.ops.attention import masks
from lcjax_scripts.bench.kernels.jobs import BACKWARD, BOTH, FORWARD, KERNELS, Job, Result
from lcjax_scripts.bench.kernels.timing import milliseconds

SHORT = 2.0
"""Runs shorter than this many milliseconds are repeated within one program."""
REPETITIONS = 16


def provenance() -> dict[str, str]:
    """Returns the device and the versions."""
    found = {"device": jax.devices()[0].device_kind}
    for name in ("jax", "jaxlib", "flash-attn3-jax", "tokamax"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def run(job: Job, seconds: float) -> Result:
    """Compiles and times a job. `extra_bytes` is exact; it comes from the compiled program."""
    function, arguments = (_kernel if job.part in KERNELS else operation_of)(job)
    # RoPE may overwrite its arguments, as it does inside a step. Its results are then the arguments
    # of the next run.
    in_place = job.operation == "rope"
    compiled = compile_job(function, arguments, in_place)
    memory = compiled.memory_analysis()
    assert memory is not None
    extra = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    took, arguments = _time(compiled, arguments, in_place, seconds / 10)
    if took < SHORT:
        # Starting a program takes longer than launching a kernel within one, as a step does.
        repeated = compile_job(repetitions_of(function, in_place), arguments, in_place)
        took = _time(repeated, arguments, in_place, seconds)[0] / REPETITIONS
    else:
        took, _ = _time(compiled, arguments, in_place, seconds)
    return Result(job, took, extra)


def compile_job(function: Callable, arguments: tuple, in_place: bool) -> jax.stages.Compiled:
    return jax.jit(function, donate_argnums=(0, 1) if in_place else ()).lower(*arguments).compile()


def repetitions_of(function: Callable, in_place: bool) -> Callable:
    """Returns a function that calls `function` REPETITIONS times in one program.

    The calls are unrolled, because the counter of a loop would be a kernel too.
    """

    def repeated(*arguments):
        results = [function(*arguments)]
        for _ in range(REPETITIONS - 1):
            if in_place:
                arguments = results.pop()
            else:
                # The arguments of a run depend on the results of the previous one.
                arguments, results[-1] = lax.optimization_barrier((arguments, results[-1]))
            results.append(function(*arguments))
        # Return all results, because the compiler removes a run whose results are not used.
        return results[0] if in_place else results

    return repeated


def _time(compiled: jax.stages.Compiled, arguments: tuple, in_place: bool, seconds: float) -> tuple[float, tuple]:
    """Returns (milliseconds per run, the arguments of the next run)."""
    last = arguments

    def once():
        nonlocal last
        results = compiled(*(last if in_place else arguments))
        last = results

    took = milliseconds(once, lambda: jax.block_until_ready(last), seconds=seconds)
    return took, last if in_place else arguments


def operation_of(job: Job) -> tuple[Callable, tuple]:
    q, k, v, dout = _inputs(job)
    if job.operation == "rope":
        return _rope(job), (q, k)
    attention = _attention(job)
    if job.part == FORWARD:
        return attention, (q, k, v)
    if job.part == BOTH:
        return lambda q, k, v, dout: jax.vjp(attention, q, k, v)[1](dout), (q, k, v, dout)
    assert job.part == BACKWARD
    return jax.vjp(attention, q, k, v)[1], (dout,)


def _inputs(job: Job):
    dtype = jnp.dtype(job.dtype)
    queries = (job.batch, job.tokens, job.heads, job.head_dim)
    keys = (job.batch, job.tokens, job.kv_heads, job.head_dim)
    # Random numbers, as in torch_side: with zeros, a GPU draws less power and runs faster.
    random = jax.random.split(jax.random.key(0), 4)
    return tuple(
        jax.random.normal(key, shape, dtype) for key, shape in zip(random, (queries, keys, keys, queries), strict=True)
    )


def _rope(job: Job) -> Callable:
    positions = jnp.broadcast_to(jnp.arange(job.tokens, dtype=jnp.int32)[None], (job.batch, job.tokens))
    frequencies = jnp.asarray(500_000.0 ** (-np.arange(0, 1, 2 / job.head_dim)), jnp.float32)
    return lambda q, k: ops.rope(q, k, positions, frequencies, implementation=job.implementation)


def _attention(job: Job) -> Callable:
    if job.implementation == "mosaic_example":
        return _mosaic_example(job)
    if job.implementation == "pallas_example":
        return _pallas_example(job)
    if job.implementation == "tokamax":
        return _tokamax(job)
    return lambda q, k, v: ops.attention(q, k, v, causal=job.causal, implementation=job.implementation)


def _tokamax(job: Job) -> Callable:
    tokamax: Any = importlib.import_module("tokamax")  # needs Python 3.12
    return lambda q, k, v: tokamax.dot_product_attention(q, k, v, is_causal=job.causal, implementation="mosaic")


def _mosaic_example(job: Job) -> Callable:
    from jax.experimental.pallas.ops.gpu import attention_mgpu as example

    tuning = example.TuningConfig(
        block_q=64,
        block_kv=64,
        block_q_dkv=64,
        block_kv_dkv=64,
        block_q_dq=64,
        block_kv_dq=64,
        max_concurrent_steps=2,
        causal=job.causal,
    )
    # The kernel does not scale the scores.
    return lambda q, k, v: example.attention(q * q.shape[-1] ** -0.5, k, v, tuning)


def _pallas_example(job: Job) -> Callable:
    from jax.experimental.pallas.ops.gpu import attention as example

    group = job.heads // job.kv_heads

    def attention(q, k, v):
        k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))  # it does not support GQA
        return example.mha(q, k, v, None, sm_scale=q.shape[-1] ** -0.5, causal=job.causal)

    return attention


def _kernel(job: Job) -> tuple[Callable, tuple]:
    """Returns one of our kernels, with the job's block sizes."""
    from lcjax.pallas.triton import attention as flash
    from lcjax.pallas.triton.attention_dkv import attention_dkv
    from lcjax.pallas.triton.attention_dq import attention_dq
    from lcjax.pallas.triton.attention_forward import attention_forward
    from lcjax.pallas.triton.block_sizes import BlockSizes

    assert job.implementation == "pallas"
    q, k, v, dout = _inputs(job)
    mask = masks.AllOf((masks.Band(after=0),) if job.causal else ())
    sizes = () if job.tile is None else ((job.part, BlockSizes(*job.tile[:4], **dict.fromkeys(job.tile[4:], True))),)
    spec = flash.kernel_spec(job.part, flash.Options(job.head_dim**-0.5, sizes), q, k)
    visits = flash.schedule_of(spec, mask, rows="keys" if job.part == "attention_dkv" else "queries")
    if job.part == "attention_forward":
        return lambda q, k, v: attention_forward(spec, q, k, v, None, mask, None, visits), (q, k, v)
    rows = jnp.zeros((job.batch, job.heads, job.tokens), jnp.float32)
    if job.part == "attention_dq":
        return (
            lambda q, k, v, out, dout, lse: attention_dq(spec, q, k, v, out, dout, lse, None, None, mask, None, visits),
            (q, k, v, dout, dout, rows),
        )
    return (
        lambda q, k, v, dout, lse, delta: attention_dkv(spec, q, k, v, dout, lse, None, delta, mask, None, visits),
        (q, k, v, dout, rows, rows),
    )
