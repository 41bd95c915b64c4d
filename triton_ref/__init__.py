"""Attention and RoPE in Triton with torch.autograd: a reference for lcjax's Pallas kernels.

On a machine without a GPU, set TRITON_INTERPRET=1 before triton is imported.
"""

from triton_ref.attention import attention
from triton_ref.rope import rope

__all__ = ["attention", "rope"]
