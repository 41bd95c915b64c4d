"""python -m lcjax.convert: writes a model as a Hugging Face directory; merges an adapter."""
