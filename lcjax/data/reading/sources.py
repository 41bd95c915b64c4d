"""Reads paths into documents (names and texts) in a stable order."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lcjax.config.training import UNITS
from lcjax.data.document import Document
from lcjax.data.formats.chat import ChatTemplate
from lcjax.data.formats.mapping import Columns
from lcjax.data.formats.records import BadRecord, NotRecords
from lcjax.data.joining.chapters import joined, natural
from lcjax.data.reading import hub
from lcjax.data.reading.files import NotText, read_text, suffix_of, unreadable, walk
from lcjax.data.reading.hub import hub_data
from lcjax.data.reading.repositories import holds_repositories, is_repository, repository_document
from lcjax.data.reading.tables import is_data, is_table, read_table
from lcjax.errors import InputError, unknown

# The largest share of bad records of a path; with more, the path or its format is probably wrong.
_BAD_SHARE = 0.5
_LISTED_RECORDS = 3
_LISTED_FIELDS = 8
# A file is reported as repetitive above both this many characters and this many per byte of the
# file.
_MUCH_TEXT, _EXPANSION = 2**26, 100

_logger = logging.getLogger(__name__)


def check_data_paths(paths: Sequence[str | Path]) -> None:
    """Raises InputError if no path is given, or one is empty or does not exist; reads nothing."""
    if not paths:
        raise InputError("no data is given; give at least one text file, .jsonl file or folder")
    for path in paths:
        # Path("") would be the current directory.
        if not str(path).strip():
            raise InputError(f"--data {str(path)!r} is an empty path; give a file or folder, or . for the current one")
        try:
            exists = Path(path).exists()
        except OSError as error:
            raise unreadable(error) from None
        if not exists and hub_data(str(path)) is None:
            raise InputError(f"{path} does not exist; check the path of the data")


def read_documents(
    paths: Sequence[str | Path],
    template: ChatTemplate | None = None,
    documents: str = "file",
    columns: Sequence[str] = (),
) -> list[Document]:
    """Reads every document below the paths, in the given order, folders sorted by name.

    See `read_sources`.
    """
    return [document for source in read_sources(paths, template, documents, columns) for document in source]


def read_sources(
    paths: Sequence[str | Path],
    template: ChatTemplate | None = None,
    documents: str = "file",
    columns: Sequence[str] = (),
) -> list[list[Document]]:
    """Reads every document below the given paths, path by path, folders sorted by name.

    A path is
    - a UTF-8 text file: one document; a byte order mark is dropped, line ends stay;
    - a file of records (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.arrow`), or a folder that
      `datasets` saved: one document per record, see `document_of_record`;
    - one of these text files compressed: `.gz`, `.bz2`, `.xz` or `.zst`;
    - a folder of such files, read recursively without hidden entries and SKIPPED_FOLDERS;
    - `owner/name` or `owner/name:split`, a data set on the Hugging Face hub.

    A file that is reached twice is read once, so no document is both trained on and held out.
    Omitted data is logged with its number: files of a folder that are not text, or data without
    records (.json and .yaml among source code); documents of white space only; bad records, the
    first of them with their line (row) numbers; and fields of records that are not read.

    Args:
      template: how `messages` become text; None rejects them.
      documents: "file"; "folder": the text files directly in a folder are one document; or
        "repository": each folder with a `.git` (`.hg`, `.svn`) below a path is one document; if
        there is none, each folder that is a path. "related" reads files, which are joined after
        they are encoded; see `lcjax.data.joining.corpora`.
      columns: `field=column` words, for columns with other names than the fields of a record.

    Returns:
      the documents of each path, at least one in total.

    Raises:
      InputError: a path is empty, missing or cannot be read; a folder has no text; a named file is
        not UTF-8 text, or has no records although its suffix says so; more than half of a path's
        records are bad; a column of `columns` occurs nowhere; or all documents are empty.
    """
    sources: list[list[Document]] = [[] for _ in paths]
    for source, document in iterate_sources(paths, template, documents, columns):
        sources[source].append(document)
    return sources


def iterate_sources(
    paths: Sequence[str | Path],
    template: ChatTemplate | None = None,
    documents: str = "file",
    columns: Sequence[str] = (),
) -> Iterator[tuple[int, Document]]:
    """Yields the documents of `read_sources`, each with the index of its path, while reading.

    What is wrong with a path as a whole is raised or logged after its documents.
    """
    if documents not in UNITS:
        raise InputError(unknown("documents", documents, UNITS))
    check_data_paths(paths)
    seen: set[Path] = set()
    mapping = Columns.parse(columns)
    count = with_text = 0
    for index, path in enumerate(paths):
        try:
            for document in _Source(path, seen, template, documents, mapping).documents():
                count += 1
                if document.text.strip():
                    with_text += 1
                    yield index, document
        except OSError as error:
            raise unreadable(error) from None
    mapping.refuse_unfound()
    if not with_text:
        raise InputError(f"all documents in {', '.join(map(str, paths))} are empty; give files that have text")
    if with_text < count:
        _logger.info("skipped %d empty documents of %d", count - with_text, count)


class _Source:
    """The documents of one path."""

    def __init__(
        self,
        path: str | Path,
        seen: set[Path],
        template: ChatTemplate | None,
        unit: str,
        columns: Columns,
    ):
        self._path = Path(path)
        self._hub = None if self._path.exists() else hub_data(str(path))
        self._columns = columns
        self._seen = seen
        self._template = template
        self._by_repository = unit == "repository"
        self._by_folder = unit == "folder"
        self._found = 0
        self._good = 0
        self._bad: list[BadRecord] = []
        self._not_text: list[Path] = []
        self._not_records: dict[Path, str] = {}
        self._unread: Counter[str] = Counter()

    def documents(self) -> Iterator[Document]:
        for document in self._all_documents():
            self._good += 1
            yield document
        self._judge_records()

    def _all_documents(self) -> Iterator[Document]:
        if self._hub is not None:
            for path in hub.download(self._hub, is_data):
                yield from self._read_named(path, f"{self._hub}/{path.name}")
        elif self._path.is_dir() and not is_table(self._path):
            yield from self._read_folder()
        else:
            yield from self._read_named(self._path, str(self._path))

    def _read_named(self, path: Path, shown: str) -> Iterator[Document]:
        """Reads a file that is refused, not omitted, if it has no text or records."""
        try:
            yield from self._read_file(path, shown)
        except NotText as fault:
            raise InputError(f"{shown} {fault}; give UTF-8 text files, tables of records or folders") from None
        except NotRecords as fault:
            raise InputError(f"{shown} {fault} (to train on it as plain text, rename it to .txt)") from None

    def _read_folder(self) -> Iterator[Document]:
        # The files of a folder follow each other.
        for folder, paths in itertools.groupby(self._entries(), lambda path: path.parent):
            if self._by_folder:
                yield from self._read_chapters(folder, list(paths))
            else:
                for path in paths:
                    yield from self._read_entry(path)
        self._report_left_out()
        if not self._found:
            count = len(self._not_text) + len(self._not_records)
            what = f"no text among its {count} files" if count else "no files"
            raise InputError(
                f"the folder {self._path} has {what} (hidden ones are not read); give one that has UTF-8 text"
            )

    def _read_chapters(self, folder: Path, paths: list[Path]) -> Iterator[Document]:
        """The text files of a folder as one document; records remain separate."""
        texts = []
        for path in sorted(paths, key=lambda path: natural(path.name)):
            if is_table(path):
                yield from self._read_entry(path)
            else:
                texts += [document.text for document in self._read_entry(path)]
        if texts:
            yield Document(str(folder), joined(texts))

    def _read_entry(self, path: Path) -> Iterator[Document]:
        """Reads a file or repository of a folder; notes it if it has nothing."""
        try:
            _refuse_special(path)
            if is_table(path) or path.is_file():
                yield from self._read_file(path, str(path))
            else:
                document = repository_document(path, self._file_of_repository)
                if not document.text:
                    return
                yield document
            self._found += 1
        except NotText:
            self._not_text.append(path)
        except NotRecords as fault:
            self._not_records[path] = str(fault)

    def _report_left_out(self) -> None:
        if skipped := self._not_text:
            _logger.warning(
                "skipped %d files of %s that are not UTF-8 text, first %s", len(skipped), self._path, skipped[0]
            )
        if self._not_records:
            suffixes = Counter(suffix_of(path) for path in self._not_records)
            counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items()))
            first, reason = next(iter(self._not_records.items()))
            _logger.warning(
                "omitted data files of %s that have no records: %s; %s %s (to train on it as "
                "plain text, rename it to .txt)",
                self._path, counts, first, reason,
            )  # fmt: skip

    def _entries(self) -> Iterable[Path]:
        """Files, and folders that are one unit: saved datasets and, if requested, repositories."""
        if self._by_repository and not holds_repositories(self._path):
            return [self._path]

        def is_whole(folder: Path, names: list[str]) -> bool:
            return is_table(folder) or (self._by_repository and is_repository(folder, names))

        return walk(self._path, is_whole=is_whole)

    def _read_file(self, path: Path, shown: str) -> Iterator[Document]:
        if self._is_new(path):
            if is_table(path):
                yield from self._read_records(path, shown)
            else:
                yield Document(shown, read_text(path))

    def _read_records(self, path: Path, shown: str) -> Iterator[Document]:
        characters = 0
        for document in read_table(path, self._template, self._unread, self._columns, shown):
            if isinstance(document, BadRecord):
                self._bad.append(document)
            else:
                characters += len(document.text)
                yield document
        size = path.stat().st_size
        if path.is_file() and characters > max(_MUCH_TEXT, _EXPANSION * size):
            _logger.warning(
                "%s has %s characters of text in %s bytes: it repeats itself", path, f"{characters:,}", f"{size:,}"
            )

    def _file_of_repository(self, path: Path) -> str | None:
        try:
            _refuse_special(path)
            return read_text(path) if self._is_new(path) else None
        except NotText:
            self._not_text.append(path)

    def _is_new(self, path: Path) -> bool:
        real = path.resolve()
        if real in self._seen:
            _logger.info("%s is named twice and read once", path)
            return False
        self._seen.add(real)
        return True

    def _judge_records(self) -> None:
        """Logs unread fields and bad records, or rejects the path because of them."""
        if self._unread:
            fields = ", ".join(f"{field} (of {count:,})" for field, count in self._unread.most_common(_LISTED_FIELDS))
            more = f" and {len(self._unread) - _LISTED_FIELDS} more" if len(self._unread) > _LISTED_FIELDS else ""
            tools = "; the chat template does not write tools" if "tools" in self._unread else ""
            _logger.warning(
                "fields of records of %s that are not read: %s%s%s", self._hub or self._path, fields, more, tools
            )
        if not self._bad:
            return
        bad, count = len(self._bad), len(self._bad) + self._good
        first = "; ".join(map(str, self._bad[:_LISTED_RECORDS])) + (
            f"; and {bad - _LISTED_RECORDS} more" if bad > _LISTED_RECORDS else ""
        )
        if bad > _BAD_SHARE * count:
            raise InputError(
                f"{first}: {bad:,} of {count:,} records of {self._hub or self._path} are bad, more than half; correct them"
            )
        _logger.warning("skipped %d bad records of %d of %s: %s", bad, count, self._hub or self._path, first)


def _refuse_special(path: Path) -> None:
    """Raises NotText for special files: a broken link, a socket, or a pipe, which would block."""
    if not (path.is_file() or path.is_dir()):
        raise NotText
