"""Compares models with transformers at positions around 8K, 32K and 128K, for every kind of RoPE.

The rows are short, with few tokens at distant positions.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

import lcjax
from lcjax import weights
from lcjax.config import MemorySettings
from lcjax.model import ModelSettings
from lcjax.step import with_request
from tests.support.compiling import QUICKEST_TO_COMPILE
from tests.support.numerics import error_ratio
from tests.support.oracles import make_batch, make_oracle, to_numpy, torch_logits
from tests.support.rope_kinds import KINDS, PAIRS, with_exact_angles

LENGTHS = (8192, 32_768, 131_072)
MODEL = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 2 * PAIRS}
EXTENDED = {"dynamic": 4096, "linear": 12_288, "default": 4096}


def batch(length: int):
    """Returns rows with the last positions of a sequence, with random ones, and with the first."""
    tokens = 24
    rows = [np.arange(length - tokens, length), np.linspace(0, length - 2, tokens, dtype=int), np.arange(tokens)]
    return make_batch(131, 3, tokens, positions=np.stack(rows))


@dataclasses.dataclass
class Models:
    """A model in lcjax, in transformers, and in transformers with float64 weights and angles."""

    ours: lcjax.Llama
    plain: Any
    exact: Any

    def ratio(self, model: lcjax.Llama | None = None, length: int = LENGTHS[-1]) -> float:
        inputs = batch(length)
        with torch.no_grad():
            plain, exact = (to_numpy(torch_logits(m, inputs)) for m in (self.plain, self.exact))
        names = ("tokens", "positions", "segment_ids")
        return error_ratio(_call(model or self.ours, *(inputs[name] for name in names)), plain, exact)

    def with_rope(self, **changes: Any) -> lcjax.Llama:
        return with_config(self.ours, rope_scaling=dataclasses.replace(self.ours.config.rope_scaling, **changes))


@functools.partial(jax.jit, compiler_options=QUICKEST_TO_COMPILE)
def _call(model, *inputs):
    return model(*inputs)


def with_config(model: lcjax.Llama, **fields: Any) -> lcjax.Llama:
    return lcjax.Llama(dataclasses.replace(model.config, **fields), model.params, model.settings)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made: dict[str, Models] = {}

    def make(name: str) -> Models:
        if name not in made:
            context = EXTENDED.get(KINDS[name]["rope_type"], 131_072)
            fields = {**MODEL, "max_position_embeddings": context, "rope_parameters": dict(KINDS[name])}
            oracle = make_oracle(tmp_path_factory.mktemp("rope"), adapter=False, **fields)
            ours = oracle.model()
            made[name] = Models(ours, oracle.original, with_exact_angles(oracle.exact, ours.config))
        return made[name]

    return make


# Other kinds differ only in parameters, which the tests of frequencies cover.
@pytest.mark.parametrize(
    "name", [name for name in KINDS if name not in ("dynamic, factor 8", "yarn, own attention factor")]
)
def test_logits_equal_transformers(models, name):
    for length in LENGTHS:
        assert models(name).ratio(length=length) <= 1, length


@pytest.mark.parametrize("name", ["yarn", "dynamic"])
def test_layers_in_tiles_have_the_rope_of_the_whole_sequence(models, name):
    model = models(name).ours
    in_tiles = with_request(model.settings, memory=MemorySettings(tile=8))
    assert models(name).ratio(lcjax.Llama(model.config, model.params, in_tiles)) <= 1


def test_a_dropped_attention_factor_fails(models):
    for name in ("yarn", "longrope"):
        assert models(name).ratio(models(name).with_rope(attention_factor=1.0)) > 1, name


def test_wrong_parameters_fail(models):
    for name, change in (
        ("yarn", {"beta_fast": 16.0}),
        ("yarn, DeepSeek", {"mscale": 0.9}),
    ):
        assert models(name).ratio(models(name).with_rope(**change)) > 1, (name, change)


def test_ignoring_the_length_fails(models):
    """The mutant assumes a sequence within the original context or, for longrope, beyond it."""
    dynamic = models("dynamic")
    assert dynamic.ratio(with_config(dynamic.ours, max_position_embeddings=2**20)) > 1
    longrope = models("longrope")
    assert longrope.ratio(longrope.with_rope(original_max_position_embeddings=2**20, attention_factor=1.1902)) > 1


@pytest.fixture(scope="module")
def phi3(tmp_path_factory) -> Models:
    """Phi-3, which rotates a part of each head; its projections are split to load it as a Llama.

    Its original context is outside the RoPE parameters in its config.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": 131, "hidden_size": 96, "intermediate_size": 76, "num_hidden_layers": 2, "pad_token_id": 0}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    rope = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 1.5, 3, 9, 20, 32]}
    config = transformers.Phi3Config(
        **sizes,
        **heads,
        rope_parameters=rope,
        partial_rotary_factor=0.5,
        max_position_embeddings=131_072,
        original_max_position_embeddings=8192,
        initializer_range=0.15,
        sliding_window=None,
    )
    model = transformers.Phi3ForCausalLM(config).eval()
    directory = tmp_path_factory.mktemp("phi3")
    save_file(_maps_apart(model.state_dict(), 4 * 24, 2 * 24), directory / "model.safetensors")
    written = config.to_dict() | {"model_type": "llama", "rms_norm_eps": config.rms_norm_eps}
    (directory / "config.json").write_text(json.dumps(written))
    ours = _load(directory)
    exact = transformers.Phi3ForCausalLM(config).eval()
    exact.load_state_dict(model.state_dict())
    return Models(ours, model, with_exact_angles(_exactly_normed(exact.double()), ours.config))


def _maps_apart(state: dict[str, torch.Tensor], queries: int, keys: int) -> dict[str, torch.Tensor]:
    apart = {}
    for name, tensor in state.items():
        if "qkv_proj" in name:
            parts = zip("qkv", tensor.split([queries, keys, keys]), strict=True)
            apart |= {name.replace("qkv_proj", f"{part}_proj"): rows.contiguous() for part, rows in parts}
        elif "gate_up_proj" in name:
            parts = zip(("gate", "up"), tensor.chunk(2), strict=True)
            apart |= {name.replace("gate_up_proj", f"{part}_proj"): rows.contiguous() for part, rows in parts}
        else:
            apart[name] = tensor
    return apart


def _load(directory: Path) -> lcjax.Llama:
    config, params, _ = weights.load_model_files(directory, np.float32)
    return lcjax.Llama(config, params, ModelSettings(max_seq_length=1024))


def _exactly_normed(model):
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    for module in model.modules():
        if type(module).__name__ == "Phi3RMSNorm":
            module.forward = forward.__get__(module)
    return model


def test_partial_rotary_equals_phi3(phi3):
    assert phi3.ours.config.rotary_dim == 12
    assert phi3.ours.config.rope_scaling.original_max_position_embeddings == 8192
    for length in LENGTHS:
        assert phi3.ratio(length=length) <= 1, length


def test_rotating_the_whole_head_fails(phi3):
    # The same number of pairs, over the whole head.
    scaling = dataclasses.replace(
        phi3.ours.config.rope_scaling,
        short_factor=phi3.ours.config.rope_scaling.short_factor * 2,
        long_factor=phi3.ours.config.rope_scaling.long_factor * 2,
    )
    assert phi3.ratio(with_config(phi3.ours, partial_rotary_factor=1.0, rope_scaling=scaling)) > 1
