"""Every family: windows, generation, training and files, compared with transformers and PEFT.

`test_model.py` compares logits and gradients of the same models with float64.
"""

from __future__ import annotations

import dataclasses
import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import lcjax
from lcjax import weights
from lcjax.config import ExecutionRequest, LlamaConfig, MemorySettings
from lcjax.config.families import FAMILIES
from lcjax.convert.__main__ import main as convert
from lcjax.errors import InputError
from lcjax.generate import Generator, Sampling
from lcjax.model import Llama
from lcjax.plan.choosing.candidates import candidates
from lcjax.step import resolve
from lcjax.weights import load_gguf
from tests.support.adamw_steps import Trainer, require_equal_adapters, train_with_torch
from tests.support.gguf_writing import add_model, write
from tests.support.numerics import error_ratio, tree_error_ratio
from tests.support.oracles import (
    Oracle,
    jax_gradients,
    make_batch,
    make_oracle,
    names_of,
    torch_gradients,
)
from tests.support.settings import model_settings
from tests.support.shapes import MODEL_COMMON, MODELS
from tests.support.states import assert_equal_states, state_dict_of
from tests.support.thin import thinned

VOCABULARY, TOKENS = MODEL_COMMON["vocab_size"], 61
VARIANTS = (
    *("untied gqa 3, odd head_dim", "mistral, window", "ministral, alternating windows"),
    *("qwen2, tied", "qwen2, window", "qwen2, windows in later layers", "qwen3", "olmo2", "gemma2", "gemma3"),
    *("smollm3, the last layer without RoPE", "smollm3, yarn, windows without RoPE, biases"),
    *("phi3, window, longrope", "phi3, tied, partly rotated"),
    *("qwen3, experts", "qwen3, one of 5 experts, biases, tied", "gpt-oss"),
)
WINDOW = 20
LAYERS = (
    {"use_gradient_checkpointing": "full"},
    {"use_gradient_checkpointing": "offload_attn"},
    {"use_gradient_checkpointing": "offload", "memory": "tile=16"},
    {"use_gradient_checkpointing": "offload_attn", "memory": "tile=16"},
    {"use_gradient_checkpointing": "offload", "memory": "tile=16,head_groups=2,save_every=3"},
)
NEW_TOKENS = 100


# llama.cpp calls Mistral llama, which has no window, and its converter does not write Qwen2's.
IN_GGUF = (
    *("untied gqa 3, odd head_dim", "qwen2, tied", "qwen3", "olmo2", "gemma2", "gemma3"),
    *("smollm3, the last layer without RoPE", "phi3, window, longrope", "phi3, tied, partly rotated"),
)
# Each kind of layer generates in one of these.
FEW = ("ministral, alternating windows", "gemma3", "phi3, window, longrope", "gpt-oss")
DIFFERING = ("ministral, alternating windows", "smollm3, yarn, windows without RoPE, biases")


@pytest.fixture(scope="module", params=VARIANTS)
def oracle(request, tmp_path_factory) -> Oracle:
    """A random model, its parameter the name of a shape."""
    return make_oracle(tmp_path_factory.mktemp("model"), **MODELS[request.param])


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return np.random.default_rng(0).integers(0, VOCABULARY, 30).tolist()


def test_every_family_is_here():
    assert {MODELS[name].get("model_type", "llama") for name in VARIANTS} == set(FAMILIES)


