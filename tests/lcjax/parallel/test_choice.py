"""How devices share the work: what is chosen, and which requests are refused."""

from __future__ import annotations

import pytest

from lcjax.config.parallel.mesh import MeshRequest, MeshShape, choose_mesh, choose_shard_axes
from lcjax.config.presets import resolve_config
from lcjax.errors import InputError
from lcjax.plan.workload import Workload


def mesh(
    devices: int,
    tokens: int,
    micro_batches: int = 1,
    *,
    hosts: int = 1,
    heads=(32, 8),
    most: int | None = None,
    **requested,
) -> MeshShape:
    return choose_mesh(
        MeshRequest(**requested),
        devices=devices,
        devices_per_host=devices // hosts,
        tokens=tokens,
        micro_batches=micro_batches,
        query_heads=heads[0],
        kv_heads=heads[1],
        most_tokens_of_a_head=most,
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (mesh(1, 1000), MeshShape()),
        (mesh(8, 1_048_576), MeshShape(1, 1, 8)),
        (mesh(32, 16_777_216, hosts=4), MeshShape(1, 4, 8)),
        # With 16,384 tokens for each of two devices, the others take other micro-batches.
        (mesh(8, 32_768, 4), MeshShape(4, 1, 2)),
        (mesh(8, 2048, 8), MeshShape(8, 1, 1)),
        (mesh(8, 2048, 2), MeshShape(2, 1, 4)),
        # SmolLM2: 9 heads cannot be divided.
        (mesh(8, 65_536, heads=(9, 3)), MeshShape(1, 8, 1)),
        # 4 key/value heads: each is on two of 8 devices.
        (mesh(8, 1_048_576, heads=(32, 4)), MeshShape(1, 1, 8)),
        (mesh(8, 1_048_576, ring_degree=2), MeshShape(1, 2, 4)),
        (mesh(8, 2048, 4, ring_degree=8), MeshShape(1, 8, 1)),
        (mesh(8, 1_048_576, ulysses_degree=2), MeshShape(1, 4, 2)),
        # The ring is as long as a head's tokens need, but no longer.
        (mesh(8, 1_048_576, most=1_048_576), MeshShape(1, 1, 8)),
        (mesh(8, 1_048_576, most=1_048_575), MeshShape(1, 2, 4)),
        (mesh(8, 1_048_576, most=200_000), MeshShape(1, 8, 1)),
        (mesh(8, 1_048_576, most=1000), MeshShape(1, 8, 1)),
        (mesh(32, 16_777_216, hosts=4, most=4_194_304), MeshShape(1, 4, 8)),
        (mesh(32, 16_777_216, hosts=4, most=2_097_152), MeshShape(1, 8, 4)),
        (mesh(8, 1_048_576, most=1000, ulysses_degree=8), MeshShape(1, 1, 8)),
        (mesh(8, 65_536, 3, context_parallel_size=2), MeshShape(1, 1, 2)),
        (mesh(8, 65_536, 4, data_parallel_size=2), MeshShape(2, 1, 4)),
    ],
)
def test_what_is_chosen(found, expected):
    assert found == expected


@pytest.mark.parametrize(
    ("arguments", "requested", "message"),
    [
        (
            (8, 1001),
            {},
            r"sequences of 1,001 tokens do not divide into 8 equal parts .*; use --max-seq-length 1000 or 1008",
        ),
        ((8, 2048), {"context_parallel_size": 16}, "a context of 16 devices does not fit 8; use at most 8"),
        ((8, 2048, 4), {"data_parallel_size": 4, "context_parallel_size": 4}, "needs 16 devices, but there are 8"),
        ((8, 2048), {"data_parallel_size": 8}, "does not divide --gradient-accumulation-steps 1; use .*-steps 8"),
        ((8, 2048), {"context_parallel_size": 8, "ring_degree": 3}, "--ring-degree 3 does not divide"),
        ((8, 2048), {"context_parallel_size": 8, "ring_degree": 2, "ulysses_degree": 2}, "2 times --ring-degree 2 is"),
        ((1, 2048), {"ring_degree": 2}, "--ring-degree 2 does not divide a context of 1 device; omit it"),
        ((8, 2048), {"ulysses_degree": 3}, "--ulysses-degree 3 does not divide a context of 8 devices"),
        (
            (6, 6144),
            {"ulysses_degree": 6},
            "32 query heads with 8 key/value heads cannot be divided between 6 devices; use --ring-",
        ),
        ((8, 2048), {"context_parallel_size": 0}, "--context-parallel-size 0 is out of range"),
        ((8, 2048), {"shard_weights": "all"}, "--shard-weights='all' is unknown"),
    ],
)
def test_what_is_refused(arguments, requested, message):
    with pytest.raises(InputError, match=message):
        mesh(*arguments, **requested)


def test_weights_are_cut_inside_of_a_host():
    def axes(shape: MeshShape, devices_per_host: int, **requested) -> tuple[str, ...]:
        return choose_shard_axes(
            MeshRequest(**requested), shape, devices_per_host, {4096, 1024}, needed=True
        ).shard_axes

    assert axes(MeshShape(1, 4, 8), 8) == ("heads",)
    assert axes(MeshShape(1, 1, 8), 8) == ("heads",)
    assert axes(MeshShape(2, 2, 2), 8) == ("data", "ring", "heads")
    assert axes(MeshShape(8, 1, 1), 8) == ("data",)
    assert axes(MeshShape(1, 1, 8), 8, shard_weights="none") == ()
    assert axes(MeshShape(1, 1, 3), 3) == ()  # the rows do not divide
    with pytest.raises(InputError, match="3 GPUs cannot have equal parts of a matrix with 1,024 rows"):
        axes(MeshShape(1, 1, 3), 3, shard_weights="layers")


@pytest.mark.parametrize(
    ("tokens", "attention", "expected"),
    [
        (5_767_168, "auto", MeshShape(1, 1, 8)),
        (8_388_608, "auto", MeshShape(1, 2, 4)),
        (16_777_216, "pallas", MeshShape(1, 4, 2)),
        (16_777_216, "mosaic", MeshShape(1, 1, 8)),  # has no ring
    ],
)
def test_one_head_takes_at_most_three_tenths_of_a_gpu(tokens, attention, expected):
    config = resolve_config("llama-3.1-8b")
    workload = Workload("llama-3.1-8b", config, "h100-80gb", quantize="nf4", gpus=8, attention=attention)
    assert workload.mesh_for(tokens) == expected
