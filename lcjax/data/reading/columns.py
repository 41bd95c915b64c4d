"""Reads column tables: parquet, arrow, and folders saved by Hugging Face's `datasets`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc, parquet, types

from lcjax.data.formats.mapping import Columns
from lcjax.data.formats.records import FIELDS, NEEDED, READ_FIELDS, BadRecord, NotRecords
from lcjax.errors import InputError

COLUMN_SUFFIXES = (".parquet", ".arrow", ".feather")
# Rows are converted in batches of about this many bytes, by the mean size of the first rows: a file
# of a few hundred bytes may decode to gigabytes.
_FIRST_ROWS, _MOST_ROWS, _BATCH_BYTES = 64, 1024, 2**26
# A column is repetitive if it is this many times as large as its uncompressed size in the file, by
# the mean of its first rows.
_REPETITIVE = 4

# Files that `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write in addition to the data.
_DATASET, _SPLITS = "state.json", "dataset_dict.json"


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` saved the folder."""
    return (folder / _SPLITS).is_file() or ((folder / _DATASET).is_file() and (folder / "dataset_info.json").is_file())


def read_columns(path: Path, unread: Counter[str], columns: Columns) -> Iterator[tuple[int, Any]]:
    """The records of a table, each numbered from 1; a BadRecord for a row that cannot be read.

    Every row of a table has every column and every field of a structure. So a null column or a null
    field of a structure counts as absent. Entries of a map and items of a list stay. Rows are
    converted to Python objects in batches.

    Args:
      path: a file, or a folder for which `is_saved_dataset` is true. Of a saved DatasetDict the
        split `train` is read, or the only split.
      unread: counts the rows of columns that are not read.
      columns: the columns that stand for fields; the records have the columns' own names.

    Raises:
      InputError: a file does not have the format of its suffix, or there are several splits and
        none is `train`.
      NotRecords: none of the columns is read.
    """
    number = 0
    for file in _dataset_files(path) if path.is_dir() else [path]:
        try:
            batches = _parquet_batches if file.suffix.lower() == ".parquet" else _arrow_batches
            for batch in batches(file, unread, columns):
                for record in _records(batch):
                    number += 1
                    yield number, record
        except (pyarrow.ArrowException, MemoryError, OSError, UnicodeDecodeError) as error:
            # Some of pyarrow's own errors are OSErrors without a number.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{file} cannot be read as a table ({reason}); write it again, or omit it") from None


def _known(schema: pyarrow.Schema, columns: Columns) -> list[str]:
    if columns.fields_of(schema.names).isdisjoint(FIELDS):
        names = ", ".join(map(str, schema.names[:5])) or "none"
        raise NotRecords(f"has the columns {names}, none of which is read; {NEEDED}")
    return [name for name in dict.fromkeys(schema.names) if _is_read(name, columns)]


def _is_read(name: str, columns: Columns) -> bool:
    return columns.fields.get(name, name) in READ_FIELDS


def _parquet_batches(path: Path, unread: Counter[str], columns: Columns) -> Iterator[pyarrow.RecordBatch]:
    with parquet.ParquetFile(path) as file:
        known = _known(file.schema_arrow, columns)
        names = file.schema_arrow.names
        unread.update({name: file.metadata.num_rows for name in names if not _is_read(name, columns)})
        first = next(file.iter_batches(_FIRST_ROWS, columns=known), None)
        if first is None or not first.num_rows:
            return
        repetitive = [name for name in known if _is_repetitive(first.column(name), name, file.metadata)]
    # A text in many rows is then in memory only once, as in the file. For texts that differ, the
    # dictionary would grow to the size of a row group.
    with parquet.ParquetFile(path, read_dictionary=repetitive) as file:
        others = [name for name in known if name not in repetitive]
        yield from file.iter_batches(_rows_at_a_time(first.select(others)), columns=known)


def _is_repetitive(first: pyarrow.Array, name: str, metadata: parquet.FileMetaData) -> bool:
    """Whether few texts fill many rows of a column, by its first rows and its size in the file."""
    if not types.is_string(first.type):
        return False
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    columns = (group.column(column) for group in groups for column in range(group.num_columns))
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == name)
    return first.nbytes / len(first) * metadata.num_rows > _REPETITIVE * size


