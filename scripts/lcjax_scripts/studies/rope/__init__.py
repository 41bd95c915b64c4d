"""Compares kinds of RoPE beyond the trained context by held-out loss."""
