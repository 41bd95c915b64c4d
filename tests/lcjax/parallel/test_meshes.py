"""Gradients on meshes of eight devices are those of one, by the tolerance rule against float64."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from tests.support.mesh_runs import Case, gradients_in
from tests.support.numerics import tree_error_ratio
from tests.support.oracles import Oracle, make_batch, make_oracle, names_of, torch_gradients, torch_loss
from tests.support.thin import thinned

ROWS, TOKENS = 8, 128
# Eight devices can have equal parts of the rows of every matrix.
VOCABULARY = 136
FIELDS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 10,
    "num_hidden_layers": 2,
    "vocab_size": VOCABULARY,
    "intermediate_size": 80,
}

TILED = {"memory": "tile=8", "use_gradient_checkpointing": "offload"}
LAYERS = {
    "plain": {"use_gradient_checkpointing": "none"},
    "recomputed": {"use_gradient_checkpointing": "full"},
    "attention offloaded": {"memory": "tile=8", "use_gradient_checkpointing": "offload_attn"},
    "tiles": TILED,
    "tiles, two groups of heads, every second input": {**TILED, "memory": "tile=8,head_groups=2,save_every=2"},
}
# Data, ring, heads. With 8 devices along heads, each key/value head is on two of them.
MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 2, 4)]
CASES = {
    f"{mesh}, {batch}, {layers}": Case(mesh, batch, LAYERS[layers])
    for mesh in MESHES
    for batch in ("one document", "packed")
    for layers in LAYERS
    # 2 of 4 key/value heads cannot be divided between 4 or 8 devices with 2 query heads each.
    if not ("groups" in layers and mesh[2] > 2)
}
# Devices that share the weights, of an adapter's base and of a model that is trained as a whole.
SHARDED = {
    f"{mesh}, {layers}, weights cut along {' and '.join(axes)}": Case(mesh, "packed", LAYERS[layers], shard_axes=axes)
    for mesh, axes in (((1, 1, 8), ("heads",)), ((2, 2, 2), ("ring", "heads")), ((8, 1, 1), ("data",)))
    for layers in ("recomputed", "tiles")
}
# Each axis alone or with others; a model of another family runs on the mesh (1, 2, 4).
IN_EVERY_RUN = {
    "(1, 8, 1), packed, tiles",
    "(1, 1, 8), one document, attention offloaded",
    "(2, 2, 2), packed, tiles, two groups of heads, every second input",
}
BROKEN = {
    "tokens in the order of the sequence": Case((1, 8, 1), "packed", LAYERS["plain"]),
    "copies of other heads": Case((1, 1, 8), "packed", LAYERS["plain"]),
    "one device's tokens alone": Case((2, 2, 2), "packed", LAYERS["plain"]),
}

# Norms over all heads, soft caps, and layers that differ in window and RoPE.
OF_FAMILIES = {
    "olmo2": ({"model_type": "olmo2"}, Case((2, 2, 2), "packed", LAYERS["tiles"])),
    "gemma2": (
        {"model_type": "gemma2", "sliding_window": 20, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        Case((1, 2, 4), "packed", LAYERS["plain"]),
    ),
    "gemma3": (
        {"model_type": "gemma3_text", "sliding_window": 20, "sliding_window_pattern": 2},
        Case((2, 2, 2), "one document", LAYERS["tiles, two groups of heads, every second input"]),
    ),
}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("model"), **FIELDS)


@pytest.fixture(scope="module")
def batches(oracle) -> dict[str, dict[str, np.ndarray]]:
    return {
        name: make_batch(VOCABULARY, ROWS, TOKENS, documents=count)
        for name, count in (("one document", 1), ("packed", 4))
    }


@pytest.fixture(scope="module")
def families(request, tmp_path_factory) -> dict[str, Oracle]:
    """The models of the selected families, which have the batches of the others."""
    wanted = {item.callspec.params.get("family") for item in request.session.items if item.path == request.path}
    return {
        family: make_oracle(tmp_path_factory.mktemp("family"), **FIELDS | fields)
        for family, (fields, _) in OF_FAMILIES.items()
        if family in wanted
    }


@pytest.fixture(scope="module")
def results(request, oracle, families, batches, tmp_path_factory):
    """The results of the cases that this run of the tests has selected."""
    wanted = {item.callspec.params.get("name") for item in request.session.items if item.path == request.path}
    cases = {name: case for name, case in CASES.items() if name in wanted}
    cases |= {name: case for name, case in SHARDED.items() if name in wanted}
    cases |= {name: Case(**{**vars(case), "broken": name}) for name, case in BROKEN.items() if name in wanted}
    cases |= {
        family: dataclasses.replace(OF_FAMILIES[family][1], folder=str(other.directory.parent))
        for family, other in families.items()
    }
    return gradients_in(tmp_path_factory.mktemp("results"), cases, batches, oracle.directory, oracle.adapter)


@pytest.fixture(scope="module")
def expected(oracle, batches):
    """transformers' (loss in float64, gradients in float32, gradients in float64) of each batch."""
    names = names_of(oracle.model())
    return {
        name: (
            torch_loss(oracle.exact, batch).item(),
            *(_by_path(torch_gradients(model, batch, names)) for model in (oracle.plain, oracle.exact)),
        )
        for name, batch in batches.items()
    }


def _by_path(tree) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def ratio(result, expected) -> float:
    """The error of the gradients, relative to what the tolerance rule allows."""
    _, plain, exact = expected
    return tree_error_ratio({path: result[1][path] for path in exact}, plain, exact)


@pytest.mark.parametrize("name", thinned(CASES, lambda name: name in IN_EVERY_RUN))
def test_gradients(name, results, expected):
    loss, *_ = wanted = expected[CASES[name].batch]
    assert results[name][0] == pytest.approx(loss, rel=1e-5)
    assert ratio(results[name], wanted) <= 1


@pytest.mark.parametrize("name", thinned(SHARDED, lambda name: name.startswith("(2, 2, 2), tiles")))
def test_weights_that_devices_share(name, results, expected):
    assert ratio(results[name], expected["packed"]) <= 1


@pytest.mark.parametrize("family", thinned(OF_FAMILIES, lambda family: family == "gemma2"))
def test_gradients_of_other_families(family, results, families, batches):
    oracle, batch = families[family], batches[OF_FAMILIES[family][1].batch]
    names = names_of(oracle.model())
    plain, exact = (_by_path(torch_gradients(model, batch, names)) for model in (oracle.plain, oracle.exact))
    assert ratio(results[family], (None, plain, exact)) <= 1


@pytest.mark.parametrize("name", BROKEN)
def test_mutants_fail(name, results, expected):
    assert ratio(results[name], expected[BROKEN[name].batch]) > 1
