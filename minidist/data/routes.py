"""The column of a row that names its teacher, where a run has several (`routing.column`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minidist.errors import DataError


@dataclass(frozen=True)
class TeacherColumn:
    """Reads which teacher a row is for.

    Args:
        column: of the rows.
        names: of the teachers.
        default: teacher of a row whose value is empty or null; None: the row is refused.
    """

    column: str
    names: tuple[str, ...]
    default: str | None = None

    def check(self, columns: Sequence[str], path: str) -> None:
        """Raise DataError unless the data at `path` has the column."""
        if self.column not in columns:
            known = ", ".join(columns)
            raise DataError(f"{path} has no column {self.column!r}, which routing.column names; its columns are {known}")

    def name(self, row: Mapping[str, Any], index: int, path: str) -> str:
        """The teacher of row `index` of the data at `path`. Raises DataError, whatever `bad_rows` says: to leave out the
        rows of a name that is spelled wrong would silently leave out a part of the text."""
        value = row.get(self.column)
        found = "" if value is None else str(value).strip()
        if not found and self.default is not None:
            return self.default
        if found in self.names:
            return found
        teachers = ", ".join(self.names)
        if not found:
            cure = "give every row a value, or set routing.default"
            raise DataError(f"{path}, row {index}: {self.column} is empty, and routing.column names it; {cure}")
        cure = f"correct it, or add {found[:40]} to teachers"
        raise DataError(f"{path}, row {index}: {self.column} is {found[:40]!r}, and the teachers are {teachers}; {cure}")
