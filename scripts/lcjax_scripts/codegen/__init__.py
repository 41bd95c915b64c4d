"""The kernels' generated code: assembly, machine code, and budgets for it."""
