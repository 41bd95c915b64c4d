"""JAX's side: `python -m lcjax_scripts.verify.parity.run_jax JOBS` (see `jobs.work`)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcjax import ops
from lcjax.errors import InputError
from lcjax.ops.attention.registry import BACKENDS
from lcjax_scripts.verify.inputs import Arrays, Options, digest
from lcjax_scripts.verify.parity.interpreter import mosaic as interpreter
from lcjax_scripts.verify.parity.jobs import Job, outcome_of, work
from lcjax_scripts.verify.parity.results import Outcome, SideResult

# With more products than this, an interpreted call is compiled with optimization on a CPU.
MANY_PRODUCTS = 2**27
# A kernel computes at least this many rows and columns.
TILE = 128

# The most products of a shape that JAX's interpreter of Mosaic kernels computes within a minute.
MOST_INTERPRETED_WORK = 2**29

# Fusion emitters cost more compile time than they save in an interpreted kernel. From 0.11 on,
# jaxlib always has them and does not know the option.
WITHOUT_EMITTERS = {} if jax.__version_info__ >= (0, 11) else {"xla_cpu_use_fusion_emitters": False}

# A compiled CPU program takes about a hundred memory mappings; a process may have 65,530.
JOBS_BETWEEN_CLEARINGS = 32


def main(jobs_file: str) -> int:
    done = itertools.count(1)

    def run_and_clear(job: Job) -> SideResult:
        result = run(job)
        if next(done) % JOBS_BETWEEN_CLEARINGS == 0:
            jax.clear_caches()
        return result

    return work("jax", run_and_clear, jobs_file)


def run(job: Job) -> SideResult:
    names, absent = implementations(job)
    result = _run(job, names)
    return dataclasses.replace(result, refused=absent | result.refused)


def _run(job: Job, names: tuple[str, ...]) -> SideResult:
    if job.shape.operation == "model":
        from lcjax_scripts.verify.parity.model import jax_side

        return jax_side.run(job, names)
    if job.shape.operation == "long":
        from lcjax_scripts.verify.parity.long import jax_side

        return jax_side.run(job, names)
    arrays, options = job.planted_inputs()
    outcomes: dict[str, Outcome] = {}
    refused: dict[str, str] = {}
    call = _attention if job.shape.operation == "attention" else _rope
    for name in names:
        try:
            outcomes[name] = outcome_of(functools.partial(call, name, arrays, options), refusal=InputError)
        except InputError as reason:
            refused[name] = str(reason)
    return SideResult(digest(job.inputs()[0]), outcomes, refused)


def implementations(job: Job) -> tuple[tuple[str, ...], dict[str, str]]:
    """Returns (the implementations that run on this machine, why Mosaic does not)."""
    if job.shape.operation == "rope" or getattr(job.shape, "of", None) == "rope":
        return ("pallas", "xla"), {}
    if jax.default_backend() == "gpu":
        return tuple(BACKENDS), {}
    if reason := interpreter.missing():
        return ("pallas", "xla"), {"mosaic": reason}
    if job.shape.operation != "attention" or job.shape.work > MOST_INTERPRETED_WORK:
        return ("pallas", "xla"), {"mosaic": "would take minutes in the interpreter"}
    return ("pallas", "xla", "mosaic"), {}


def _attention(implementation: str, arrays: Arrays, options: Options) -> Arrays:
    """Returns the results of a call, with an lse if the implementation supports it.

    Raises:
      InputError: the implementation refuses the call.
    """
    batch, tokens, heads, head_dim = arrays["q"].shape
    products = batch * heads * head_dim * max(tokens, TILE) * max(arrays["k"].shape[1], TILE)
    is_interpreted = implementation == "mosaic" and jax.default_backend() != "gpu"

    # For float32, the rounding of scores matters. Only optimized code has fused multiply-adds, as
    # on a GPU.
    optimized = arrays["q"].dtype == np.float32 or products > MANY_PRODUCTS

    def results(*, with_lse: bool) -> Arrays:
        fn = _attention_with_gradients(implementation, with_lse, tuple(options.items()))
        with interpreter.interpreting() if is_interpreted else contextlib.nullcontext():
            return _numpy(_compiled(fn, optimized=optimized)(arrays))

    try:
        return results(with_lse=True)
    except InputError:
        if "dlse" in arrays:
            raise
        return results(with_lse=False)


@functools.cache
def _attention_with_gradients(implementation: str, with_lse: bool, options: tuple[tuple[str, Any], ...]) -> Callable:
    def attention(differentiated: dict[str, jax.Array], arrays: dict[str, jax.Array]):
        result = ops.attention(
            differentiated["q"],
            differentiated["k"],
            differentiated["v"],
            sinks_H=differentiated.get("sinks"),
            query_segments_BT=arrays.get("query_segments"),
            key_segments_BS=arrays.get("key_segments"),
            return_lse=with_lse,
            implementation=implementation,
            **dict(options),
        )
        return result if with_lse else (result, None)

    def with_gradients(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        differentiated = {name: arrays[name] for name in ("q", "k", "v", "sinks") if name in arrays}
        (out, lse), pull_back = jax.vjp(lambda x: attention(x, arrays), differentiated)
        dlse = None if lse is None else arrays.get("dlse", jnp.zeros_like(lse))
        [gradients] = pull_back((arrays["dout"], dlse))
        results = {"out": out} | ({} if lse is None else {"lse": lse})
        return results | {f"d{name}": gradient for name, gradient in gradients.items()}

    return with_gradients


def _rope(implementation: str, arrays: Arrays, options: Options) -> Arrays:
    return _numpy(_compiled(_rope_with_gradients(implementation, options["attention_factor"]))(arrays))


@functools.cache
def _rope_with_gradients(implementation: str, attention_factor: float) -> Callable:
    def with_gradients(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def rope(q, k):
            return ops.rope(
                q,
                k,
                arrays["positions"],
                arrays["inverse_frequencies"],
                attention_factor=attention_factor,
                implementation=implementation,
            )

        (q, k), pull_back = jax.vjp(rope, arrays["q"], arrays["k"])
        dq, dk = pull_back((arrays["dq_out"], arrays["dk_out"]))
        return {"q": q, "k": k, "dq": dq, "dk": dk}

    return with_gradients


@functools.cache
def _compiled(fn: Callable, *, optimized: bool = False) -> Callable:
    quick = {"xla_backend_optimization_level": int(optimized), **WITHOUT_EMITTERS}
    return jax.jit(fn, compiler_options=None if jax.default_backend() == "gpu" else quick)


def _numpy(results: dict[str, jax.Array]) -> Arrays:
    return {name: np.asarray(x).astype(np.float32) for name, x in results.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
