"""GGUF files of models with experts: a layer has one tensor for all of them."""

from __future__ import annotations

import tracemalloc

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type

import lcjax
from lcjax import weights
from lcjax.convert import command as convert
from lcjax.errors import InputError
from lcjax.model import lora as adapters
from lcjax.model.params import tensor_names
from tests.support.gguf_models import KINDS, assert_same_bits, config_of, converted, run
from tests.support.gguf_writing import add_model, gguf_name, write

EXPERTS = KINDS["qwen3_moe"]
MAPS = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def source(small_model_of):
    return small_model_of(**EXPERTS)


def of_torch(source):
    return transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q4_0", "Q6_K"])
def test_experts_of_another_writer_have_the_library_s_bits(source, tmp_path, name):
    """Each expert is read by itself, a few rows at a time."""
    stored = Type[name]
    elements, size = gguf.GGML_QUANT_SIZES[stored]
    generator, encoded = np.random.default_rng(0), {}

    def encode(array):
        if array.shape[-1] % elements:
            return array, Type.F32
        if name != "Q6_K":
            return gguf.quants.quantize(array, stored), stored
        # The library does not write this type; these are random blocks with small scales.
        blocks = generator.integers(0, 256, (*array.shape[:-1], array.shape[-1] // elements, size), np.uint8)
        blocks[..., -1] = 1
        return blocks.reshape(*array.shape[:-1], -1), stored

    # Rows of 256 values are whole blocks of every type.
    model = of_torch(source)
    for layer in model.model.layers:
        experts = layer.mlp.experts
        experts.gate_up_proj = torch.nn.Parameter(torch.randn(5, 512, 64))
        experts.down_proj = torch.nn.Parameter(torch.randn(5, 64, 256))
    model.config.moe_intermediate_size = 256
    path = write(tmp_path / "m.gguf", lambda writer: add_model(writer, model, encode), "qwen3moe")
    encoded = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    config, params = weights.load_gguf(path, "float32")
    assert config.experts == lcjax.config.families.experts.Experts(5, 2, 256, True, 0.001)
    assert encoded["blk.1.ffn_down_exps.weight"].tensor_type == stored
    assert encoded["blk.1.ffn_gate_inp.weight"].tensor_type == Type.F32
    mlp = params["layers"]["mlp"]
    found = {f"blk.1.ffn_{module[:-5]}_exps.weight": mlp["experts"][module]["weight"][1] for module in MAPS}
    found["blk.1.ffn_gate_inp.weight"] = mlp["router"]["weight"][1]
    for key, array in found.items():
        whole = gguf.quants.dequantize(encoded[key].data, encoded[key].tensor_type)
        np.testing.assert_array_equal(np.asarray(array), whole.reshape(array.shape), err_msg=key)
    checkpoint, some = weights.open_model_files(path), np.empty((40, 64), np.float32)
    [up] = (name for name in tensor_names(config) if name.name.endswith("1.mlp.experts.3.up_proj.weight"))
    checkpoint.read(up, some, 100)
    np.testing.assert_array_equal(some, mlp["experts"]["up_proj"]["weight"][1, 3, 100:140])


def test_transformers_reads_what_is_written(small_model_of, tmp_path):
    """It does not read the width of experts, and assumes 768."""
    own = {**dict(EXPERTS["own_values"]), "moe_intermediate_size": 768}
    source = small_model_of(**EXPERTS | {"num_hidden_layers": 1, "own_values": tuple(own.items())})
    path = converted(source, tmp_path / "m.gguf", "--type", "f32")
    expected = of_torch(source).state_dict()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    assert model.config.num_experts_per_tok == 2
    assert model.config.norm_topk_prob
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name].numpy(), err_msg=name)


@pytest.mark.parametrize("type_name", ["q8_0", "q4_0"])
def test_blocks_have_the_library_s_numbers(source, tmp_path, type_name):
    path = converted(source, tmp_path / "m.gguf", "--type", type_name)
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if ".expert_" in key}
    assert fields == {
        "qwen3moe.expert_count": 5,
        "qwen3moe.expert_used_count": 2,
        "qwen3moe.expert_feed_forward_length": 160,
    }
    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3MOE, 2)
    states = of_torch(source).state_dict()
    for layer in range(2):
        gate, up = states[f"model.layers.{layer}.mlp.experts.gate_up_proj"].chunk(2, dim=1)
        down = states[f"model.layers.{layer}.mlp.experts.down_proj"]
        for module, expected in zip(MAPS, (gate, up, down), strict=True):
            name = f"model.layers.{layer}.mlp.experts.{module}"
            tensor = stored[f"{names.get_name(name)}.weight"]
            assert tensor.name == gguf_name(f"{name}.weight")
            assert tensor.shape.tolist() == list(expected.shape)[::-1]
            np.testing.assert_array_equal(tensor.data, gguf.quants.quantize(expected.numpy(), Type[type_name.upper()]))
        router = stored[f"{names.get_name(f'model.layers.{layer}.mlp.gate')}.weight"]
        assert router.tensor_type == Type.F32
        np.testing.assert_array_equal(router.data, states[f"model.layers.{layer}.mlp.gate.weight"].numpy())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
