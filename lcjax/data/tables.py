"""Files of records: .jsonl, parquet, arrow, and the folders that Hugging Face's `datasets` saves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc, parquet

from lcjax.data.chat import ChatTemplate
from lcjax.data.document import Document
from lcjax.data.files import read_bytes
from lcjax.data.records import FIELDS, BadRecord, document_of_line, document_of_record
from lcjax.errors import InputError

_BATCH_ROWS = 1024
# What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave beside the data.
_DATASET, _SPLITS = "state.json", "dataset_dict.json"


def is_table(path: Path) -> bool:
    """Whether the path is a file of records or a folder of `datasets`."""
    if path.is_dir():
        return (path / _SPLITS).is_file() or ((path / _DATASET).is_file() and (path / "dataset_info.json").is_file())
    return path.suffix in (".jsonl", ".parquet", ".arrow")


def read_table(path: Path, template: ChatTemplate | None) -> Iterator[Document | BadRecord]:
    """The document of every record, or a `BadRecord` that names it; blank lines are none.

    Of a saved DatasetDict the split `train` is read, or the only one.

    Raises:
      InputError: a file that is not what its name says, or several splits of which none is `train`.
      NotText: a .jsonl file that is binary.
    """
    documents = _from_lines(path, template) if path.suffix == ".jsonl" else _from_rows(path, template)
    try:
        yield from documents
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} cannot be read as a table ({reason}); write it again, or leave it out") from None


def _from_lines(path: Path, template: ChatTemplate | None) -> Iterator[Document | BadRecord]:
    # Not splitlines(): it also splits at U+2028 and others, which JSON strings may hold.
    for number, line in enumerate(read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            yield _document_or_fault(document_of_line, line, f"{path}:{number}", template)


def _from_rows(path: Path, template: ChatTemplate | None) -> Iterator[Document | BadRecord]:
    files = _dataset_files(path) if path.is_dir() else [path]
    number = 0
    for file in files:
        for batch in _parquet_batches(file) if file.suffix == ".parquet" else _arrow_batches(file):
            for record in batch.to_pylist():
                number += 1
                yield _document_or_fault(document_of_record, record, f"{path}:{number}", template)


def _document_or_fault(read: Any, record: Any, name: str, template: ChatTemplate | None) -> Document | BadRecord:
    try:
        return read(record, name, template)
    except BadRecord as fault:
        return BadRecord(f"{name} {fault}")


def _parquet_batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    with parquet.ParquetFile(path) as file:
        # Without a known column all are read, for the message to name them.
        known = [name for name in file.schema_arrow.names if name in FIELDS]
        yield from file.iter_batches(_BATCH_ROWS, columns=known or None)


def _arrow_batches(path: Path) -> Iterator[pyarrow.RecordBatch]:
    """Both of arrow's formats: `datasets` writes streams, others files."""
    with pyarrow.memory_map(str(path)) as source:
        try:
            batches = iter(ipc.open_stream(source))
        except pyarrow.ArrowInvalid:
            file = ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        for batch in batches:
            known = [name for name in batch.schema.names if name in FIELDS]
            yield batch.select(known) if known else batch


def _dataset_files(folder: Path) -> list[Path]:
    """The arrow files of a saved dataset in their order."""
    if (folder / _SPLITS).is_file():
        splits = _json(folder / _SPLITS).get("splits") or []
        if "train" not in splits and len(splits) != 1:
            raise InputError(f"{folder} holds the splits {', '.join(splits)} and no train; name one of these folders")
        return _dataset_files(folder / ("train" if "train" in splits else splits[0]))
    return [folder / entry["filename"] for entry in _json(folder / _DATASET)["_data_files"]]


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); save the dataset again") from None
