"""config.json is read as transformers reads it; invalid values give one line, immediately."""

from __future__ import annotations

import itertools
import json

import pytest
import transformers

import lcjax
from lcjax.config import TARGET_MODULES, LlamaConfig, LoraConfig
from lcjax.config.families import FAMILIES
from lcjax.convert.__main__ import main as convert
from lcjax.errors import InputError

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 7,
    "eos_token_id": [8, 9],
    "sliding_window": 100,
    "head_dim": 6,
    "attention_bias": True,
    "mlp_bias": True,
}
SHARED_FIELDS = [
    name for name in LlamaConfig.__dataclass_fields__ if not name.startswith("rope") and name != "own_values"
]


ABSENT = {"attention_bias": False, "mlp_bias": False, "sliding_window": None}


def theirs(config: dict) -> dict:
    """Returns transformers' values of the fields, by lcjax's names."""
    read = transformers.AutoConfig.for_model(**config)
    eos = read.eos_token_id
    fields = {name: getattr(read, name, None) for name in SHARED_FIELDS}
    if fields["head_dim"] is None:
        fields["head_dim"] = read.hidden_size // read.num_attention_heads
    keys = FAMILIES[read.model_type].keys
    without = {name: default for name, default in ABSENT.items() if name not in keys}
    if not getattr(read, "use_sliding_window", True):
        fields["sliding_window"] = None  # most families of transformers forget a window without use
    rope = read.rope_parameters
    fields["rope_theta"] = rope.get("full_attention", rope)["rope_theta"]
    return fields | without | {"eos_token_id": tuple(eos) if isinstance(eos, list) else eos}


def ours(config: dict) -> dict:
    read = LlamaConfig.from_dict(config)
    kind = "yarn" if read.model_type == "gpt_oss" else "default"
    assert (read.rope_scaling.rope_type, read.partial_rotary_factor) == (kind, 1.0)
    fields = {name: getattr(read, name) for name in (*SHARED_FIELDS, "rope_theta")}
    return fields | {"sliding_window": read.views[0].window}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("given", [(), ("vocab_size",), ("hidden_size", "num_attention_heads"), tuple(SIZES)])
def test_missing_keys_have_the_defaults_of_the_family(family, given):
    config = {"model_type": family} | {name: SIZES[name] for name in given}
    expected = theirs(config)
    expected["partial_rotary_factor"] = 1.0
    assert ours(config) == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("absent", SIZES)
def test_each_key_may_be_missing(family, absent):
    config = {"model_type": family} | {name: value for name, value in SIZES.items() if name != absent}
    if absent in ("num_key_value_heads", "hidden_size"):
        del config["head_dim"]
    expected = theirs(config)
    expected["partial_rotary_factor"] = 1.0
    assert ours(config) == expected


# transformers' Mistral does not accept null for num_key_value_heads, nor its Qwen3, Gemma and
# gpt-oss for head_dim. Layers of the last two always have a window.
WITH_WINDOWS = ("gemma2", "gemma3_text", "gpt_oss")
NEVER_NULL = {("qwen3", "head_dim"), *itertools.product(WITH_WINDOWS, ("head_dim", "sliding_window"))}
NULLS = [
    (family, key)
    for family in FAMILIES
    for key in ("head_dim", "bos_token_id", "eos_token_id", "sliding_window")
    if (family, key) not in NEVER_NULL
]


@pytest.mark.parametrize(("family", "key"), [*NULLS, ("llama", "num_key_value_heads")])
def test_null_is_not_the_same_as_missing(family, key):
    config = {"model_type": family} | SIZES | {key: None}
    expected = theirs(config)
    expected["partial_rotary_factor"] = 1.0
    assert ours(config) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_config_is_read_back_here_and_by_transformers(family):
    for change in ({}, {"bos_token_id": None, "eos_token_id": None}, {"sliding_window": None}):
        if {(family, key) for key in change} & NEVER_NULL:
            continue
        config = LlamaConfig.from_dict({"model_type": family} | SIZES | change)
        assert LlamaConfig.from_dict(config.to_dict()) == config
        expected = theirs(config.to_dict())
        expected["partial_rotary_factor"] = 1.0
        assert ours(config.to_dict()) == expected


