"""What trackers are told of a run, taken from its ``result.json`` and its folder: numbers, tables, files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualscale_mamba.sites import short_name
from dualscale_mamba.study.folder import JOBS

FIGURE = "figure.png"
# What is drawn over the layers, for each site.
LAYER_KEYS = ("sqnr_db", "sqnr_single_db", "threshold", "outlier_share", "codes_used")
# Metrics of these parts are measured on the machine, not on a task.
NOT_TASKS = ("latency", "throughput", "memory", "energy", "roofline")
STDERR = "_stderr"
TASK_COLUMNS = ("task", "metric", "value", "stderr", "unit", "better")
OPERATOR_COLUMNS = (
    "phase", "batch", "length", "name", "calls", "milliseconds", "floor", "bound", "bytes", "products", "exponentials",
)  # fmt: skip
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by name."""
    return {name: float(metric["value"]) for name, metric in result["metrics"].items()}


def scalars(result: Mapping[str, Any]) -> dict[str, float]:
    """All final numbers: metrics, and the sites' means over the layers as ``site/<site>/<key>``."""
    sites = {f"site/{name}": float(value) for name, value in result["site_summary"].items()}
    return metrics(result) | sites


def layer_rows(result: Mapping[str, Any]) -> list[dict[str, float]]:
    """One row a layer: ``layer``, and ``layer/<site>/<key>`` for every site of it that has a code."""
    rows: dict[int, dict[str, float]] = {}
    for site in result["sites"]:
        found = _LAYER.search(str(site["name"]))
        if found is None:
            continue
        row = rows.setdefault(int(found[1]), {"layer": int(found[1])})
        for key in LAYER_KEYS:
            if isinstance(site.get(key), (int, float)):
                row[f"layer/{short_name(str(site['name']))}/{key}"] = float(site[key])
    return [rows[layer] for layer in sorted(rows)]


def task_rows(result: Mapping[str, Any]) -> list[list[Any]]:
    """One row for each metric of each task, in the order of ``TASK_COLUMNS``."""
    known = result["metrics"]
    rows = []
    for name, metric in known.items():
        task, _, short = name.rpartition("/")
        if name.partition("/")[0] in NOT_TASKS or name.endswith(STDERR):
            continue
        error = known.get(f"{name}{STDERR}", {}).get("value")
        error = None if error is None else float(error)
        rows.append([task, short, float(metric["value"]), error, metric["unit"], metric["better"]])
    return rows


def site_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of all sites' codes."""
    columns = list(dict.fromkeys(key for site in result["sites"] for key in site))
    return columns, [[site.get(column) for column in columns] for site in result["sites"]]


def operator_table(result: Mapping[str, Any]) -> tuple[Sequence[str], list[list[Any]]]:
    """Columns and rows of the operators of every prefill and step; no rows without ``task=profile``."""
    phases = result.get("operators", {}).get("phases", [])
    rows = [{**phase, **one} for phase in phases for one in phase["operators"]]
    return OPERATOR_COLUMNS, [[row[column] for column in OPERATOR_COLUMNS] for row in rows]


def hardware(result: Mapping[str, Any]) -> str:
    """The GPU's name, or ``cpu``."""
    return str(result["environment"].get("gpu") or "cpu")


def provenance(result: Mapping[str, Any]) -> dict[str, Any]:
    """Where the numbers come from, and the chosen file of each group: what a dashboard filters and groups by."""
    environment = result["environment"]
    kept = {key: result[key] for key in ("environment", "hashes", "fairness", "seconds")}
    return {
        **kept,
        "choices": result.get("choices", {}),
        "hardware": hardware(result),
        "git_sha": environment.get("git", {}).get("sha"),
        "kernel_hash": result["hashes"].get("kernels"),
        "versions": environment.get("libraries", {}),
    }


def items(folder: Path) -> list[Path]:
    """The files with one line an item."""
    return sorted(folder.glob("items_*.jsonl"))


def picture(folder: Path) -> Path | None:
    """The run's picture, if it has one."""
    path = folder / FIGURE
    return path if path.is_file() else None


def artifact(result: Mapping[str, Any], kind: str) -> Path | None:
    """The file or folder that ``result["artifacts"]`` names and that is still there."""
    named = result.get("artifacts", {}).get(kind)
    return Path(named) if named and Path(named).exists() else None


def study_of(folder: Path) -> Path:
    """The folder that a run shares with others of its study."""
    return folder.parent.parent if folder.parent.name == JOBS else folder.parent
