"""Operations as pure functions of arrays.

Each has a folder with its plain reference and its implementations.

attention/       softmax attention: masks, documents, grouped heads
rope/            rotary position embedding
cross_entropy/   the loss, computed in chunks of tokens
nf4/             4-bit weights, as of bitsandbytes
mxfp4/           4-bit floating-point weights
four_bits.py     both of them
grouped/         products of rows with the matrices of their experts
parts.py         equal parts of an array
dropout.py       dropout by the places of tokens
residuals.py     names of the tensors that may be saved for the backward pass
"""

from lcjax.ops.attention.api import attention as attention
from lcjax.ops.rope.api import rope as rope
