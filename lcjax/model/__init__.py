"""A Flax NNX Llama over one stack of layers: the layers' parameters carry a leading axis L and a scan runs through it.

llama.py      embedding, layers, norm, logits
decoder.py    one layer: attention and MLP, each added to the residual stream
attention.py  self-attention with rotary positions
linear.py     a linear map with its adapter, quantized or not
norm.py       RMSNorm
context.py    what every layer reads besides the residual stream
ids.py        which token ids there are
settings.py   how a model is run, and what its adapter is
"""

from __future__ import annotations

from lcjax.model.llama import Llama as Llama
from lcjax.model.settings import ModelSettings as ModelSettings
