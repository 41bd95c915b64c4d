"""SmolLM3. SmolLM2 is a Llama.

Source: HuggingFaceTB/SmolLM3-3B.
"""

from __future__ import annotations

from lcjax.config.model import LlamaConfig

SMOLLM: dict[str, LlamaConfig] = {
    "smollm3-3b": LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=11_008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=128,
        max_position_embeddings=65_536,
        rms_norm_eps=1e-6,
        rope_theta=5_000_000.0,
        tie_word_embeddings=True,
        bos_token_id=128_000,
        eos_token_id=128_012,
        model_type="smollm3",
    ),
}
