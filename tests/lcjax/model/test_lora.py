"""The adapter's trees: initialized, attached, masked, partitioned and merged."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lcjax.config import TARGET_MODULES, LlamaConfig, LoraConfig
from lcjax.model import lora
from tests.support.numerics import error_ratio

CONFIG = LlamaConfig(
    vocab_size=31,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
)
LORA = LoraConfig(r=5, target_modules=("q_proj", "down_proj"))


@pytest.fixture
def adapter() -> lora.Tree:
    return lora.init_adapter(CONFIG, LORA, jax.random.key(0))


@pytest.fixture
def base() -> lora.Tree:
    def weight(module):
        return {"weight": jnp.ones((3, *CONFIG.linear_shapes()[module])), "bias": jnp.ones((3, 2))}

    return {
        "layers": {
            "self_attn": {"q_proj": weight("q_proj"), "k_proj": weight("k_proj")},
            "mlp": {"down_proj": weight("down_proj")},
        },
        "norm": {"weight": jnp.ones(24)},
    }


def test_init_draws_a_and_leaves_b_zero(adapter):
    shapes = jax.tree.map(jnp.shape, adapter, is_leaf=lambda x: not isinstance(x, dict))
    assert shapes == {
        "layers": {
            "self_attn": {"q_proj": {"lora_A": (3, 5, 24), "lora_B": (3, 40, 5)}},
            "mlp": {"down_proj": {"lora_A": (3, 5, 40), "lora_B": (3, 24, 5)}},
        }
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype("float32")}
    for module, inputs in (("q_proj", 24), ("down_proj", 40)):
        leaves = adapter["layers"]["self_attn" if module == "q_proj" else "mlp"][module]
        np.testing.assert_array_equal(leaves["lora_B"], 0)
        drawn = np.asarray(leaves["lora_A"])
        bound = 1 / np.sqrt(inputs)
        assert np.abs(drawn).max() <= bound
        # A uniform distribution has the standard deviation bound / sqrt 3. Its relative error with
        # n samples is 1 / sqrt(5 n / 4), and five times that is allowed.
        np.testing.assert_allclose(drawn.std(), bound / np.sqrt(3), rtol=5 / np.sqrt(1.25 * drawn.size))
        assert len(np.unique(drawn)) > drawn.size * 0.99


def test_init_depends_on_the_key_the_module_and_the_layer(adapter):
    jax.tree.map(np.testing.assert_array_equal, lora.init_adapter(CONFIG, LORA, jax.random.key(0)), adapter)
    square = LoraConfig(r=5, target_modules=TARGET_MODULES)
    drawn = lora.init_adapter(CONFIG, square, jax.random.key(0))["layers"]
    a = [drawn["self_attn"][m]["lora_A"] for m in ("q_proj", "k_proj", "v_proj")]
    a += [lora.init_adapter(CONFIG, square, jax.random.key(1))["layers"]["self_attn"]["q_proj"]["lora_A"]]
    rows = np.concatenate([np.asarray(x).reshape(-1, 24) for x in a])
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_attach_and_detach_are_inverse_and_share_arrays(base, adapter):
    joined = lora.attach(base, adapter)
    assert joined["layers"]["self_attn"]["q_proj"].keys() == {"weight", "bias", "lora_A", "lora_B"}
    for tree, original in zip(lora.detach(joined), (base, adapter), strict=True):
        assert jax.tree.structure(tree) == jax.tree.structure(original)
        assert all(x is y for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(original), strict=True))
    assert "lora_A" not in base["layers"]["self_attn"]["q_proj"]


@pytest.mark.parametrize("trains", [lora.adapters_only, lora.everything])
def test_partition_and_combine_are_inverse(base, adapter, trains):
    params = lora.attach(base, adapter)
    mask = lora.trainable_mask(params, trains)
    trainable, frozen = lora.partition(params, mask)
    expected = 4 if trains is lora.adapters_only else len(jax.tree.leaves(params))
    assert len(jax.tree.leaves(trainable)) == sum(jax.tree.leaves(mask)) == expected
    assert len(jax.tree.leaves(trainable)) + len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(params))
    whole = lora.combine(trainable, frozen)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    assert all(x is y for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(params), strict=True))


def test_a_bare_optax_mask_would_let_raw_gradients_through(base):
    """`partition` is needed because `optax.masked` returns the gradient of an unmarked leaf."""
    mask = lora.trainable_mask(base, lora.adapters_only)
    transform = optax.masked(optax.sgd(1.0), mask)
    updates, _ = transform.update(base, transform.init(base), base)
    assert float(updates["norm"]["weight"][0]) == 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merge_rounds_once(dtype):
    rng = np.random.default_rng(0)
    weight, a, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 40, 24), (3, 5, 24), (3, 40, 5)))
    weight = weight.astype(dtype)
    exact = np.asarray(weight, np.float64) + 0.7 * np.asarray(b, np.float64) @ np.asarray(a, np.float64)
    plain = (np.asarray(weight, np.float32) + np.float32(0.7) * (np.asarray(b) @ np.asarray(a))).astype(weight.dtype)
    merged = lora.merge_weight(weight, a, b, 0.7)
    assert merged.dtype == weight.dtype
    assert error_ratio(merged, plain, exact) <= 1
    rounded_early = (weight + (0.7 * jnp.matmul(b, a)).astype(jnp.bfloat16)).astype(dtype)
    if dtype == "float32":
        assert error_ratio(rounded_early, plain, exact) > 1
    for mutant in (lora.merge_weight(weight, a, b, 0.71), lora.merge_weight(weight, a, jnp.roll(b, 1, axis=0), 0.7)):
        assert error_ratio(mutant, plain, exact) > 1


def test_merge_adds_every_adapter_and_does_not_change_the_rest(base, adapter):
    adapter["layers"]["mlp"]["down_proj"]["lora_B"] += 1.0
    merged = lora.merge(lora.attach(base, adapter), 2.0)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    down = adapter["layers"]["mlp"]["down_proj"]
    expected = lora.merge_weight(base["layers"]["mlp"]["down_proj"]["weight"], down["lora_A"], down["lora_B"], 2.0)
    np.testing.assert_array_equal(merged["layers"]["mlp"]["down_proj"]["weight"], expected)
    assert (np.asarray(expected) != 1).any()
    for untouched in ("q_proj", "k_proj"):
        jax.tree.map(
            np.testing.assert_array_equal,
            merged["layers"]["self_attn"][untouched],
            base["layers"]["self_attn"][untouched],
        )
    assert merged["layers"]["mlp"]["down_proj"]["bias"] is base["layers"]["mlp"]["down_proj"]["bias"]
