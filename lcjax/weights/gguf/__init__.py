"""The files of llama.cpp (GGUF).

file.py       the header of a file: its metadata, and where its tensors are stored
config.py     the metadata as a LlamaConfig
tokenizer.py  the tokenizer of the metadata
reader.py     the tensors, dequantized
"""

from __future__ import annotations

from lcjax.weights.gguf.reader import gguf_name as gguf_name
from lcjax.weights.gguf.reader import load_gguf as load_gguf
from lcjax.weights.gguf.reader import open_gguf as open_gguf
