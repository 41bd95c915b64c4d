"""The sampled rows of a long shape, computed by Triton and by the references.

The references make one pass over blocks of queries and compute only what the sampled rows need:
each block's attention weights over all visible keys. The exact reference uses float64, and the
plain one the dtype of the inputs. Sums over blocks have at least float32, as inside a product.

Shapes: K key/value heads, G query heads per key/value head, R rows of a block, S visible keys,
C sampled keys, D head_dim.
"""

from __future__ import annotations

import itertools

import torch

import triton_ref
from lcjax_scripts.verify.cases import LongShape
from lcjax_scripts.verify.inputs import Arrays
from lcjax_scripts.verify.parity.jobs import Job, outcome_of
from lcjax_scripts.verify.parity.long.inputs import (
    MULTIPLIERS,
    OFFSET,
    SHIFTS,
    UNIT,
    WORD,
    digest_of,
    inverse_frequencies,
    long_shape,
    sample_rows,
    tensors,
)
from lcjax_scripts.verify.parity.results import SideResult
from lcjax_scripts.verify.parity.run_torch import to_numpy
from triton_ref import reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Limits for a block: 2 GiB of weights in float64.
MOST_ROWS, BLOCK_WEIGHTS = 1024, 2**28

Tensors = dict[str, torch.Tensor]


def run(job: Job) -> SideResult:
    shape = long_shape(job)
    inputs = {name: values(shape, name) for name in tensors(shape)}
    results = _triton_rope if shape.of == "rope" else _triton_attention
    exact, plain = (
        _rope_rows(shape, inputs, dtype) if shape.of == "rope" else attention_rows(shape, inputs, dtype)
        for dtype in (torch.float64, getattr(torch, shape.dtype))
    )
    digest = digest_of({name: to_numpy(_rows(x, shape)) for name, x in inputs.items()})
    triton = outcome_of(lambda: _all_numpy(results(shape, inputs)))
    return SideResult(digest, {"exact": _all_numpy(exact), "plain": _all_numpy(plain), "triton": triton}, {})


def _triton_attention(shape: LongShape, inputs: Tensors) -> Tensors:
    q, k, v = (inputs[name].requires_grad_() for name in ("q", "k", "v"))
    out, lse = triton_ref.attention(q, k, v, causal=True, window=shape.window, return_lse=True)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), inputs["dout"])
    rows = {name: _rows(x, shape) for name, x in (("out", out), ("dq", dq), ("dk", dk), ("dv", dv))}
    return rows | {"lse": lse[:, :, sample_rows(shape)]}


def _triton_rope(shape: LongShape, inputs: Tensors) -> Tensors:
    positions = torch.arange(shape.tokens, dtype=torch.int32, device=DEVICE)[None]
    frequencies = torch.from_numpy(inverse_frequencies(shape)).to(DEVICE)
    q, k = (inputs[name].requires_grad_() for name in ("q", "k"))
    q_out, k_out = triton_ref.rope(q.clone(), k.clone(), positions, frequencies)  # in place
    dq, dk = torch.autograd.grad((q_out, k_out), (q, k), (inputs["dq_out"], inputs["dk_out"]))
    return {name: _rows(x, shape) for name, x in (("q", q_out), ("k", k_out), ("dq", dq), ("dk", dk))}


def _rope_rows(shape: LongShape, inputs: Tensors, dtype: torch.dtype) -> Tensors:
    positions = torch.from_numpy(sample_rows(shape)).to(DEVICE)[None]
    frequencies = torch.from_numpy(inverse_frequencies(shape)).to(DEVICE)
    rows = {name: _rows(x, shape).to(dtype) for name, x in inputs.items()}
    q, k = reference.rope(rows["q"], rows["k"], positions, frequencies)
    dq, dk = reference.rope(rows["dq_out"], rows["dk_out"], positions, -frequencies)
    return {"q": q, "k": k, "dq": dq, "dk": dk}


def attention_rows(shape: LongShape, inputs: Tensors, dtype: torch.dtype) -> Tensors:
    parts = [_one_head(shape, inputs, head, dtype) for head in range(shape.kv_heads)]
    heads_axis = {"lse": 1}
    return {name: torch.cat([part[name] for part in parts], heads_axis.get(name, 2)) for name in parts[0]}


