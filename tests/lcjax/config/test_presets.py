"""lcjax.config.presets: the named models equal the published ones."""

from __future__ import annotations

import json
import math

import pytest

from lcjax.config.presets import PRESETS, resolve_config
from lcjax.errors import InputError
from lcjax.model.params import tensor_names
from lcjax.weights import gguf

# The parameter counts that the hub shows for each checkpoint, with tied heads counted once.
PARAMETERS = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.3-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "smollm2-135m": 134_515_008,
    "smollm3-3b": 3_075_098_624,
    "phi-3.5-mini": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b": 7_248_023_552,
    "mistral-7b-v0.1": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "olmo-2-7b": 7_298_617_344,
    "olmo-2-13b": 13_716_198_400,
    "olmo-2-32b": 32_234_279_936,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    # Those of the hub without what is for images.
    "gemma-3-4b": 4_300_079_472 - 419_816_304,
    "gemma-3-12b": 12_187_325_040 - 421_290_864,
    "gemma-3-27b": 27_432_406_640 - 423_060_336,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_number_of_parameters(name):
    assert sum(math.prod(tensor.shape) for tensor in tensor_names(PRESETS[name])) == PARAMETERS[name]


def test_smollm2_equals_the_config_of_its_file(smollm2):
    """The special tokens differ, because the file has the instruction-tuned model."""
    stored, preset = gguf.open_gguf(smollm2).config, resolve_config("SmolLM2-135M")
    different = {name for name in vars(stored) if getattr(stored, name) != getattr(preset, name)}
    assert different <= {"bos_token_id", "eos_token_id"}


def test_a_config_file_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PRESETS["llama-3.2-1b"].to_dict()))
    assert resolve_config(str(path)) == resolve_config(str(tmp_path)) == PRESETS["llama-3.2-1b"]


def test_an_unknown_model_is_refused():
    with pytest.raises(
        InputError, match=r"model='llama-3.1-9b' is unknown; did you mean llama-3.1-8b or .*config.json$"
    ):
        resolve_config("llama-3.1-9b")


def test_missing_fields_are_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"hidden_size": 64, "vocab_size": 100}))
    with pytest.raises(InputError, match="lacks intermediate_size, num_hidden_layers, num_attention_heads"):
        resolve_config(str(path))
