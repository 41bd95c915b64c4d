"""Checkpoints of gpt-oss in MXFP4: read as they are, trained under an adapter, and converted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lcjax
from lcjax.convert.__main__ import main as convert
from lcjax.errors import InputError
from lcjax.model.params import TensorName, tensor_names
from lcjax.ops import mxfp4
from lcjax.parallel.loading import Rows
from lcjax.train.__main__ import main as train
from lcjax.weights import load_config, load_gguf, load_model_files, load_tokenizer, open_model_files
from lcjax.weights.experts import Mxfp4Weight, take_experts
from lcjax.weights.hf import SINGLE_FILE
from lcjax.weights.safetensors_files import read_header, read_into
from tests.support.fused_experts import parameter_of, tensor_of
from tests.support.oracles import make_oracle
from tests.support.settings import model_settings
from tests.support.shapes import MODELS

LAYERS, EXPERTS, WIDTHS = 2, 5, {"square": (64, 64), "not square": (64, 192)}
IDS = np.random.default_rng(0).integers(0, 131, (1, 20))


def make_checkpoint(directory: Path, hidden: int, width: int, **fields) -> Path:
    """Saves a random model in bfloat16 whose experts' matrices are in MXFP4, as OpenAI's are."""
    fields = {
        **MODELS["gpt-oss"],
        "num_hidden_layers": LAYERS,
        "hidden_size": hidden,
        "intermediate_size": width,
    } | fields
    folder = make_oracle(directory, adapter=False, dtype="bfloat16", **(fields | {"head_dim": 32})).directory
    tensors, generator = load_file(folder / SINGLE_FILE), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        shape = (experts, rows, columns // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(121, 126, shape, generator=generator, dtype=torch.uint8)
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
    change_config(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return folder


def change_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture(scope="module", params=WIDTHS)
def checkpoint(request, tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("mxfp4"), *WIDTHS[request.param])


@pytest.fixture(scope="module")
def dequantized(checkpoint):
    """transformers' model with its own dequantized weights, in bfloat16."""
    settings = transformers.Mxfp4Config(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, quantization_config=settings, dtype=torch.bfloat16
    )
    model.set_experts_implementation("eager")
    return model


def node(tree, name: TensorName):
    for key in name.path:
        tree = tree[key]
    return {leaf: x[name.index] for leaf, x in tree.items()} if isinstance(tree, dict) else tree[name.index or ...]


def is_packed(name: TensorName) -> bool:
    return name.expert is not None and name.path[-1] == "weight"


def test_weights_have_the_bits_of_transformers_and_stay_packed(checkpoint, dequantized):
    config, params, _ = load_model_files(checkpoint, "bfloat16")
    theirs = {name: x.detach().float().numpy() for name, x in dequantized.named_parameters()}
    count = 0
    for name in tensor_names(config):
        found, expected = node(params, name), tensor_of(theirs[parameter_of(name)], name, EXPERTS)
        if is_packed(name):
            assert {leaf: x.dtype for leaf, x in found.items()} == {"blocks": np.uint8, "exponents": np.uint8}
            found = mxfp4.dequantize(found, "bfloat16")
            count += 1
        np.testing.assert_array_equal(np.asarray(found).astype(np.float32), expected, err_msg=name.name)
    assert count == LAYERS * EXPERTS * 2
    with torch.no_grad():
        expected = dequantized.float()(torch.tensor(IDS)).logits.numpy()
    dequantized.bfloat16()
    config, params, _ = load_model_files(checkpoint, "float32")
    model = lcjax.Llama(config, params, model_settings(64, config))
    np.testing.assert_allclose(model(jnp.asarray(IDS)), expected, atol=1e-3, rtol=1e-3)


