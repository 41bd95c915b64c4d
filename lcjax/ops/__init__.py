"""Operations as pure functions of arrays; a folder for each, with its plain reference and its implementations.

attention/       softmax attention: masks, documents, grouped heads
rope/            rotary position embedding
cross_entropy/   the loss, by chunks of tokens
nf4/             weights in four bits
residuals.py     names of what a backward pass may keep
"""

from lcjax.ops.attention.api import attention as attention
from lcjax.ops.rope.api import rope as rope
