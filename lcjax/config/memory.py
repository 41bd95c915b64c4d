"""Settings that trade time for the memory of a step."""

from __future__ import annotations

import dataclasses

from lcjax.errors import InputError

PINNABLE_SHARE = 0.85
"""The part of a host's memory that a run may pin; the system, the data and Python have the rest."""


@dataclasses.dataclass(frozen=True)
class MemorySettings:
    """How the layers run. The results are the same; time and memory differ.

    Attributes:
      tile: tokens of one tile, reduced if that does not divide the sequence. The position-wise
        parts of a layer need memory in proportion to it; a few thousand tokens saturate a GPU.
      head_groups: number of groups of key/value heads, a divisor of the number of heads. Attention
        runs one group after another. 1 is fastest; more groups need less memory.
      fetch_ahead: whether the backward pass fetches a layer's input from the host while it computes
        the layer above. This hides the copy and needs the memory of one more such input.
      save_every: g, a divisor of the number of layers: only every g-th layer's input is saved. This
        divides the host memory by g. Other inputs are recomputed from the saved one, with (g - 1) /
        2 forward passes per layer on average.
      embeddings_on_host: whether embedding and head, frozen, are in host memory and copied to the
        device for each use; needs a policy that offloads.

    Raises:
      InputError: a size is not positive.
    """

    tile: int = 8192
    head_groups: int = 1
    fetch_ahead: bool = True
    save_every: int = 1
    embeddings_on_host: bool = False

    def __post_init__(self):
        if self.head_groups < 1:
            raise InputError(f"head_groups={self.head_groups} is not a number of groups; use 1 or more")
        if self.save_every < 1:
            raise InputError(f"save_every={self.save_every} is not a number of layers; use 1 or more")
        if self.tile < 1:
            raise InputError(f"tile={self.tile} is not a number of tokens; use 1 or more, 8192 for a GPU")

    def __str__(self) -> str:
        """In the format that `parse_memory` reads."""
        return ",".join(f"{name}={str(value).lower()}" for name, value in vars(self).items())


def check_head_groups(groups: int, kv_heads: int, has_separate_heads: bool) -> None:
    """Checks that the heads of a model can be split into groups.

    Args:
      has_separate_heads: whether no norm is over several heads.

    Raises:
      InputError: they cannot.
    """
    if groups > 1 and not has_separate_heads:
        raise InputError(f"head_groups={groups} splits heads that this model normalizes together; use head_groups=1")
    if kv_heads % groups:
        raise InputError(f"head_groups={groups} does not divide {kv_heads} key/value heads; use a number that does")


def parse_memory(text: str) -> MemorySettings | str:
    """Parses "auto", "none", or settings such as "tile=4096,head_groups=8".

    "auto" and "none" are returned unchanged.

    Raises:
      InputError: a word is unknown or a value is out of range.
    """
    if text in ("auto", "none"):
        return text
    fields = {field.name: field.type for field in dataclasses.fields(MemorySettings)}
    values: dict[str, int | bool] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        parsed = {"true": True, "false": False}.get(value) if fields.get(name) == "bool" else _whole(value)
        if parsed is None or name not in fields:
            raise InputError(
                f"memory={text!r} is not understood at {part!r}; use auto, none, or some of {MemorySettings()}"
            )
        values[name] = parsed
    return MemorySettings(**values)  # pyright: ignore[reportArgumentType]


def check_loss_chunk(tokens: int | None) -> None:
    """Raises InputError unless the chunk of the loss is None (automatic) or 1 token or more."""
    if tokens is not None and tokens < 1:
        raise InputError(f"--loss-chunk {tokens} is not a number of tokens; use 1 or more, 256 to 1024 for a GPU")


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
