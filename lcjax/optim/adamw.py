"""AdamW for the parameters that a mask selects, with the options of the Hugging Face trainer."""

from __future__ import annotations

from typing import Any

import jax
import optax

from lcjax.config.parallel.mesh import ONE_DEVICE, MeshShape
from lcjax.optim.layerwise import AdamW, clip_factor, layerwise


def make_optimizer(
    schedule: optax.Schedule,
    mask: dict[str, Any],
    *,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    by_layers: bool = False,
    on_host: bool = False,
    mesh: MeshShape = ONE_DEVICE,
) -> optax.GradientTransformation:
    """Clips by global norm, then AdamW (0.9, 0.999, 1e-8), for the parameters that `mask` selects.

    Weight decay does not apply to biases and norm weights. `max_grad_norm=0` does not clip.

    `by_layers` processes one layer at a time, with float32 master copies of bfloat16 weights (see
    `lcjax.optim.layerwise`). `on_host` does so too, and stores master copies and moments in host
    memory. The results are the same except for rounding.

    `mesh` are the devices that may share the weights.

    `init` and `update` expect trees from `lcjax.model.lora.partition`. `optax.masked` passes the
    updates of other leaves through unchanged, so a frozen weight must not have a leaf in these
    trees.

    Source: Loshchilov & Hutter, arXiv 1711.05101.
    """
    if by_layers or on_host:
        adamw = AdamW(schedule, _path_is_decayed, weight_decay)
        return optax.masked(layerwise(adamw, max_grad_norm=max_grad_norm, on_host=on_host, mesh=mesh), mask)
    adamw = optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay, mask=_decayed)
    clip = _clip(mesh, max_grad_norm) if max_grad_norm > 0 else optax.identity()
    return optax.masked(optax.chain(clip, adamw), mask)


def _clip(mesh: MeshShape, max_grad_norm: float) -> optax.GradientTransformation:
    """optax's clipping, or for weights that devices share, by the norm of all of them."""
    if not mesh.shard_axes:
        return optax.clip_by_global_norm(max_grad_norm)

    def update(updates: Any, params: Any = None) -> Any:
        factor = clip_factor(mesh, updates, max_grad_norm)
        return jax.tree.map(lambda x: (x * factor).astype(x.dtype), updates)

    return optax.stateless(update)


def _decayed(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: _path_is_decayed(path), params)


def _path_is_decayed(path: Any) -> bool:
    names = [entry.key for entry in path]
    return names[-1] != "bias" and not any("norm" in name for name in names)
