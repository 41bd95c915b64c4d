"""The loss that balances experts, and its gradient, compared with transformers in float64."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

import lcjax
from lcjax import step
from lcjax.config.training import TrainingArguments
from lcjax.errors import InputError
from lcjax.step.program import build_program
from tests.support.compiling import QUICKEST_TO_COMPILE
from tests.support.numerics import tree_error_ratio
from tests.support.oracles import IGNORE, Oracle, make_batch, make_oracle, micro_batches, names_of, split
from tests.support.router_balance import balance_of, balanced_gradients
from tests.support.shapes import MODEL_COMMON, MODELS

COEF, TOKENS, PADDING = 3.0, 64, 11
FORMS = [
    ("qwen3, experts", {"use_gradient_checkpointing": "full"}),
    ("qwen3, experts", {"use_gradient_checkpointing": "offload", "memory": "tile=16"}),
    ("gpt-oss", {"use_gradient_checkpointing": "offload", "memory": "tile=16,head_groups=2,save_every=3"}),
]


@functools.cache
def batch() -> dict[str, np.ndarray]:
    """Two rows of two documents and of unequal numbers of labels; the first ends with padding."""
    made = make_batch(MODEL_COMMON["vocab_size"], 2, TOKENS, documents=2)
    made["tokens"] = np.maximum(made["tokens"], 2)  # torch does not train padding
    made["segment_ids"][0, -PADDING:] = 0
    made["labels"][0, -PADDING:] = IGNORE
    return made


@pytest.fixture(scope="module")
def oracle(request, tmp_path_factory) -> Oracle:
    """A random model, its parameter the name of a shape."""
    return make_oracle(tmp_path_factory.mktemp("model"), adapter=False, **MODELS[request.param])


def gradients(model: lcjax.Llama, count: int) -> tuple[float, float, lcjax.model.lora.Tree]:
    objective = step.Objective(model.config, model.settings, COEF)
    compiled = jax.jit(step.gradients, static_argnums=0, compiler_options=QUICKEST_TO_COMPILE)
    loss, balance, _, found = compiled(objective, *split(model)[:2], micro_batches(batch(), count), None)
    return float(loss), float(balance), found


@pytest.mark.parametrize(("oracle", "requested"), FORMS, indirect=["oracle"])
def test_gradients_of_every_weight(oracle, requested):
    """Of two micro-batches, and with padding, which chooses no experts."""
    model = oracle.model(**requested)
    names, count = names_of(model), 1 if "memory" in requested else 2
    loss, balance, actual = gradients(model, count)
    compute = functools.partial(balanced_gradients, batch=batch(), names=names, micro_batches=count)
    (_, plain), (expected, exact) = (compute(m, coef=COEF) for m in (oracle.plain, oracle.exact))
    assert balance == pytest.approx(expected, rel=1e-5)
    assert tree_error_ratio(actual, plain, exact) <= 1
    for mutant in ({"coef": 0.0}, {"coef": COEF, "count_padding": True}, {"coef": 1.01 * COEF}):
        assert tree_error_ratio(compute(oracle.exact, **mutant)[1], plain, exact) > 1, mutant
    without = step.Objective(model.config, model.settings).loss(*split(model)[:2], batch())
    assert loss == pytest.approx(float(without[0] / without[1]), rel=1e-5)


def test_the_reference_is_transformers():
    """Which sums in float32."""
    rng = torch.Generator().manual_seed(0)
    logits = tuple(torch.randn(48, 7, generator=rng) for _ in range(3))
    mask = torch.ones(2, 24)
    mask[1, 9:] = 0
    expected = load_balancing_loss_func(logits, 7, 3, mask)
    assert float(balance_of(logits, 3, mask.flatten() > 0)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("oracle", ["gpt-oss"], indirect=True)
def test_which_runs_balance_experts(oracle):
    """Those that train the router, with the model's weight or with a given one."""
    model = oracle.model()

    def weight(model, **arguments):
        args = model.config, model.params, model.settings, TrainingArguments(**arguments), 1
        return build_program(*args).objective.router_aux_loss_coef

    assert weight(model) == model.config.own_value("router_aux_loss_coef") > 0
    assert [weight(model, router_aux_loss_coef=given) for given in (0.0, 0.25)] == [0.0, 0.25]
    adapted = lcjax.get_peft_model(model, r=2)
    assert weight(adapted) == weight(adapted, router_aux_loss_coef=0.0) == 0.0
    with pytest.raises(InputError, match=r"--router-aux-loss-coef 0.25 has no effect, because an adapter trains no"):
        weight(adapted, router_aux_loss_coef=0.25)
    with pytest.raises(InputError, match=r"--router-aux-loss-coef -1 is out of range; it must be at least 0"):
        TrainingArguments(router_aux_loss_coef=-1)
    with pytest.raises(InputError, match="--router-aux-loss-coef 'x' is of type str; give a number"):
        TrainingArguments(router_aux_loss_coef="x")  # pyright: ignore[reportArgumentType]
