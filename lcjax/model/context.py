"""What every layer reads besides the residual stream, and how dropout's key is dealt out.

Shapes: B batch, T tokens, F rotated pairs.
"""

from __future__ import annotations

import dataclasses

import jax

from lcjax.config.families import AttentionView


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer reads besides the residual stream; int32 [B, T] positions and segment ids, None for one document
    a row. `attention` is the name of an implementation, and `sees` what it shows of the tokens before."""

    positions_BT: jax.Array
    segment_ids_BT: jax.Array | None
    inverse_frequencies_F: jax.Array
    attention_factor: float = dataclasses.field(metadata={"static": True})
    attention: str = dataclasses.field(metadata={"static": True})
    sees: AttentionView = dataclasses.field(metadata={"static": True})


def split_key(key: jax.Array | None, count: int) -> list[jax.Array | None]:
    """A key for each of `count` parts; None for each where there is none."""
    return [None] * count if key is None else list(jax.random.split(key, count))
