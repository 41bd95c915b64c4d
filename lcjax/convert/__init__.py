"""lcjax convert: writes a Hugging Face directory or a GGUF file; merges an adapter."""
