"""How long a step takes, near enough to order the ways in which it can run: what it computes, what it computes again, what it
dequantizes, and the copies to and from the host that nothing hides.

Symbols: L layers, T tokens, D hidden size.
"""

from __future__ import annotations

import dataclasses
import math

from lcjax.config import LlamaConfig, MemorySettings
from lcjax.config.policies import OFFLOADING
from lcjax.model import ModelSettings
from lcjax.ops.cross_entropy import chunk_tokens
from lcjax.plan.choosing.flops import PEAK_BF16_TFLOPS, step_flops

# What the products of a step reach of the peak, and attention's kernels: 8B in NF4 on an H200, where the estimates are within a
# tenth of docs/measured/h200-2026-11-24-steps.csv.
_PRODUCTS, _ATTENTION = 0.62, 0.45
# Bytes a second: an H100's memory, and a pinned copy over PCI Express 5.
_MEMORY, _HOST_LINK = 3.0e12, 5.0e10
# A dequantized weight is written and read in bfloat16, from half a byte.
_DEQUANTIZED_BYTES = 4.5
# A tile of a layer costs this many seconds by itself.
_SECONDS_PER_TILE = 1e-4
# In groups of heads: norms and narrow projections once a group, in parts of all products of a layer.
_REPEATED_IN_GROUPS = 1.5
# A chunk of the loss costs this share of the time that reading the head takes: 8,192 tokens by 128,256 words on an H200 take 41.1
# ms in 64 chunks, 30.4 in 32, 29.0 in 16 and 28.2 in 8.
_LOSS_CHUNK = 0.5
# Of the copies that plain layers ask for where they need them, and tiles without fetching ahead: what is waited for.
_WAIT_SHARE, _WAIT_SHARE_IN_TILES = 0.3, 0.1


@dataclasses.dataclass(frozen=True)
class Passes:
    """Of a layer, in one step: forward passes beyond the first, of its products and of attention; and turns over all weights."""

    products: float
    attention: float
    weight_reads: float


def step_seconds(
    config: LlamaConfig, settings: ModelSettings, *, lora_r: int, quantized: bool, gpu: str = "h100-80gb"
) -> float:
    """The time of one step over one sequence of `settings.max_seq_length` tokens with its policy and memory; a GPU that is in no
    table counts as an H100.

    Passes over frozen weights cost as much backward as forward, attention 2.5 times as much.
    """
    tokens = settings.max_seq_length
    policy, memory = settings.policy_for(tokens), settings.memory_for(tokens)
    flops, passes = step_flops(config, tokens, lora_r), _passes(policy, memory, tokens)
    peak = 1e12 * PEAK_BF16_TFLOPS.get(gpu, PEAK_BF16_TFLOPS["h100-80gb"])
    forward_share = 1 / (2 if lora_r else 3)
    linear = flops.linear + flops.adapter
    products = (linear * (1 + forward_share * passes.products) + flops.head) / (peak * _PRODUCTS)
    attention = flops.attention * (1 + passes.attention / 3.5) / (peak * _ATTENTION)
    weights = config.num_hidden_layers * sum(math.prod(shape) for shape in config.linear_shapes().values())
    dequantization = passes.weight_reads * weights * _DEQUANTIZED_BYTES / _MEMORY if quantized else 0.0
    tiles = 0.0 if memory is None else _SECONDS_PER_TILE * passes.weight_reads * config.num_hidden_layers
    chunks = math.ceil(tokens / (settings.loss_chunk or chunk_tokens(config.vocab_size)))
    loss = chunks * _LOSS_CHUNK * config.vocab_size * config.hidden_size * 2 / _MEMORY
    computing = products + attention + dequantization + tiles + loss
    return computing + _waiting(config, policy, memory, tokens, computing)


def _passes(policy: str, memory: MemorySettings | None, tokens: int) -> Passes:
    recomputed = 0.0 if policy == "none" else 1.0
    attention = 0.0 if policy in ("none", "offload_attn") else 1.0
    if memory is None:
        return Passes(recomputed, attention, 2 + recomputed)
    # In groups, attention and the projections before it run again for the residual stream and then for each group.
    again = 1.0 if memory.head_groups > 1 else 0.0
    skipped = (memory.save_every - 1) / 2
    tiles = math.ceil(tokens / memory.tile)
    products = recomputed + _REPEATED_IN_GROUPS * again + skipped
    return Passes(products, attention + again + skipped, tiles * (3 + again / 4 + skipped))


def _waiting(config: LlamaConfig, policy: str, memory: MemorySettings | None, tokens: int, computing: float) -> float:
    """Seconds in which the GPU waits for copies: what takes longer than the computation, or is not hidden beside it."""
    if policy not in OFFLOADING:
        return 0.0
    arrays = 2 if policy == "offload_attn" else 1
    every = memory.save_every if memory else 1
    one_way = arrays * config.num_hidden_layers / every * tokens * config.hidden_size * 2 / _HOST_LINK
    longer = max(0.0, 2 * one_way - computing)
    if memory is None:
        return longer + _WAIT_SHARE * one_way
    # Once as embedding and once as head, with nothing to compute beside.
    embeddings = 2 * config.vocab_size * config.hidden_size * 2 / _HOST_LINK if memory.embeddings_on_host else 0.0
    return longer + embeddings + (0.0 if memory.fetch_ahead else _WAIT_SHARE_IN_TILES * one_way)
