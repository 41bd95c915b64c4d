"""OLMo 2: norms after attention and the MLP instead of before them, and of queries and keys.

Source: transformers 5, `models/olmo2/configuration_olmo2.py` and `modeling_olmo2.py`; llama.cpp,
`gguf-py/gguf/constants.py`.
"""

from __future__ import annotations

from lcjax.config.families.family import Family
from lcjax.config.families.llama import LLAMA
from lcjax.config.families.parameters.decoder import OF_ALL_HEADS, decoder_parameters
from lcjax.config.families.parameters.norms import Norms

_NORMS = Norms(
    before_attention=None,
    after_attention="post_attention_layernorm",
    before_mlp=None,
    after_mlp="post_feedforward_layernorm",
    in_float32=True,
)

OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    gguf_architecture="olmo2",
    gguf_refusal=lambda config: "attention_bias=true" if config.attention_bias else None,
    keys={
        **{key: default for key, default in LLAMA.keys.items() if key != "mlp_bias"},
        "vocab_size": 50_304,
        "rms_norm_eps": 1e-5,
        "bos_token_id": None,
        "eos_token_id": 50_279,
    },
    parameters=decoder_parameters(
        qkv_bias=lambda config: config.attention_bias,
        output_bias=lambda config: config.attention_bias,
        norms=_NORMS,
        qk_norm=OF_ALL_HEADS,
    ),
    norms=_NORMS,
)
