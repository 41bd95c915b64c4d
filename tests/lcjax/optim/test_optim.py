"""Compares schedules with transformers, and the optimizer with torch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from lcjax.config.training import SCHEDULES
from lcjax.errors import InputError
from lcjax.model.lora import partition
from lcjax.optim.adamw import make_optimizer
from lcjax.optim.schedules import make_schedule
from tests.support.numerics import error_ratios

RATE = 3e-4


def rates_of_transformers(kind: str, steps: int, warmup: int) -> np.ndarray:
    """Returns the learning rate of every update of a Trainer, float64."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = transformers.get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


def rates_of(schedule, steps: int) -> np.ndarray:
    return np.asarray(jnp.stack([jnp.asarray(schedule(step)) for step in range(steps)]), np.float32)


@pytest.mark.parametrize("warmup", [0, 1, 7, 50])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedule_equals_transformers(kind, warmup):
    steps = 50
    exact = rates_of_transformers(kind, steps, warmup)
    actual = rates_of(make_schedule(kind, RATE, steps, warmup_steps=warmup), steps)
    # A rate has three float32 operations, each with a rounding error relative to the peak.
    rounding = 3 * np.finfo(np.float32).eps * RATE
    np.testing.assert_allclose(actual, exact, rtol=0, atol=rounding)
    if kind != "constant":
        mutant = rates_of(make_schedule(kind, RATE, steps, warmup_steps=warmup + 1), steps)
        assert np.abs(mutant - exact).max() > 1000 * rounding


def test_warmup_ratio_rounds_up_as_the_trainer_does():
    arguments = transformers.TrainingArguments(warmup_steps=0.07, report_to=[], use_cpu=True)
    for steps in (10, 99, 100):
        schedule = make_schedule("linear", RATE, steps, warmup_ratio=0.07)
        expected = rates_of_transformers("linear", steps, arguments.get_warmup_steps(steps))
        np.testing.assert_allclose(rates_of(schedule, steps), expected, rtol=0, atol=1e-6 * RATE)


def test_warmup_steps_override_warmup_ratio():
    both = make_schedule("linear", RATE, 40, warmup_steps=5, warmup_ratio=0.5)
    np.testing.assert_array_equal(rates_of(both, 40), rates_of(make_schedule("linear", RATE, 40, warmup_steps=5), 40))


def test_unknown_schedule_is_refused():
    with pytest.raises(InputError, match="'polynomial' is unknown; use one of linear, cosine"):
        make_schedule("polynomial", RATE, 10)


# The names determine what is decayed: biases and norms are not.
SHAPES = {
    "layers": {
        "input_layernorm": {"weight": (7,)},
        "self_attn": {"q_proj": {"weight": (5, 7), "bias": (5,), "lora_A": (2, 7), "lora_B": (5, 2)}},
    },
    "norm": {"weight": (7,)},
    "embed_tokens": {"weight": (11, 7)},
}
UNDECAYED = {
    "['layers']['input_layernorm']['weight']",
    "['layers']['self_attn']['q_proj']['bias']",
    "['norm']['weight']",
}
STEPS = 12


def random_tree(seed: int, scale: float):
    rng = np.random.default_rng(seed)
    draw = lambda shape: (scale * rng.normal(size=shape)).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


def gradients() -> list:
    """Returns small gradients, which are not clipped, then larger and huge ones, which are."""
    return [random_tree(step, scale) for step, scale in enumerate(np.geomspace(1e-2, 1e3, STEPS), start=1)]


