"""A model family is one file. With `tests.support.toy_family` registered, all of lcjax supports it.

The reference is written here in jax.numpy with the names of the checkpoint, independent of the

table. Shapes: B batch, T tokens, D hidden size, H query heads, K key/value heads, d head_dim.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import lcjax
from lcjax import step, weights
from lcjax.config import LoraConfig, MemorySettings
from lcjax.config.families import FAMILIES
from lcjax.generate import Generator
from lcjax.generate.sampling import Sampling
from lcjax.model import ModelSettings, lora
from lcjax.model.params import tensor_names
from lcjax.ops import nf4
from lcjax.ops.attention import reference
from lcjax.ops.cross_entropy import IGNORE
from lcjax.optim.adamw import make_optimizer
from lcjax.plan.choosing.flops import step_flops
from lcjax.plan.compiling.parameters import abstract_params
from lcjax.step import with_request
from lcjax.weights.gguf import gguf_names
from tests.support.compiling import QUICKEST_TO_COMPILE
from tests.support.numerics import error_ratio, tree_error_ratio
from tests.support.oracles import jax_gradients, make_batch, micro_batches, split
from tests.support.toy_family import TOY

CONFIG = {
    "model_type": "toy", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "sliding_window": 7,
    "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 24, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
TOKENS = 30
ADAPTER = LoraConfig(r=4, lora_alpha=8)
SHAPES = {
    "input_layernorm": (64,), "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64), "self_attn.q_norm": (16,), "self_attn.k_norm": (16,), "post_attention_layernorm": (64,),
    "mlp.gate_proj": (128, 64), "mlp.up_proj": (128, 64), "mlp.down_proj": (64, 128),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, TOY.model_type, TOY)
        yield


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    """A random checkpoint with Hugging Face's names."""
    shapes = {"model.embed_tokens": (97, 64), "model.norm": (64,), "lm_head": (97, 64)}
    shapes |= {f"model.layers.{layer}.{name}": shape for layer in range(2) for name, shape in SHAPES.items()}
    rng = np.random.default_rng(0)
    noise = {f"{name}.weight": 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()}
    return {name: (x + (x.ndim == 1)).astype(np.float32) for name, x in noise.items()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tensors):
    folder = tmp_path_factory.mktemp("toy")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="module")
def model(directory, registered) -> lcjax.Llama:
    config, params, _ = weights.load_model_files(directory, "float32")
    return lcjax.Llama(config, params, ModelSettings(max_seq_length=64))


@pytest.fixture(scope="module")
def adapted(model) -> lcjax.Llama:
    """The model with an adapter that is not zero."""
    fresh = lora.init_adapter(model.config, ADAPTER, jax.random.key(1))
    noise = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(2), x.shape), fresh)
    return lcjax.Llama(
        model.config, lora.attach(model.params, noise), dataclasses.replace(model.settings, lora=ADAPTER)
    )


def batch_of(documents: int = 1) -> dict[str, np.ndarray]:
    return make_batch(97, 2, TOKENS, documents=documents)


def reference_logits(
    tensors: dict[str, Any], batch: dict[str, np.ndarray], config: dict[str, Any] = CONFIG
) -> jax.Array:
    """Returns logits in the tensors' dtype. Queries and keys are normalized only with `qk_norm`."""
    segments_BT, positions_BT = batch["segment_ids"], batch["positions"]
    apart = np.arange(TOKENS)[:, None] - np.arange(TOKENS)[None]
    visible_TT = (apart >= 0) & (apart < config["sliding_window"])
    mask_B1TT = visible_TT[None, None] & (segments_BT[:, None, :, None] == segments_BT[:, None, None, :])
    cap, scale = config["attn_logit_softcapping"], config["query_pre_attn_scalar"] ** -0.5
    angles_BT1F = positions_BT[:, :, None, None] * 10_000.0 ** (-np.arange(8) / 8)[None, None, None]

    def normed(x, name):
        variance = jnp.mean(x * x, axis=-1, keepdims=True) + CONFIG["rms_norm_eps"]
        return tensors[name].reshape((1,) * (x.ndim - 1) + (-1,)) * x / jnp.sqrt(variance)

    def rotated(x):
        cos, sin = (f(angles_BT1F).astype(x.dtype) for f in (np.cos, np.sin))
        first, second = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    x_BTD = tensors["model.embed_tokens.weight"][batch["tokens"]]
    for layer in range(2):
        own = {name: f"model.layers.{layer}.{name}.weight" for name in SHAPES}

        def times(x, name, own=own):
            return jnp.einsum("bti,oi->bto", x, tensors[own[name]], precision="highest")

        h_BTD = normed(x_BTD, own["input_layernorm"])
        q, k, v = (times(h_BTD, f"self_attn.{n}_proj").reshape(*h_BTD.shape[:2], -1, 16) for n in "qkv")
        if config.get("qk_norm", True):
            q, k = normed(q, own["self_attn.q_norm"]), normed(k, own["self_attn.k_norm"])
        with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision("highest"):
            out, _ = reference.attention(
                rotated(q), rotated(k), v, mask_B1TT, scale=scale, score_mod=lambda s, *_: cap * jnp.tanh(s / cap)
            )
        x_BTD = x_BTD + times(out.reshape(h_BTD.shape), "self_attn.o_proj")
        h_BTD = normed(x_BTD, own["post_attention_layernorm"])
        x_BTD = x_BTD + times(jax.nn.silu(times(h_BTD, "mlp.gate_proj")) * times(h_BTD, "mlp.up_proj"), "mlp.down_proj")
    hidden_BTD = normed(x_BTD, "model.norm.weight")
    return jnp.einsum("btd,vd->btv", hidden_BTD, tensors["lm_head.weight"], precision="highest")


