"""NF4 checkpoints of transformers and bitsandbytes load unchanged and have the same values."""

from __future__ import annotations

import json
import re
from pathlib import Path

import bitsandbytes.functional as bnb
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file

from lcjax.convert.__main__ import main as convert
from lcjax.errors import InputError
from lcjax.model import Llama, ModelSettings
from lcjax.model.params import tensor_names
from lcjax.ops import nf4
from lcjax.weights import load_config, load_model_files, load_params
from lcjax.weights.hf import SINGLE_FILE
from tests.support.numerics import error_ratio

# Rows with one block and with several, and incomplete groups of scales.
FIELDS = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "head_dim": 32, "initializer_range": 0.1}


@pytest.fixture(scope="module")
def plain(tiny_llama, tmp_path_factory) -> Path:
    """The model before quantization."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("plain")
    tiny_llama(**FIELDS).save_pretrained(directory)
    return directory


def quantized_by_transformers(plain: Path, directory: Path, **options) -> transformers.LlamaForCausalLM:
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, **options}
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, **options)
    model = transformers.LlamaForCausalLM.from_pretrained(plain, quantization_config=config, dtype=torch.float32)
    model.save_pretrained(directory)
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["double", "single"])
def quantized(request, plain, tmp_path_factory):
    directory = tmp_path_factory.mktemp("quantized")
    return (
        directory,
        quantized_by_transformers(plain, directory, bnb_4bit_use_double_quant=request.param),
        request.param,
    )


def layer(tree, name):
    """Returns the node of one layer, or the array, for the name of a tensor."""
    for key in name.path:
        tree = tree[key]
    return tree if name.layer is None else jax.tree.map(lambda stack: stack[name.layer], tree)


def weights_in_nf4(model) -> dict[str, Linear4bit]:
    return {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def test_codes_and_scales_are_loaded_unchanged(quantized):
    directory, model, double = quantized
    config = load_config(directory)
    params = load_params(directory, config, "float32")
    modules = weights_in_nf4(model)
    assert len(modules) == 7 * config.num_hidden_layers
    for name in tensor_names(config):
        found = layer(params, name)
        if name.name not in modules:
            np.testing.assert_array_equal(found, model.get_parameter(name.name).detach())
            continue
        weight, state = modules[name.name].weight, modules[name.name].weight.quant_state
        assert found["codes"].dtype == jnp.uint8
        np.testing.assert_array_equal(found["codes"].ravel(), weight.detach().ravel())
        np.testing.assert_array_equal(found["absmax"].ravel(), state.absmax)
        if double:
            np.testing.assert_array_equal(found["absmax_scale"], state.state2.absmax)
            assert found["absmax_offset"] == state.offset.item()
        np.testing.assert_array_equal(nf4.dequantize(found, jnp.float32), bnb.dequantize_4bit(weight.detach(), state))


def test_quantizing_while_loading_gives_the_same(plain, quantized):
    directory, _, double = quantized
    _, found, _ = load_model_files(plain, "float32", quantize="nf4")
    _, expected, _ = load_model_files(directory, "float32")
    if double:
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    else:
        assert {"codes", "absmax"} == expected["layers"]["mlp"]["up_proj"]["weight"].keys()


def test_requesting_nf4_changes_nothing(quantized):
    directory, _, _ = quantized
    trees = [load_model_files(directory, "float32", quantize=kind)[1] for kind in (None, "nf4")]
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_logits(plain, quantized):
    directory, model, _ = quantized
    config, params, _ = load_model_files(directory, "float32")
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 33))
    logits = Llama(config, params, ModelSettings(64))(tokens)
    reference = transformers.LlamaForCausalLM.from_pretrained(plain, dtype=torch.float32)
    before = _logits(reference, tokens)
    with torch.no_grad():
        for name, module in weights_in_nf4(model).items():
            weight = bnb.dequantize_4bit(module.weight.detach(), module.weight.quant_state)
            reference.get_parameter(name).copy_(weight)
    plain_logits, exact = _logits(reference, tokens), _logits(reference.double(), tokens)
    assert error_ratio(logits, plain_logits, exact) <= 1
    assert error_ratio(before, plain_logits, exact) > 1, "the weights before quantization"


def _logits(model, tokens) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).logits.numpy()


def test_conversion_writes_the_values(quantized, tmp_path, smollm2):
    directory, model, _ = quantized
    from lcjax.weights import load_tokenizer

    load_tokenizer(smollm2).save_pretrained(directory)
    assert convert([str(directory), str(tmp_path / "out")]) == 0
    found = load_file(tmp_path / "out" / SINGLE_FILE)
    for name, module in weights_in_nf4(model).items():
        assert torch.equal(found[name], bnb.dequantize_4bit(module.weight.detach(), module.weight.quant_state))


@pytest.fixture
def saved(plain, tmp_path):
    """A checkpoint in NF4 and a function that rewrites its tensors."""
    quantized_by_transformers(plain, tmp_path)

    def rewrite(change):
        tensors = load_file(tmp_path / SINGLE_FILE)
        change(tensors)
        save_file(tensors, tmp_path / SINGLE_FILE, metadata={"format": "pt"})

    return tmp_path, rewrite


def refusal(directory: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_params(directory, load_config(directory), "float32")
    message = str(caught.value)
    assert "\n" not in message
    return message


WEIGHT = "model.layers.1.self_attn.k_proj.weight"
STATE = f"{WEIGHT}.quant_state.bitsandbytes__nf4"


def change_state(tensors, **changes):
    state = json.loads(tensors[STATE].numpy().tobytes()) | changes
    text = json.dumps({key: value for key, value in state.items() if value is not None}).encode()
    tensors[STATE] = torch.frombuffer(bytearray(text), dtype=torch.uint8)


STATES = {
    "blocks of 128": ({"blocksize": 128}, f"{WEIGHT} is quantized with blocksize=128, not 64"),
    "scales in blocks of 128": ({"nested_blocksize": 128}, "nested_blocksize=128, not 256"),
    "another type": ({"quant_type": "af4"}, "quant_type=af4, not nf4"),
    "another shape": ({"shape": [32, 128]}, "shape=[32, 128], not [64, 64]"),
    "no offset": ({"nested_offset": None}, f"{WEIGHT}.absmax is"),
}


@pytest.mark.parametrize("fault", STATES)
def test_another_state_is_refused(saved, fault):
    directory, rewrite = saved
    changes, message = STATES[fault]
    rewrite(lambda tensors: change_state(tensors, **changes))
    assert message in refusal(directory)


def test_a_state_of_another_kind_is_refused(saved):
    directory, rewrite = saved
    rewrite(lambda tensors: change_state(tensors, nested_offset="0.1"))
    assert f"{STATE} is not a state of bitsandbytes" in refusal(directory)


def test_a_state_that_is_not_json_is_refused(saved):
    directory, rewrite = saved
    rewrite(lambda tensors: tensors[STATE].zero_())
    assert f"{STATE} is not valid JSON" in refusal(directory)


def test_another_codebook_is_refused(saved):
    directory, rewrite = saved
    rewrite(lambda tensors: tensors[f"{WEIGHT}.quant_map"][3].add_(1e-7))
    assert f"{WEIGHT}.quant_map is not NF4's" in refusal(directory)


def test_another_map_of_scales_is_used(saved):
    """Other releases of torch round its values differently; some of bitsandbytes start it at -1."""
    directory, rewrite = saved
    name = WEIGHT.replace("k_proj", "v_proj")
    names = [name.replace("layers.1", f"layers.{layer}") for layer in range(FIELDS["num_hidden_layers"])]

    def change(tensors):
        for name in names:
            tensors[f"{name}.nested_quant_map"].mul_(0.75)

    rewrite(change)
    stack = load_params(directory, load_config(directory), "float32")["layers"]["self_attn"]["v_proj"]["weight"]
    tensors = load_file(directory / SINGLE_FILE)
    for layer, name in enumerate(names):
        found = nf4.dequantize(jax.tree.map(lambda leaf, layer=layer: leaf[layer], stack), jnp.float32)
        parts = {key: part for key, part in tensors.items() if key.startswith(f"{name}.")}
        state = bnb.QuantState.from_dict(parts, torch.device("cpu"))
        np.testing.assert_array_equal(found, bnb.dequantize_4bit(tensors[name], state))
    rewrite(lambda tensors: [tensors[f"{name}.nested_quant_map"].mul_(2) for name in names])
    assert "v_proj.weight.nested_quant_map has values outside [-1, 1]" in refusal(directory)


def test_maps_that_differ_between_layers_are_refused(saved):
    directory, rewrite = saved
    rewrite(lambda tensors: tensors[f"{WEIGHT}.nested_quant_map"].mul_(0.75))
    message = f"{WEIGHT} nf4 with quantized scales and a custom map; all layers must match"
    assert message in refusal(directory)


@pytest.mark.parametrize("part", ["absmax", "nested_absmax", "quant_map", "nested_quant_map"])
def test_a_missing_part_is_named(saved, part):
    directory, rewrite = saved
    rewrite(lambda tensors: tensors.pop(f"{WEIGHT}.{part}"))
    assert f"{WEIGHT}.{part} is missing" in refusal(directory)


def test_without_its_state_a_tensor_has_the_wrong_dtype(saved):
    directory, rewrite = saved
    rewrite(lambda tensors: tensors.pop(STATE))
    assert re.search(rf"{WEIGHT}(\.absmax)? is stored as U8", refusal(directory))


def test_a_stack_must_be_quantized_throughout(plain, saved):
    directory, rewrite = saved

    def change(tensors):
        for name in [name for name in tensors if name.startswith(WEIGHT)]:
            del tensors[name]
        tensors[WEIGHT] = load_file(plain / SINGLE_FILE)[WEIGHT]

    rewrite(change)
    message = refusal(directory)
    other = "model.layers.0.self_attn.k_proj.weight"
    assert f"{other} is nf4 with quantized scales and {WEIGHT} not quantized; all layers must match" in message
    assert "with quantize=nf4" in message


def test_a_module_may_be_unquantized_in_all_layers(plain, tmp_path):
    quantized_by_transformers(plain, tmp_path, llm_int8_skip_modules=["k_proj", "lm_head"])
    config, params, _ = load_model_files(tmp_path, "float32")
    assert params["layers"]["self_attn"]["k_proj"]["weight"].dtype == jnp.float32
    assert nf4.is_quantized(params["layers"]["self_attn"]["q_proj"]["weight"])
    assert Llama(config, params, ModelSettings(64))(np.zeros((1, 3), np.int32)).shape == (1, 3, config.vocab_size)


def test_a_quantized_head_is_refused(plain, tmp_path):
    quantized_by_transformers(plain, tmp_path, llm_int8_skip_modules=["k_proj"])
    assert "lm_head.weight is quantized but is not a weight of a layer's linear map" in refusal(tmp_path)


def test_fp4_is_refused(plain, tmp_path):
    quantized_by_transformers(plain, tmp_path, bnb_4bit_quant_type="fp4")
    message = "says bnb_4bit_quant_type=fp4, and only nf4 is supported; use an unquantized checkpoint"
    with pytest.raises(InputError, match=message):
        load_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ".weight is quantized as fp4, and only nf4 is supported" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"says the weights are quantized \(gptq\)"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, "says load_in_4bit=False"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"},
            "says bnb_4bit_quant_storage=bfloat16, and only uint8 is supported",
        ),
    ],
)
def test_other_quantizations_are_refused_by_their_config(saved, quantization, message):
    directory, _ = saved
    config = json.loads((directory / "config.json").read_text()) | {"quantization_config": quantization}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        load_config(directory)