def test_transformers_own_masks_have_the_window(oracle):
    """The other comparisons give transformers a mask."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, TOKENS))
    with torch.no_grad():
        expected = oracle.exact(torch.tensor(ids)).logits.numpy()
    model = oracle.model()
    np.testing.assert_allclose(model(jnp.asarray(ids)), expected, atol=2e-4)
    assert {view.window for view in model.config.views} <= {None, WINDOW}


@pytest.mark.parametrize("oracle", thinned(VARIANTS, lambda name: name in (*FEW, DIFFERING[1])), indirect=True)
def test_greedy_tokens_beyond_the_window(oracle, prompt):
    with torch.no_grad():
        ids = torch.tensor([prompt])
        settings = transformers.GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
        expected = oracle.exact.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    found = Generator(oracle.model(), len(prompt) + NEW_TOKENS)
    actual = list(found.generate(prompt, Sampling(), max_new_tokens=NEW_TOKENS))
    assert actual == expected[0, len(prompt) :].tolist()


# A step of AdamW knows no family, only which kinds of leaves there are: matrices, and experts.
@pytest.mark.parametrize(
    "oracle", thinned(VARIANTS, lambda name: name in ("phi3, window, longrope", "gpt-oss")), indirect=True
)
def test_twenty_steps_of_adamw(oracle):
    batches = [make_batch(VOCABULARY, 2, TOKENS, documents=2, seed=seed) for seed in range(20)]
    model = oracle.model()
    trainer = Trainer(model, len(batches))
    losses, trained = trainer.train(trainer.new_state(), batches)
    expected, adapter = train_with_torch(oracle, batches)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    require_equal_adapters(model, trained, adapter, share=0.02)


def test_written_checkpoints_have_the_same_bits(oracle, tmp_path):
    config, params, _ = weights.load_model_files(oracle.directory, "float32")
    weights.save_checkpoint(tmp_path / "again", params, config)
    first, second = (
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        for path in (oracle.directory, tmp_path / "again")
    )
    assert_equal_states(second.state_dict(), first.state_dict())
    ignored = {"_name_or_path", "transformers_version", "initializer_range", "dtype"}
    before, after = ({k: v for k, v in x.config.to_dict().items() if k not in ignored} for x in (first, second))
    after["rope_parameters"].pop("type", None)  # the name of rope_type in transformers 4
    assert {key: after[key] for key in before} == before


@pytest.mark.parametrize("oracle", IN_GGUF, indirect=True)
def test_gguf_files(oracle, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(oracle.directory, dtype=torch.float32)
    architecture = FAMILIES[model.config.model_type].gguf_architecture
    assert architecture is not None
    path = write(tmp_path / "model.gguf", lambda writer: add_model(writer, model), architecture)
    config, params = load_gguf(path, "float32")
    states = model.state_dict()
    if model.config.tie_word_embeddings:
        del states["lm_head.weight"]
    if offset := FAMILIES[model.config.model_type].norms.offset:  # the file has their sum
        states |= {name: (x + offset) - offset for name, x in states.items() if name.endswith("norm.weight")}
    assert_equal_states(state_dict_of(params), states)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (1, TOKENS)))
    settings, read = model_settings(TOKENS), Oracle(oracle.directory).model().config
    np.testing.assert_array_equal(Llama(config, params, settings)(ids), Llama(read, params, settings)(ids))


@pytest.mark.parametrize(
    ("oracle", "requested"),
    thinned(
        itertools.product(DIFFERING, LAYERS),
        # Every form once.
        lambda case: (case[0] == DIFFERING[0]) == (case[1] in LAYERS[1:3]),
    ),
    indirect=["oracle"],
    ids=str,
)
def test_layers_that_differ_in_every_form(oracle, requested):
    """The same gradients with recomputation and offloading, in tiles, and in groups of heads."""
    require_equal_gradients(oracle, requested)


@pytest.mark.parametrize("oracle", ["olmo2"], indirect=True)
@pytest.mark.parametrize("requested", thinned(LAYERS[:-1], lambda requested: requested == LAYERS[2]), ids=str)
def test_norms_after_attention_in_every_form(oracle, requested):
    require_equal_gradients(oracle, requested)


@pytest.mark.parametrize(
    ("oracle", "requested"),
    thinned(
        itertools.product(("qwen3, experts", "gpt-oss"), LAYERS),
        # Those of qwen3 are also in tiles in `test_gradients_of_every_weight`.
        lambda case: case == ("gpt-oss", LAYERS[-1]),
    ),
    indirect=["oracle"],
    ids=str,
)
def test_experts_in_every_form(oracle, requested):
    """Tokens of a tile share the experts' matrices, and a tile has its own rows."""
    require_equal_gradients(oracle, requested)


