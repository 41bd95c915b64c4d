import json

import jax
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from lcjax.config import TARGET_MODULES, LlamaConfig, LoraConfig
from lcjax.config.presets import PRESETS
from lcjax.errors import InputError
from lcjax.weights import base_config, load_adapter, save_adapter
from lcjax.weights.peft import CONFIG_FILE, WEIGHTS_FILE

# PEFT 0.21 uses a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def config(tiny_llama) -> LlamaConfig:
    return LlamaConfig.from_dict(tiny_llama().config.to_dict())


def peft_model(tiny_llama, **options) -> peft.PeftModel:
    """Returns a model with a random adapter. PEFT's initial B is zero, which would hide errors."""
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return model


def random_adapter(config: LlamaConfig, lora: LoraConfig, dtype=np.float32) -> dict:
    generator = np.random.default_rng(0)
    tree = {"layers": {"self_attn": {}, "mlp": {}}}
    for module in lora.target_modules:
        out_features, in_features = config.linear_shapes()[module]
        part = tree["layers"]["mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"]
        part[module] = {
            "lora_A": jax.numpy.asarray(generator.normal(size=(3, lora.r, in_features)), dtype),
            "lora_B": jax.numpy.asarray(generator.normal(size=(3, out_features, lora.r)), dtype),
        }
    tree["layers"] = {name: part for name, part in tree["layers"].items() if part}
    return tree


TARGETS = {
    "list": (["q_proj", "down_proj"], ("q_proj", "down_proj")),
    "all-linear": ("all-linear", TARGET_MODULES),
    "pattern": (r".*\.self_attn\.(k|v)_proj", ("k_proj", "v_proj")),
    "suffixes": (["mlp.up_proj", "self_attn.o_proj"], ("o_proj", "up_proj")),
}


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("targets", TARGETS)
def test_loads_what_peft_saves(tiny_llama, config, tmp_path, targets, use_rslora):
    given, expected = TARGETS[targets]
    model = peft_model(tiny_llama, r=5, lora_alpha=7, lora_dropout=0.1, target_modules=given, use_rslora=use_rslora)
    model.save_pretrained(tmp_path)
    lora, adapter = load_adapter(tmp_path, config)
    assert lora == LoraConfig(5, 7, expected, use_rslora, 0.1)
    layer = model.base_model.model.model.layers[0].self_attn
    scaled = next((getattr(layer, name) for name in expected if hasattr(layer, name)), None)
    if scaled is not None:
        assert lora.scaling == scaled.scaling["default"]
    states = peft.get_peft_model_state_dict(model)
    assert len(states) == 2 * 3 * len(expected)
    for name, tensor in states.items():
        _, _, _, _, layer, part, module, factor, _ = name.split(".")
        leaf = adapter["layers"][part][module][factor]
        assert leaf.dtype == np.float32
        assert np.array_equal(leaf[int(layer)], tensor.numpy()), name
    assert len(jax.tree.leaves(adapter)) == 2 * len(expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("modules", [TARGET_MODULES, ("v_proj",), ("gate_proj", "k_proj")])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_peft_loads_what_is_saved(tiny_llama, config, tmp_path, modules, dtype, use_rslora):
    lora = LoraConfig(5, 7, modules, use_rslora)
    adapter = random_adapter(config, lora, dtype)
    save_adapter(tmp_path, adapter, lora, "some/base")
    model = peft.PeftModel.from_pretrained(tiny_llama(), tmp_path, autocast_adapter_dtype=False)
    assert model.peft_config["default"].base_model_name_or_path == "some/base"
    states = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    assert len(states) == 2 * 3 * len(modules)
    for name, tensor in states.items():
        _, _, _, _, layer, part, module, factor, _ = name.split(".")
        expected = np.asarray(adapter["layers"][part][module][factor][int(layer)].astype(np.float32))
        assert np.array_equal(tensor.float().numpy(), expected), name
        inner = model.base_model.model.model.layers[int(layer)].get_submodule(f"{part}.{module}")
        assert inner.scaling["default"] == lora.scaling
    stored = load_file(tmp_path / WEIGHTS_FILE)
    assert {tensor.dtype for tensor in stored.values()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_is_bitwise(config, tmp_path, dtype):
    lora = LoraConfig(3, 4.5, use_rslora=True, lora_dropout=0.25)
    adapter = random_adapter(config, lora, dtype)
    save_adapter(tmp_path, adapter, lora, "base")
    again, loaded = load_adapter(tmp_path, config, dtype)
    assert again == lora
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), loaded, adapter))


def refusal(directory, config) -> str:
    with pytest.raises(InputError) as caught:
        load_adapter(directory, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head']"),
        ({"rank_pattern": {"q_pro.": 3}}, "rank_pattern={'q_pro.': 3}"),
        ({"alpha_pattern": {"(q|k)_proj": 2}}, "alpha_pattern={'(q|k)_proj': 2}"),
        ({"layer_replication": [[0, 3], [1, 3]]}, "layer_replication=[[0, 3], [1, 3]]"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    ],
)
def test_variants_of_lora_are_refused(tiny_llama, config, tmp_path, options, named):
    peft_model(tiny_llama, r=2, target_modules=["q_proj"], **options).save_pretrained(tmp_path)
    message = refusal(tmp_path, config)
    assert named in message
    assert str(tmp_path / CONFIG_FILE) in message


