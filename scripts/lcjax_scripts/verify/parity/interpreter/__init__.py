"""The interpreters of kernels: JAX's of Mosaic, and changes to Triton's.

Triton's rounds like a GPU then, and runs faster.
"""
