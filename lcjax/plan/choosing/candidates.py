"""The settings with which a step can run.

Gradient checkpointing, tiles of the layers and chunks of the loss each exchange time for memory.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

from lcjax.config import LlamaConfig, MemorySettings
from lcjax.config.parallel.mesh import divides_heads
from lcjax.config.policies import OFFLOAD_ABOVE_TOKENS, OFFLOADING, POLICIES
from lcjax.model import ModelSettings
from lcjax.ops.attention.passes import has_passes
from lcjax.step import with_request

# Tokens whose logits are computed at a time, from the least time to the least memory. More than
# 1,024 bring no gain (docs/log.md).
_LOSS_CHUNKS = (1024, 256, 64)
# Tokens per tile. Large tiles keep a GPU busy and dequantize the weights less often; small tiles
# need very little memory.
_TILES = (8192, 2048, 1024)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One combination of settings.

    Attributes:
      policy: the gradient checkpointing policy.
      memory: the memory settings of the layers; None means without tiles.
      loss_chunk: tokens whose logits are computed at a time; None means
        `lcjax.ops.cross_entropy.chunk_tokens`.
    """

    policy: str
    memory: MemorySettings | None
    loss_chunk: int | None = None

    def needs_at_least(self, other: Candidate) -> bool:
        """Whether every setting takes at least as much device memory as the other candidate's."""
        return all(a >= b for a, b in zip(self.device_memory(), other.device_memory(), strict=True))

    def device_memory(self) -> tuple[float, ...]:
        """A number for each setting that grows with its memory, the largest effects first."""
        policy, loss = ("offload", "offload_attn", "full", "none").index(self.policy), self.loss_chunk or 0
        if self.memory is None:
            return policy, 1, 0, 1, 1, float("inf"), loss
        memory = self.memory
        return policy, 0, -memory.head_groups, not memory.embeddings_on_host, memory.fetch_ahead, memory.tile, loss

    @property
    def kind(self) -> tuple[str, int]:
        """The policy and the number of head groups, 0 without tiles.

        Candidates of one kind differ in the sizes of their tiles and buffers.
        """
        return self.policy, self.memory.head_groups if self.memory else 0

    @property
    def form(self) -> tuple[str, MemorySettings | None]:
        """All settings but that of the loss."""
        return self.policy, self.memory

    def applied(self, settings: ModelSettings) -> ModelSettings:
        """A model's settings, changed to those of this candidate."""
        memory = self.memory or "none"
        return with_request(settings, use_gradient_checkpointing=self.policy, memory=memory, loss_chunk=self.loss_chunk)

    def __str__(self) -> str:
        """The values of --use-gradient-checkpointing, --memory and --loss-chunk."""
        chunk = "" if self.loss_chunk is None else f", loss chunk {self.loss_chunk}"
        return f"{self.policy} {self.memory or 'none'}{chunk}"


def candidates(
    config: LlamaConfig,
    settings: ModelSettings,
    host_fits: Callable[[ModelSettings], bool] = lambda settings: True,
    *,
    embeddings_may_be_on_host: bool = False,
) -> list[Candidate]:
    """All candidates that are worth trying, in no particular order.

    If `settings.requested` fixes the memory settings, this is the requested one alone. Otherwise a
    policy and a loss chunk that it fixes restrict the candidates.

    Args:
      config: the model's configuration.
      settings: the requested settings, the length, and the implementation of attention.
      host_fits: whether the host has enough memory for some settings. Each candidate saves the
        inputs of as many layers as the host can hold, and of the fewest possible if even those are
        too many.
      embeddings_may_be_on_host: whether embedding and head may be in host memory.
    """
    requested, tokens, form = settings.requested, settings.local_tokens, settings.form
    if not requested.leaves_memory_open:
        return [Candidate(form.policy, form.memory, requested.loss_chunk)]
    allowed = POLICIES if tokens <= OFFLOAD_ABOVE_TOKENS else OFFLOADING
    with_passes = has_passes(settings.execution.attention)
    policies = [form.policy]
    if requested.leaves_policy_open:
        policies = [policy for policy in allowed if with_passes or policy != "offload_attn"]
    groups = [
        groups
        for groups in _divisors(config.num_key_value_heads)
        if divides_heads(
            settings.execution.mesh.heads, config.num_attention_heads // groups, config.num_key_value_heads // groups
        )
        and (groups == 1 or config.family.has_separate_heads)
    ]
    tilings = list(_tilings(groups, tokens, embeddings_may_be_on_host)) if with_passes else []
    found = [Candidate(policy, None) for policy in policies]
    for policy in policies:
        for memory in tilings:
            grouped = memory.head_groups > 1
            offloads = policy in OFFLOADING
            on_device = memory.fetch_ahead and not memory.embeddings_on_host
            if policy != "none" and not (grouped and policy == "offload_attn") and (offloads or on_device):
                found.append(_within_host(Candidate(policy, memory), config.num_hidden_layers, settings, host_fits))
    chunks = _loss_chunks(tokens) if requested.loss_chunk is None else [requested.loss_chunk]
    return [dataclasses.replace(candidate, loss_chunk=chunk) for candidate in found for chunk in chunks]


def _loss_chunks(tokens: int) -> list[int]:
    """The chunk sizes to try; those longer than the sequence would change nothing."""
    *larger, least = _LOSS_CHUNKS
    return [*(chunk for chunk in larger if chunk <= tokens), least]


def _tilings(head_groups: Sequence[int], tokens: int, embeddings_may_be_on_host: bool) -> Iterator[MemorySettings]:
    tiles = [tile for tile in _TILES if tokens % tile == 0]
    places = (False, True) if embeddings_may_be_on_host else (False,)
    for tile, groups, ahead, on_host in itertools.product(tiles, head_groups, (True, False), places):
        yield MemorySettings(tile=tile, head_groups=groups, fetch_ahead=ahead, embeddings_on_host=on_host)


def _within_host(candidate: Candidate, layers: int, settings: ModelSettings, host_fits) -> Candidate:
    """The candidate with as many saved inputs as the host can hold."""
    assert candidate.memory is not None
    # XLA cannot compile offload_attn with groups of layers: it does not place the attention outputs
    # of the layers within a group in host memory.
    numbers = _divisors(layers) if candidate.policy == "offload" else [1]
    memories = (dataclasses.replace(candidate.memory, save_every=every) for every in numbers)
    *fewer, fewest = (dataclasses.replace(candidate, memory=memory) for memory in memories)
    return next((saving for saving in fewer if host_fits(saving.applied(settings))), fewest)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
