"""What the compilers make of the kernels: assembly, machine code and its budgets."""
