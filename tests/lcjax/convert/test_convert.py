import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lcjax.cli.entry import entry_point
from lcjax.convert.__main__ import main
from lcjax.convert.arguments import parse_size
from lcjax.errors import InputError
from lcjax.weights import load_config, load_gguf, load_params, load_tokenizer

# PEFT 0.21 uses a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load_tokenizer(smollm2)


@pytest.fixture(scope="module")
def saved(model_dir, tmp_path_factory) -> Path:
    """A random float32 model with a small tokenizer, saved by transformers."""
    config = transformers.LlamaConfig(
        vocab_size=101,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    folder = tmp_path_factory.mktemp("saved") / "model"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(model_dir).save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path) -> transformers.LlamaForCausalLM:
    """This model, with a copy of its files at tmp_path / "model"."""
    shutil.copytree(saved, tmp_path / "model")
    return transformers.LlamaForCausalLM.from_pretrained(saved)


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def one_line_error(capsys) -> str:
    output = capsys.readouterr()
    *phases, line = output.err.splitlines(keepends=True)
    assert all(phase.startswith(("converting ", "loading ")) for phase in phases)
    assert line.startswith("error: ")
    return line


def test_gguf_to_hugging_face(smollm2, tokenizer, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(smollm2, out, "--dtype", "bfloat16", "--max-shard-size", "100MB") == 0
    assert f"{out}: 272 tensors, bfloat16, 269,030,016 bytes" in capsys.readouterr().out
    assert len(list(out.glob("*.safetensors"))) == 3
    config, params = load_gguf(smollm2, "bfloat16")
    assert load_config(out) == config
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), load_params(out, config, "bfloat16"), params))
    text = "def f(x):\n    return x  # 123"
    assert transformers.AutoTokenizer.from_pretrained(out)(text)["input_ids"] == tokenizer(text)["input_ids"]
    loaded, report = transformers.LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    assert loaded.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("stored", "asked", "written"),
    [
        (torch.float32, "keep", torch.float32),
        (torch.float16, "keep", torch.float32),
        (torch.bfloat16, "keep", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
    ],
)
def test_dtypes(model, tmp_path, stored, asked, written):
    model.to(stored).save_pretrained(tmp_path / "model")
    assert run(tmp_path / "model", tmp_path / "out", "--dtype", asked) == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = {name: tensor.to(written) for name, tensor in model.state_dict().items()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == written
        assert torch.equal(found[name], tensor), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(written).removeprefix("torch.")


def random_peft_model(model, **options) -> peft.PeftModel:
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=5, lora_alpha=7, **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return adapted


def merged_in_float64(base: dict[str, torch.Tensor], adapted: peft.PeftModel, scaling: float) -> dict[str, np.ndarray]:
    merged = {name: tensor.double().numpy() for name, tensor in base.items()}
    factors = peft.get_peft_model_state_dict(adapted)
    for name in factors:
        if "lora_A" in name:
            weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
            a, b = factors[name].double().numpy(), factors[name.replace("lora_A", "lora_B")].double().numpy()
            merged[weight] = merged[weight] + scaling * b @ a
    return merged


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_merged_adapter(model, tmp_path, stored, dtype, use_rslora):
    """Compared with float64, it is as exact as PEFT's merge in float32, plus one rounding."""
    model.to(stored).save_pretrained(tmp_path / "model")
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = random_peft_model(model.float(), target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=use_rslora)
    adapted.save_pretrained(tmp_path / "adapter")
    scaling = 7 / 5**0.5 if use_rslora else 7 / 5
    expected = merged_in_float64(base, adapted, scaling)
    by_peft = adapted.merge_and_unload().state_dict()
    options = ("--adapter", tmp_path / "adapter", "--dtype", dtype)
    assert run(tmp_path / "model", tmp_path / "out", *options) == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    # The relative error of one rounding: half a unit in the last place.
    rounding = 2.0**-24 if dtype == "float32" else 2.0**-8
    for name, reference in expected.items():
        error = np.abs(found[name].double().numpy() - reference)
        error_of_peft = np.abs(by_peft[name].double().numpy() - reference).max()
        assert (error <= 2 * error_of_peft + rounding * np.abs(reference)).all(), name
    mutant = merged_in_float64(base, adapted, scaling * 1.01)
    name = "model.layers.0.mlp.down_proj.weight"
    error = np.abs(found[name].double().numpy() - mutant[name])
    assert (error > rounding * np.abs(mutant[name])).any(), "a scaling that is off by 1% must be detected"


def test_adapter_of_another_model(model, tmp_path, capsys):
    random_peft_model(model, target_modules=["q_proj"]).save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    smaller = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, "num_hidden_layers": 2}))
    smaller.save_pretrained(tmp_path / "model")
    capsys.readouterr()
    assert run(tmp_path / "model", tmp_path / "out", "--adapter", tmp_path / "adapter") == 2
    assert "2 unknown" in one_line_error(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("model")
def test_generation_config_is_copied(tmp_path):
    before = (tmp_path / "model" / "generation_config.json").read_bytes()
    assert run(tmp_path / "model", tmp_path / "out") == 0
    assert (tmp_path / "out" / "generation_config.json").read_bytes() == before


@pytest.mark.usefixtures("model")
def test_destination_that_holds_files(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    assert run(tmp_path / "model", out) == 0
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(tmp_path / "model", out, "--dtype", "bfloat16") == 2
    assert "--overwrite" in one_line_error(capsys)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "README.md").write_text("mine")
    assert run(tmp_path / "model", out, "--dtype", "bfloat16", "--overwrite") == 0
    assert {path.name for path in out.iterdir()} == {*before, "README.md"}
    assert load_file(out / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_in_place(model, tmp_path):
    """The source is read completely before the first file is renamed."""
    assert run(tmp_path / "model", tmp_path / "model", "--overwrite", "--max-shard-size", "20KB") == 0
    assert not (tmp_path / "model" / "model.safetensors").exists()
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.usefixtures("model")
def test_destination_that_is_a_file(tmp_path, capsys):
    (tmp_path / "out").write_text("before")
    assert run(tmp_path / "model", tmp_path / "out", "--overwrite") == 2
    assert f"{tmp_path / 'out'} is a file" in one_line_error(capsys)
    assert (tmp_path / "out").read_text() == "before"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("/no/such", "out"), "/no/such does not exist"),
        (("absent.gguf", "out"), "absent.gguf does not exist"),
        (("/tmp", "out", "--max-shard-size", "5 apples"), "--max-shard-size 5 apples is not a size"),
    ],
)
def test_faults_are_one_line_and_code_2(tmp_path, monkeypatch, capsys, arguments, fault):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert fault in one_line_error(capsys)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [("a", "b", "--dtyp", "bfloat16"), ("a",), ("a", "b", "--dtype", "float16"), ()])
def test_wrong_flags_are_code_2(capsys, arguments):
    assert run(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    for word in ("SOURCE", "DESTINATION", "--dtype", "--adapter", "--max-shard-size", "--overwrite", "smollm2"):
        assert word in text


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("500MiB", 500 * 2**20), ("1.5 kb", 1500), ("7", 7), ("2GiB", 2**31)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0GB", "-1GB", "5TB", "5 G B", "1e9"])
def test_invalid_sizes(text):
    with pytest.raises(InputError, match="is not a size"):
        parse_size(text)


def test_entry_point_shows_bugs_and_handles_interrupts(capsys):
    def fail(error):
        @entry_point
        def command(argv):
            raise error

        return command([])

    assert fail(InputError("two\nlines")) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    assert fail(KeyboardInterrupt()) == 130
    assert fail(SystemExit(0)) == 0
    assert fail(SystemExit("words")) == 2
    with pytest.raises(ValueError, match="a bug"):
        fail(ValueError("a bug"))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_name_is_refused_as_the_destination(tmp_path, capsys, name):
    assert run("/no/such", tmp_path / name) == 2
    error = one_line_error(capsys)
    assert f"{name} is a file name" in error
    assert "give a directory, for Hugging Face's format, or a name that ends in .gguf" in error
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("model")
def test_progress_is_a_bar_on_a_terminal_and_a_line_elsewhere(tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "model", tmp_path / "a") == 0
    plain = capsys.readouterr()
    assert re.fullmatch(r"converting \d+ tensors to float32, [\d,]+ bytes\n", plain.err)
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich treat any stream as a terminal
    assert run(tmp_path / "model", tmp_path / "b") == 0
    bar = capsys.readouterr().err
    assert "converting" in bar
    assert "kB" in bar
