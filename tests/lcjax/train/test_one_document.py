"""Rows with one document need no segment ids, so implementations without them can be used."""

from __future__ import annotations

import dataclasses
import importlib.util

import numpy as np
import pytest

from lcjax.config import parse_memory
from lcjax.config.presets import PRESETS
from lcjax.data.packing import pack
from lcjax.errors import InputError
from lcjax.ops.attention import registry
from lcjax.plan.choosing.settings import requested_settings
from lcjax.plan.compiling.compile import compile_step
from lcjax.plan.workload import Workload
from lcjax.step import with_request
from lcjax.train import refusals
from lcjax.train.__main__ import main as train
from lcjax.train.running import computation
from tests.support.numerics import tree_error_ratio
from tests.support.oracles import Oracle, jax_gradients, make_batch, make_oracle, names_of, torch_gradients
from tests.support.shapes import MODEL_COMMON, MODELS
from tests.support.thin import thinned

TOKENS = 64


@pytest.fixture(scope="module")
def oracle(tmp_path_factory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("model"), **MODELS["untied gqa 3, odd head_dim"])


@pytest.fixture(scope="module")
def padded():
    """Two rows. The second half of the second one is padding, as made by `lcjax.data.rows`."""
    batch = make_batch(MODEL_COMMON["vocab_size"], 2, TOKENS)
    half = TOKENS // 2
    batch["labels"][1, half:], batch["segment_ids"][1, half:], batch["tokens"][1, half:] = -100, 0, 0
    batch["positions"][1, half:] = np.arange(half)
    return batch


@pytest.fixture(scope="module")
def references(oracle, padded):
    """The gradients of transformers in float32 and float64, with segments that hide the padding."""
    names = names_of(oracle.model())
    return [torch_gradients(model, padded, names) for model in (oracle.plain, oracle.exact)]


EVERY_FORM = [(attention, memory) for attention in ("xla", "pallas") for memory in ("none", "tile=32")]


@pytest.mark.parametrize(
    ("attention", "memory"), thinned(EVERY_FORM, lambda case: case in [("xla", "tile=32"), ("pallas", "none")])
)
def test_without_segment_ids_gradients_are_the_same(oracle, padded, references, attention, memory):
    model = oracle.model(
        attention=attention,
        memory=parse_memory(memory),
        use_gradient_checkpointing="full",
        one_document_a_row=True,
    )
    loss, gradients = jax_gradients(model, padded)
    assert np.isfinite(loss)
    assert tree_error_ratio(gradients, *references) <= 1


def test_two_documents_a_row_would_be_wrong(oracle):
    """Without segment ids, a row with two documents gives different gradients."""
    packed = make_batch(MODEL_COMMON["vocab_size"], 2, TOKENS, documents=3)
    names = names_of(oracle.model())
    references = [torch_gradients(model, packed, names) for model in (oracle.plain, oracle.exact)]
    assert tree_error_ratio(jax_gradients(oracle.model(one_document_a_row=True), packed)[1], *references) > 100


def test_plans_know_whether_documents_share_a_row():
    assert pack(np.array([10, 30, 7]), 10).one_document_a_row  # the second in windows
    assert pack(np.array([4, 5]), 10).one_document_a_row is False
    assert pack(np.array([], int), 10).one_document_a_row


def test_which_implementations_take_segments():
    takes = {name: registry.takes_segments(name) for name in registry.implementations()}
    assert takes == {"auto": True, "pallas": True, "mosaic": True, "xla": True, "cudnn": False, "fa3": False}


def test_a_plan_with_cudnn_assumes_rows_with_one_document():
    workload = Workload("llama-3.2-1b", PRESETS["llama-3.2-1b"], "h100-80gb", attention="cudnn")
    assert requested_settings(workload, 8192).one_document_a_row
    assert not requested_settings(dataclasses.replace(workload, attention="auto"), 8192).one_document_a_row
    if importlib.util.find_spec("nvidia.cudnn") is None:
        with pytest.raises(
            InputError, match="needs the library, which is not installed: pip install nvidia-cudnn-cu13"
        ):
            compile_step(workload, with_request(requested_settings(workload, 8192), memory="none"))


def test_named_cudnn_and_packed_documents_are_refused_before_anything_is_compiled(short, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(refusals, "may_have_gpu", lambda: True)
    assert train([*short, "--attention", "cudnn", "--output-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: --attention cudnn takes one document per row, but rows of the training data have several; use "
        "--attention pallas or --attention xla, or longer documents"
    )


@pytest.mark.parametrize("whole", [True, False])
def test_the_step_knows_whether_documents_share_a_row(model_dir, tmp_path, monkeypatch, whole):
    """The data are one document of three windows, or many short documents."""
    seen = []
    build = computation.build_program
    monkeypatch.setattr(
        computation,
        "build_program",
        lambda c, p, settings, *rest: seen.append(settings) or build(c, p, settings, *rest),
    )
    words = " ".join(f"word {n}" for n in range(120))
    for n in range(1 if whole else 8):
        (tmp_path / f"{n}.txt").write_text(words if whole else words[:20])
    flags = [
        "--model",
        str(model_dir),
        "--data",
        str(tmp_path),
        "--output-dir",
        str(tmp_path / "run"),
        "--max-steps",
        "1",
    ]
    assert train([*flags, "--max-seq-length", "64", "--lora-r", "2", "--eval-fraction", "0"]) == 0
    assert [settings.one_document_a_row for settings in seen] == [whole]
