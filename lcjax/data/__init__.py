"""Reading, splitting, packing: from files to packed, resumable batches."""

from lcjax.data.chat import ChatTemplate
from lcjax.data.document import Document
from lcjax.data.files import stdlib_sources
from lcjax.data.load import Data, load_corpus
from lcjax.data.mixture import Mixture, check_weights
from lcjax.data.packing import PackingPlan, Piece, pack
from lcjax.data.pipeline import evaluation_batches, iterate, make_dataset
from lcjax.data.reading import UNITS, check_data_paths, read_documents, read_sources
from lcjax.data.rows import IGNORE, NO_ROW, PAD_ID, Batch, documents_of, is_learned, lay_out
from lcjax.data.split import split_held_out
from lcjax.data.tokens import TokenizedCorpus, tokenize

__all__ = [
    "IGNORE",
    "NO_ROW",
    "PAD_ID",
    "UNITS",
    "Batch",
    "ChatTemplate",
    "Data",
    "Document",
    "Mixture",
    "PackingPlan",
    "Piece",
    "TokenizedCorpus",
    "check_data_paths",
    "check_weights",
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
