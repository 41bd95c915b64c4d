"""Attention and RoPE in Triton with torch.autograd: a reference implementation that lcjax's Pallas kernels are compared with.

On a machine without a GPU set TRITON_INTERPRET=1 before triton is first imported.
"""

from triton_ref.attention import attention
from triton_ref.rope import rope

__all__ = ["attention", "rope"]
