"""The training step: what it differentiates and changes, and that micro-batches are equivalent."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lcjax
from lcjax import step
from lcjax.model import lora
from lcjax.ops.cross_entropy import IGNORE
from lcjax.optim import adamw
from tests.support.compiling import QUICKEST_TO_COMPILE
from tests.support.jaxprs import count, equations
from tests.support.numerics import tree_error_ratio
from tests.support.oracles import (
    Oracle,
    jax_gradients,
    make_batch,
    make_oracle,
    micro_batches,
    names_of,
    split,
    torch_gradients,
    with_random_adapter,
)
from tests.support.shapes import MODEL_COMMON, MODELS

VOCABULARY = MODEL_COMMON["vocab_size"]
ROWS, TOKENS = 4, 29


@pytest.fixture(scope="module")
def oracle(tmp_path_factory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("model"), **MODELS["untied gqa 3, odd head_dim"], attention_bias=True)


@pytest.fixture(scope="module")
def full_oracle(tmp_path_factory) -> Oracle:
    fields = {**MODELS["untied gqa 8, biases"], "tie_word_embeddings": True}
    return make_oracle(tmp_path_factory.mktemp("model"), adapter=False, **fields)


def uneven_batch() -> dict[str, np.ndarray]:
    """Packed rows with different numbers of labels: 29, 3, 1 and none."""
    batch = make_batch(VOCABULARY, ROWS, TOKENS, documents=3)
    rng = np.random.default_rng(3)
    batch["labels"] = rng.integers(0, VOCABULARY, (ROWS, TOKENS), dtype=np.int32)
    for row, labeled in ((1, 3), (2, 1), (3, 0)):
        batch["labels"][row, labeled:] = IGNORE
    return batch


def make_optimizer(mask, **options):
    return adamw.make_optimizer(optax.constant_schedule(1e-2), mask, **options)


def make_step(model: lcjax.Llama):
    """Returns (jitted step, state, frozen)."""
    trainable, frozen, mask = split(model)
    optimizer = make_optimizer(mask, weight_decay=0.1)
    train_step = step.jit_train_step(step.Objective(model.config, model.settings), optimizer)
    return train_step, step.init_state(optimizer, trainable, seed=0), frozen


def test_any_split_gives_the_same_gradient(oracle):
    batch = uneven_batch()
    names = names_of(oracle.model())
    plain, exact = (torch_gradients(m, batch, names) for m in (oracle.plain, oracle.exact))
    losses = []
    for micro_batches_a_step in (1, 2, 4):
        loss, gradients = jax_gradients(oracle.model(), batch, micro_batches_a_step)
        losses.append(loss)
        assert tree_error_ratio(gradients, plain, exact) <= 1, micro_batches_a_step
    np.testing.assert_allclose(losses, losses[0], rtol=4 * np.finfo(np.float32).eps)

    rows = [{name: value[row : row + 1] for name, value in batch.items()} for row in range(3)]
    means = [jax_gradients(oracle.model(), row)[1] for row in rows]
    mean_of_means = jax.tree.map(lambda *gradients: sum(gradients) / len(gradients), *means)
    assert tree_error_ratio(mean_of_means, plain, exact) > 1


def test_a_batch_without_labels_gives_zeros(oracle):
    batch = uneven_batch()
    batch["labels"][:] = IGNORE
    loss, gradients = jax_gradients(oracle.model(), batch, 2)
    assert loss == 0.0
    for leaf in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(leaf, 0)


def test_full_fine_tuning_gradients_equal_torch(full_oracle):
    batch = uneven_batch()
    model = full_oracle.model()
    _, actual = jax_gradients(model, batch, 2)
    plain, exact = (torch_gradients(m, batch, names_of(model)) for m in (full_oracle.plain, full_oracle.exact))
    assert tree_error_ratio(actual, plain, exact) <= 1


def test_frozen_weights_stay_bitwise_and_every_adapter_weight_changes(oracle):
    model = oracle.model()
    before = jax.tree.map(np.array, model.params)
    train_step, state, frozen = make_step(model)
    metrics = []
    for _ in range(3):
        state, new = train_step(state, frozen, micro_batches(uneven_batch(), 2))
        metrics.append(new)
    assert int(state.step) == 3
    check_metrics(model, *metrics)
    after = lora.combine(state.trainable, frozen)
    for (path, new), old in zip(jax.tree.leaves_with_path(after), jax.tree.leaves(before), strict=True):
        if path[-1].key in lora.ADAPTER_LEAVES:
            assert (np.asarray(new) != old).all(), path
        else:
            np.testing.assert_array_equal(new, old, err_msg=str(path))
    # init_state copies, so the donated buffers are not those of the model.
    jax.tree.map(np.testing.assert_array_equal, model.params, before)


def check_metrics(model, first: step.StepMetrics, *later: step.StepMetrics):
    """Checks metrics. The first ones are those of the initial model; norms are before clipping."""
    loss, gradients = jax_gradients(model, uneven_batch(), 2)
    np.testing.assert_allclose(first.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(first.grad_norm, optax.tree.norm(gradients), rtol=1e-6)
    assert float(first.grad_norm) > 1
    assert {int(metrics.tokens) for metrics in (first, *later)} == {33}
    assert float(later[-1].loss) < float(first.loss)


def test_full_fine_tuning_changes_every_weight(full_oracle):
    model = full_oracle.model()
    before = jax.tree.map(np.array, model.params)
    train_step, state, frozen = make_step(model)
    assert jax.tree.leaves(frozen) == []
    state, _ = train_step(state, frozen, micro_batches(uneven_batch(), 2))
    for (path, new), old in zip(jax.tree.leaves_with_path(state.trainable), jax.tree.leaves(before), strict=True):
        assert (np.asarray(new) != old).any(), path


def test_optimizer_state_has_no_leaf_of_a_frozen_weight(oracle):
    model = oracle.model()
    trainable, _, mask = split(model)
    moments = [leaf for leaf in jax.tree.leaves(make_optimizer(mask).init(trainable)) if leaf.ndim]
    adapter = jax.tree.leaves(lora.detach(model.params)[1])
    assert sorted(leaf.shape for leaf in moments) == sorted(2 * [leaf.shape for leaf in adapter])


# Operations that read a weight: slicing a layer, changing the layout or dtype, adding axes of size
# 1.
READS = frozenset("slice dynamic_slice squeeze transpose convert_element_type reshape broadcast_in_dim copy".split())
# Calls, whose results are computed by the equations inside. scan and while are not included,
# because they carry and stack sums.
CALLS = frozenset("pjit jit custom_vjp_call custom_jvp_call checkpoint remat2".split())


def gradients_of_frozen_weights(jaxpr, frozen) -> set[tuple[int, ...]]:
    """Returns the sizes of frozen weights, of a layer or all layers, that the jaxpr computes.

    All axes have different sizes, so that the sizes identify a weight in any order of axes. The
    result of a call counts through the equations inside.
    """
    weights = set(stack_sizes(frozen))
    weights |= {sizes(leaf.shape[1:]) for leaf in jax.tree.leaves(frozen["layers"])}
    return {
        sizes(variable.aval.shape)
        for equation in equations(jaxpr)
        for variable in equation.outvars
        if sizes(getattr(variable.aval, "shape", ())) in weights and not _reads(equation, variable.aval.shape)
    }


def sizes(shape) -> tuple[int, ...]:
    return tuple(sorted(shape))


def stack_sizes(frozen) -> set[tuple[int, ...]]:
    return {sizes(leaf.shape) for leaf in jax.tree.leaves(frozen)}


def _reads(equation, shape) -> bool:
    """Returns whether the result rearranges elements of the first operand.

    Zeros that start a sum are broadcast, and do not count.
    """
    operand = getattr(equation.invars[0].aval, "shape", ())
    return equation.primitive.name in CALLS or (
        equation.primitive.name in READS and int(np.prod(operand)) >= int(np.prod(shape))
    )


def step_jaxpr(model: lcjax.Llama, update=step.train_step):
    trainable, frozen, mask = split(model)
    optimizer = make_optimizer(mask)
    objective = step.Objective(model.config, model.settings)
    state = step.init_state(optimizer, trainable, 0)
    batches = micro_batches(uneven_batch(), 2)
    return jax.make_jaxpr(functools.partial(update, objective, optimizer))(state, frozen, batches), frozen


@pytest.mark.parametrize("policy", ["none", "full", "offload", "offload_attn"])
def test_no_gradient_of_a_frozen_weight_exists(oracle, policy):
    model = oracle.model(use_gradient_checkpointing=policy)
    assert gradients_of_frozen_weights(*step_jaxpr(model)) == set()


def test_the_check_sees_every_gradient_of_a_full_mask(oracle):
    """The mutant differentiates everything, and the optimizer masks the updates.

    XLA may remove the unused gradients, but the jaxpr shows them.
    """

    def differentiate_everything(objective, optimizer, state, frozen, batches):
        everything = lora.combine(state.trainable, frozen)
        nothing = lora.partition(everything, jax.tree.map(lambda _: True, everything))[1]
        *_, gradients = step.gradients(objective, everything, nothing, batches, None)
        trainable = jax.tree.map(lambda w, g: w - g, state.trainable, lora.partition(gradients, split(model)[2])[0])
        return dataclasses.replace(state, trainable=trainable)

    model = oracle.model()
    jaxpr, frozen = step_jaxpr(model, differentiate_everything)
    assert gradients_of_frozen_weights(jaxpr, frozen) >= stack_sizes(frozen)


def test_the_program_does_not_grow_with_depth(tmp_path):
    sizes = []
    for layers in (2, 8):
        oracle = make_oracle(tmp_path / str(layers), **MODELS["untied gqa 3, odd head_dim"], num_hidden_layers=layers)
        jaxpr, _ = step_jaxpr(oracle.model())
        sizes.append((sum(1 for _ in equations(jaxpr)), count(jaxpr, "dot_general")))
    assert sizes[0] == sizes[1]
    assert sizes[0][1] > 20


def test_dropout_depends_on_seed_and_step_and_is_off_in_evaluation(oracle, tmp_path):
    adapted = with_random_adapter(oracle, tmp_path, target_modules=["down_proj"], lora_dropout=0.5, scale=1.0)
    model = adapted.model()
    trainable, frozen, mask = split(model)
    objective = step.Objective(model.config, model.settings)
    optimizer = make_optimizer(mask)
    train_step = functools.partial(step.train_step, objective, optimizer)
    train_step = jax.jit(train_step, compiler_options=QUICKEST_TO_COMPILE)
    batch = uneven_batch()

    def loss(seed, number):
        state = dataclasses.replace(step.init_state(optimizer, trainable, seed), step=jnp.int32(number))
        return float(train_step(state, frozen, micro_batches(batch, 2))[1].loss)

    losses_BT = step.jit_token_scores()(model, batch).losses
    undropped, _ = jax_gradients(model, batch)
    np.testing.assert_allclose(losses_BT.sum() / (batch["labels"] != IGNORE).sum(), undropped, rtol=1e-6)
    assert loss(0, 0) == loss(0, 0)
    assert len({undropped, loss(0, 0), loss(0, 1), loss(1, 0)}) == 4
