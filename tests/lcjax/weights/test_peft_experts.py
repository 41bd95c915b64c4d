"""PEFT adapters of experts, which transformers 5 has in one parameter, and ranks that differ."""

from __future__ import annotations

import json
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lcjax
from lcjax import weights
from lcjax.config import LoraConfig
from lcjax.errors import InputError
from lcjax.model import lora as adapters
from lcjax.model.params import tensor_names
from lcjax.weights.peft import CONFIG_FILE, WEIGHTS_FILE
from tests.support.oracles import Oracle, make_oracle

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT looks only at modules for this warning, and the patterns apply to parameters too.
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),
]

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
MAPS = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Oracle:
    """A random model of two layers with seven experts, in a directory."""
    fields = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 28, "norm_topk_prob": True}
    fields |= {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20}
    directory = tmp_path_factory.mktemp("experts")
    return make_oracle(directory, adapter=False, model_type="qwen3_moe", num_hidden_layers=2, **fields)


def saved(base: Oracle, directory, *, mixes: bool = True, **options) -> Any:
    """Returns a PEFT model with random factors, which is also saved.

    If it does not mix, B of `gate_up_proj` stays zero outside two blocks, as PEFT converts it.
    """
    options = {"r": 5, "lora_alpha": 7, "task_type": "CAUSAL_LM", **options}
    model = transformers.AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.float32)
    model.set_experts_implementation("eager")
    model = peft.get_peft_model(model, peft.LoraConfig(**options))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
            if not mixes and "base_layer.lora_B" in name:
                blocks = parameter.view(2, 28, 2, -1)
                blocks[0, :, 1] = blocks[1, :, 0] = 0
    model.save_pretrained(str(directory))
    return model.eval()


def merged(base: Oracle, directory) -> tuple[LoraConfig, dict[str, np.ndarray]]:
    """Returns the adapter's config, and the weights plus the adapter by names of transformers 4."""
    config, params, _ = weights.load_model_files(base.directory, "float32")
    lora, adapter = weights.load_adapter(directory, config)
    params = adapters.attach(params, adapter)
    tensors = {name.name: adapters.merged_tensor(params, name, lora.scaling) for name in tensor_names(config)}
    return lora, {name: np.asarray(tensor) for name, tensor in tensors.items()}


def merged_by_peft(model) -> dict[str, np.ndarray]:
    """Returns the same of PEFT; `merge_and_unload` changes the model."""
    tensors = {}
    for name, tensor in model.merge_and_unload().state_dict().items():
        prefix, _, parameter = name.rpartition(".")
        if parameter == "gate_up_proj":
            for expert, (gate, up) in enumerate(tensor.numpy().reshape(len(tensor), 2, -1, tensor.shape[-1])):
                tensors[f"{prefix}.{expert}.gate_proj.weight"] = gate
                tensors[f"{prefix}.{expert}.up_proj.weight"] = up
        elif parameter == "down_proj":
            tensors |= {f"{prefix}.{expert}.down_proj.weight": down for expert, down in enumerate(tensor.numpy())}
        else:
            tensors[name] = tensor.numpy()
    return tensors


def assert_same_merged(base: Oracle, directory, model) -> LoraConfig:
    lora, ours = merged(base, directory)
    theirs = merged_by_peft(model)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-5, atol=1e-6, err_msg=name)
    return lora