def test_an_adapter_is_merged_into_every_format_as_by_peft(source, tmp_path):
    """transformers reads the merged checkpoint, which has the logits of the adapted model."""
    model, tokenizer = lcjax.from_pretrained(source, dtype="float32")
    model = lcjax.get_peft_model(model, r=2, target_modules=("v_proj", *MAPS))
    noise = iter(jax.random.split(jax.random.key(7), 99))
    params = jax.tree.map_with_path(
        lambda path, leaf: (
            0.1 * jax.random.normal(next(noise), leaf.shape) if path[-1].key in adapters.ADAPTER_LEAVES else leaf
        ),
        model.params,
    )
    model = lcjax.Llama(model.config, params, model.settings)
    lcjax.save_pretrained(model, tmp_path / "adapter")
    flags = ("--adapter", tmp_path / "adapter")
    converted(source, tmp_path / "merged", "--max-shard-size", "100KB", *flags)
    converted(source, tmp_path / "m.gguf", "--type", "f32", *flags)
    lcjax.save_gguf(model, tmp_path / "api.gguf", tokenizer, type="f32")
    _, merged, _ = weights.load_model_files(tmp_path / "merged", "float32")
    for name in ("m.gguf", "api.gguf"):
        assert_same_bits(weights.load_gguf(tmp_path / name, "float32")[1], merged)
    assert len(list((tmp_path / "merged").glob("model-*-of-*.safetensors"))) > 3
    theirs = peft.PeftModel.from_pretrained(of_torch(source), str(tmp_path / "adapter"))
    theirs.save_pretrained(str(tmp_path / "fused"))  # with one pair of factors for all experts
    again = converted(source, tmp_path / "again", "--adapter", tmp_path / "fused")
    assert_same_bits(weights.load_model_files(again, "float32")[1], merged)
    states = of_torch(again).state_dict()
    for name, tensor in theirs.merge_and_unload().state_dict().items():
        np.testing.assert_allclose(states[name].numpy(), tensor.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
    ids = np.random.default_rng(0).integers(0, 330, (1, 24))
    with torch.no_grad():
        expected = of_torch(tmp_path / "merged")(torch.tensor(ids)).logits.numpy()
        before = of_torch(source)(torch.tensor(ids)).logits.numpy()
    found = np.asarray(model(jnp.asarray(ids)))
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)
    assert np.abs(found - before).max() > 0.1


def test_the_experts_of_a_layer_are_written_one_after_another(small_tokenizer, tmp_path):
    """The peak is one expert and a few MB, not all experts of a layer."""
    own = {"num_experts": 64, "num_experts_per_tok": 2, "moe_intermediate_size": 1024, "norm_topk_prob": True}
    sizes = {"hidden_size": 256, "num_hidden_layers": 1, "own_values": tuple(own.items())}
    content = weights.gguf_content(config_of(**EXPERTS | sizes), small_tokenizer, "q8_0", name="m")
    tracemalloc.start()
    try:
        weights.write_gguf(tmp_path / "m.gguf", content, lambda name: np.full(name.shape, 1.0, np.float32))
        weights.open_model_files(tmp_path / "m.gguf")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024 * 256 * 4 / 2


def test_probabilities_that_do_not_sum_to_one_are_refused(small_model_of, tmp_path, monkeypatch, capsys):
    own = {**dict(EXPERTS["own_values"]), "norm_topk_prob": False}
    source = small_model_of(**EXPERTS | {"own_values": tuple(own.items())})
    with pytest.raises(InputError, match="qwen3moe models cannot express norm_topk_prob=False instead of True"):
        weights.gguf_content(weights.load_config(source), weights.load_tokenizer(source), "f16", name="m")
    # Before weights of the hub are downloaded, or an adapter is read.
    with monkeypatch.context() as patched:
        patched.setattr(convert, "open_model_files", lambda path: pytest.fail("the weights were opened"))
        assert run(source, tmp_path / "m.gguf", "--adapter", tmp_path / "missing") == 2
    assert "cannot express norm_topk_prob=False" in capsys.readouterr().err
    before, after = (weights.open_model_files(path).config for path in (source, converted(source, tmp_path / "hf")))
    assert before == after


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("expert_count", None, "lacks the metadata key qwen3moe.expert_count"),
        ("expert_used_count", None, "lacks the metadata key qwen3moe.expert_used_count"),
        ("expert_feed_forward_length", None, "lacks the metadata key qwen3moe.expert_feed_forward_length"),
        ("expert_count", 4, "blk.0.ffn_gate_exps.weight is [5, 160, 64] and the config says [4, 160, 64]"),
        ("expert_count", 2**31, "num_experts=2147483648 is above 4096"),
        ("expert_used_count", 6, "num_experts_per_tok=6 is above num_experts=5"),
        ("expert_feed_forward_length", 0, "qwen3moe.expert_feed_forward_length=0; it must be a positive integer"),
    ],
)
def test_damaged_numbers_of_experts_are_named(source, tmp_path, key, value, fault):
    class Damaging:
        def __init__(self, writer):
            self.writer = writer

        def __getattr__(self, name):
            if name != f"add_{key}":
                return getattr(self.writer, name)
            return lambda _: value is None or getattr(self.writer, name)(value)

    model = of_torch(source)
    path = write(tmp_path / "m.gguf", lambda writer: add_model(Damaging(writer), model), "qwen3moe")
    with pytest.raises(InputError) as caught:
        weights.open_model_files(path)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)
