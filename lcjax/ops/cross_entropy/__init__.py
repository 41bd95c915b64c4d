"""Cross-entropy of a linear head, without the logits of all tokens in memory at once."""

from lcjax.ops.cross_entropy.linear import IGNORE as IGNORE
from lcjax.ops.cross_entropy.linear import TokenScores as TokenScores
from lcjax.ops.cross_entropy.linear import capped as capped
from lcjax.ops.cross_entropy.linear import chunk_tokens as chunk_tokens
from lcjax.ops.cross_entropy.linear import linear_cross_entropy as linear_cross_entropy
from lcjax.ops.cross_entropy.linear import token_cross_entropy as token_cross_entropy
