"""Models for images too, whose language model is read: names, config.json, adapters."""

from __future__ import annotations

import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers

import lcjax
from lcjax import weights
from lcjax.config import LlamaConfig
from lcjax.errors import InputError
from lcjax.model import Llama
from tests.support.settings import model_settings
from tests.support.shapes import MODEL_COMMON, MODELS

VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
}  # fmt: skip
LAYER = "model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def larger():
    torch.manual_seed(0)
    text = {**MODEL_COMMON, **MODELS["gemma3"], "initializer_range": 0.15}
    ids = {name: i for i, name in enumerate(("boi_token_index", "eoi_token_index", "image_token_index"), start=128)}
    config = transformers.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, **ids)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 128, (1, 40))


@pytest.fixture(scope="module", params=["language_model.model.", "model.language_model."])
def directory(request, larger, tmp_path_factory):
    """The model with the names of the hub's files, or with those of transformers 5."""
    folder = tmp_path_factory.mktemp("larger")
    larger.config.save_pretrained(folder)
    states = {name: x.contiguous() for name, x in larger.state_dict().items() if name != "lm_head.weight"}
    if not request.param.startswith("model."):
        states = {
            name.replace("model.language_model.", request.param).removeprefix("model."): x for name, x in states.items()
        }
    safetensors.torch.save_file(states, folder / "model.safetensors")
    return folder


def test_the_language_model_is_read_and_written(larger, directory, ids, tmp_path):
    config, params, _ = weights.load_model_files(directory, "float32")
    with torch.no_grad():
        expected = larger(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(Llama(config, params, model_settings(40))(jnp.asarray(ids)), expected, atol=2e-4)
    weights.save_checkpoint(tmp_path, params, config)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(again, transformers.Gemma3ForCausalLM)
    with torch.no_grad():
        np.testing.assert_array_equal(again(torch.tensor(ids)).logits.numpy(), expected)


def test_values_of_the_larger_model_s_config_are_used(directory):
    file = directory / "config.json"
    stated = json.loads(file.read_text())
    del stated["text_config"]["eos_token_id"]
    assert LlamaConfig.from_dict(stated | {"eos_token_id": [1, 106]}).eos_token_id == (1, 106)
    with pytest.raises(InputError, match="quantized"):
        LlamaConfig.from_dict(stated | {"quantization_config": {"quant_method": "gptq"}})


def test_unknown_tensors_are_refused(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "copy")
    file = tmp_path / "copy" / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(file) | {"audio_tower.x": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"1 unknown \(audio_tower.x\)"):
        weights.load_model_files(tmp_path / "copy", "float32")


@pytest.mark.parametrize(
    ("targets", "said"), [(re.escape(LAYER), None), (r".*\.q_proj", "which is not in the language model")]
)
def test_adapters_of_the_larger_model(larger, directory, ids, tmp_path, targets, said):
    model = transformers.Gemma3ForConditionalGeneration(larger.config).eval()
    model.load_state_dict(larger.state_dict())
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=targets, init_lora_weights=False))
    adapted.save_pretrained(str(tmp_path))
    ours = Llama(*weights.load_model_files(directory, "float32")[:2], model_settings(40))
    if said is not None:
        with pytest.raises(InputError, match=said):
            lcjax.load_adapter(ours, tmp_path)
        return
    with torch.no_grad():
        expected = adapted(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(lcjax.load_adapter(ours, tmp_path)(jnp.asarray(ids)), expected, atol=2e-4)
    assert np.abs(np.asarray(ours(jnp.asarray(ids))) - expected).max() > 1e-2
