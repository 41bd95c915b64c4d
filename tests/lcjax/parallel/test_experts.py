"""Devices that share sequences or the rows of experts' matrices have the gradients of one."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lcjax.config.parallel.mesh import MeshShape
from lcjax.parallel.weights import is_cut, spec_of
from tests.support.mesh_runs import Case, gradients_in
from tests.support.numerics import tree_error_ratio
from tests.support.oracles import make_batch, make_oracle, names_of
from tests.support.router_balance import balanced_gradients
from tests.support.shapes import MODELS
from tests.support.thin import thinned

ROWS, TOKENS = 4, 64
# Two and four devices can have equal parts of the rows of every matrix, also of the router's.
FIELDS = {
    **MODELS["qwen3, experts"],
    "vocab_size": 136,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_experts": 8,
}
TILED = {"memory": "tile=8", "use_gradient_checkpointing": "offload"}
RECOMPUTED = {"use_gradient_checkpointing": "full"}
COEF = 3.0
# Data, ring, heads.
CASES = {
    "a ring of 2, tiles": Case((1, 2, 1), requested=TILED),
    "a ring of 2, weights cut, tiles": Case((1, 2, 1), requested=TILED, shard_axes=("ring",)),
    "2 data, 2 heads, weights cut": Case((2, 1, 2), requested=RECOMPUTED, shard_axes=("heads",)),
    "a ring of 2, 2 heads, weights cut": Case((1, 2, 2), requested=RECOMPUTED, shard_axes=("ring", "heads")),
    "a ring of 2, 2 heads, weights cut, tiles, balanced": Case(
        (1, 2, 2), requested=TILED, shard_axes=("ring", "heads"), router_aux_loss_coef=COEF
    ),
    "2 data, a ring of 2, tiles, balanced": Case((2, 2, 1), requested=TILED, router_aux_loss_coef=COEF),
    "experts counted on one device alone": Case(
        (1, 2, 1), requested=TILED, router_aux_loss_coef=COEF, broken="experts counted on one device alone"
    ),
    "one device's tokens alone": Case((1, 2, 1), requested=TILED, broken="one device's tokens alone"),
}
# `test_meshes.py` has the other mutant, of a model without experts.
IN_EVERY_RUN = ("a ring of 2, 2 heads, weights cut, tiles, balanced", "experts counted on one device alone")


@pytest.fixture(scope="module")
def ratios(request, tmp_path_factory) -> dict[str, float]:
    """The error ratios of the gradients of every weight, for the selected cases."""
    wanted = {item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")}
    cases = {name: case for name, case in CASES.items() if name in wanted}
    batch, folder = make_batch(136, ROWS, TOKENS, documents=3), tmp_path_factory.mktemp("model")
    batch["tokens"] = np.maximum(batch["tokens"], 2)  # torch does not train padding
    oracle = make_oracle(folder, adapter=False, **FIELDS)
    names = names_of(oracle.model())
    results = gradients_in(folder, cases, {"packed": batch}, oracle.directory, None)

    @functools.cache
    def expected(coef: float):
        compute = functools.partial(balanced_gradients, batch=batch, names=names, coef=coef, micro_batches=ROWS)
        trees = (compute(model)[1] for model in (oracle.plain, oracle.exact))
        return [{jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(tree)} for tree in trees]

    def ratio(name, found):
        plain, exact = expected(cases[name].router_aux_loss_coef)
        return tree_error_ratio({path: found[path] for path in exact}, plain, exact)

    return {name: ratio(name, found) for name, (_, found) in results.items()}


@pytest.mark.parametrize("name", thinned(CASES, lambda name: name in IN_EVERY_RUN))
def test_gradients(name, ratios):
    assert (ratios[name] <= 1) == (CASES[name].broken is None)


@pytest.mark.parametrize(
    ("path", "shape", "cut"),
    [
        ("layers.mlp.experts.up_proj.weight", (2, 8, 28, 48), (None, None, ("ring",))),
        ("layers.mlp.experts.up_proj.weight.codes", (2, 8, 28, 24), (None, None, ("ring",))),
        ("layers.mlp.router.weight", (2, 8, 48), (None, ("ring",))),
        ("layers.mlp.experts.up_proj.lora_A", (2, 8, 5, 48), ()),
        ("layers.input_layernorm.weight", (2, 48), ()),
    ],
)
def test_which_axis_of_a_leaf_is_cut(path, shape, cut):
    """The rows of each expert's matrix, neither the layers nor the experts."""
    mesh, keys = MeshShape(1, 2, 1, shard_axes=("ring",)), tuple(map(jax.tree_util.DictKey, path.split(".")))
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    assert is_cut(mesh, keys, leaf) == bool(cut)
    assert spec_of(mesh, keys, leaf) == PartitionSpec(*cut)
    assert not is_cut(MeshShape(1, 2, 1), keys, leaf)
