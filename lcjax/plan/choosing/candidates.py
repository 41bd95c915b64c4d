"""The settings that a step can run with: gradient checkpointing, layers, loss; each a choice between time and memory."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

from lcjax.config import LlamaConfig, MemorySettings
from lcjax.config.policies import OFFLOAD_ABOVE_TOKENS, OFFLOADING, POLICIES
from lcjax.model import ModelSettings
from lcjax.ops.attention.passes import has_passes

# Tokens whose logits exist at a time: from the least time to the least memory. Beyond 1,024 nothing is gained (docs/log.md).
_LOSS_CHUNKS = (1024, 256, 64)
# Tokens of a tile: from those that keep a GPU busy and seldom dequantize the weights to those that need next to no memory.
_TILES = (8192, 2048, 1024)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One choice. `memory` None: plain layers; `loss_chunk` None: as many tokens as `lcjax.ops.cross_entropy.chunk_tokens` says."""

    policy: str
    memory: MemorySettings | None
    loss_chunk: int | None = None

    def needs_at_least(self, other: Candidate) -> bool:
        """Whether each choice takes at least as much device memory as the other's."""
        return all(a >= b for a, b in zip(self.device_memory(), other.device_memory(), strict=True))

    def device_memory(self) -> tuple[float, ...]:
        """A number for each choice, which grows with the device memory that it takes; the first ones weigh most."""
        policy, loss = ("offload", "offload_attn", "full", "none").index(self.policy), self.loss_chunk or 0
        if self.memory is None:
            return policy, 1, 0, 1, 1, float("inf"), loss
        memory = self.memory
        return policy, 0, -memory.head_groups, not memory.embeddings_on_host, memory.fetch_ahead, memory.tile, loss

    @property
    def kind(self) -> tuple[str, int]:
        """What it is but for the sizes of its tiles and its buffers: the policy, and the groups of heads, 0 for plain layers."""
        return self.policy, self.memory.head_groups if self.memory else 0

    @property
    def form(self) -> tuple[str, MemorySettings | None]:
        """What it is but for the loss."""
        return self.policy, self.memory

    def applied(self, settings: ModelSettings) -> ModelSettings:
        """The settings of a model that runs so."""
        return dataclasses.replace(
            settings,
            use_gradient_checkpointing=self.policy,
            memory=self.memory or "none",
            loss_chunk=self.loss_chunk,
        )

    def __str__(self) -> str:
        """As --use-gradient-checkpointing, --memory and --loss-chunk take it."""
        chunk = "" if self.loss_chunk is None else f", loss chunk {self.loss_chunk}"
        return f"{self.policy} {self.memory or 'none'}{chunk}"


def candidates(
    config: LlamaConfig,
    settings: ModelSettings,
    host_fits: Callable[[ModelSettings], bool] = lambda settings: True,
    *,
    embeddings_may_be_on_host: bool = False,
) -> list[Candidate]:
    """All that are worth trying, in no order.

    The one that was asked for where `settings.memory` is not "auto". Else only those of
    `settings.use_gradient_checkpointing` where that is not "auto", and of `settings.loss_chunk`
    where that is given.

    Args:
      settings: the length, and the implementation of attention.
      host_fits: whether the host has the memory for a candidate. As many layers' inputs are saved as it takes; where even the
        fewest are too many, the fewest.
      embeddings_may_be_on_host: whether embedding and head may be in host memory.
    """
    requested, tokens = settings.use_gradient_checkpointing, settings.max_seq_length
    if settings.memory != "auto":
        return [Candidate(settings.policy_for(tokens), settings.memory_for(tokens), settings.loss_chunk)]
    allowed = POLICIES if tokens <= OFFLOAD_ABOVE_TOKENS else OFFLOADING
    with_passes = has_passes(settings.attention)
    policies = [settings.policy_for(tokens)]
    if requested == "auto":
        policies = [policy for policy in allowed if with_passes or policy != "offload_attn"]
    forms = list(_forms(config.num_key_value_heads, tokens, embeddings_may_be_on_host)) if with_passes else []
    found = [Candidate(policy, None) for policy in policies]
    for policy in policies:
        for form in forms:
            grouped = form.head_groups > 1
            offloads = policy in OFFLOADING
            on_device = form.fetch_ahead and not form.embeddings_on_host
            if policy != "none" and not (grouped and policy == "offload_attn") and (offloads or on_device):
                found.append(_within_host(Candidate(policy, form), config.num_hidden_layers, settings, host_fits))
    chunks = _loss_chunks(tokens) if settings.loss_chunk is None else [settings.loss_chunk]
    return [dataclasses.replace(candidate, loss_chunk=chunk) for candidate in found for chunk in chunks]


def _loss_chunks(tokens: int) -> list[int]:
    """Without those that are the same, since a sequence is no longer."""
    *larger, least = _LOSS_CHUNKS
    return [*(chunk for chunk in larger if chunk <= tokens), least]


def _forms(kv_heads: int, tokens: int, embeddings_may_be_on_host: bool) -> Iterator[MemorySettings]:
    tiles = [tile for tile in _TILES if tokens % tile == 0]
    places = (False, True) if embeddings_may_be_on_host else (False,)
    for tile, groups, ahead, on_host in itertools.product(tiles, _divisors(kv_heads), (True, False), places):
        yield MemorySettings(tile=tile, head_groups=groups, fetch_ahead=ahead, embeddings_on_host=on_host)


def _within_host(candidate: Candidate, layers: int, settings: ModelSettings, host_fits) -> Candidate:
    """With as many saved inputs as the host takes."""
    assert candidate.memory is not None
    numbers = _divisors(layers) if candidate.policy in OFFLOADING else [1]
    memories = (dataclasses.replace(candidate.memory, save_every=every) for every in numbers)
    *fewer, fewest = (dataclasses.replace(candidate, memory=memory) for memory in memories)
    return next((saving for saving in fewer if host_fits(saving.applied(settings))), fewest)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