@pytest.mark.parametrize(
    ("oracle", "requested"),
    thinned(
        itertools.product(("gemma2", "gemma3"), LAYERS),
        # That of gemma2 is also in `test_gradients_of_every_weight`.
        lambda case: case == ("gemma3", LAYERS[-1]),
    ),
    indirect=["oracle"],
    ids=str,
)
def test_norms_on_both_sides_in_every_form(oracle, requested):
    """Groups of heads are added up before the norm that follows attention."""
    require_equal_gradients(oracle, requested)


EVERY_WEIGHT = [
    *(("olmo2", LAYERS[2]), ("gemma2", LAYERS[-1]), ("gemma3", LAYERS[0])),
    *(("qwen3, experts", LAYERS[2]), ("qwen3, one of 5 experts, biases, tied", LAYERS[0])),
    *(("gpt-oss", LAYERS[0]), ("gpt-oss", LAYERS[-1])),
]


@pytest.mark.parametrize(
    ("oracle", "requested"),
    # The adapter of gpt-oss is trained in the last form, in `test_experts_in_every_form`.
    thinned(EVERY_WEIGHT, lambda case: case[0] in ("gemma2", "qwen3, experts") or case == ("gpt-oss", LAYERS[0])),
    indirect=["oracle"],
)
def test_gradients_of_every_weight(oracle, requested):
    """Also of norms after attention, and of the head and the embedding, whose rows are scaled."""
    batch = make_batch(VOCABULARY, 2, 64, documents=2)
    batch["tokens"] = np.maximum(batch["tokens"], 2)  # torch does not train padding
    alone = Oracle(oracle.directory)
    names = names_of(alone.model())
    _, actual = jax_gradients(alone.model(**requested), batch)
    plain, exact = (torch_gradients(m, batch, names) for m in (alone.plain, alone.exact))
    assert tree_error_ratio(actual, plain, exact) <= 1


@pytest.mark.parametrize("oracle", ["olmo2"], indirect=True)
def test_heads_that_are_normalized_together_are_not_grouped(oracle):
    """Neither by the user nor by the planner."""
    config, grouped = oracle.model().config, ExecutionRequest(memory=MemorySettings(head_groups=2))
    with pytest.raises(InputError, match="that this model normalizes together; use head_groups=1"):
        resolve(grouped, config, jnp.float32)
    found = candidates(config, model_settings(1024))
    assert {candidate.memory.head_groups for candidate in found if candidate.memory} == {1}


def require_equal_gradients(oracle, requested):
    batch = make_batch(VOCABULARY, 2, 64, documents=2)
    _, actual = jax_gradients(oracle.model(**requested), batch)
    names = names_of(oracle.model())
    plain, exact = (torch_gradients(m, batch, names) for m in (oracle.plain, oracle.exact))
    assert tree_error_ratio(actual, plain, exact) <= 1


@pytest.mark.parametrize("oracle", ["phi3, window, longrope"], indirect=True)
def test_a_joint_matrix_in_groups_of_heads(oracle):
    """A group has its own rows of queries, keys and values, and of the adapter's B."""
    batch, names = make_batch(VOCABULARY, 2, 64, documents=2), names_of(oracle.model())
    _, actual = jax_gradients(oracle.model(**LAYERS[-1]), batch)
    plain, exact = (torch_gradients(m, batch, names) for m in (oracle.plain, oracle.exact))
    assert tree_error_ratio(actual, plain, exact) <= 1


def test_views_of_other_layers_change_the_logits(tmp_path):
    oracle = make_oracle(tmp_path, adapter=False, **MODELS["ministral, alternating windows"])
    model = oracle.model()
    ids = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (1, TOKENS)))
    kinds = model.config.own_value("layer_types")
    other = dataclasses.replace(model.config, own_values=(("layer_types", (*kinds[1:], kinds[0])),))
    changed = Llama(other, model.params, model.settings)
    assert np.abs(np.asarray(changed(ids) - model(ids))).max() > 1e-2


