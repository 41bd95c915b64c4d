"""Writes small GGUF files with the layout of llama.cpp's converter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
# In layers with a norm after the MLP.
POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}

Encode = Callable[[np.ndarray], tuple[np.ndarray, Type]]


def gguf_name(name: str, *, post_norms: bool = False) -> str:
    names = NAMES | (POST_NORMS if post_norms else {})
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, inner = module.split(".", 3)
        return f"blk.{layer}.{names[inner]}.{kind}"
    return f"{names[module]}.{kind}"


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `LlamaModel.permute` (convert_hf_to_gguf.py)."""
    rest = weight.shape[1:]
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *rest).swapaxes(1, 2).reshape(weight.shape)


def plain(array: np.ndarray) -> tuple[np.ndarray, Type]:
    return array, Type.F32


def add_model(writer: gguf.GGUFWriter, model: transformers.PreTrainedModel, encode: Encode = plain) -> None:
    """Adds the model's metadata and tensors: matrices through `encode`, vectors in float32.

    The heads of queries and keys are interleaved for Llama and SmolLM3. Gemma's norms are stored as
    1 + weight. Each map of a layer's experts is one tensor of three axes; routers are float32.
    """
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = config.rope_parameters
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
        writer.add_sliding_window_pattern(config.layer_types.index("full_attention") + 1)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "phi3":
        _add_phi3(writer, config)
    is_gemma = config.model_type.startswith("gemma")
    if is_gemma:
        writer.add_sliding_window(config.sliding_window)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None) is not None:
            getattr(writer, f"add_{key}")(getattr(config, key))
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads = heads if config.model_type in ("llama", "smollm3") else {}
    states = model.state_dict()
    if config.model_type == "qwen3_moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        states = dict(_separated(states))
    post_norms = any("post_feedforward_layernorm" in name for name in states)
    for name, tensor in states.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.to(torch.float32).numpy()
        module = name.split(".")[-2]
        if module in heads:
            array = permute(array, heads[module])
        if is_gemma and name.endswith("norm.weight"):
            array = array + 1
        encoded, stored = plain(array) if array.ndim == 1 or module == "gate" else encode(array)
        writer.add_tensor(gguf_name(name, post_norms=post_norms), np.ascontiguousarray(encoded), raw_dtype=stored)


def _separated(states: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the tensors of transformers 5, with experts' gate_proj and up_proj separated."""
    for name, tensor in states.items():
        prefix, _, parameter = name.rpartition(".")
        if parameter == "gate_up_proj":
            for module, part in zip(("gate_proj", "up_proj"), tensor.chunk(2, dim=1), strict=True):
                yield f"{prefix}.{module}.weight", part
        else:
            yield f"{name}.weight" if parameter == "down_proj" else name, tensor


def _add_phi3(writer: gguf.GGUFWriter, config) -> None:
    """What the converter adds to files of Phi-3: 0 for no window, and longrope's divisors."""
    original = config.original_max_position_embeddings
    writer.add_sliding_window(config.sliding_window or 0)
    writer.add_rope_scaling_orig_ctx_len(original)
    if "long_factor" in config.rope_parameters:
        scale = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
        for name in ("long", "short"):
            factors = np.array(config.rope_parameters[f"{name}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", factors)


def write(path: Path, fill: Callable[[gguf.GGUFWriter], None], architecture: str = "llama") -> Path:
    """Writes a file with the content that `fill` adds."""
    writer = gguf.GGUFWriter(path, architecture)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama3_factors(head_dim: int, theta: float, factor: float, low: float = 1.0, high: float = 4.0) -> np.ndarray:
    """Returns rope_freqs.weight as llama.cpp's converter computes it, in torch's float32."""
    frequencies = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    factors = []
    for frequency in frequencies:
        wavelength = 2 * torch.pi / frequency
        if wavelength < 8192 / high:
            factors.append(1.0)
        elif wavelength > 8192 / low:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)
