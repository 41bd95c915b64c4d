"""Reads, splits and packs data: from files to packed, resumable batches.

Names are loaded on first use.
"""

from typing import TYPE_CHECKING

from lcjax.lazy import lazily

if TYPE_CHECKING:
    from lcjax.data.document import Document
    from lcjax.data.formats.chat import ChatTemplate
    from lcjax.data.load import Data, load_corpus
    from lcjax.data.mixture import Mixture
    from lcjax.data.packing import PackingPlan, Piece, pack
    from lcjax.data.pipeline import evaluation_batches, iterate, make_dataset
    from lcjax.data.reading.files import stdlib_sources
    from lcjax.data.reading.sources import check_data_paths, read_documents, read_sources
    from lcjax.data.rows import IGNORE, NO_ROW, PAD_ID, Batch, documents_of, is_learned, lay_out
    from lcjax.data.split import split_held_out
    from lcjax.data.tokens import TokenizedCorpus, tokenize

__all__ = [
    "IGNORE",
    "NO_ROW",
    "PAD_ID",
    "Batch",
    "ChatTemplate",
    "Data",
    "Document",
    "Mixture",
    "PackingPlan",
    "Piece",
    "TokenizedCorpus",
    "check_data_paths",
    "documents_of",
    "evaluation_batches",
    "is_learned",
    "iterate",
    "lay_out",
    "load_corpus",
    "make_dataset",
    "pack",
    "read_documents",
    "read_sources",
    "split_held_out",
    "stdlib_sources",
    "tokenize",
]

__getattr__ = lazily(
    __name__,
    {
        "ChatTemplate": "lcjax.data.formats.chat",
        "Document": "lcjax.data.document",
        "stdlib_sources": "lcjax.data.reading.files",
        **dict.fromkeys(("Data", "load_corpus"), "lcjax.data.load"),
        "Mixture": "lcjax.data.mixture",
        **dict.fromkeys(("PackingPlan", "Piece", "pack"), "lcjax.data.packing"),
        **dict.fromkeys(("evaluation_batches", "iterate", "make_dataset"), "lcjax.data.pipeline"),
        **dict.fromkeys(("check_data_paths", "read_documents", "read_sources"), "lcjax.data.reading.sources"),
        **dict.fromkeys(
            ("IGNORE", "NO_ROW", "PAD_ID", "Batch", "documents_of", "is_learned", "lay_out"), "lcjax.data.rows"
        ),
        "split_held_out": "lcjax.data.split",
        **dict.fromkeys(("TokenizedCorpus", "tokenize"), "lcjax.data.tokens"),
    },
)
