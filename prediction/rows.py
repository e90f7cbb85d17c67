"""Tables of scores that several runs fill: a row is replaced, never the file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path

from outputs import locked, write_together
from utils import UserError


class RowTable:
    """A CSV with one row per key, its first column. It is written whole, also by several processes in turn.

    Columns that somebody added stay.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, list(columns)

    def read(self) -> dict[str, dict[str, str]]:
        """Return the rows by key; of rows with one key the last. Raises UserError if the file is another table."""
        if not os.path.lexists(self.path) or self.path.is_file() and not self.path.stat().st_size:
            return {}
        header, rows = [], []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8", errors="surrogateescape") as file, suppress(csv.Error):
                reader = csv.DictReader(file, restkey="", restval="")
                header, rows = reader.fieldnames or [], list(reader)
        if header[:2] != self.columns[:2]:
            raise UserError(f"{self.path}: not a table of this program; move it, or give another --output_dir")
        return {row[self.columns[0]]: row for row in rows}

    def replace(self, rows: Mapping[str, Mapping], order: Sequence[str] = (),
                without: Set[str] = frozenset()) -> None:
        """Put rows in, each in the place of the one with its key.

        order: of keys, those before the others. without: keys whose rows go. Raises UserError if it cannot be written.
        """
        if not rows and not without & self.read().keys():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.parent):
            key = self.columns[0]
            table = self.read()
            for name, row in rows.items():
                others = {c: value for c, value in table.get(name, {}).items() if c not in self.columns}
                table[name] = {key: name} | dict(row) | others
            names = [name for name in dict.fromkeys([*order, *table]) if name in table and name not in without]
            columns = list(dict.fromkeys([*self.columns, *(c for row in table.values() for c in row if c)]))
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(table[name] for name in names)
            write_together({self.path: text.getvalue().encode("utf-8", "surrogateescape")})
