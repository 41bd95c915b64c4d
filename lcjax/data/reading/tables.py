"""Reads record files of every kind, by suffix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lcjax.data.document import Document
from lcjax.data.formats.chat import ChatTemplate
from lcjax.data.formats.mapping import Columns
from lcjax.data.formats.records import BadRecord, NotRecords, document_of_record
from lcjax.data.reading.columns import COLUMN_SUFFIXES, is_saved_dataset, read_columns
from lcjax.data.reading.files import suffix_of
from lcjax.data.reading.lines import LINE_SUFFIXES, read_line_file

# Data formats without a known form of record; they should not be learned as plain text either.
_UNREAD = {
    ".yaml": "is YAML; write its records as .jsonl",
    ".yml": "is YAML; write its records as .jsonl",
    ".ipynb": "is a notebook; export it as a script or as Markdown (jupyter nbconvert)",
}


def is_table(path: Path) -> bool:
    """Whether the path is a file of records, a folder of `datasets`, or another data format."""
    if path.is_dir():
        return is_saved_dataset(path)
    return path.suffix.lower() in COLUMN_SUFFIXES or suffix_of(path) in (*LINE_SUFFIXES, *_UNREAD)


def is_data(path: Path) -> bool:
    """Whether a file may contain documents, by its suffix: records or plain text."""
    return path.suffix.lower() in COLUMN_SUFFIXES or suffix_of(path) in (*LINE_SUFFIXES, ".txt")


def read_table(
    path: Path, template: ChatTemplate | None, unread: Counter[str], columns: Columns, shown: str
) -> Iterator[Document | BadRecord]:
    """The document of every record, or a `BadRecord` that names it; blank lines are skipped.

    Args:
      columns: the columns that stand for fields.
      shown: the name of the path for the user.
      unread: counts the fields that are filled and not read.

    Raises:
      InputError: a file does not have the format of its suffix.
      NotText: a text file is binary.
      NotRecords: a file with a suffix of data has no records.
    """
    if path.is_dir() or path.suffix.lower() in COLUMN_SUFFIXES:
        records = read_columns(path, unread, columns)
    elif suffix_of(path) in _UNREAD:
        raise NotRecords(_UNREAD[suffix_of(path)])
    else:
        records = read_line_file(path, columns)
    for number, record in records:
        name = f"{shown}:{number}"
        try:
            if isinstance(record, BadRecord):
                raise record
            document = document_of_record(record, name, template, unread, columns)
        except BadRecord as fault:
            yield BadRecord(f"{name} {fault}")
        else:
            yield document