NAMED = {
    "converted, mixed by training": (
        {"target_modules": ["q_proj", *MAPS]},
        LoraConfig(10, 14, ("q_proj", *MAPS)),
    ),
    "parameters": (
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS},
        LoraConfig(5, 7, ("q_proj", *MAPS)),
    ),
    "parameters alone, scaled by the root of the rank": (
        {"target_parameters": EXPERTS, "use_rslora": True},
        LoraConfig(5, 7, MAPS, use_rslora=True),
    ),
    "one parameter, first": ({"target_parameters": EXPERTS[:1]}, LoraConfig(5, 7, MAPS[:2])),
    "one parameter, last": ({"target_parameters": EXPERTS[1:]}, LoraConfig(5, 7, MAPS[2:])),
    "one layer": (
        {"target_modules": ["v_proj"], "target_parameters": ["model.layers.1.mlp.experts.down_proj"]},
        LoraConfig(5, 7, ("v_proj", "down_proj")),
    ),
    "ranks by name": (
        {
            "target_modules": ["q_proj", "v_proj"],
            "target_parameters": EXPERTS,
            "rank_pattern": {"layers.1.self_attn.v_proj": 3, r".*\.down_proj": 10, "^model.layers.0.self_attn.q_proj": 1},
            "alpha_pattern": {"layers.1.self_attn.v_proj": 4.2, "down_proj": 14, "model.layers.0.self_attn.q_proj": 1.4},
        },
        LoraConfig(10, 14, ("q_proj", "v_proj", *MAPS)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_experts_in_one_parameter_mean_the_same_as_to_peft(base, tmp_path, name):
    options, expected = NAMED[name]
    assert assert_same_merged(base, tmp_path, saved(base, tmp_path, **options)) == expected


def test_two_blocks_get_back_their_rank(base, tmp_path):
    model = saved(base, tmp_path, mixes=False, target_modules=["q_proj", *MAPS])
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["rank_pattern"] == {r".*\.gate_up_proj": 10}
    assert assert_same_merged(base, tmp_path, model) == LoraConfig(5, 7, ("q_proj", *MAPS))


def test_what_peft_saves_of_a_loaded_adapter_is_the_adapter(base, tmp_path):
    """lcjax writes an adapter for each expert; PEFT joins them when it loads them.

    With `use_rslora`, PEFT would scale two joined maps by another root.
    """
    options = {"use_rslora": True}
    model = lcjax.get_peft_model(base.model(), r=3, lora_alpha=4, target_modules=("k_proj", *MAPS), **options)
    key = np.random.default_rng(0)
    params, adapter = adapters.detach(model.params)
    adapter = {"layers": _random(adapter["layers"], key)}
    model = lcjax.Llama(model.config, adapters.attach(params, adapter), model.settings)
    lcjax.save_pretrained(model, tmp_path / "ours")
    theirs = Oracle(base.directory, tmp_path / "ours").original
    theirs.save_pretrained(str(tmp_path / "theirs"))
    assert any(".experts.base_layer." in name for name in load_file(tmp_path / "theirs" / WEIGHTS_FILE))
    lora, found = weights.load_adapter(tmp_path / "theirs", base.model().config)
    assert lora == LoraConfig(3, 4 / math.sqrt(3) * 3, ("k_proj", *MAPS))
    assert math.isclose(lora.scaling, 4 / math.sqrt(3))
    assert _leaves(found) == _leaves(adapter)
    # A few tokens, each with other experts.
    ids = np.random.default_rng(0).integers(0, 131, (1, 20))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    again = lcjax.load_adapter(base.model(), tmp_path / "theirs")
    np.testing.assert_allclose(again(jnp.asarray(ids)), expected, atol=1e-4, rtol=1e-4)


def _random(tree, generator):
    if isinstance(tree, dict):
        return {name: _random(value, generator) for name, value in tree.items()}
    return jnp.asarray(generator.normal(0, 0.1, tree.shape), jnp.float32)


def _leaves(tree, path="") -> dict[str, bytes]:
    """Returns the shape and the bits of every leaf."""
    if isinstance(tree, dict):
        return {key: bits for name, value in tree.items() for key, bits in _leaves(value, f"{path}.{name}").items()}
    return {f"{path} {tree.shape}": np.asarray(tree).tobytes()}


def test_smaller_ranks_are_padded_with_zeros(base, tmp_path):
    options = {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 2.8}}
    saved(base, tmp_path, **options)
    lora, adapter = weights.load_adapter(tmp_path, weights.load_config(base.directory))
    assert (lora.r, lora.lora_alpha) == (5, 7)
    factors = adapter["layers"]["self_attn"]["v_proj"]
    stored = load_file(tmp_path / WEIGHTS_FILE)
    prefix = "base_model.model.model.layers.1.self_attn.v_proj"
    np.testing.assert_array_equal(factors["lora_A"][1, :2], stored[f"{prefix}.lora_A.weight"])
    np.testing.assert_array_equal(factors["lora_B"][1, :, :2], stored[f"{prefix}.lora_B.weight"])
    assert not factors["lora_A"][:, 2:].any()
    assert not factors["lora_B"][:, :, 2:].any()


def refusal(base: Oracle, directory) -> str:
    with pytest.raises(InputError) as caught:
        weights.load_adapter(directory, weights.load_config(base.directory))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]}, "adapts the router of experts (base_"),
        ({"target_modules": "all-linear"}, "adapts the router of experts (base_model.model.model.layers.0.mlp.gate."),
        ({"target_parameters": EXPERTS, "rank_pattern": {"down_proj": 3}}, "only one ratio of lora_alpha to r"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"(q|v)_proj": 3}}, "rank_pattern={'(q|v)_proj': 3}"),
        ({"target_modules": ["q_proj"], "alpha_pattern": {"q_.*": 3}}, "alpha_pattern={'q_.*': 3}"),
        ({"target_modules": ["q_proj"], "target_parameters": ["v_proj.weight"]}, "target_parameters=['v_proj.weight']"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(base, tmp_path, options, named):
    saved(base, tmp_path, **options)
    message = refusal(base, tmp_path)
    assert named in message
    assert "merge it into its base with PEFT" in message


def test_faults_of_parameters_are_named(base, tmp_path):
    saved(base, tmp_path, target_parameters=EXPERTS)
    whole = load_file(tmp_path / WEIGHTS_FILE)
    prefix = "base_model.model.model.layers.1.mlp.experts"
    for infix, shape in (("", (48, 28)), (".base_layer", (55, 35)), (".base_layer", None)):
        name = f"{prefix}{infix}.lora_B.weight"
        changed = {key: tensor for key, tensor in whole.items() if key != name}
        if shape is not None:
            changed[name] = torch.zeros(shape)
        save_file(changed, tmp_path / WEIGHTS_FILE)
        message = refusal(base, tmp_path)
        assert f"unknown ({prefix}{infix}.lora_A.weight" in message
        assert f"missing ({prefix}.0." in message
    whole[f"{prefix}.lora_B.weight"][3, 5] = np.nan
    save_file(whole, tmp_path / WEIGHTS_FILE)
    assert f"{prefix}.lora_B.weight is nan at [3, 5]" in refusal(base, tmp_path)


def test_experts_that_have_one_parameter_in_the_model_too(tmp_path):
    """gpt-oss, whose files have them transposed."""
    fields = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20, "hidden_size": 64}
    base = make_oracle(tmp_path, adapter=False, model_type="gpt_oss", **fields, **heads)
    saved(base, tmp_path / "adapter", target_modules=["q_proj"], target_parameters=EXPERTS)
    adapted = Oracle(base.directory, tmp_path / "adapter")
    ids = np.random.default_rng(0).integers(0, 131, (1, 20))
    with torch.no_grad():
        expected, before = (oracle.original(torch.tensor(ids)).logits.numpy() for oracle in (adapted, base))
    found = np.asarray(adapted.model()(jnp.asarray(ids)))
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)
    assert np.abs(found - before).max() > 0.1
