"""How a model runs: what a user requests, and the settings that follow from it.

A request may leave a choice open with the word "auto". `lcjax.step.resolve` turns it into an
`Execution`, where nothing is left open. Model, operations and kernels see only that.

Source of the lengths: docs/log.md, the step of an 8B model on an H100.
"""

from __future__ import annotations

import dataclasses

from lcjax.config.memory import MemorySettings, check_loss_chunk
from lcjax.config.parallel.mesh import ONE_DEVICE, MeshShape
from lcjax.config.policies import OFFLOAD_ABOVE_TOKENS, check_policy, policies_by_length
from lcjax.errors import InputError

# A sequence of a multiple of this many tokens divides into equal tiles of any usual size.
TILED_LENGTHS_STEP = 1024


@dataclasses.dataclass(frozen=True)
class ExecutionRequest:
    """What a user requests; "auto", or None for `loss_chunk`, leaves a choice open.

    Attributes:
      attention: a name in `lcjax.ops.attention.registry.BACKENDS`, or "auto".
      use_gradient_checkpointing: a policy of `lcjax.config.policies`, an alias of one, or "auto".
      memory: how layers run in tiles: MemorySettings, "none" or "auto".
      loss_chunk: the number of tokens whose logits exist at a time.

    Raises:
      InputError: `loss_chunk` is not positive, or the policy does not go with the tiles.
    """

    attention: str = "auto"
    use_gradient_checkpointing: str = "auto"
    memory: MemorySettings | str = "auto"
    loss_chunk: int | None = None

    def __post_init__(self):
        check_loss_chunk(self.loss_chunk)
        if isinstance(self.memory, MemorySettings):
            check_tiles(self.use_gradient_checkpointing, self.memory)

    @property
    def leaves_policy_open(self) -> bool:
        """Whether any gradient checkpointing policy may be used."""
        return self.use_gradient_checkpointing == "auto"

    @property
    def leaves_memory_open(self) -> bool:
        """Whether the layers may run in tiles of any size, or without tiles."""
        return self.memory == "auto"


def check_tiles(requested: str, memory: MemorySettings) -> None:
    """Checks that layers run in tiles with a policy, an alias or "auto".

    Raises:
      InputError: they do not.
    """
    if requested == "none" or (requested == "offload_attn" and memory.head_groups > 1):
        also = "" if requested == "none" else " in groups of heads"
        raise InputError(
            f"use_gradient_checkpointing={requested!r} does not run in tiles{also}; use 'full' or 'offload'"
        )
    if memory.embeddings_on_host and requested == "full":
        raise InputError(
            "memory=embeddings_on_host=true goes with a policy that uses host memory, not with "
            f"use_gradient_checkpointing={requested!r}; use 'offload'"
        )


@dataclasses.dataclass(frozen=True)
class LayerForm:
    """How the layers run over sequences of certain lengths.

    Attributes:
      policy: one of `lcjax.config.policies.POLICIES`.
      memory: how they run in tiles; None means without tiles.
      above, up_to: the lengths in tokens for which it holds, `above < length <= up_to`; None means
        any length above.
      multiple_of: it holds only for multiples of this number of tokens.
    """

    policy: str
    memory: MemorySettings | None = None
    above: int = 0
    up_to: int | None = None
    multiple_of: int = 1

    def holds_for(self, tokens: int) -> bool:
        """Whether sequences of `tokens` tokens run in this form."""
        longest = tokens if self.up_to is None else self.up_to
        return self.above < tokens <= longest and tokens % self.multiple_of == 0


def layer_forms(request: ExecutionRequest, *, attention_has_passes: bool) -> tuple[LayerForm, ...]:
    """The forms of a request for all lengths; the first one that holds for a length is used.

    With "auto", layers run in tiles above 32,768 tokens if the length is a multiple of 1,024.
    Layers in tiles are always recomputed; others keep their intermediates up to 4,096 tokens.

    Args:
      attention_has_passes: whether the implementation of attention runs in tiles.

    Raises:
      InputError: the policy is unknown.
    """
    memory = request.memory if isinstance(request.memory, MemorySettings) else None
    by_length = policies_by_length(request.use_gradient_checkpointing, in_tiles=memory is not None)
    forms = tuple(LayerForm(policy, memory, up_to=up_to) for policy, up_to in by_length)
    policy, up_to = by_length[-1]
    if request.leaves_memory_open and attention_has_passes and up_to is None:
        tiled = LayerForm(policy, MemorySettings(), above=OFFLOAD_ABOVE_TOKENS, multiple_of=TILED_LENGTHS_STEP)
        return tiled, *forms
    return forms


PLAIN_FORMS = layer_forms(ExecutionRequest(memory="none"), attention_has_passes=False)
"""The forms without tiles."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model runs, with nothing left to choose.

    Attributes:
      attention, rope: the names of the implementations.
      slower_attention: other implementations that could compute attention, the fastest first. They
        need less memory. Empty if the user named one.
      forms: how the layers run, by length; see `layer_forms`.
      loss_chunk: the number of tokens whose logits exist at a time. None means the value of
        `lcjax.ops.cross_entropy.chunk_tokens`.
      mesh: the devices that share the work. Lengths in forms are in tokens of one device.
    """

    attention: str = "xla"
    rope: str = "xla"
    forms: tuple[LayerForm, ...] = PLAIN_FORMS
    loss_chunk: int | None = None
    mesh: MeshShape = ONE_DEVICE
    slower_attention: tuple[str, ...] = ()

    def form(self, tokens: int) -> LayerForm:
        """How the layers run over `tokens` tokens of a device.

        Raises:
          InputError: no form holds for this length, because the policy saves too much for it.
        """
        for form in self.forms:
            if form.holds_for(tokens):
                return form
        check_policy(self.forms[-1].policy, tokens)
        raise InputError(f"no form of the layers is defined for sequences of {tokens:,} tokens")
