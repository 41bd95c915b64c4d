"""The PyTorch implementations: SDPA's FlashAttention-2 and cuDNN, our Triton kernels, Liger's RoPE.

Shapes: B batch, T tokens, H query heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton

from lcjax_scripts.bench.kernels.jobs import BOTH, FORWARD, KERNELS, Job, Result
from lcjax_scripts.bench.kernels.timing import milliseconds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def provenance() -> dict[str, str]:
    """Returns the device and the versions."""
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return {"device": device, "torch": torch.__version__, "triton": triton.__version__}


def run(job: Job, seconds: float) -> Result:
    """Times a job. `extra_bytes` is the peak of torch's allocator in addition to the inputs."""
    once = _kernel(job) if job.part in KERNELS else _operation(job)
    extra = None
    if DEVICE == "cuda":
        torch.cuda.empty_cache()  # JAX's process needs memory too
        once()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once()
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before
    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    return Result(job, milliseconds(once, wait, seconds=seconds), extra)


def _operation(job: Job) -> Callable[[], object]:
    q, k, v, dout = _inputs(job)
    if job.operation == "rope":
        return _rope(job, q, k)
    attention = _attention(job)
    if job.part == FORWARD:
        return lambda: attention(q, k, v)
    inputs = tuple(x.requires_grad_() for x in (q, k, v))
    if job.part == BOTH:
        return lambda: torch.autograd.grad(attention(*inputs), inputs, dout)
    out = attention(*inputs)
    return lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True)


def _inputs(job: Job) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    shapes = [
        (job.batch, job.tokens, heads, job.head_dim) for heads in (job.heads, job.kv_heads, job.kv_heads, job.heads)
    ]
    dtype = getattr(torch, job.dtype)
    return tuple(torch.randn(shape, generator=generator, device=DEVICE, dtype=dtype) for shape in shapes)


def _attention(job: Job) -> Callable:
    if job.implementation == "triton":
        import triton_ref

        return lambda q, k, v: triton_ref.attention(q, k, v, causal=job.causal)
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    backends = {"sdpa_fa2": SDPBackend.FLASH_ATTENTION, "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION}
    backend = backends[job.implementation]

    def attention(q, k, v):
        with sdpa_kernel(backend):
            heads_first = (x.transpose(1, 2) for x in (q, k, v))
            out = scaled_dot_product_attention(*heads_first, is_causal=job.causal, enable_gqa=job.heads != job.kv_heads)
        return out.transpose(1, 2)

    return attention


def _rope(job: Job, q: torch.Tensor, k: torch.Tensor) -> Callable[[], object]:
    frequencies = 500_000.0 ** (-torch.arange(0, 1, 2 / job.head_dim, device=DEVICE))
    positions = torch.arange(job.tokens, device=DEVICE, dtype=torch.int32).expand(job.batch, -1).contiguous()
    if job.implementation == "triton":
        from triton_ref import rope

        # Every run rotates the same memory again; the amount of work does not change.
        rotate = lambda q, k: rope(q, k, positions, frequencies)  # noqa: E731
    else:
        # Another library's kernel, measured if it is installed.
        from liger_kernel.ops.rope import LigerRopeFunction  # pyright: ignore[reportMissingImports]

        angles = positions.float()[..., None] * torch.cat([frequencies, frequencies])
        cos, sin = (f(angles).to(q.dtype) for f in (torch.cos, torch.sin))
        rotate = lambda q, k: LigerRopeFunction.apply(q.transpose(1, 2), k.transpose(1, 2), cos, sin)  # noqa: E731
    return lambda: rotate(q, k)


def _kernel(job: Job) -> Callable[[], object]:
    """Returns one of our kernels, with the job's block sizes."""
    from triton_ref.attention import KernelCall, band
    from triton_ref.block_sizes import BlockSizes

    assert job.implementation == "triton"
    name = job.part.removeprefix("attention_")
    q, k, v, dout = _inputs(job)
    lower, upper = band(job.tokens, job.tokens, job.causal, 0, None)
    call = KernelCall(
        lower, upper, job.head_dim**-0.5, None, None if job.tile is None else {name: BlockSizes(*job.tile)}
    )
    lse, delta = (torch.zeros(job.batch, job.heads, job.tokens, device=DEVICE) for _ in range(2))
    shared = {"v": v, "base2_lse": lse, "totals": torch.zeros_like(lse) if q.dtype == torch.float32 else None}
    own = {
        "forward": {"sinks": None, "out": dout, "lse": delta},
        "dq": {"dout": dout, "delta": delta, "out": dout, "dlse": None, "dq": torch.empty_like(q)},
        "dkv": {"dout": dout, "delta": delta, "dk": torch.empty_like(k), "dv": torch.empty_like(v)},
    }[name]
    return lambda: call.launch(name, q, k, (None, None), **shared, **own)
