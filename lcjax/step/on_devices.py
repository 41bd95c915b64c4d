"""A model on all devices of this machine, for commands that compute without training."""

from __future__ import annotations

import jax

from lcjax.config.parallel.mesh import ONE_DEVICE, MeshRequest, MeshShape, choose_mesh, divides_heads
from lcjax.errors import InputError
from lcjax.model import Llama
from lcjax.parallel.devices import Devices
from lcjax.step.resolve import with_mesh


def on_all_devices(model: Llama, tokens: int) -> tuple[Llama, Devices]:
    """(the model, its devices), which share every sequence of `tokens` tokens.

    As many devices are used as can have equal parts of a sequence.
    """
    return _distributed(model, _widest_context(model, tokens))


def by_heads_on_all_devices(model: Llama) -> tuple[Llama, Devices]:
    """(the model, its devices), each for an equal part of the heads.

    As many devices are used as can have equal parts.
    """
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    count = next(n for n in range(jax.local_device_count(), 0, -1) if divides_heads(n, heads, kv_heads))
    return _distributed(model, MeshShape(heads=count))


def _distributed(model: Llama, mesh: MeshShape) -> tuple[Llama, Devices]:
    if mesh == ONE_DEVICE:
        return model, Devices()
    devices = Devices.of(mesh)
    return Llama(model.config, devices.distribute(model.params), with_mesh(model.settings, mesh)), devices


def _widest_context(model: Llama, tokens: int) -> MeshShape:
    count = jax.local_device_count()
    for context in range(count, 1, -1):
        try:
            return choose_mesh(
                MeshRequest(context_parallel_size=context),
                devices=count,
                devices_per_host=count,
                tokens=tokens,
                micro_batches=1,
                query_heads=model.config.num_attention_heads,
                kv_heads=model.config.num_key_value_heads,
            )
        except InputError:
            continue
    return ONE_DEVICE
