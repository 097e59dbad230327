"""Tables of measurements: Markdown to read, JSON to keep."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import onnxruntime


class Table:
    """A table that prints as Markdown.

    Args:
        title: What is measured.
        columns: Names of the columns, with units.
    """

    def __init__(self, title: str, columns: Sequence[str]) -> None:
        self.title = title
        self.columns = tuple(columns)
        self.rows: list[tuple[str, ...]] = []

    def add(self, *cells: object) -> None:
        """Adds a row.

        Raises:
            ValueError: There are more or fewer cells than columns.
        """
        if len(cells) != len(self.columns):
            raise ValueError(f"cells: expected {len(self.columns)}, got {len(cells)}")
        self.rows.append(tuple(str(cell) for cell in cells))

    def __str__(self) -> str:
        lines = [f"### {self.title}", "", _line(self.columns), _line("---" for _ in self.columns)]
        return "\n".join([*lines, *(_line(row) for row in self.rows), ""])

    def to_json(self) -> dict[str, Any]:
        """Returns the table as JSON: its title, and a mapping for each row."""
        return {
            "title": self.title,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
        }


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def milliseconds(seconds: float) -> str:
    """Returns a duration in milliseconds with three significant digits."""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def megabytes(size_bytes: float) -> str:
    """Returns a size in MB of 1,000,000 bytes."""
    return f"{size_bytes / 1e6:.1f}"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Returns the median and, in brackets, the least and the greatest: what noise there was."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def quartiles(values: Sequence[float], digits: int = 2) -> str:
    """Returns the median and, in brackets, the quartiles: for many values with odd ones."""
    if len(values) < 4:
        return spread(values, digits)
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def machine() -> dict[str, Any]:
    """Returns what the figures hang on: processors and versions."""
    return {
        "processor": _processor(),
        "usable_cpus": len(os.sched_getaffinity(0)),
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def publish(tables: Sequence[Table], raw: Any, json_file: Path | None) -> None:
    """Prints the tables, and writes them with every single figure to a file if one is named."""
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    for table in tables:
        print(table)
    if json_file is not None:
        document = {
            "machine": about,
            "tables": [table.to_json() for table in tables],
            "figures": raw,
        }
        json_file.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
