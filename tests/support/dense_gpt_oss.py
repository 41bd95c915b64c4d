"""gpt-oss with a dense MLP instead of its experts: a family of lcjax, and a model of transformers.

So tests of its attention need no experts. Programs without transformers may import the family.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from lcjax.config.families import FAMILIES, Family, gpt_oss
from lcjax.config.families.parameters.decoder import decoder_parameters

DENSE = Family(
    model_type="dense_gpt_oss",
    architecture="DenseGptOssForCausalLM",
    gguf_architecture="dense-gpt-oss",
    keys=gpt_oss.KEYS,
    own_keys=gpt_oss.OWN_KEYS,
    parameters=decoder_parameters(
        qkv_bias=gpt_oss.has_bias, output_bias=gpt_oss.has_bias, norms=gpt_oss.NORMS, sinks=True
    ),
    norms=gpt_oss.NORMS,
    sees=gpt_oss.sees,
    refusal=gpt_oss.refusal,
    flattened=gpt_oss.flattened,
)


FIELDS = {
    "model_type": DENSE.model_type,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 10,
    "sliding_window": 7,
    "max_position_embeddings": 131_072,
}
"""Two layers, the first with a window, in which sinks have a large effect."""


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """The family is one of lcjax, and transformers' automatic classes know the model."""
    _register_in_transformers()
    with mock.patch.dict(FAMILIES, {DENSE.model_type: DENSE}):
        yield


def _register_in_transformers() -> None:
    import transformers
    from transformers.models.gpt_oss import modeling_gpt_oss
    from transformers.models.llama.modeling_llama import LlamaMLP

    class DenseGptOssConfig(transformers.GptOssConfig):
        model_type = DENSE.model_type
        mlp_bias: bool = False
        num_local_experts: int = 1
        num_experts_per_tok: int = 1

    class MLP(LlamaMLP):
        def forward(self, x):
            return super().forward(x), None

    class DenseGptOssForCausalLM(modeling_gpt_oss.GptOssForCausalLM):
        config_class = DenseGptOssConfig

        def __init__(self, config):
            super().__init__(config)
            for layer in self.model.layers:
                layer.mlp = MLP(config)
            self.post_init()

    transformers.AutoConfig.register(DENSE.model_type, DenseGptOssConfig, exist_ok=True)
    transformers.AutoModelForCausalLM.register(DenseGptOssConfig, DenseGptOssForCausalLM, exist_ok=True)
