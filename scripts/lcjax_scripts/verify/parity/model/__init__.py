"""A complete model with a LoRA adapter, as one shape of the harness."""
