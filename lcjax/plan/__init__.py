"""python -m lcjax.plan: whether a run fits a GPU, asked of the compiler before anybody owns the GPU."""
