"""A Flax NNX Llama whose layers are stacked along a leading axis L, over which a scan runs.

llama.py      embedding, layers, norm, logits
decoder.py    one layer: attention and MLP, each added to the residual stream
mlp/          the MLP, dense or a mixture of experts
attention.py  self-attention with rotary positions
linear.py     a linear map with its adapter, quantized or not
norm.py       RMSNorm
lora.py       adapters: initial values, the mask of trainable parameters, merging
params.py     the names and shapes of a checkpoint's tensors
context.py    what every layer reads in addition to the residual stream
views.py      attention of a layer among layers that see different tokens
rotation.py   RoPE of a layer among layers that differ in it
ids.py        the check of token ids
settings.py   how a model runs, and its adapter's config
"""

from __future__ import annotations

from lcjax.model.llama import Llama as Llama
from lcjax.model.settings import ModelSettings as ModelSettings
