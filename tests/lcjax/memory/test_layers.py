"""The layers of the memory engine give the loss and the gradients of plain layers."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch

from lcjax.config import Execution, ExecutionRequest, MemorySettings, parse_memory
from lcjax.config.execution import layer_forms
from lcjax.errors import InputError
from lcjax.memory import layer
from lcjax.memory.tiles import Tiles
from lcjax.model.linear import part_of
from tests.support.numerics import error_ratio, tree_error_ratio
from tests.support.oracles import Oracle, jax_gradients, make_batch, make_oracle, names_of, torch_gradients, torch_loss
from tests.support.shapes import MODEL_COMMON, MODELS
from tests.support.thin import thinned

TOKENS = 42
# Losses of this many batches are judged together, because the error of a single number is a matter
# of chance.
LOSSES = 8


@pytest.fixture(scope="module")
def oracle(tmp_path_factory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("model"), **MODELS["untied gqa 3, odd head_dim"])


@pytest.fixture(scope="module")
def full(oracle) -> Oracle:
    return dataclasses.replace(oracle, adapter=None)


def batch(seed: int = 0):
    return make_batch(MODEL_COMMON["vocab_size"], 2, TOKENS, documents=3, seed=seed)


def ratios(oracle: Oracle, *, settings: MemorySettings, **others) -> tuple[float, float]:
    """Returns the error ratios of the losses of `LOSSES` batches, and of the first gradients."""
    model = oracle.model(memory=settings, **({"use_gradient_checkpointing": "offload"} | others))
    losses, gradients = zip(*(jax_gradients(model, b) for b in batches()), strict=True)
    reference_losses, reference_gradients = references(oracle)
    return error_ratio(np.float32(losses), *reference_losses), tree_error_ratio(gradients[0], *reference_gradients)


def batches():
    return [batch(seed) for seed in range(LOSSES)]


@functools.cache
def references(oracle: Oracle):
    """Returns torch's losses of all batches and gradients of the first, in both precisions."""
    names = names_of(oracle.model())
    models = oracle.plain, oracle.exact
    with torch.no_grad():
        losses = [np.float64([torch_loss(model, b).item() for b in batches()]) for model in models]
    return losses, [torch_gradients(model, batch(), names) for model in models]


@pytest.mark.parametrize(
    ("tile", "policy"),
    thinned(
        # Other tests have tiles of 14 with offloading.
        [(TOKENS, "auto"), (14, "offload"), (21, "offload_attn"), (1, "offload")],
        lambda case: case[0] == 21,
    ),
)
def test_tiles(oracle, tile, policy):
    assert max(ratios(oracle, settings=MemorySettings(tile=tile), use_gradient_checkpointing=policy)) <= 1


@pytest.mark.parametrize("head_groups", thinned([1, 4], lambda groups: groups == 4))
def test_biases_and_tied_embeddings(tmp_path, head_groups):
    changes = {"tie_word_embeddings": True, "num_key_value_heads": 4}
    oracle = make_oracle(tmp_path, **MODELS["untied gqa 8, biases"] | changes)
    assert max(ratios(oracle, settings=MemorySettings(tile=14, head_groups=head_groups))) <= 1


@pytest.mark.parametrize("tile", thinned([TOKENS, 14], lambda tile: tile == 14))
def test_head_groups(oracle, tile):
    assert max(ratios(oracle, settings=MemorySettings(tile=tile, head_groups=2))) <= 1


@pytest.mark.parametrize(
    "settings",
    thinned(
        [{"save_every": 3}, {"save_every": 3, "fetch_ahead": False}, {"fetch_ahead": False}],
        lambda settings: len(settings) == 2,
    ),
)
def test_saved_inputs(oracle, settings):
    """The bits do not depend on which inputs are saved and when they are fetched."""
    expected, actual = (
        jax_gradients(
            oracle.model(memory=MemorySettings(**own, tile=21), use_gradient_checkpointing="offload"),
            batch(),
            same_bits=True,
        )
        for own in ({}, settings)
    )
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("head_groups", thinned([1, 2], lambda groups: groups == 2))
def test_full_fine_tuning(full, head_groups):
    assert max(ratios(full, settings=MemorySettings(tile=21, head_groups=head_groups))) <= 1


@pytest.mark.parametrize("head_groups", thinned([1, 2], lambda groups: groups == 2))
def test_pallas(oracle, head_groups):
    assert max(ratios(oracle, settings=MemorySettings(tile=21, head_groups=head_groups), attention="pallas")) <= 1


