"""A whole model with a LoRA adapter, as one case of the harness."""
