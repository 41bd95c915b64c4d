"""What every layer reads in addition to the residual stream.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from lcjax.config.families import AttentionView
from lcjax.config.parallel.mesh import ONE_DEVICE, MeshShape
from lcjax.model.rotation import Rotation
from lcjax.model.views import switch_views


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer reads in addition to the residual stream.

    Positions and segment ids are int32 [B, T]; segment ids are None for one document per row.
    `rotation` is RoPE's. `attention` and `rope` are names of implementations. `views` say what
    attention sees, and `view_of_layer` has the index of every layer's view. `view`, int32, is that
    of the layer that reads this; None if all layers have the same. `places_T`, int32, has each
    token's index in its sequence; None without dropout. `counted_BT`, bool, says which tokens count
    in the load of experts; None if that is not computed. On a `mesh` of several devices, tokens are
    those of one device.
    """

    positions_BT: jax.Array
    segment_ids_BT: jax.Array | None
    rotation: Rotation
    places_T: jax.Array | None
    attention: str = dataclasses.field(metadata={"static": True})
    rope: str = dataclasses.field(metadata={"static": True})
    views: tuple[AttentionView, ...] = dataclasses.field(metadata={"static": True})
    view_of_layer: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    mesh: MeshShape = dataclasses.field(default=ONE_DEVICE, metadata={"static": True})
    view: jax.Array | None = None
    counted_BT: jax.Array | None = None

    def of_layer(self, layer: jax.Array) -> Context:
        """What one layer reads. Its number may be traced, as in a scan over layers that differ."""
        view = None if len(self.views) == 1 else jnp.asarray(self.view_of_layer, jnp.int32)[layer]
        return dataclasses.replace(self, rotation=self.rotation.of_layer(layer), view=view)

    def among(self, views: Collection[int]) -> Context:
        """The same, if it is known that the view of this layer is one of `views`."""
        if self.view is None:
            return self
        known = sorted(set(views))
        index = jnp.searchsorted(jnp.asarray(known), self.view).astype(jnp.int32)
        return dataclasses.replace(
            self, views=tuple(self.views[n] for n in known), view=None if len(known) == 1 else index
        )

    def by_view(self, call: Callable[..., Any], *arrays: Any) -> Any:
        """`call(*arrays, view)` with what this layer's attention sees."""
        if self.view is None:
            [only] = self.views
            return call(*arrays, only)
        return switch_views(self.views, self.view, call, *arrays)
