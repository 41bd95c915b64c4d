"""PEFT adapters of gpt-oss, whose experts share parameters in files too, in both directions."""

from __future__ import annotations

import json

import jax
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
from tests.support.fused_experts import parameter_of, tensor_of
from tests.support.oracles import Oracle, make_oracle
from tests.support.shapes import MODELS
from tests.support.thin import thinned

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT looks only at modules for this warning, and the patterns apply to parameters too.
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning"),
]

GATE_UP, DOWN = EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ATTENTION, MAPS = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_up_proj", "down_proj")
PREFIX = "base_model.model.model.layers.1"
IDS = np.random.default_rng(0).integers(0, 131, (1, 20))


@pytest.fixture(scope="module", params=thinned(("square", "not square"), lambda name: name == "square"))
def base(request, tmp_path_factory) -> Oracle:
    """A random model of two layers, with an intermediate size equal to the hidden size or not.

    They are equal in the models of OpenAI, so that a transposed matrix of `down_proj` has the same
    shape.
    """
    size = {"intermediate_size": 48} if request.param == "square" else {}
    fields = {**MODELS["gpt-oss"], "num_hidden_layers": 2, **size}
    return make_oracle(tmp_path_factory.mktemp("experts"), adapter=False, **fields)


def saved(base: Oracle, directory, **options) -> peft.PeftModel:
    """Returns a PEFT model with random factors, which is also saved."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base.directory, dtype=torch.float32)
    model.set_experts_implementation("eager")
    model = peft.get_peft_model(
        model, peft.LoraConfig(**{"r": 3, "lora_alpha": 4, "task_type": "CAUSAL_LM", **options})
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(str(directory))
    return model.eval()


def require_same_merged(base: Oracle, directory, model) -> LoraConfig:
    """Requires the weights plus the adapter to be those of PEFT, whose model changes."""
    config, params, _ = weights.load_model_files(base.directory, "float32")
    lora, adapter = weights.load_adapter(directory, config)
    params = adapters.attach(params, adapter)
    theirs = {name: tensor.numpy() for name, tensor in model.merge_and_unload().state_dict().items()}
    for name in tensor_names(config):
        expected = tensor_of(theirs[parameter_of(name)], name, config.experts.count)
        found = adapters.merged_tensor(params, name, lora.scaling)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name.name)
    return lora


READ = {
    "attention alone": ({"target_modules": "all-linear"}, LoraConfig(3, 4, ATTENTION)),
    "all": ({"target_modules": "all-linear", "target_parameters": EXPERTS}, LoraConfig(3, 4, (*ATTENTION, *MAPS))),
    "experts alone, scaled by the root of the rank": (
        {"target_modules": [], "target_parameters": EXPERTS, "use_rslora": True},
        LoraConfig(3, 4, MAPS, use_rslora=True),
    ),
    "gate and up": ({"target_modules": ["q_proj"], "target_parameters": [GATE_UP]}, LoraConfig(3, 4, ("q_proj", MAPS[0]))),
    "down": ({"target_modules": ["q_proj"], "target_parameters": [DOWN]}, LoraConfig(3, 4, ("q_proj", MAPS[1]))),
    "one layer": (
        {"target_modules": ["v_proj"], "target_parameters": ["model.layers.1.mlp.experts.down_proj"]},
        LoraConfig(3, 4, ("v_proj", "down_proj")),
    ),
    "ranks by name": (
        {"target_modules": [], "target_parameters": EXPERTS, "rank_pattern": {"down_proj": 6}, "alpha_pattern": {"down_proj": 8}},
        LoraConfig(6, 8, MAPS),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_adapters_of_peft_mean_the_same(base, tmp_path, name):
    options, expected = READ[name]
    assert require_same_merged(base, tmp_path, saved(base, tmp_path, **options)) == expected


def trained(base: Oracle, modules) -> lcjax.Llama:
    """Returns a model with random factors."""
    model = lcjax.get_peft_model(base.model(), r=3, lora_alpha=4, target_modules=modules)
    params, adapter = adapters.detach(model.params)
    rng = np.random.default_rng(0)
    adapter = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), adapter)
    return lcjax.Llama(model.config, adapters.attach(params, adapter), model.settings)


@pytest.mark.parametrize("modules", ["all-linear", MAPS, MAPS[0], ("q_proj", MAPS[1])], ids=str)
def test_adapters_of_lcjax_are_read_by_peft(base, tmp_path, modules):
    """Also into a merged checkpoint, and what PEFT saves of one has the same bits."""
    model = trained(base, modules)
    lcjax.save_pretrained(model, tmp_path / "ours")
    theirs = Oracle(base.directory, tmp_path / "ours").original
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours, again = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("ours", "theirs"))
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS)).logits.numpy()
        without = base.original(torch.tensor(IDS)).logits.numpy()
    assert np.abs(expected - without).max() > 0.01
    for read in (model, lcjax.load_adapter(base.model(), tmp_path / "theirs")):
        np.testing.assert_allclose(read(jnp.asarray(IDS)), expected, atol=1e-4, rtol=1e-4)
    lcjax.save_merged(model, tmp_path / "merged")
    with torch.no_grad():
        merged = Oracle(tmp_path / "merged").original(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(merged, expected, atol=1e-4, rtol=1e-4)


def test_the_names_in_adapters_of_lcjax(base, tmp_path):
    """Attention alone has plain names; experts are in the parameters that PEFT wraps."""
    for modules, parameters in ((ATTENTION, None), (("q_proj", *MAPS), EXPERTS)):
        lcjax.save_pretrained(trained(base, modules), tmp_path)
        config = json.loads((tmp_path / CONFIG_FILE).read_text())
        assert config["target_modules"] == [module for module in modules if module in ATTENTION]
        assert config.get("target_parameters") == (parameters and sorted(parameters))
        shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / WEIGHTS_FILE).items()}
        experts = {name: shape for name, shape in shapes.items() if ".experts" in name and name.startswith(PREFIX)}
        width = base.model().config.intermediate_size
        assert len(shapes) == 2 * 2 * len(modules)
        assert experts == ({} if parameters is None else {
            f"{PREFIX}.mlp.experts.base_layer.lora_A.weight": (5 * 3, 48),
            f"{PREFIX}.mlp.experts.base_layer.lora_B.weight": (2 * width, 3 * 5),
            f"{PREFIX}.mlp.experts.lora_A.weight": (5 * 3, width),
            f"{PREFIX}.mlp.experts.lora_B.weight": (48, 3 * 5),
        })  # fmt: skip


def refusal(base: Oracle, directory) -> str:
    with pytest.raises(InputError) as caught:
        weights.load_adapter(directory, weights.load_config(base.directory))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("parameter", ["mlp.router.weight", "mlp.experts.down_proj_bias"])
def test_other_parameters_are_named(base, tmp_path, parameter):
    saved(base, tmp_path, target_modules=["q_proj"], target_parameters=[parameter])
    assert f"target_parameters=['{parameter}']; only plain LoRA is supported" in refusal(base, tmp_path)


def test_faults_of_parameters_are_named(base, tmp_path):
    saved(base, tmp_path, target_modules=[], target_parameters=EXPERTS)
    whole = load_file(tmp_path / WEIGHTS_FILE)
    name = f"{PREFIX}.mlp.experts.lora_B.weight"
    save_file({key: tensor for key, tensor in whole.items() if key != name}, tmp_path / WEIGHTS_FILE)
    message = refusal(base, tmp_path)
    assert f"unknown ({PREFIX}.mlp.experts.lora_A.weight)" in message
    assert f"missing ({PREFIX}.mlp.experts.down_proj[0].lora_A.weight" in message