def in_both(function, *trees) -> tuple[Any, Any]:
    """Returns a function's values in float32 (the plain version) and in float64."""
    function = jax.jit(function, compiler_options=QUICKEST_TO_COMPILE)
    plain = jax.tree.map(np.asarray, function(*jax.tree.map(jnp.asarray, trees)))
    with jax.enable_x64(True):
        exact = function(*jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), trees))
        return plain, jax.tree.map(np.asarray, exact)


def test_logits_are_those_of_float64(model, tensors):
    batch = batch_of(documents=2)
    ours = np.asarray(model(*(jnp.asarray(batch[name]) for name in ("tokens", "positions", "segment_ids"))))
    numbers = {name: CONFIG[name] for name in ("sliding_window", "attn_logit_softcapping", "query_pre_attn_scalar")}

    def references(**change):
        """The numbers are arguments, so that one program serves all of them."""
        given = {name: float(number) for name, number in (numbers | change).items() if name in numbers}
        fixed = CONFIG | {name: value for name, value in change.items() if name not in numbers}
        return in_both(lambda tensors, given: reference_logits(tensors, batch, fixed | given), tensors, given)

    assert error_ratio(ours, *references()) <= 1
    # Each property of attention affects the logits.
    for change in (
        {"sliding_window": 8},
        {"attn_logit_softcapping": 2.1},
        {"query_pre_attn_scalar": 25},
        {"qk_norm": False},
    ):
        assert error_ratio(ours, *references(**change)) > 1, change


def test_generating_with_the_cache_gives_the_same_tokens_as_without(model):
    """Goes beyond the window, with a padded chunk and single steps."""
    prompt = batch_of()["tokens"][0].tolist()
    generator = Generator(model, 64)
    ids = prompt + list(generator.generate(prompt, Sampling(temperature=0), max_new_tokens=12))
    greedy = np.asarray(model(jnp.asarray([ids]))).argmax(axis=-1)[0].tolist()
    assert ids[len(prompt) :] == greedy[len(prompt) - 1 : -1]


