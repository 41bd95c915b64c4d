"""Devices that share sequences have sinks for their own heads, and sum the gradients of sinks."""

from __future__ import annotations

import jax
import pytest

from tests.support import dense_gpt_oss
from tests.support.mesh_runs import Case, gradients_in
from tests.support.numerics import tree_error_ratio
from tests.support.oracles import make_batch, make_oracle, names_of, torch_gradients
from tests.support.thin import thinned

ROWS, TOKENS, VOCABULARY = 4, 64, 136
TILED = {"memory": "tile=8", "use_gradient_checkpointing": "offload"}
PLAIN = {"use_gradient_checkpointing": "none"}
# Data, ring, heads. With 8 devices along heads, each key/value head is on two of them.
CASES = {
    "ring and heads, tiles": Case((2, 2, 2), requested=TILED),
    "ring and heads, groups of heads": Case((2, 2, 2), requested={**TILED, "memory": "tile=8,head_groups=2"}),
    "ring": Case((1, 8, 1), requested=PLAIN),
    "heads": Case((1, 1, 8), requested=PLAIN),
}
BROKEN = {
    name: Case((2, 2, 2), requested=TILED, broken=name) for name in ("sinks of other heads", "a ring without sinks")
}


@pytest.fixture(scope="module")
def ratios(request, tmp_path_factory) -> dict[str, tuple[float, float]]:
    """The error ratios of all gradients, and of those of sinks, for the selected cases."""
    wanted = {item.callspec.params.get("name") for item in request.session.items if item.path == request.path}
    cases = {name: case for name, case in (CASES | BROKEN).items() if name in wanted}
    batch, folder = make_batch(VOCABULARY, ROWS, TOKENS, documents=3), tmp_path_factory.mktemp("model")
    with dense_gpt_oss.registered():
        oracle = make_oracle(folder, adapter=False, **dense_gpt_oss.FIELDS | {"vocab_size": VOCABULARY})
        names = names_of(oracle.model())
        plain, exact = (torch_gradients(model, batch, names) for model in (oracle.plain, oracle.exact))
    plain, exact = (
        {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(tree)} for tree in (plain, exact)
    )
    results = gradients_in(folder, cases, {"packed": batch}, oracle.directory, None)
    of_sinks = [path for path in exact if "sinks" in path]
    assert len(of_sinks) == 1

    def ratio(found, paths):
        return tree_error_ratio(*({path: tree[path] for path in paths} for tree in (found, plain, exact)))

    return {name: (ratio(found, exact), ratio(found, of_sinks)) for name, (_, found) in results.items()}


@pytest.mark.parametrize("name", thinned(CASES, lambda name: name == "ring and heads, tiles"))
def test_gradients(name, ratios):
    assert max(ratios[name]) <= 1


@pytest.mark.parametrize("name", thinned(BROKEN, lambda name: name == "sinks of other heads"))
def test_mutants_fail(name, ratios):
    assert min(ratios[name]) > 1
