"""AdamW for what a mask marks, in the words of the Hugging Face trainer."""

from __future__ import annotations

from typing import Any

import jax
import optax

from lcjax.optim.layerwise import AdamW, layerwise


def make_optimizer(
    schedule: optax.Schedule,
    mask: dict[str, Any],
    *,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    by_layers: bool = False,
    on_host: bool = False,
) -> optax.GradientTransformation:
    """AdamW (0.9, 0.999, 1e-8) behind a clip by global norm, for the parameters that `mask` marks and no others.

    Biases and norm weights are not decayed. `max_grad_norm=0` does not clip.

    `by_layers` goes through the layers one at a time, with float32 masters of weights in bfloat16 (see
    `lcjax.optim.layerwise`). `on_host` also keeps masters and moments in host memory. The numbers are the same but for rounding.

    Give `init` and `update` trees as `lcjax.model.lora.partition` makes them: `optax.masked` passes the updates of unmarked leaves
    through unchanged, so a frozen weight must have no leaf there in the first place.

    Source: Loshchilov & Hutter, arXiv 1711.05101.
    """
    if by_layers or on_host:
        adamw = AdamW(schedule, _path_is_decayed, weight_decay)
        return optax.masked(layerwise(adamw, max_grad_norm=max_grad_norm, on_host=on_host), mask)
    adamw = optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay, mask=_decayed)
    clip = optax.clip_by_global_norm(max_grad_norm) if max_grad_norm > 0 else optax.identity()
    return optax.masked(optax.chain(clip, adamw), mask)


def _decayed(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, _: _path_is_decayed(path), params)


def _path_is_decayed(path: Any) -> bool:
    names = [entry.key for entry in path]
    return names[-1] != "bias" and not any("norm" in name for name in names)
