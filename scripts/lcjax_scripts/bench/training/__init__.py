"""A training step of SmolLM2 by lcjax and by transformers + PEFT, on the CPU."""
