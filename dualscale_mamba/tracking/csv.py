"""One table for a study: a row for each run, rewritten as a whole under a lock."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.report.collect import flattened
from dualscale_mamba.study.files import write_text
from dualscale_mamba.tracking import content
from dualscale_mamba.tracking.base import without_harm


@dataclass(frozen=True)
class CsvTracker:
    """Keeps a CSV file in the folder that the runs of a study share.

    Args:
        file: Its name. A new setting or metric becomes a new column; a run that is repeated replaces its row.
    """

    file: str = "runs.csv"

    def __post_init__(self) -> None:
        if not self.file or Path(self.file).name != self.file:
            raise ConfigError("tracker.file", self.file, "a file name without a folder")

    @contextmanager
    def tracking(self, folder: Path, config: DictConfig, run_id: str) -> Iterator[CsvRun]:
        """See :class:`~dualscale_mamba.tracking.base.Tracker`."""
        yield CsvRun(content.study_of(folder) / self.file, run_id)


@dataclass(frozen=True)
class CsvRun:
    """One row.

    Attributes:
        path: The table.
        run_id: What tells the row from others.
    """

    path: Path
    run_id: str

    def log(self, result: Mapping[str, Any], folder: Path) -> None:
        """See :class:`~dualscale_mamba.tracking.base.Tracked`: who it is, its numbers, its settings."""
        without_harm(str(self.path), lambda: self._add(_row(self.run_id, result)))

    def _add(self, row: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(self.path.with_name(f".{self.path.name}.lock"))):
            rows = [known for known in read_rows(self.path) if known["id"] != self.run_id]
            write_rows(self.path, [*rows, row])


def _row(run_id: str, result: Mapping[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = {"id": run_id}
    first |= {key: result.get(key) for key in ("name", "arm", "group")} | {
        "hardware": content.hardware(result)
    }
    return {**first, **content.metrics(result), **dict(flattened(result["config"]))}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[Mapping[str, Any]]) -> None:
    """Write rows in one step; the header has every column that any row has."""
    columns = dict.fromkeys(column for row in rows for column in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