def test_some_rows_are_read_as_all_of_them(checkpoint):
    """As by one of several processes: of packed experts, and of transposed ones in bfloat16."""
    config = load_config(checkpoint)
    _, packed = take_experts(read_header(checkpoint / SINGLE_FILE, packed=True), config)
    parts = (slice(3, 10), slice(40, 61))
    for name in ("gate_up_proj[3]", "down_proj[4]"):
        weight = packed[f"model.layers.1.mlp.experts.{name}"]
        assert isinstance(weight, Mxfp4Weight)
        packing = weight.packing()
        whole, some = (
            {
                path: [np.zeros((part.stop - part.start, shape[1]), dtype) for part in rows.parts]
                for path, (shape, dtype) in packing.leaves.items()
            }
            for rows in (Rows((slice(0, packing.rows),)), Rows(parts))
        )
        packing.read(Rows((slice(0, packing.rows),)), whole)
        packing.read(Rows(parts), some)
        for path, leaves in some.items():
            assert whole[path][0].any()
            for part, leaf in zip(parts, leaves, strict=True):
                np.testing.assert_array_equal(leaf, whole[path][0][part])
        values = np.empty(weight.shape, np.float32)
        weight.read(values)
        rows = np.empty((21, weight.shape[1]), np.float32)
        weight.read(rows, 40)
        np.testing.assert_array_equal(rows, values[40:61])


def test_some_rows_of_transposed_experts(tmp_path):
    fields = {**MODELS["gpt-oss"], "num_hidden_layers": 1}
    directory = make_oracle(tmp_path, adapter=False, **fields).directory
    stored = load_file(directory / SINGLE_FILE)
    tensors, _ = take_experts(read_header(directory / SINGLE_FILE), load_config(directory))
    for module in ("gate_up_proj", "down_proj"):
        expected = stored[f"model.layers.0.mlp.experts.{module}"][3].mT.numpy()
        tensor = tensors[f"model.layers.0.mlp.experts.{module}[3]"]
        assert tensor.shape == expected.shape
        for first, last in ((0, len(expected)), (5, 23)):
            rows = np.empty((last - first, expected.shape[1]), np.float32)
            read_into(tensor, rows, first * expected.shape[1])
            np.testing.assert_array_equal(rows, expected[first:last])
    stored["model.layers.0.mlp.experts.down_proj"][3, 4, 20] = torch.nan
    save_file(stored, directory / SINGLE_FILE, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"down_proj.* is nan at \[4, 20\]"):
        read_into(tensor, rows, 5 * expected.shape[1])


