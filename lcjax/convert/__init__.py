"""python -m lcjax.convert: a model as a Hugging Face directory, with an adapter merged into its weights."""
