"""What the command lines about kernels share: parity, benchmarks, generated code."""
