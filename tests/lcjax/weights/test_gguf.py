import re

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type

from lcjax.config import RopeScaling
from lcjax.errors import InputError
from lcjax.weights import load_gguf
from lcjax.weights.gguf.file import SUPPORTED_TYPES, read_gguf_file
from tests.support.gguf_writing import add_model, gguf_name, llama3_factors, plain, write
from tests.support.states import assert_equal_states, state_dict_of

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 128, "vocab_size": 64}


def by_transformers(path) -> tuple[transformers.LlamaConfig, dict[str, torch.Tensor]]:
    model = transformers.LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    states = model.state_dict()
    if model.config.tie_word_embeddings:
        del states["lm_head.weight"]
    return model.config, states


@pytest.mark.slow  # transformers takes most of the time; other tests read what this file says
def test_smollm2_equals_transformers(smollm2):
    expected_config, expected = by_transformers(smollm2)
    config, params = load_gguf(smollm2, "float32")
    assert_equal_states(state_dict_of(params), expected)
    _, params = load_gguf(smollm2, "bfloat16")
    assert_equal_states(state_dict_of(params), {name: tensor.bfloat16() for name, tensor in expected.items()})
    for field in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                  "num_key_value_heads", "head_dim", "max_position_embeddings", "tie_word_embeddings",
                  "bos_token_id", "eos_token_id"):  # fmt: skip
        assert getattr(config, field) == getattr(expected_config, field), field
    assert config.rope_theta == expected_config.rope_parameters["rope_theta"] == 100_000.0
    assert config.rms_norm_eps == 1e-5
    assert np.float32(config.rms_norm_eps) == np.float32(expected_config.rms_norm_eps)
    assert config.rope_scaling == RopeScaling()


