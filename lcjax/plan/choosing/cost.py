"""Estimates the time of a step, precisely enough to sort the settings with which it can run.

The estimate adds up what a step computes, what it recomputes and dequantizes, and the copies to and
from the host that do not overlap with computation.
"""

from __future__ import annotations

import dataclasses
import math

from lcjax.config import LlamaConfig, MemorySettings
from lcjax.config.policies import OFFLOADING
from lcjax.model import ModelSettings
from lcjax.ops.cross_entropy import chunk_tokens
from lcjax.plan.choosing.flops import PEAK_BF16_TFLOPS, step_flops

# The fractions of the peak that a step's matrix products and its attention kernels reach, measured
# for 8B in NF4 on an H200. The estimates are within 10% of docs/measured/h200-2026-11-24-steps.csv,
# and with mosaic within 4% of h200-2026-12-01-steps-mosaic.csv from 65,536 tokens on.
_PRODUCTS, _ATTENTION = 0.62, {"mosaic": 0.53}
_OTHER_ATTENTION = 0.45
# Bytes per second: an H100's memory, and a copy from pinned memory over PCI Express 5.
_MEMORY, _HOST_LINK = 3.0e12, 5.0e10
# Bytes that dequantizing one weight moves: half a byte is read, and bfloat16 written and read.
_DEQUANTIZED_BYTES = 4.5
# The fixed cost of one tile of a layer.
_SECONDS_PER_TILE = 1e-4
# With groups of heads, norms and narrow projections run once per group. This is their cost as a
# multiple of all products of a layer.
_REPEATED_IN_GROUPS = 1.5
# The fixed cost of one chunk of the loss, as a fraction of the time to read the head once. Measured
# on an H200 with 8,192 tokens and 128,256 words: 41.1 ms in 64 chunks, 30.4 in 32, 29.0 in 16 and
# 28.2 in 8.
_LOSS_CHUNK = 0.5
# The fraction of the copies from the host for which the GPU waits: in layers without tiles, and in
# tiles without `fetch_ahead`.
_WAIT_SHARE, _WAIT_SHARE_IN_TILES = 0.3, 0.1


@dataclasses.dataclass(frozen=True)
class Passes:
    """What a layer repeats in one step.

    Attributes:
      products: forward passes of its matrix products after the first.
      attention: forward passes of its attention after the first.
      weight_reads: how often all its weights are read.
    """

    products: float
    attention: float
    weight_reads: float


def step_seconds(
    config: LlamaConfig, settings: ModelSettings, *, lora_r: int, quantized: bool, gpu: str = "h100-80gb"
) -> float:
    """The estimated seconds of one step over one sequence of `settings.max_seq_length` tokens.

    Devices that share the sequence are assumed to have equal work and not to wait for each other.

    A GPU that is not in `PEAK_BF16_TFLOPS` counts as an H100. The backward pass of frozen weights
    costs as much as their forward pass, that of attention 2.5 times as much.
    """
    tokens, devices = settings.local_tokens, settings.execution.mesh.context
    policy, memory = settings.form.policy, settings.form.memory
    flops, passes = step_flops(config, settings.max_seq_length, lora_r), _passes(policy, memory, tokens)
    peak = devices * 1e12 * PEAK_BF16_TFLOPS.get(gpu, PEAK_BF16_TFLOPS["h100-80gb"])
    forward_share = 1 / (2 if lora_r else 3)
    linear = flops.linear + flops.adapter
    products = (linear * (1 + forward_share * passes.products) + flops.head) / (peak * _PRODUCTS)
    reached = _ATTENTION.get(settings.execution.attention, _OTHER_ATTENTION)
    attention = flops.attention * (1 + passes.attention / 3.5) / (peak * reached)
    products_of_layers = [row for row in config.family.parameters if row.matmul and row.in_layers]
    weights = sum(math.prod(row.stacked_shape(config)) for row in products_of_layers)
    dequantization = passes.weight_reads * weights * _DEQUANTIZED_BYTES / _MEMORY if quantized else 0.0
    tiles = 0.0 if memory is None else _SECONDS_PER_TILE * passes.weight_reads * config.num_hidden_layers
    chunks = math.ceil(tokens / (settings.execution.loss_chunk or chunk_tokens(config.vocab_size)))
    loss = chunks * _LOSS_CHUNK * config.vocab_size * config.hidden_size * 2 / _MEMORY
    computing = products + attention + dequantization + tiles + loss
    return computing + _waiting(config, policy, memory, tokens, computing)


def _passes(policy: str, memory: MemorySettings | None, tokens: int) -> Passes:
    recomputed = 0.0 if policy == "none" else 1.0
    attention = 0.0 if policy in ("none", "offload_attn") else 1.0
    if memory is None:
        return Passes(recomputed, attention, 2 + recomputed)
    # With groups of heads, attention and the projections before it run twice in the backward pass:
    # once for the residual stream, and once for each group.
    again = 1.0 if memory.head_groups > 1 else 0.0
    skipped = (memory.save_every - 1) / 2
    tiles = math.ceil(tokens / memory.tile)
    products = recomputed + _REPEATED_IN_GROUPS * again + skipped
    return Passes(products, attention + again + skipped, tiles * (3 + again / 4 + skipped))


def _waiting(config: LlamaConfig, policy: str, memory: MemorySettings | None, tokens: int, computing: float) -> float:
    """Seconds for which the GPU waits for copies between host and device.

    A copy makes it wait if it takes longer than the computation or does not overlap with it.
    """
    if policy not in OFFLOADING:
        return 0.0
    arrays = 2 if policy == "offload_attn" else 1
    every = memory.save_every if memory else 1
    one_way = arrays * config.num_hidden_layers / every * tokens * config.hidden_size * 2 / _HOST_LINK
    longer = max(0.0, 2 * one_way - computing)
    if memory is None:
        return longer + _WAIT_SHARE * one_way
    # Copied once as embedding and once as head; neither copy overlaps with computation.
    embeddings = 2 * config.vocab_size * config.hidden_size * 2 / _HOST_LINK if memory.embeddings_on_host else 0.0
    return longer + embeddings + (0.0 if memory.fetch_ahead else _WAIT_SHARE_IN_TILES * one_way)
