"""Attention and RoPE in Triton with torch.autograd: the yardstick and the opponent of lcjax's Pallas kernels.

On a machine without a GPU set TRITON_INTERPRET=1 before triton is first imported.
"""

from triton_ref.attention import attention
from triton_ref.rope import rope

__all__ = ["attention", "rope"]