CHANGES = {
    "gemma2": {"attn_logit_softcapping": 2.1, "final_logit_softcapping": 3.01, "query_pre_attn_scalar": 21},
    "gemma3_text": {"rope_local_base_freq": 5100.0, "query_pre_attn_scalar": 21},
}


@pytest.mark.parametrize("oracle", thinned(("gemma2", "gemma3"), lambda name: name == "gemma2"), indirect=True)
def test_each_property_of_gemma_changes_the_logits(oracle, monkeypatch):
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, TOKENS))
    with torch.no_grad():
        plain, exact = (model(torch.tensor(ids)).logits.numpy() for model in (oracle.plain, oracle.exact))
    model = oracle.model()
    kind, unchanged = model.config.model_type, model.config.family

    def ratio(family=unchanged, **values):
        monkeypatch.setitem(FAMILIES, kind, family)
        own = tuple((dict(model.config.own_values) | values).items())
        config = dataclasses.replace(model.config, own_values=own)
        return error_ratio(np.asarray(Llama(config, model.params, model.settings)(ids)), plain, exact)

    assert ratio() <= 1
    for name, value in CHANGES[kind].items():
        assert ratio(**{name: value}) > 1, name
    for name, value in {
        "activation": "silu",
        "embedding_scale": lambda config: 7.0,
        "norms": dataclasses.replace(unchanged.norms, offset=0.999),
    }.items():
        assert ratio(dataclasses.replace(unchanged, **{name: value})) > 1, name