def by_torch(dtype, weight_decay: float, max_grad_norm: float, undecayed=UNDECAYED):
    paths, treedef = jax.tree.flatten_with_path(random_tree(0, 1.0))
    parameters = {jax.tree_util.keystr(path): torch.nn.Parameter(torch.tensor(x, dtype=dtype)) for path, x in paths}
    groups = [
        {"params": [p for name, p in parameters.items() if name not in undecayed], "weight_decay": weight_decay},
        {"params": [p for name, p in parameters.items() if name in undecayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    scheduler = transformers.get_scheduler("cosine", optimizer, num_warmup_steps=3, num_training_steps=STEPS)
    for tree in gradients():
        for parameter, gradient in zip(parameters.values(), jax.tree.leaves(tree), strict=True):
            parameter.grad = torch.tensor(gradient, dtype=dtype)
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters.values(), max_grad_norm)
        optimizer.step()
        scheduler.step()
    return jax.tree.unflatten(treedef, [p.detach().numpy() for p in parameters.values()])


def by_lcjax(weight_decay: float, max_grad_norm: float, mask=None, **where):
    params = jax.tree.map(jnp.asarray, random_tree(0, 1.0))
    mask = jax.tree.map(lambda _: True, params) if mask is None else mask
    schedule = make_schedule("cosine", RATE, STEPS, warmup_steps=3)
    optimizer = make_optimizer(schedule, mask, weight_decay=weight_decay, max_grad_norm=max_grad_norm, **where)
    trainable, _ = partition(params, mask)
    state = optimizer.init(trainable)
    update = jax.jit(optimizer.update)
    for tree in gradients():
        updates, state = update(partition(jax.tree.map(jnp.asarray, tree), mask)[0], state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    return trainable, state


def total_updates(params):
    """Returns the total updates. The parameters would hide an error by their size."""
    return jax.tree.map(lambda new, old: np.asarray(new, np.float64) - old, params, random_tree(0, 1.0))


def update_ratios(actual, plain, exact) -> list[float]:
    return error_ratios(*(total_updates(params) for params in (actual, plain, exact)), dtype=np.float32)


@pytest.mark.parametrize("where", [{}, {"by_layers": True}, {"on_host": True}], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_adamw_equals_torch(weight_decay, max_grad_norm, where):
    options = {"weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
    plain, exact = (by_torch(dtype, **options) for dtype in (torch.float32, torch.float64))
    assert max(update_ratios(by_lcjax(**options, **where)[0], plain, exact)) <= 1


def test_mutants_of_the_optimizer_fail():
    options = {"weight_decay": 0.1, "max_grad_norm": 1.0}
    plain, exact = (by_torch(dtype, **options) for dtype in (torch.float32, torch.float64))
    for change in ({"weight_decay": 0.0}, {"max_grad_norm": 0.0}, {"max_grad_norm": 1.01}):
        assert max(update_ratios(by_lcjax(**(options | change))[0], plain, exact)) > 1, change
    all_decayed = [by_torch(dtype, **options, undecayed=set()) for dtype in (torch.float32, torch.float64)]
    ratios = update_ratios(by_lcjax(**options)[0], *all_decayed)
    assert sum(ratio > 1 for ratio in ratios) == len(UNDECAYED)


def test_decayed_names_are_the_trainers():
    """transformers' Trainer decides by name; a real model has each kind."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            attention_bias=True,
            mlp_bias=True,
        )
    )
    decayed = set(transformers.Trainer.get_decay_parameter_names(None, model))
    params = {}
    for name, _ in model.named_parameters():
        node = params
        for part in name.split(".")[:-1]:
            node = node.setdefault(part, {})
        node[name.split(".")[-1]] = jnp.ones(())
    optimizer = make_optimizer(optax.constant_schedule(1.0), jax.tree.map(lambda _: True, params), weight_decay=0.5)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    shrunk = {
        ".".join(key.key for key in path) for path, update in jax.tree.leaves_with_path(updates) if float(update) != 0
    }
    assert shrunk == decayed
    assert len(decayed) < len(list(model.parameters()))


def test_frozen_leaves_have_no_state():
    mask = jax.tree.map_with_path(lambda path, _: path[-1].key.startswith("lora"), random_tree(0, 1.0))
    trainable, state = by_lcjax(0.1, 1.0, mask)
    # Step counts, and two moments for lora_A [2, 7] and lora_B [5, 2]; no other shapes.
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert shapes == [(2, 7), (2, 7), (5, 2), (5, 2)]
    assert len(jax.tree.leaves(trainable)) == 2
