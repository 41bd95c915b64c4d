"""The model does not leak between documents; every mutant of the segments does, and is found."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lcjax.config import MemorySettings
from lcjax.data import Data, TokenizedCorpus, lay_out, pack
from lcjax.leak import LeakProbe, PackingLeak, refuse_leak
from lcjax.leak.__main__ import main
from lcjax.leak.command import find_leaks
from lcjax.model import Llama, decoder
from tests.support.oracles import make_oracle
from tests.support.shapes import MODELS

LENGTHS = [40, 300, 90, 31, 500, 20, 7]
T = 384


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    return make_oracle(tmp_path_factory.mktemp("leak"), adapter=False, **MODELS["untied gqa 3, odd head_dim"])


@pytest.fixture(scope="module")
def bfloat16_oracle(tmp_path_factory):
    return make_oracle(tmp_path_factory.mktemp("leak16"), adapter=False, **MODELS["bfloat16"])


@pytest.fixture(scope="module")
def data(oracle) -> Data:
    vocabulary = oracle.model().config.vocab_size
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    tokens = np.random.default_rng(0).integers(0, vocabulary, offsets[-1], dtype=np.int32)
    corpus = TokenizedCorpus(tokens, offsets, [f"document {i}" for i in range(len(LENGTHS))])
    return Data(corpus, pack(corpus.lengths, T), pack(corpus.lengths, T, np.arange(0)), seed=0)


def find(model, data):
    return find_leaks(model, data, 10, Console(stderr=True))


@pytest.mark.parametrize(
    "settings",
    [{}, {"memory": MemorySettings(tile=T // 3, head_groups=2)}, {"use_gradient_checkpointing": "full"}],
    ids=str,
)
def test_nothing_leaks(oracle, data, settings):
    assert (np.diff(data.train_plan.row_offsets) > 1).sum() >= 2
    assert find(oracle.model(**settings), data) == []
    refuse_leak(oracle.model(**settings), data)


def test_nothing_leaks_in_bfloat16(bfloat16_oracle, data):
    assert find(bfloat16_oracle.model(), data) == []


def without_segments(segment_ids):
    return jnp.zeros_like(segment_ids)


def one_token_late(segment_ids):
    """The first token of each document belongs to the previous document."""
    return jnp.pad(segment_ids, ((0, 0), (1, 0)), mode="edge")[:, :-1]


def last_two_as_one(segment_ids):
    return jnp.minimum(segment_ids, jnp.max(segment_ids) - 1)


def mutant_of(oracle, monkeypatch, change):
    """Returns the model with changed segment ids in its attention.

    The mutant has a new name, because compiled programs are cached.
    """
    attend = decoder.attend

    def mutant(q, k, v, context, **options):
        changed = dataclasses.replace(context, segment_ids_BT=change(context.segment_ids_BT))
        return attend(q, k, v, changed, **options)

    monkeypatch.setattr(decoder, "attend", mutant)
    return oracle.model(name_or_path=change.__name__)


@pytest.mark.parametrize("change", [without_segments, one_token_late, last_two_as_one])
def test_a_mutant_leaks(oracle, data, monkeypatch, change):
    row = int(np.flatnonzero(np.diff(data.train_plan.row_offsets) > 1)[0])
    names = [data.corpus.names[piece.document] for piece in data.train_plan.row(row)]
    leaks = find(mutant_of(oracle, monkeypatch, change), data)
    assert leaks[0].startswith("packed documents leak: other tokens in ")
    assert any(
        f"in {names[-2]} change the logits of {names[-1]} " in leak or f", {names[-1]} " in leak for leak in leaks
    )


@pytest.mark.parametrize("change", [without_segments, one_token_late])
def test_the_check_before_training_refuses_it_in_one_line(oracle, data, monkeypatch, change):
    row = int(np.flatnonzero(np.diff(data.train_plan.row_offsets) > 1)[0])
    first, second = (data.corpus.names[piece.document] for piece in data.train_plan.row(row)[:2])
    with pytest.raises(PackingLeak) as caught:
        refuse_leak(mutant_of(oracle, monkeypatch, change), data)
    assert str(caught.value).startswith(f"packed documents leak: other tokens in {first} change the logits of {second}")
    assert "\n" not in str(caught.value)


def test_a_probe_that_sees_nothing_raises(oracle, data, monkeypatch):
    hidden_states = Llama.hidden_states
    monkeypatch.setattr(
        Llama,
        "hidden_states",
        lambda self, tokens, positions, segments: hidden_states(self, jnp.zeros_like(tokens), positions, segments),
    )
    row = lay_out(data.corpus, data.train_plan, np.array(0))
    with pytest.raises(AssertionError, match="segment 1 does not depend on its own tokens"):
        LeakProbe(oracle.model(name_or_path="blind")).reached(row, [1])


def test_a_model_that_is_not_finite_is_not_probed(oracle, data):
    model = oracle.model()
    model.norm.weight[...] = model.norm.weight[...].at[0].set(jnp.nan)
    with pytest.raises(FloatingPointError, match="are not finite; check the model's weights"):
        find(model, data)
    refuse_leak(model, data)  # the first training step gives a better message


def test_data_without_packed_rows_are_refused_before_weights_are_loaded(model_dir, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a single text " * 100)
    arguments = ["--model", str(model_dir), "--data", str(tmp_path / "a.txt"), "--max-seq-length", "64"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "no row has two documents" in said
    assert "loading" not in said