def _rows_at_a_time(first: pyarrow.RecordBatch) -> int:
    mean = max(1, first.nbytes // max(1, first.num_rows))
    return max(1, min(_MOST_ROWS, _BATCH_BYTES // mean))


def _arrow_batches(path: Path, unread: Counter[str], columns: Columns) -> Iterator[pyarrow.RecordBatch]:
    """Reads both arrow formats: `datasets` writes streams, other programs write files."""
    with pyarrow.memory_map(str(path)) as source:
        try:
            stream: Any = ipc.open_stream(source)
            batches = iter(stream)
        except pyarrow.ArrowInvalid:
            stream = ipc.open_file(source)
            batches = (stream.get_batch(i) for i in range(stream.num_record_batches))
        known = _known(stream.schema, columns)
        for batch in batches:
            unread.update({name: batch.num_rows for name in batch.schema.names if not _is_read(name, columns)})
            some = batch.select(known)
            rows = _rows_at_a_time(some)
            for start in range(0, some.num_rows, rows):
                yield some.slice(start, rows)


def _records(batch: pyarrow.RecordBatch) -> Iterator[Any]:
    """The rows of a batch.

    They are converted one by one if a text is not UTF-8 or a value cannot be represented in JSON.

    Raises:
      ArrowInvalid: the batch is damaged as a whole.
    """
    try:
        _validate(batch)
        columns = {name: _values(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    except (UnicodeDecodeError, BadRecord, ValueError, OverflowError) as fault:
        if isinstance(fault, pyarrow.ArrowInvalid) and "UTF8" not in str(fault):
            raise
        if batch.num_rows > 1:
            for row in range(batch.num_rows):
                # Copied, because a slice still contains the texts of all other rows.
                yield from _records(batch.slice(row, 1).take(pyarrow.array([0])))
        else:
            yield fault if isinstance(fault, BadRecord) else _unreadable(fault)
        return
    for row in range(batch.num_rows):
        yield {name: values[row] for name, values in columns.items()}


def _validate(batch: pyarrow.RecordBatch) -> None:
    """Raises ArrowInvalid if an offset is outside the batch or a text is not UTF-8."""
    for column in batch.columns:
        # A dictionary also has the texts of other rows; those of this row are decoded one by one.
        column.validate(full=not types.is_dictionary(column.type))


def _unreadable(fault: Exception) -> BadRecord:
    if isinstance(fault, (UnicodeDecodeError, pyarrow.ArrowInvalid)):
        return BadRecord("is not UTF-8")
    return BadRecord(f"cannot be read ({' '.join(str(fault).split())[:120]})")


def _values(column: pyarrow.Array) -> list[Any]:
    """The values of a column as Python objects; a text in several rows is one object."""
    if types.is_dictionary(column.type):
        used = column.indices.unique().drop_null()
        texts = dict(zip(used.to_pylist(), column.dictionary.take(used).to_pylist(), strict=True))
        return [None if index is None else texts[index] for index in column.indices.to_pylist()]
    return [_without_nulls(value, column.type) for value in column.to_pylist()]


def _without_nulls(value: Any, kind: pyarrow.DataType) -> Any:
    """A value as in JSON, without null fields of structures.

    Raises:
      BadRecord: a value is not representable in JSON, such as bytes or a date.
    """
    if isinstance(kind, pyarrow.BaseExtensionType):
        kind = kind.storage_type
    if value is None or isinstance(value, (str, int, float)):
        return value
    if types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        return {name: _without_nulls(item, fields[name]) for name, item in value.items() if item is not None}
    if types.is_map(kind):
        if len({key for key, _ in value}) < len(value):
            raise BadRecord("has a map with a duplicate key")
        return {key: _without_nulls(item, kind.item_type) for key, item in value}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [_without_nulls(item, kind.value_type) for item in value]
    raise BadRecord(f"has a value of type {kind}, which cannot become text")


def _dataset_files(folder: Path) -> list[Path]:
    """The arrow files of a saved dataset, in order."""
    if (folder / _SPLITS).is_file():
        splits = _json(folder / _SPLITS).get("splits")
        if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
            raise InputError(f"{folder / _SPLITS} lists no splits; save the dataset again")
        if "train" not in splits and len(splits) != 1:
            raise InputError(f"{folder} has the splits {', '.join(splits)} and no train; give one of these folders")
        return _dataset_files(folder / ("train" if "train" in splits else splits[0]))
    entries = _json(folder / _DATASET).get("_data_files")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "filename" in entry for entry in entries):
        raise InputError(f"{folder / _DATASET} lists no data files; save the dataset again")
    return [folder / str(entry["filename"]) for entry in entries]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); save the dataset again") from None
    return content if isinstance(content, dict) else {}
