"""Models with experts: NF4 of every expert, adapters without dropout, and FLOPs."""

from __future__ import annotations

import functools

import bitsandbytes.functional as bnb
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import lcjax
from lcjax.config.presets import PRESETS
from lcjax.config.run_record import now
from lcjax.errors import InputError
from lcjax.model import lora
from lcjax.model.params import tensor_names
from lcjax.ops import nf4
from lcjax.plan.choosing.flops import step_flops
from lcjax.train.arguments import RunArguments
from lcjax.train.checkpoints.folder import RunFolder
from lcjax.train.refusals import check_model
from lcjax.weights import load_config, load_model_files
from tests.support.fused_experts import parameter_of, tensor_of
from tests.support.oracles import Oracle, jax_gradients, make_batch, make_oracle
from tests.support.settings import model_settings
from tests.support.shapes import MODEL_COMMON, MODELS

# Rows of whole blocks, as 4 bits need.
FIELDS = {**MODELS["qwen3, experts"], "hidden_size": 64, "head_dim": 32, "moe_intermediate_size": 128}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory) -> Oracle:
    return make_oracle(tmp_path_factory.mktemp("model"), adapter=False, **FIELDS)


def test_every_expert_is_quantized_as_by_bitsandbytes(oracle):
    config, params, _ = load_model_files(oracle.directory, "float32", quantize="nf4")
    theirs = {name: x.detach() for name, x in oracle.original.named_parameters()}
    quantizable = {row.path for row in config.family.stored(config) if row.quantizable}
    count = 0
    for name in tensor_names(config):
        found = params
        for key in name.path:
            found = found[key]
        expected = torch.from_numpy(tensor_of(theirs[parameter_of(name)].numpy(), name, config.experts.count).copy())
        if name.path not in quantizable:
            np.testing.assert_array_equal(found[name.index] if name.index else found, expected)
            continue
        own = jax.tree.map(lambda leaf, name=name: leaf[name.index], found)
        codes, state = bnb.quantize_4bit(expected, quant_type="nf4", compress_statistics=True)
        np.testing.assert_array_equal(own["codes"].ravel(), codes.ravel(), err_msg=name.name)
        np.testing.assert_array_equal(own["absmax"].ravel(), state.absmax, err_msg=name.name)
        np.testing.assert_array_equal(nf4.dequantize(own, jnp.float32), bnb.dequantize_4bit(codes, state))
        count += name.expert is not None
    assert count == config.num_hidden_layers * 3 * config.experts.count


def test_gradients_of_an_adapter_on_quantized_experts_are_those_on_their_values(oracle):
    config, params, _ = load_model_files(oracle.directory, "float32", quantize="nf4")
    settings = model_settings(64, config)

    def dequantized(node):
        if not isinstance(node, dict):
            return node
        if nf4.is_quantized(node):
            values = functools.partial(nf4.dequantize, dtype=jnp.float32)
            for _ in range(node["codes"].ndim - 2):
                values = jax.vmap(values)
            return values(node)
        return {name: dequantized(child) for name, child in node.items()}

    batch = make_batch(MODEL_COMMON["vocab_size"], 2, 64, documents=2)
    results = []
    for tree in (params, dequantized(params)):
        model = lcjax.get_peft_model(lcjax.Llama(config, tree, settings), r=3)
        base, adapter = lora.detach(model.params)
        adapter = jax.tree.map(lambda x: x + 0.01, adapter)
        results.append(jax_gradients(lcjax.Llama(config, lora.attach(base, adapter), model.settings), batch))
    (loss, gradients), (expected_loss, expected) = results
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for (path, found), wanted in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted), path
    with torch.no_grad():
        ids = torch.from_numpy(batch["tokens"]).long()
        before = oracle.original(ids).logits.numpy()
    assert np.abs(lcjax.Llama(config, params, settings)(batch["tokens"]) - before).max() > 1e-2


def test_adapters_of_experts_have_no_dropout(oracle, tmp_path):
    model, config, folder = oracle.model(), load_config(oracle.directory), RunFolder(tmp_path, now())
    message = (
        "lora_dropout=0.1 is not supported for gate_proj of experts; set it to 0, or choose target_modules from q_pr"
    )
    with pytest.raises(InputError, match=message) as refusal:
        lcjax.get_peft_model(model, lora_dropout=0.1)
    assert "\n" not in str(refusal.value)
    with pytest.raises(InputError, match=message):
        check_model(config, RunArguments(max_seq_length=64, lora_dropout=0.1), folder)
    attention = ("q_proj", "o_proj")
    check_model(config, RunArguments(max_seq_length=64, lora_dropout=0.1, target_modules=attention), folder)
    assert lcjax.get_peft_model(model, lora_dropout=0.1, target_modules=attention).settings.lora is not None


def test_flops_are_those_of_the_experts_that_a_token_has():
    """Of the 128 experts in each of the 48 layers of Qwen3-30B-A3B, a token has 8."""
    config = PRESETS["qwen3-30b-a3b"]
    expert = 3 * 768 * 2048
    attention = 2048 * 128 * (32 + 4 + 4 + 32)
    layer = attention + 8 * expert + 128 * 2048
    full, frozen = (step_flops(config, 1000, rank) for rank in (0, 16))
    assert full.linear == 6 * 1000 * 48 * layer
    assert frozen.linear == 4 * 1000 * 48 * layer
    factors = 2 * (2048 + 4096) + 2 * (2048 + 512) + 8 * 3 * (2048 + 768)
    assert (full.adapter, frozen.adapter) == (0, 6 * 1000 * 48 * 16 * factors)
    assert full.linear + full.head < 0.11 * 6 * 1000 * 30_532_122_624