FAULTS = [
    ("num_hidden_layers", 1_000_000_000, "num_hidden_layers=1000000000"),
    ("vocab_size", 2**40, "vocab_size=1099511627776"),
    ("vocab_size", 10**400, "vocab_size=1000"),
    ("hidden_size", 0, "hidden_size=0"),
    ("hidden_size", -64, "hidden_size=-64"),
    ("hidden_size", "64", "hidden_size='64'"),
    ("hidden_size", 64.0, "hidden_size=64.0"),
    ("hidden_size", True, "hidden_size=True"),
    ("hidden_size", [64] * 10_000, "hidden_size=[64, 64"),
    ("num_attention_heads", 5, "num_attention_heads=5, which does not divide hidden_size=64"),
    ("num_attention_heads", 0, "num_attention_heads=0"),
    ("num_attention_heads", 64, "head_dim=1 in the model's config must be even"),
    ("num_key_value_heads", 3, "num_attention_heads=32 in the model's config is not a multiple of num_key_value_heads=3"),
    ("num_key_value_heads", 0, "num_key_value_heads=0"),
    ("head_dim", 7, "head_dim=7"),
    ("max_position_embeddings", 0, "max_position_embeddings=0"),
    ("max_position_embeddings", "long", "max_position_embeddings='long'"),
    ("rms_norm_eps", 0, "rms_norm_eps=0"),
    ("rms_norm_eps", -1e-5, "rms_norm_eps=-1e-05"),
    ("rms_norm_eps", float("nan"), "rms_norm_eps=nan"),
    ("rms_norm_eps", "1e-5", "rms_norm_eps='1e-5'"),
    ("rope_theta", 0, "rope_theta=0"),
    ("rope_theta", float("inf"), "rope_theta=inf"),
    ("partial_rotary_factor", 0, "partial_rotary_factor=0"),
    ("tie_word_embeddings", "false", "tie_word_embeddings='false'"),
    ("attention_bias", 1, "attention_bias=1"),
    ("bos_token_id", "1", "bos_token_id='1'"),
    ("eos_token_id", [1, "2"], "eos_token_id=(1, '2')"),
    ("eos_token_id", {"a": 1}, "eos_token_id={'a': 1}"),
    ("hidden_act", "gelu", "hidden_act='gelu'"),
    ("model_type", ["llama"], "model_type=['llama']"),
    ("model_type", "gpt2", "model_type='gpt2'"),
    ("quantization_config", "nf4", "quantization_config='nf4'"),
    ("rope_scaling", 3, "has 3 for RoPE's parameters"),
    ("hidden_act", ["silu"], "hidden_act=['silu']; only silu is supported"),
    ("rope_scaling", {"rope_type": "linear", "factor": 0.5}, "rope factor=0.5 must be at least 1.0; correct it"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, model_dir):
    """The tiny model's directory with another config.json, and with an invalid tokenizer."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(model_dir / "model.safetensors")
    (folder / "tokenizer.json").write_text("{")
    return folder


def refusal(folder, tmp_path, capsys) -> str:
    assert convert([str(folder), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(InputError) as caught:
        lcjax.from_pretrained(folder)
    assert f"error: {caught.value}\n" == error
    assert len(error) < 700
    return error


@pytest.mark.parametrize(("key", "value", "named"), FAULTS, ids=lambda x: str(x)[:30])
def test_an_absurd_value_is_named_with_its_file_before_anything_is_read(folder, tmp_path, capsys, key, value, named):
    config = {"model_type": "llama", **SIZES, "head_dim": None, key: value}
    (folder / "config.json").write_text(json.dumps(config))
    error = refusal(folder, tmp_path, capsys)
    assert named in error
    assert str(folder / "config.json") in error
    assert "tokenizer" not in error


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\x80\x81", "is not valid JSON"),
        (b"PK\x03\x04\x00\x00", "is not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"[1]", "is a list, not an object"),
        (b"null", "is a NoneType, not an object"),
        (b'"llama"', "is a str, not an object"),
        (b"{}", "lacks vocab_size"),
    ],
    ids=lambda x: repr(x)[:20],
)
def test_a_broken_file_is_named(folder, tmp_path, capsys, content, named):
    (folder / "config.json").write_bytes(content)
    assert named in refusal(folder, tmp_path, capsys)


def test_too_few_tensors_are_refused_with_the_first_missing_names(folder, tmp_path, capsys):
    config = {"model_type": "llama", **SIZES, "head_dim": None, "num_hidden_layers": 10_000}
    (folder / "config.json").write_text(json.dumps(config))
    assert "tensors do not match the config" in refusal(folder, tmp_path, capsys)


@pytest.mark.parametrize("modules", ["q_proj", ("q_proj",), ["q_proj"]])
def test_one_target_module_is_itself(modules):
    assert LoraConfig(target_modules=modules).target_modules == ("q_proj",)


@pytest.mark.parametrize("modules", ["all-linear", ("all-linear",), ["v_proj", "all-linear"], TARGET_MODULES[::-1]])
def test_all_linear_is_every_module(modules):
    assert LoraConfig(target_modules=modules).target_modules == TARGET_MODULES


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("q_prj", "target_modules='q_prj' is unknown; did you mean q_proj"),
        (("q_proj", "all_linear"), "target_modules='all_linear' is unknown; did you mean all-linear"),
        ("", "target_modules='' is unknown"),
        ((), "an empty target_modules"),
        (
            ("lm_head",),
            "target_modules='lm_head' cannot be adapted, only the linear maps of the layers; choose from q_proj",
        ),
    ],
)
def test_an_unknown_target_module_is_named_with_the_nearest(modules, message):
    with pytest.raises(InputError) as caught:
        LoraConfig(target_modules=modules)
    assert message in str(caught.value)


def test_the_command_takes_all_linear_as_the_library_does():
    from lcjax.train.__main__ import parse

    for flag, chosen in (("all-linear", TARGET_MODULES), ("q_proj", ("q_proj",))):
        arguments = parse(["--model", "m", "--data", "d", "--target-modules", flag])
        assert LoraConfig(target_modules=arguments.target_modules).target_modules == chosen


@pytest.mark.parametrize("model_type", ["gpt_oss", "qwen3_moe"])
def test_numbers_of_experts_default_to_those_of_transformers(model_type):
    read = transformers.AutoConfig.for_model(model_type)
    numbers = {key: x for key, x in FAMILIES[model_type].own_keys.items() if isinstance(x, int | float)}
    assert {"num_experts_per_tok", "router_aux_loss_coef"} <= numbers.keys()
    assert {key: getattr(read, key) for key in numbers} == numbers


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_local_experts": 0}, "config.json says num_local_experts=0 is not a positive number; correct it"),
        ({"num_experts": None, "num_local_experts": 5000}, "num_local_experts=5000 is above 4096"),
        ({"num_local_experts": 4}, "num_experts_per_tok=8 is above num_local_experts=4"),
        ({"num_experts": 4}, "num_experts_per_tok=8 is above num_experts=4"),
        (
            {"mlp_only_layers": [1]},
            "mlp_only_layers=[1], so that some layers have no experts; only models with experts",
        ),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step=2, so that some layers have no experts; only models with"),
    ],
)
def test_experts_are_refused_under_the_key_of_the_file(fields, said):
    config = {"model_type": "qwen3_moe", **{key: SIZES[key] for key in SIZES if key in FAMILIES["qwen3_moe"].keys}}
    for usual in ({"mlp_only_layers": []}, {"mlp_only_layers": None, "decoder_sparse_step": 1}):
        assert LlamaConfig.from_dict({**config, "num_local_experts": 9, **usual}).experts.count == 9
    with pytest.raises(InputError) as caught:
        LlamaConfig.from_dict(config | fields)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