def _one_head(shape: LongShape, inputs: Tensors, head: int, dtype: torch.dtype) -> Tensors:
    """Returns the sampled rows of one key/value head and of its query heads."""
    group = slice(head * shape.gqa_ratio, (head + 1) * shape.gqa_ratio)
    q_GTD, do_GTD = (inputs[name][0, :, group].transpose(0, 1) for name in ("q", "dout"))
    k_SD, v_SD = (inputs[name][0, :, head] for name in ("k", "v"))
    sums = torch.promote_types(dtype, torch.float32)
    scale, span = shape.head_dim**-0.5, shape.window or shape.tokens
    chunks = [slice(start, start + shape.rows) for start in shape.samples]
    dk, dv = (torch.zeros(len(chunks), shape.rows, shape.head_dim, dtype=sums, device=DEVICE) for _ in range(2))
    found: dict[str, list[torch.Tensor]] = {"out": [], "lse": [], "dq": []}
    for first, last in _blocks(shape):
        begin = max(0, first - span + 1)
        q_GRD, do_GRD, k, v = (
            x.to(dtype) for x in (q_GTD[:, first:last], do_GTD[:, first:last], k_SD[begin:last], v_SD[begin:last])
        )
        mask = reference.attention_mask(last - first, last - begin, True, first - begin, shape.window, DEVICE)
        weights_GRS = torch.softmax((q_GRD @ k.T * scale).masked_fill_(~mask, -torch.inf), dim=-1)
        out_GRD = weights_GRS @ v
        delta_GR1 = (do_GRD * out_GRD).sum(-1, keepdim=True)
        for n, chunk in enumerate(chunks):
            if last <= chunk.start or begin >= chunk.stop:
                continue
            low, high = max(chunk.start, begin), min(chunk.stop, last)
            seen, rows = slice(low - begin, high - begin), slice(low - chunk.start, high - chunk.start)
            weights_GRC = weights_GRS[..., seen]
            dscores_GRC = weights_GRC * (do_GRD @ v[seen].T - delta_GR1)
            dv[n, rows] += torch.einsum("grc,grd->cd", weights_GRC, do_GRD).to(sums)
            dk[n, rows] += torch.einsum("grc,grd->cd", dscores_GRC, q_GRD).to(sums) * scale
        if (first, last) in [(chunk.start, chunk.stop) for chunk in chunks]:
            found["out"].append(out_GRD)
            found["dq"].append((weights_GRS * (do_GRD @ v.T - delta_GR1)) @ k * scale)
            # The log-sum-exp is always float32, and so is its plain version.
            scores = (q_GRD.to(sums) @ k.to(sums).T * scale).masked_fill_(~mask, -torch.inf)
            found["lse"].append(torch.logsumexp(scores, dim=-1))
    rows = {name: torch.cat(parts, 1) for name, parts in found.items()}
    gradients = {name: x.flatten(0, 1)[None, :, None].to(dtype) for name, x in (("dk", dk), ("dv", dv))}
    return {"lse": rows["lse"][None]} | {n: rows[n].transpose(0, 1)[None] for n in ("out", "dq")} | gradients


def _blocks(shape: LongShape) -> list[tuple[int, int]]:
    """Returns the blocks of queries that see a sampled key. Samples of rows are separate blocks."""
    span = shape.window or shape.tokens
    most = max(shape.rows, min(MOST_ROWS, BLOCK_WEIGHTS // (shape.gqa_ratio * min(shape.tokens, span + MOST_ROWS))))
    cuts = {0, shape.tokens} | {cut for start in shape.samples for cut in (start, start + shape.rows)}
    edges = sorted(cuts)
    blocks = [
        (first, min(first + most, stop))
        for start, stop in itertools.pairwise(edges)
        for first in range(start, stop, most)
    ]
    return [
        (first, last)
        for first, last in blocks
        if any(first < start + shape.rows + span and last > start for start in shape.samples)
    ]


def values(shape: LongShape, name: str) -> torch.Tensor:
    seed, dimensions = tensors(shape)[name]
    values = torch.empty(dimensions, dtype=getattr(torch, shape.dtype), device=DEVICE)
    flat = values.view(-1)
    for first in range(0, flat.numel(), BLOCK_WEIGHTS):
        x = torch.arange(first, min(first + BLOCK_WEIGHTS, flat.numel()), device=DEVICE)
        x = (x * MULTIPLIERS[0] + seed) % WORD
        x = (x ^ (x >> SHIFTS[0])) * MULTIPLIERS[1] % WORD
        x = (x ^ (x >> SHIFTS[1])) >> 24
        flat[first : first + len(x)] = (x.float() - OFFSET) * UNIT
    return values


def _rows(x: torch.Tensor, shape: LongShape) -> torch.Tensor:
    return torch.cat([x[:, start : start + shape.rows] for start in shape.samples], dim=1)


def _all_numpy(results: Tensors) -> Arrays:
    return {name: to_numpy(x) for name, x in results.items()}
