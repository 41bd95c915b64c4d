"""An artificial family: Llama with query and key norms, a window, a soft cap and a scale."""

from __future__ import annotations

from lcjax.config import LlamaConfig
from lcjax.config.families import LLAMA, AttentionView, Family, norm


def _sees(config: LlamaConfig, layer: int) -> AttentionView:
    return AttentionView(
        window=config.sliding_window,
        soft_cap=config.own_value("attn_logit_softcapping"),
        scale=config.own_value("query_pre_attn_scalar") ** -0.5,
    )


TOY = Family(
    model_type="toy",
    architecture="ToyForCausalLM",
    gguf_architecture="toy",
    keys={**LLAMA.keys, "sliding_window": 4096},
    own_keys={"attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 256},
    parameters=(
        *LLAMA.parameters,
        norm("self_attn.q_norm", "attn_q_norm", "head_dim"),
        norm("self_attn.k_norm", "attn_k_norm", "head_dim"),
    ),
    sees=_sees,
)
