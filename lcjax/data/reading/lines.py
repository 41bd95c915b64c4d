"""Reads records from text files: .jsonl, .json, .csv and .tsv."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lcjax.data.formats.mapping import Columns
from lcjax.data.formats.records import FIELDS, NEEDED, BadRecord, NotRecords, record_of_line
from lcjax.data.reading.files import read_bytes, read_lines, suffix_of

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINES, _JSON = (".jsonl", ".ndjson"), ".json"
LINE_SUFFIXES = (*_LINES, _JSON, *_DELIMITERS)
# How Python represents bytes that are not UTF-8 (errors="surrogateescape").
_NO_UTF8 = re.compile("[\udc80-\udcff]")

Numbered = tuple[int, Any]
"""A number with a record or a BadRecord."""


def read_line_file(path: Path, columns: Columns) -> Iterator[Numbered]:
    """The records of a file, each with the number of its line, item or row, from 1.

    The suffix of the file is one of LINE_SUFFIXES.

    Args:
      columns: the columns that stand for fields; the records have the columns' own names.

    Raises:
      NotText: the file is binary, or is compressed and damaged.
      NotRecords: it contains something else.
    """
    suffix = suffix_of(path)
    if suffix in _LINES:
        return _lines(path)
    return _items(path, columns) if suffix == _JSON else _rows(path, _DELIMITERS[suffix], columns)


def _lines(path: Path) -> Iterator[Numbered]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            try:
                yield number, record_of_line(line)
            except BadRecord as fault:
                yield number, fault


def _items(path: Path, columns: Columns) -> Iterator[Numbered]:
    """The items of a .json file's array, the objects on its lines, or its single object."""
    content = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    first, _, rest = content.strip().partition(b"\n")
    if rest and _is_object(first) and _is_object(rest.partition(b"\n")[0] or first):
        return _lines(path)
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise NotRecords(f"is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise NotRecords(f"is not JSON ({error.msg} at line {error.lineno}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise NotRecords(f"is not readable JSON ({error})") from None
    items = value if isinstance(value, list) else [value]
    fields = dict.fromkeys(str(field) for item in items if isinstance(item, dict) for field in item)
    if fields and columns.fields_of(fields).isdisjoint(FIELDS):
        raise NotRecords(f"has the fields {_abridged(fields)}, none of which is read; {NEEDED}")
    if not fields:
        raise NotRecords(f"has no records; {NEEDED}")
    return enumerate(items, start=1)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _rows(path: Path, delimiter: str, mapping: Columns) -> Iterator[Numbered]:
    """The rows of a .csv or .tsv file after the header; empty values count as absent."""
    # Bytes that are not UTF-8 become lone surrogates, so that the row with them can be named.
    text = read_bytes(path).decode("utf-8-sig", errors="surrogateescape")
    with _long_fields():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            columns = next(reader, [])
        except csv.Error as error:
            raise NotRecords(f"has no first line with the names of its columns ({error})") from None
    if len(set(columns)) < len(columns):
        raise NotRecords(f"has a duplicate column name among {_abridged(columns)}")
    if mapping.fields_of(columns).isdisjoint(FIELDS):
        raise NotRecords(f"has the columns {_abridged(columns)}, none of which is read; {NEEDED}")
    return _records(reader, columns)


def _records(reader: Any, columns: list[str]) -> Iterator[Numbered]:
    for number in range(1, 2**62):
        try:
            with _long_fields():
                row = next(reader, None)
        except csv.Error as error:
            yield number, BadRecord(f"is not a row of a table ({error} at line {reader.line_num})")
            continue
        if row is None:
            return
        if not row:
            continue
        if len(row) != len(columns):
            yield number, BadRecord(f"has {len(row)} values for {len(columns)} columns")
        elif any(map(_NO_UTF8.search, row)):
            yield number, BadRecord("is not UTF-8")
        else:
            yield number, {column: value or None for column, value in zip(columns, row, strict=True)}


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Allows the csv module to read fields of more than 128 KiB; its limit is process-wide."""
    former = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(former)


def _abridged(names: Any) -> str:
    names = list(names)
    return (", ".join(names[:5]) or "none") + (f" and {len(names) - 5} more" if len(names) > 5 else "")
