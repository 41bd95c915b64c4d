"""Kinds of RoPE beyond the trained context, compared by held-out loss."""