def random_blocks(stored: Type, rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Returns blocks of random bytes, without those with a NaN or infinite scale."""
    elements, size = gguf.GGML_QUANT_SIZES[stored]
    count = rows * columns // elements
    blocks = generator.integers(0, 256, (count + count // 3 + 99, size), np.uint8)
    with np.errstate(all="ignore"):
        finite = np.isfinite(gguf.quants.dequantize(blocks, stored)).all(axis=1)
    return blocks[finite][:count].reshape(rows, -1)


def test_every_type_that_the_library_dequantizes_is_supported():
    for stored, (_, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.quants.dequantize(np.zeros((1, size), np.uint8), stored)
        except NotImplementedError:
            assert stored.name not in SUPPORTED_TYPES
        else:
            assert stored.name in SUPPORTED_TYPES


@pytest.mark.parametrize("name", SUPPORTED_TYPES)
def test_every_supported_type_has_the_library_s_bits(tiny_llama, tmp_path, name):
    """lcjax reads a few rows at a time, and reorders the heads of Q and K."""
    stored = Type[name]
    generator = np.random.default_rng(0)
    encoded = {}

    def encode(array):
        rows, columns = array.shape
        blocks = random_blocks(stored, rows, columns, generator)
        encoded.setdefault(array.shape, []).append(blocks)
        return blocks, stored

    model = tiny_llama(**WIDE)
    path = write(tmp_path / "model.gguf", lambda writer: add_model(writer, model, encode))
    assert read_gguf_file(path).tensors["blk.0.ffn_up.weight"].type == stored
    _, params = load_gguf(path, "float32")
    whole = gguf.quants.dequantize(encoded[64, 256][0], stored)
    np.testing.assert_array_equal(np.asarray(params["embed_tokens"]["weight"]).view(np.uint32), whole.view(np.uint32))
    if stored not in (Type.NVFP4, Type.MXFP4):  # not supported by transformers
        assert_equal_states(state_dict_of(params), by_transformers(path)[1])


def test_a_damaged_block_is_named(tiny_llama, tmp_path):
    def encode(array):
        blocks = gguf.quants.quantize(array, Type.Q8_0)
        blocks[0, :2] = np.array([np.nan], np.float16).view(np.uint8)
        return blocks, Type.Q8_0

    path = write(tmp_path / "model.gguf", lambda writer: add_model(writer, tiny_llama(**WIDE), encode))
    with pytest.raises(InputError, match=r"token_embd.weight is nan at \[0, 0\]"):
        load_gguf(path, "float32")


@pytest.mark.parametrize("variant", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_a_model_survives_the_round_trip_exactly(tiny_llama, tmp_path, variant):
    """head_dim is not hidden_size / heads, and biases of Q and K are permuted too."""
    model = tiny_llama(**variant, rms_norm_eps=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():  # biases start as zeros, norms as ones
            parameter.normal_()
    path = write(tmp_path / "model.gguf", lambda writer: add_model(writer, model))
    config, params = load_gguf(path, "float32")
    expected = model.state_dict()
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert_equal_states(state_dict_of(params), expected)
    model.save_pretrained(tmp_path)
    from lcjax.weights import load_config

    by_hand = load_config(tmp_path)
    for field in (
        "head_dim",
        "num_key_value_heads",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "rms_norm_eps",
    ):
        assert getattr(config, field) == getattr(by_hand, field), field


def with_rope_factors(model, factors):
    def fill(writer):
        add_model(writer, model)
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))

    return fill


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_llama3_rope_scaling_is_reconstructed(tiny_llama, tmp_path, factor, head_dim):
    model = tiny_llama(head_dim=head_dim, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})
    factors = llama3_factors(head_dim, 500_000.0, factor)
    path = write(tmp_path / "model.gguf", with_rope_factors(model, factors))
    config, _ = load_gguf(path, "float32")
    assert config.rope_scaling == RopeScaling("llama3", factor, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    "factors",
    [
        llama3_factors(128, 500_000.0, 8.0, low=1.01),
        llama3_factors(128, 500_000.0, 8.0, high=4.01),
        llama3_factors(128, 500_001.0 * 1.01, 8.0),
        llama3_factors(128, 500_000.0, 8.0)[::-1],
        np.linspace(1.0, 8.0, 64),
    ],
)
def test_other_rope_factors_are_refused(tiny_llama, tmp_path, factors):
    model = tiny_llama(head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0})
    path = write(tmp_path / "model.gguf", with_rope_factors(model, factors))
    with pytest.raises(InputError, match=r"rope_freqs\.weight is not Llama 3's RoPE scaling"):
        load_gguf(path, "float32")


REMEDY = re.compile("[;:] (load|use|convert|download|check|join|give) ")


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        load_gguf(path, "float32")
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert REMEDY.search(message), message
    return message


@pytest.mark.parametrize(
    ("add", "fault"),
    [
        (
            lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE),
            "llama.rope.scaling.type='longrope'",
        ),
        (
            lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
            "lacks the metadata key llama.rope.scaling.factor",
        ),
        (lambda writer: writer.add_expert_count(8), "llama.expert_count=8"),
        (lambda writer: writer.add_uint16("split.count", 3), "one of 3 parts"),
        (
            lambda writer: writer.add_tensor("blk.0.attn_q_norm.weight", np.ones(8, np.float32)),
            "1 unknown (blk.0.attn_q_n",
        ),
        (lambda writer: writer.add_tensor("x", np.ones(8, np.int8), raw_dtype=Type.I8), "x is stored as I8"),
    ],
)
def test_what_is_not_a_plain_llama_is_refused(tiny_llama, tmp_path, add, fault):
    model = tiny_llama()

    def fill(writer):
        add_model(writer, model)
        add(writer)

    assert fault in refusal(write(tmp_path / "model.gguf", fill))


def test_other_types_are_refused_by_name(tiny_llama, tmp_path):
    def encode(array):
        return array.astype(np.float64).view(np.uint8), Type.F64

    path = write(tmp_path / "model.gguf", lambda writer: add_model(writer, tiny_llama(**WIDE), encode))
    assert "token_embd.weight is stored as F64; supported are F32, F16, BF16, Q8_0" in refusal(path)


def test_other_architecture_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "command-r")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    error = refusal(path)
    assert "general.architecture='command-r'; supported are llama, qwen2, " in error
    assert "use a model of these families" in error


class Rewriting:
    """A writer that omits one tensor and transposes another."""

    def __init__(self, writer):
        self.writer = writer

    def __getattr__(self, name):
        return getattr(self.writer, name)

    def add_tensor(self, name, array, raw_dtype):
        if name == "blk.1.ffn_up.weight":
            array = np.ascontiguousarray(array.T)
        if name != "blk.2.attn_k.weight":
            self.writer.add_tensor(name, array, raw_dtype=raw_dtype)


def test_missing_and_misshapen_tensors_are_named_as_in_the_file(tiny_llama, tmp_path):
    model = tiny_llama()
    message = refusal(write(tmp_path / "model.gguf", lambda writer: add_model(Rewriting(writer), model)))
    assert "1 missing (blk.2.attn_k.weight)" in message
    assert "1 misshapen (blk.1.ffn_up.weight is [24, 40] and the config says [40, 24])" in message


@pytest.fixture(scope="module")
def small_gguf(tiny_llama, tmp_path_factory):
    model = tiny_llama(num_hidden_layers=1)

    def fill(writer):
        add_model(writer, model)
        writer.add_token_list(["a", "b"])
        writer.add_token_types([1, 1])

    return write(tmp_path_factory.mktemp("small") / "model.gguf", fill)


def test_truncated_anywhere(small_gguf, tmp_path):
    whole = small_gguf.read_bytes()
    header = min(tensor.offset for tensor in read_gguf_file(small_gguf).tensors.values())
    path = tmp_path / "model.gguf"
    for keep in [*range(0, header, 7), header, header + 1, len(whole) - 33]:
        path.write_bytes(whole[:keep])
        assert "truncated or corrupt" in (message := refusal(path)) or "not b'GGUF'" in message, keep


def test_corrupt_header_is_refused_or_harmless(small_gguf, tmp_path):
    """Random bytes in the header lead to an InputError or a load, but not to another exception."""
    whole = small_gguf.read_bytes()
    header = min(tensor.offset for tensor in read_gguf_file(small_gguf).tensors.values())
    generator = np.random.default_rng(0)
    path = tmp_path / "model.gguf"
    refusals = []
    for _ in range(400):
        corrupt = bytearray(whole)
        place = generator.integers(0, header)
        corrupt[place] = generator.integers(0, 256)
        path.write_bytes(corrupt)
        try:
            load_gguf(path, "float32")
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert not any("\n" in message for message in refusals)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04", b"ggml" + b"\0" * 100])
def test_file_that_is_not_gguf(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert "not b'GGUF'" in refusal(path)


def test_big_endian_and_old_versions_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    for version in (b"\0\0\0\x03", b"\x01\0\0\0"):
        path.write_bytes(b"GGUF" + version + b"\0" * 100)
        assert "GGUF version" in refusal(path)


def test_absent_file(tmp_path):
    assert "cannot be read" in refusal(tmp_path / "absent.gguf")


def test_the_writer_names_tensors_as_the_library_does():
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    for name in (
        "model.embed_tokens",
        "lm_head",
        "model.norm",
        "model.layers.2.self_attn.o_proj",
        "model.layers.1.mlp.up_proj",
    ):
        assert gguf_name(f"{name}.weight") == f"{names.get_name(name)}.weight"
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.OLMO2, 3)
    for norm in ("self_attn.q_norm", "post_attention_layernorm", "post_feedforward_layernorm"):
        name = f"model.layers.1.{norm}"
        assert gguf_name(f"{name}.weight", post_norms=True) == f"{names.get_name(name)}.weight"
    assert plain(np.ones(1))[1] is Type.F32
