"""The columns of the user's data that stand for the fields of a record."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lcjax.config.training import parse_columns
from lcjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column is read as which field; other columns have their own names.

    Attributes:
      fields: from a column's name to the field that it is read as.
      found: the columns that occurred in the data so far.
    """

    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    found: set[str] = dataclasses.field(default_factory=set)

    @classmethod
    def parse(cls, words: Sequence[str]) -> Columns:
        """Reads `field=column` words, each with one pair or several separated by commas.

        Raises:
          InputError: a word has another form, a field is unknown or a name occurs twice.
        """
        return cls({column: field for field, column in parse_columns(words).items()})

    @property
    def targets(self) -> frozenset[str]:
        """The fields that are read from other columns."""
        return frozenset(self.fields.values())

    def fields_of(self, columns: Iterable[Any]) -> set[str]:
        """The fields that these columns are read as."""
        columns = set(map(str, columns))
        self.found.update(columns & self.fields.keys())
        return {self.fields.get(column, column) for column in columns}

    def renamed(self, record: Any) -> Any:
        """The record by fields; anything that is not a mapping is unchanged.

        A field that another column replaces is omitted.
        """
        if not self.fields or not isinstance(record, Mapping):
            return record
        present = self.fields.keys() & record.keys()
        self.found.update(present)
        replaced = {self.fields[column] for column in present}
        renamed = {name: value for name, value in record.items() if name not in replaced and name not in present}
        return renamed | {self.fields[column]: record[column] for column in present}

    def refuse_unfound(self) -> None:
        """Raises InputError if a column occurred nowhere in the data that was read."""
        for column in self.fields.keys() - self.found:
            raise InputError(
                f"--columns {self.fields[column]}={column}: no record has a column {column}; check its spelling"
            )
