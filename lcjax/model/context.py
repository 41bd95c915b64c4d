"""What every layer reads in addition to the residual stream.

Shapes: B batch, T tokens, F rotated pairs.
"""

from __future__ import annotations

import dataclasses

import jax

from lcjax.config.families import AttentionView
from lcjax.config.parallel.mesh import ONE_DEVICE, MeshShape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer reads in addition to the residual stream.

    Positions and segment ids are int32 [B, T]; segment ids are None for one document per row.
    `attention` and `rope` are names of implementations. `sees` limits which earlier tokens
    attention sees. `places_T`, int32, has each token's index in its sequence; None without dropout.
    On a `mesh` of several devices, tokens are those of one device.
    """

    positions_BT: jax.Array
    segment_ids_BT: jax.Array | None
    inverse_frequencies_F: jax.Array
    places_T: jax.Array | None
    attention_factor: float = dataclasses.field(metadata={"static": True})
    attention: str = dataclasses.field(metadata={"static": True})
    rope: str = dataclasses.field(metadata={"static": True})
    sees: AttentionView = dataclasses.field(metadata={"static": True})
    mesh: MeshShape = dataclasses.field(default=ONE_DEVICE, metadata={"static": True})
