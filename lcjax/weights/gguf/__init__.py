"""Reads and writes the files of llama.cpp (GGUF).

file.py        the header of a file: its metadata, and where its tensors are stored
config.py      the metadata as a LlamaConfig
tokenizer.py   the tokenizer of the metadata
reader.py      the tensors, dequantized
mxfp4.py       experts in MXFP4, as they are
metadata.py    a LlamaConfig as metadata, and what cannot be expressed
vocabulary.py  a tokenizer as metadata
words.py       how byte-level tokenizers split text, for reading and writing
types.py       the types that tensors are written in
writer.py      a whole file
"""

from __future__ import annotations

from lcjax.weights.gguf.metadata import check_expressible as check_expressible
from lcjax.weights.gguf.reader import gguf_names as gguf_names
from lcjax.weights.gguf.reader import load_gguf as load_gguf
from lcjax.weights.gguf.reader import open_gguf as open_gguf
from lcjax.weights.gguf.types import GGUF_TYPES as GGUF_TYPES
from lcjax.weights.gguf.types import gguf_type as gguf_type
from lcjax.weights.gguf.writer import GgufContent as GgufContent
from lcjax.weights.gguf.writer import check_gguf_path as check_gguf_path
from lcjax.weights.gguf.writer import gguf_content as gguf_content
from lcjax.weights.gguf.writer import write_gguf as write_gguf