def test_other_kinds_of_adapter_are_refused(tiny_llama, config, tmp_path):
    options = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    peft.get_peft_model(tiny_llama(), options).save_pretrained(tmp_path)
    assert "peft_type='IA3'; only LORA" in refusal(tmp_path, config)


@pytest.fixture
def saved(config, tmp_path):
    lora = LoraConfig(2, 4, ("q_proj", "up_proj"))
    save_adapter(tmp_path, random_adapter(config, lora), lora, "base")
    return tmp_path


PREFIX = "base_model.model.model.layers"


def test_every_fault_of_names_and_shapes_is_named(saved, config):
    tensors = load_file(saved / WEIGHTS_FILE)
    del tensors[f"{PREFIX}.1.self_attn.q_proj.lora_A.weight"]
    tensors[f"{PREFIX}.3.mlp.up_proj.lora_A.weight"] = torch.zeros(2, 24)
    tensors[f"{PREFIX}.0.mlp.up_proj.lora_B.weight"] = torch.zeros(40, 3)
    save_file(tensors, saved / WEIGHTS_FILE)
    message = refusal(saved, config)
    assert f"1 unknown ({PREFIX}.3.mlp.up_proj.lora_A.weight)" in message
    assert f"1 missing ({PREFIX}.1.self_attn.q_proj.lora_A.weight)" in message
    assert f"1 misshapen ({PREFIX}.0.mlp.up_proj.lora_B.weight is [40, 3] and the config says [40, 2])" in message


def test_adapter_of_another_model(saved, config):
    import dataclasses

    assert "misshapen" in refusal(saved, dataclasses.replace(config, hidden_size=32))
    assert "missing" in refusal(saved, dataclasses.replace(config, num_hidden_layers=4))
    assert "unknown" in refusal(saved, dataclasses.replace(config, num_hidden_layers=2))


def test_pickled_adapter_is_refused_unopened(saved, config):
    (saved / WEIGHTS_FILE).rename(saved / "adapter_model.bin")
    message = refusal(saved, config)
    assert "adapter_model.bin" in message
    assert "pickles are never opened" in message


def test_absent_files(saved, config, tmp_path):
    (saved / CONFIG_FILE).unlink()
    assert f"{saved / CONFIG_FILE} does not exist" in refusal(saved, config)
    (saved / WEIGHTS_FILE).unlink()
    assert f"has no {WEIGHTS_FILE}" in refusal(saved, config)
    assert "not an existing directory" in refusal(tmp_path / "absent", config)


def test_truncated_weights(saved, config):
    (saved / WEIGHTS_FILE).write_bytes((saved / WEIGHTS_FILE).read_bytes()[:-1])
    assert "truncated or corrupt" in refusal(saved, config)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"peft_type": "LORA"}', '{"peft_type": "LORA", "r": "8", "lora_alpha": 1}',
                                     '{"peft_type": "LORA", "r": 2, "lora_alpha": "x"}'])  # fmt: skip
def test_bad_config(saved, config, content):
    (saved / CONFIG_FILE).write_text(content)
    refusal(saved, config)


def test_an_unknown_option_is_refused_when_set(saved, config):
    parsed = json.loads((saved / CONFIG_FILE).read_text())
    for unset in (None, False, {}, [], "none"):
        (saved / CONFIG_FILE).write_text(json.dumps({**parsed, "use_next_years_idea": unset}))
        load_adapter(saved, config)
    (saved / CONFIG_FILE).write_text(json.dumps({**parsed, "use_next_years_idea": True}))
    assert "use_next_years_idea=True" in refusal(saved, config)


@pytest.mark.parametrize("fault", ["lacking", "extra", "misshapen", "other"])
def test_saving_a_wrong_tree_is_a_bug_of_the_caller(config, tmp_path, fault):
    lora = LoraConfig(2, 4, ("q_proj", "up_proj"))
    adapter = random_adapter(config, lora)
    module = adapter["layers"]["mlp"]["up_proj"]
    if fault == "lacking":
        del module["lora_B"]
    elif fault == "extra":
        module["lora_C"] = module["lora_B"]
    elif fault == "misshapen":
        module["lora_A"] = module["lora_A"][:, 1:]
    else:
        del adapter["layers"]["self_attn"]
    with pytest.raises(ValueError, match=r"up_proj|lora_B|self_attn"):
        save_adapter(tmp_path / "out", adapter, lora, "base")
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_other_parameters_is_refused(tmp_path):
    """Their sizes may be equal. Families with the same parameters exchange adapters."""
    recorded = tmp_path / "base_config.json"
    recorded.write_text(json.dumps(PRESETS["gpt-oss-20b"].to_dict()))
    with pytest.raises(InputError, match="is an adapter of a gpt_oss model, and the model is qwen3_moe; load it with"):
        base_config(tmp_path, PRESETS["qwen3-30b-a3b"])
    recorded.write_text(json.dumps(PRESETS["mistral-7b"].to_dict()))
    assert base_config(tmp_path, PRESETS["llama-3.1-8b"]).rope_theta == PRESETS["mistral-7b"].rope_theta
