"""Training steps of large models on a GPU: timed and profiled."""
