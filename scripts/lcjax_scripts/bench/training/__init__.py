"""A training step of SmolLM2 in lcjax and in transformers + PEFT, on the CPU."""