@pytest.fixture
def compiled_anew():
    """Clears compiled programs before and after a test with a mutant."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("compiled_anew")
def test_a_forgotten_tile_is_found(oracle, monkeypatch):
    """Mutant: the cotangent of the last tile is missing from the sum."""
    monkeypatch.setattr(layer, "added", lambda sums, new: new)
    loss, gradients = ratios(oracle, settings=MemorySettings(tile=21))
    assert loss <= 1
    assert gradients > 1


@pytest.mark.usefixtures("compiled_anew")
def test_a_repeated_head_group_is_found(oracle, monkeypatch):
    """Mutant: the first group of heads is used for all groups."""
    monkeypatch.setattr("lcjax.model.linear.part_of", lambda x, part, *others: part_of(x, 0 * part, *others))
    assert min(ratios(oracle, settings=MemorySettings(tile=21, head_groups=2))) > 1


@pytest.mark.usefixtures("compiled_anew")
def test_a_tile_at_the_wrong_positions_is_found(oracle, monkeypatch):
    """Mutant: every tile has the positions of the first one."""
    take = Tiles.take

    def first(self, x, i, axis=1):
        return take(self, x, 0 if x.ndim == 2 else i, axis)

    monkeypatch.setattr(Tiles, "take", first)
    assert min(ratios(oracle, settings=MemorySettings(tile=21))) > 1


def test_tiles_divide_the_sequence():
    assert Tiles.of(131_072, 8192) == Tiles(16, 8192)
    assert Tiles.of(1000, 300) == Tiles(4, 250)
    assert Tiles.of(7, 100) == Tiles(1, 7)
    with pytest.raises(
        InputError, match="131,071 tokens cut into equal tiles of at most 8,192 leave 1 a tile; use a mult"
    ):
        Tiles.of(131_071, 8192)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_gradient_checkpointing": "none"}, "'none' does not run in tiles; use 'full' or 'offload'"),
        ({"memory": MemorySettings(save_every=2)}, "save_every=2 does not divide 3 layers; use one of 1, 3"),
        ({"memory": MemorySettings(head_groups=3)}, "head_groups=3 does not divide 2 key/value heads"),
        (
            {"use_gradient_checkpointing": "offload_attn", "memory": MemorySettings(head_groups=2)},
            "'offload_attn' does not run in tiles in groups of heads; use 'full' or 'offload'",
        ),
        (
            {"attention": "cudnn", "use_gradient_checkpointing": "full"},
            "attention='cudnn' does not run in tiles; use attention='pallas' or attention='xla'",
        ),
    ],
)
def test_unsupported_settings_of_tiles_are_refused(oracle, settings, message):
    with pytest.raises(InputError, match=message):
        jax_gradients(oracle.model(**({"memory": MemorySettings()} | settings)), batch())


@pytest.mark.parametrize("name", ["tile", "head_groups", "save_every"])
def test_settings_are_positive(name):
    with pytest.raises(InputError, match=f"{name}=0 is not a number"):
        MemorySettings(**{name: 0})


def test_memory_settings_as_text():
    assert parse_memory("tile=4096,head_groups=8") == MemorySettings(tile=4096, head_groups=8)
    assert parse_memory("save_every=2,fetch_ahead=false") == MemorySettings(save_every=2, fetch_ahead=False)
    assert [parse_memory(word) for word in ("auto", "none")] == ["auto", "none"]
    for text in ("tiles=3", "tile", "tile=big", "fetch_ahead=1", ""):
        with pytest.raises(
            InputError, match=r"use auto, none, or some of tile=8192,head_groups=1,fetch_ahead=true,save_e"
        ):
            parse_memory(text)


def test_auto_uses_tiles_for_long_sequences():
    def resolved(tokens, requested="auto", attention_has_passes=True):
        request = ExecutionRequest(memory=requested)
        forms = layer_forms(request, attention_has_passes=attention_has_passes)
        return Execution(forms=forms).form(tokens).memory

    assert resolved(32_768) is None
    assert resolved(33_792) == MemorySettings()
    assert resolved(33_793) is None
    assert resolved(131_072, attention_has_passes=False) is None
    assert resolved(131_072, "none") is None
    assert resolved(100, MemorySettings(tile=7)) == MemorySettings(tile=7)
