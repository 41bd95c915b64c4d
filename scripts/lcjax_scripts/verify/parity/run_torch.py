"""Torch's side: `python -m lcjax_scripts.verify.parity.run_torch JOBS` (see `jobs.work`).

It runs Triton, SDPA and the references. "exact" is the plain reference in float64, and "plain" is
the same in the dtype of the inputs. The log-sum-exp is always float32, so its plain version uses
float32 scores, which are not rounded to the dtype of the inputs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import numpy as np
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import triton_ref
from lcjax_scripts.verify.inputs import Arrays, Options, digest
from lcjax_scripts.verify.parity.interpreter.rounding import round_as_a_gpu
from lcjax_scripts.verify.parity.interpreter.speed import make_fast
from lcjax_scripts.verify.parity.jobs import Job, outcome_of, work
from lcjax_scripts.verify.parity.results import Outcome, SideResult
from triton_ref import reference
from triton_ref.block_sizes import KERNELS, BlockSizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Tensors = dict[str, torch.Tensor]


def main(jobs_file: str) -> int:
    if DEVICE == "cpu":
        round_as_a_gpu()
        make_fast()
    return work("torch", run, jobs_file)


def run(job: Job) -> SideResult:
    if job.shape.operation == "model":
        from lcjax_scripts.verify.parity.model import torch_side

        return torch_side.run(job)
    if job.shape.operation == "long":
        from lcjax_scripts.verify.parity.long import torch_side

        return torch_side.run(job)
    arrays, options = job.inputs()
    planted = job.planted_inputs()
    calls = ATTENTION if job.shape.operation == "attention" else ROPE
    with_gradients = attention_with_gradients if job.shape.operation == "attention" else rope_with_gradients
    exact, plain = (
        _numpy(with_gradients(calls["plain"], _tensors(arrays, dtype), options)) for dtype in (torch.float64, None)
    )
    if job.shape.operation == "attention":
        plain["lse"] = plain_lse(_tensors(arrays), options)
    outcomes: dict[str, Outcome] = {"exact": exact, "plain": plain}
    refused = {}
    for name, call in calls.items():
        if name == "plain":
            continue
        if name == "sdpa" and (reason := sdpa_refusal(arrays, options)):
            refused[name] = reason
            continue
        outcomes[name] = outcome_of(lambda call=call: _numpy(with_gradients(call, _tensors(planted[0]), planted[1])))
    return SideResult(digest(arrays), outcomes, refused)


def attention_with_gradients(call: Callable, tensors: Tensors, options: Options) -> Tensors:
    differentiated = {name: tensors[name].requires_grad_() for name in ("q", "k", "v", "sinks") if name in tensors}
    out, lse = attention(call, tensors, options)
    results, cotangents = [out], [tensors["dout"]]
    if "dlse" in tensors:
        assert lse is not None
        results.append(lse)
        cotangents.append(tensors["dlse"].to(lse.dtype))
    gradients = torch.autograd.grad(results, list(differentiated.values()), cotangents)
    named = {f"d{name}": gradient for name, gradient in zip(differentiated, gradients, strict=True)}
    return {"out": out} | ({} if lse is None else {"lse": lse}) | named


def plain_lse(tensors: Tensors, options: Options) -> np.ndarray:
    with torch.no_grad():
        _, lse = attention(reference.attention, tensors, options | {"scores_dtype": torch.float32})
    assert lse is not None
    return to_numpy(lse)


def attention(call: Callable, tensors: Tensors, options: Options) -> tuple[torch.Tensor, torch.Tensor | None]:
    return call(
        tensors["q"],
        tensors["k"],
        tensors["v"],
        query_segments_BT=tensors.get("query_segments"),
        key_segments_BS=tensors.get("key_segments"),
        sinks_H=tensors.get("sinks"),
        **options,
    )


def rope_with_gradients(call: Callable, tensors: Tensors, options: Options) -> Tensors:
    q, k = (tensors[name].requires_grad_() for name in ("q", "k"))
    q_out, k_out = call(q, k, tensors["positions"], tensors["inverse_frequencies"], **options)
    dq, dk = torch.autograd.grad((q_out, k_out), (q, k), (tensors["dq_out"], tensors["dk_out"]))
    return {"q": q_out, "k": k_out, "dq": dq, "dk": dk}


def sdpa(q, k, v, *, causal, window, query_offset, soft_cap, scale, query_segments_BT, key_segments_BS, sinks_H):
    """torch's attention, with an explicit mask unless it is causal without an offset, or full."""
    assert soft_cap is None
    assert sinks_H is None
    tokens, keys = q.shape[1], k.shape[1]
    offset = keys - tokens if query_offset is None else query_offset
    plain = window is None and query_segments_BT is None and (not causal or (offset == 0 and tokens == keys))
    mask = None
    if not plain:
        mask = reference.attention_mask(tokens, keys, causal, offset, window, q.device)[None, None]
    if query_segments_BT is not None:
        mask = mask & (query_segments_BT[:, None, :, None] == key_segments_BS[:, None, None, :])
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=mask, is_causal=causal and plain, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2), None


def sdpa_refusal(arrays: Arrays, options: Options) -> str | None:
    missing = {"soft cap": options["soft_cap"] is not None, "sinks": "sinks" in arrays, "lse": "dlse" in arrays}
    names = [name for name, wanted in missing.items() if wanted]
    return f"torch SDPA has no {', '.join(names)}" if names else None


def triton_rope(q, k, positions, inverse_frequencies, **options):
    # Clone, because it works in place.
    return triton_ref.rope(q.clone(), k.clone(), positions, inverse_frequencies, **options)


def triton_attention(q, *args, **options):
    block_sizes = large_block_sizes(q.shape[1]) if DEVICE == "cpu" and q.dtype == torch.float32 else None
    return triton_ref.attention(q, *args, return_lse=True, block_sizes=block_sizes, **options)


def large_block_sizes(tokens: int) -> dict[str, BlockSizes]:
    """Returns larger block sizes for float32 in the interpreter.

    The default ones are small because a GPU has few registers, and in the interpreter a small block
    takes as long as a large one.
    """
    queries = min(64, max(16, 1 << (tokens - 1).bit_length()))
    return dict.fromkeys(KERNELS, BlockSizes(queries, 64, num_warps=4, num_stages=1))


ATTENTION: dict[str, Callable] = {"plain": reference.attention, "triton": triton_attention, "sdpa": sdpa}
ROPE: dict[str, Callable] = {"plain": reference.rope, "triton": triton_rope}


def _tensors(arrays: Arrays, dtype: torch.dtype | None = None) -> Tensors:
    """Moves arrays to the device, and converts floating-point ones to `dtype` if it is given."""
    return {name: _tensor(array, dtype) for name, array in arrays.items()}


def _tensor(array: np.ndarray, dtype: torch.dtype | None) -> torch.Tensor:
    if array.dtype == np.int32:
        return torch.from_numpy(array.copy()).to(DEVICE)
    # Convert through float32, because torch does not support numpy's bfloat16.
    own = getattr(torch, array.dtype.name)
    return torch.from_numpy(array.astype(np.float32)).to(DEVICE).to(own if dtype is None else dtype)


def _numpy(tensors: Tensors) -> dict[str, np.ndarray]:
    return {name: to_numpy(tensor) for name, tensor in tensors.items()}


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Returns a float64 tensor unchanged, and others as float32."""
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    # On a GPU, torch's threads sometimes abort a process during its normal shutdown.
    os._exit(code)