SIZES = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}
REFUSED = {
    "layer_types has 'linear_attention', and only full_attention and sliding_attention": {
        "model_type": "qwen3", "layer_types": ["linear_attention"] * 4,
    },
    "layer_types has 3 entries for 4 layers": {"model_type": "qwen3", "layer_types": ["full_attention"] * 3},
    "layer_types has sliding_attention, but use_sliding_window is not set": {
        "model_type": "qwen3", "layer_types": ["sliding_attention"] * 4,
    },
    "layer_types has sliding_attention, but there is no sliding_window": {
        "model_type": "ministral", "layer_types": ["sliding_attention"] * 4, "sliding_window": None,
    },
    "use_sliding_window='false' is not true or false": {"model_type": "qwen3", "use_sliding_window": "false"},
    "max_window_layers='2' is not a number of layers": {"model_type": "qwen2", "max_window_layers": "2"},
    "max_window_layers=-1 is not a number of layers": {"model_type": "qwen2", "max_window_layers": -1},
    "no_rope_layer_interval=0 is not a number of layers": {"model_type": "smollm3", "no_rope_layer_interval": 0},
    "no_rope_layers=(0, 2, 1, 1) is not a list of 0 and 1": {"model_type": "smollm3", "no_rope_layers": [0, 2, 1, 1]},
    "no_rope_layers=7 is not a list of 0 and 1": {"model_type": "smollm3", "no_rope_layers": 7},
    "no_rope_layers has 3 entries for 4 layers": {"model_type": "smollm3", "no_rope_layers": [0, 1, 1]},
    "smollm3: layer_types has sliding_attention, but use_sliding_window is not set": {
        "model_type": "smollm3", "layer_types": ["sliding_attention"] * 4,
    },
    "phi3: attention_dropout=0.1: only the adapter can have dropout: set it to 0": {
        "model_type": "phi3", "attention_dropout": 0.1,
    },
    "original_max_position_embeddings={}, which is an object": {
        "model_type": "phi3", "original_max_position_embeddings": {},
    },
    "original_max_position_embeddings=0.5; it must be above 1": {
        "model_type": "phi3", "original_max_position_embeddings": 0.5,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    },
    "pad_token_id=[[1]], which is an object": {"model_type": "smollm3", "pad_token_id": [[1]]},
    "phi3: resid_pdrop=0.1": {"model_type": "phi3", "resid_pdrop": 0.1},
    "rope_type='linear' has no meaning in a phi3 model; use one of default, longrope": {
        "model_type": "phi3", "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "layer_types=5 is not a list": {"model_type": "ministral", "layer_types": 5},
    "layer_types='sliding_attention' is not a list": {"model_type": "qwen2", "layer_types": "sliding_attention"},
    "hidden_act='gelu'": {"model_type": "qwen2", "hidden_act": "gelu"},
    "hidden_activation='gelu'; only gelu_pytorch_tanh": {"model_type": "gemma2", "hidden_activation": "gelu"},
    "use_bidirectional_attention=True is not supported": {"model_type": "gemma2", "use_bidirectional_attention": True},
    "query_pre_attn_scalar='256' is not a positive number": {"model_type": "gemma2", "query_pre_attn_scalar": "256"},
    "attn_logit_softcapping=0 is not a positive number, or null": {
        "model_type": "gemma2", "attn_logit_softcapping": 0,
    },
    "attn_logit_softcapping=50.0 is not supported": {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0},
    "sliding_window_pattern=0 is not a number of layers": {"model_type": "gemma3_text", "sliding_window_pattern": 0},
    "rope_local_base_freq='10000' is not a number above 1": {
        "model_type": "gemma3_text", "rope_local_base_freq": "10000",
    },
    "rope_type='linear' for sliding_attention; only default": {
        "model_type": "gemma3_text", "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}},
    },
    "must be an object with full_attention and sliding_attention": {
        "model_type": "gemma3_text", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
    "has no text_config of a gemma3_text model": {"model_type": "gemma3"},
    "gemma2: layer_types has 'chunked_attention', and only": {
        "model_type": "gemma2", "layer_types": ["chunked_attention"] * 4,
    },
    "layer_types has 'full_attention' for layer 1, but a mistral model with sliding_window=9 has sliding_attention": {
        "model_type": "mistral", "sliding_window": 9, "layer_types": ["sliding_attention", *["full_attention"] * 3],
    },
    "layer_types has 'sliding_attention' for layer 0, but a phi3 model with sliding_window=None has full_attention": {
        "model_type": "phi3", "layer_types": ["sliding_attention"] * 4,
    },
    "layer_types is not a list of 4 entries, one for each layer": {"model_type": "llama", "layer_types": [1]},
    f"model_type='qwen3_next'; supported are {', '.join(FAMILIES)}:": {"model_type": "qwen3_next"},
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_supported_is_refused_by_name(message):
    with pytest.raises(InputError, match=re.escape(message)):
        LlamaConfig.from_dict({**SIZES, **HEADS, **REFUSED[message]})


@pytest.mark.parametrize(("window", "kind"), [(9, "sliding_attention"), (None, "full_attention")])
def test_layer_types_that_say_what_the_family_does_are_no_fault(window, kind):
    fields = {**SIZES, **HEADS, "model_type": "mistral", "sliding_window": window}
    assert LlamaConfig.from_dict({**fields, "layer_types": [kind] * 4}) == LlamaConfig.from_dict(fields)


def test_a_long_value_is_shortened_between_its_name_and_the_reason():
    with pytest.raises(InputError) as caught:
        LlamaConfig.from_dict({**SIZES, **HEADS, "model_type": "smollm3", "no_rope_layers": ["x"] * 100_000})
    message = str(caught.value)
    assert "smollm3: no_rope_layers=('x', " in message
    assert "is not a list of 0 and 1 in the model's config" in message
    assert len(message) < 400


def test_a_converted_model_has_its_window(tmp_path, model_dir):
    torch.manual_seed(0)
    fields = {**SIZES, **HEADS, "sliding_window": WINDOW, "initializer_range": 0.2, "head_dim": 8}
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**fields)).eval()
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((model_dir / name).read_bytes())
    assert convert([str(tmp_path / "model"), str(tmp_path / "out")]) == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert (again.config.model_type, again.config.sliding_window) == ("mistral", WINDOW)
    ids = torch.tensor(np.random.default_rng(1).integers(0, 320, (1, 2 * WINDOW)))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)
    ours = lcjax.from_pretrained(tmp_path / "model", 2 * WINDOW, "float32")[0]
    with torch.no_grad():
        np.testing.assert_allclose(ours(jnp.asarray(ids.numpy())), model(ids).logits.numpy(), atol=1e-4, rtol=1e-4)