def adapter_loss(tensors, adapter, batch) -> jax.Array:
    """Returns the mean loss with the adapter merged into the tensors."""
    merged = dict(tensors)
    for block, modules in adapter["layers"].items():
        for module, factors in modules.items():
            for layer in range(2):
                update = jnp.matmul(factors["lora_B"][layer], factors["lora_A"][layer], precision="highest")
                merged[f"model.layers.{layer}.{block}.{module}.weight"] += ADAPTER.scaling * update
    labels_BT = batch["labels"]
    scores_BTV = jax.nn.log_softmax(reference_logits(merged, batch))
    losses_BT = -jnp.take_along_axis(scores_BTV, np.maximum(labels_BT, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(labels_BT == IGNORE, 0, losses_BT).sum() / (labels_BT != IGNORE).sum()


@pytest.fixture(scope="module")
def references(adapted, tensors):
    """(loss, gradients of the adapter) for one batch, in float32 and float64."""
    function = jax.value_and_grad(lambda adapter, tensors: adapter_loss(tensors, adapter, batch_of(documents=2)))
    return in_both(function, lora.detach(adapted.params)[1], tensors)


@pytest.mark.parametrize(
    "memory", ["none", MemorySettings(tile=10), MemorySettings(tile=15, head_groups=2, save_every=2)], ids=str
)
def test_layers_in_tiles_and_plain_ones_give_the_gradients_of_float64(adapted, references, memory):
    settings = with_request(adapted.settings, memory=memory, use_gradient_checkpointing="full")
    loss, gradients = jax_gradients(lcjax.Llama(adapted.config, adapted.params, settings), batch_of(documents=2))
    (plain_loss, plain), (exact_loss, exact) = references
    assert error_ratio(np.float32(loss), plain_loss, exact_loss) <= 1
    assert tree_error_ratio(gradients, plain, exact) <= 1


def test_the_norms_have_the_same_gradients_in_tiles(model):
    """All weights are trained. The gradients of the norms are sums over heads in several groups."""
    batch = batch_of(documents=2)
    gradients = []
    for memory in ("none", MemorySettings(tile=10, head_groups=2)):
        settings = with_request(model.settings, memory=memory, use_gradient_checkpointing="full")
        gradients.append(
            jax_gradients(lcjax.Llama(model.config, model.params, settings), batch)[1]["layers"]["self_attn"]
        )
    for name in ("q_norm", "k_norm"):
        plain, tiled = (np.asarray(found[name]["weight"]) for found in gradients)
        assert np.abs(plain).max() > 0
        np.testing.assert_allclose(tiled, plain, rtol=1e-4, atol=1e-6 * np.abs(plain).max())


def test_a_step_trains_the_adapter_alone(adapted):
    trainable, frozen, mask = split(adapted)
    optimizer = make_optimizer(lambda count: 1e-2, mask)
    train_step = step.jit_train_step(step.Objective(adapted.config, adapted.settings), optimizer)
    state, losses = step.init_state(optimizer, trainable, 0), []
    for _ in range(4):
        state, metrics = train_step(state, frozen, micro_batches(batch_of()))
        losses.append(float(metrics.loss))
    assert losses == sorted(losses, reverse=True)
    assert {path[-1].key for path, _ in jax.tree.leaves_with_path(state.trainable)} == {"lora_A", "lora_B"}


def test_the_planner_knows_its_parameters_and_its_pairs(model):
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(model.config, None, None))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, model.params)
    linear = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 128)
    flops = step_flops(model.config, TOKENS, 0)
    assert flops.linear == 6 * TOKENS * linear
    assert flops.head == 6 * TOKENS * 97 * 64
    # Half of the pairs on the diagonal count, as without a window, and half of those just outside
    # the window.
    apart = np.arange(TOKENS)[:, None] - np.arange(TOKENS)[None]
    seen = ((apart >= 0) & (apart < 7)).sum() - (apart == 0).sum() / 2 + (apart == 7).sum() / 2
    assert flops.attention == 14 * 2 * 4 * 16 * seen
    rank = LoraConfig(r=4)
    assert step_flops(model.config, TOKENS, rank.r).adapter == 6 * TOKENS * sum(
        leaf.size
        for leaf in jax.tree.leaves(lora.init_adapter(model.config, rank, jax.random.key(0)))
        if leaf.ndim == 3
    )


def test_only_linear_maps_are_quantized(directory):
    _, params, _ = weights.load_model_files(directory, "float32", "nf4")
    abstract = abstract_params(weights.load_config(directory), None, "nf4")
    assert jax.tree.structure(params) == jax.tree.structure(abstract)
    assert nf4.is_quantized(params["layers"]["self_attn"]["q_proj"]["weight"])
    assert params["layers"]["self_attn"]["q_norm"]["weight"].dtype == np.float32


def test_files_are_written_as_they_were_read(directory, adapted, tensors, tmp_path):
    config, params, _ = weights.load_model_files(directory, "float32")
    weights.save_checkpoint(tmp_path / "model", params, config)
    written = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(np.array_equal(written[name], tensors[name]) for name in tensors)
    said = json.loads((tmp_path / "model" / "config.json").read_text())
    assert {key: said[key] for key in CONFIG} == CONFIG
    assert weights.load_config(tmp_path / "model") == config
    lcjax.save_pretrained(adapted, tmp_path / "adapter")
    assert (
        lcjax.load_adapter(lcjax.Llama(config, params, ModelSettings(64)), tmp_path / "adapter").settings.lora
        == ADAPTER
    )


def test_llama_cpp_s_names_are_in_the_table(model):
    names = {name.name: gguf_names(name, model.config)[0] for name in tensor_names(model.config)}
    assert names["model.layers.1.self_attn.q_norm.weight"] == "blk.1.attn_q_norm.weight"
    assert len(set(names.values())) == len(names) == 3 + 2 * len(SHAPES)
    assert sum(math.prod(name.shape) for name in tensor_names(model.config)) == sum(
        leaf.size for leaf in jax.tree.leaves(model.params)
    )