@pytest.fixture(scope="module")
def for_training(tmp_path_factory, model_dir) -> Path:
    """A checkpoint with the tokenizer of the tiny model."""
    tokenizer = load_tokenizer(model_dir)
    folder = make_checkpoint(tmp_path_factory.mktemp("training"), 64, 64, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, again and again. " * 60)
    return path


FLAGS = "--max-seq-length 32 --max-steps 2 --save-steps 1 --eval-fraction 0 --lora-r 2 --output-dir".split()


def test_a_run_with_attention_in_nf4_and_experts_in_mxfp4(for_training, text, tmp_path, capsys):
    """Resuming it from its first step gives the same bits."""
    model = open_model_files(for_training)
    params = model.load("bfloat16", "nf4")
    assert set(params["layers"]["self_attn"]["q_proj"]["weight"]) > {"codes", "absmax"}
    assert set(params["layers"]["mlp"]["experts"]["down_proj"]["weight"]) == {"blocks", "exponents"}
    given = ["--model", str(for_training), "--data", str(text), "--quantize", "nf4"]
    assert train([*given, *FLAGS, str(tmp_path / "run")]) == 0
    assert "(float32, layers in nf4, experts in mxfp4)" in capsys.readouterr().err
    again = ["--resume-from-checkpoint", str(tmp_path / "run/checkpoints/1"), "--output-dir", str(tmp_path / "again")]
    assert train(again) == 0
    first, second = (load_file(tmp_path / run / "adapter/adapter_model.safetensors") for run in ("run", "again"))
    assert all(tensor.abs().max() > 0 for tensor in first.values())
    assert {name: x.numpy().tobytes() for name, x in first.items()} == {
        name: x.numpy().tobytes() for name, x in second.items()
    }


def test_every_weight_is_trained_only_after_converting(for_training, text, tmp_path, capsys):
    """The refusal names the command, whose result is exact."""
    given = ["--model", str(for_training), "--data", str(text), "--full-finetuning"]
    assert train([*given, *FLAGS[:-3], "--output-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert "--full-finetuning" in error
    assert "mxfp4" in error
    assert "lcjax convert" in error
    assert "\n" not in error
    assert convert([str(for_training), str(tmp_path / "plain"), "--dtype", "bfloat16"]) == 0
    written = json.loads((tmp_path / "plain/config.json").read_text())
    assert not {"quantization", "quantization_config"} & written.keys()
    assert written["dtype"] == "bfloat16"
    settings = transformers.Mxfp4Config(dequantize=True)
    first, second = (
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, **options).state_dict()
        for path, options in ((for_training, {"quantization_config": settings}), (tmp_path / "plain", {}))
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    given = ["--model", str(tmp_path / "plain"), "--data", str(text), "--full-finetuning"]
    assert train([*given, *FLAGS[:-3], "--output-dir", str(tmp_path / "full")]) == 0


def test_the_format_is_that_of_the_tensors(for_training, tmp_path):
    """config.json may lack it, or still have it after a conversion."""
    formats = []
    for name, quantization in (("without", None), ("with", {"quant_method": "mxfp4"})):
        shutil.copytree(for_training, tmp_path / name)
        if name == "with":
            assert convert([str(for_training), str(tmp_path / name), "--dtype", "bfloat16", "--overwrite"]) == 0
        change_config(tmp_path / name, quantization_config=quantization)
        formats.append(open_model_files(tmp_path / name).config.experts.stored_format)
    assert formats == ["mxfp4", None]


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_model_files(folder, "bfloat16")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_damaged_checkpoints_are_refused_in_one_line(tmp_path):
    folder = make_checkpoint(tmp_path, *WIDTHS["not square"])
    whole, prefix = load_file(folder / SINGLE_FILE), "model.layers.1.mlp.experts"
    down = {leaf: f"{prefix}.down_proj_{leaf}" for leaf in ("blocks", "scales")}
    infinite = whole[down["scales"]].clone()
    infinite[2, 7, 1] = 253
    for changes, expected in (
        ({down["blocks"]: whole[down["blocks"]][:, :, :1]}, "down_proj_blocks is [5, 64, 1, 16], not [5, 64, 6, 16]"),
        ({down["scales"]: whole[down["scales"]][:4]}, "down_proj_scales is [4, 64, 6], not [5, 64, 6]"),
        ({down["scales"]: None}, f"{down['blocks']} is there, but {down['scales']} is not"),
        ({down["blocks"]: None}, f"{down['scales']} is there, but {down['blocks']} is not"),
        ({down["scales"]: infinite}, f"{down['scales']} has a scale of 253, so that weights are infinite or NaN"),
        ({down["blocks"]: whole[down["blocks"]].bfloat16()}, "down_proj_blocks is stored as bfloat16, not as uint8"),
    ):
        tensors = {name: x.contiguous() for name, x in (whole | changes).items() if x is not None}
        save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
        assert expected in refusal(folder)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({"quant_method": "gptq"}, "says the weights are quantized (gptq); use an unquantized checkpoint"),
        ({"quant_method": ["mxfp4"]}, "says the weights are quantized"),
        ("mxfp4", "says quantization_config='mxfp4', which is not an object"),
    ],
)
def test_other_kinds_of_quantization_are_refused(tmp_path, quantization, expected):
    folder = make_oracle(tmp_path, adapter=False, **MODELS["gpt-oss"], num_hidden_layers=1).directory
    change_config(folder, quantization_config=quantization)
    assert expected in refusal(folder)


def test_dropout_of_experts_is_refused(for_training, text, tmp_path, capsys):
    given = ["--model", str(for_training), "--data", str(text), "--lora-dropout", "0.1"]
    assert train([*given, *FLAGS, str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert "--lora-dropout 0.1 is not supported for gate_up_proj of experts" in error
    assert "\n" not in error


def test_a_gguf_file_has_the_same_values(for_training, tmp_path):
    """The exponents and codes of a block may differ, but not its values."""
    path = tmp_path / "model.gguf"
    assert convert([str(for_training), str(path), "--type", "mxfp4"]) == 0
    _, params, _ = load_model_files(for_training, "bfloat16")
    _, found = load_gguf(path, "bfloat16")
    for module in ("gate_up_proj", "down_proj"):
        one, other = (tree["layers"]["mlp"]["experts"][module] for tree in (params, found))
        values = (np.asarray(mxfp4.dequantize(tree["weight"], "bfloat16"), np.float32) for tree in (one, other))
        np.testing.assert_array_equal(*values)
        np.testing.assert_array_equal(np.asarray(one["bias"]), np.asarray(other["bias"]))
