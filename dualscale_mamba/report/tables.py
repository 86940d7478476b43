"""Tables on the console."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# Metrics of a table, most telling first: pattern, and the column's head (\1 is the source or task).
KEY_METRICS = (
    (r"divergence/(.+)/kl", "KL \\1"),
    (r"divergence/(.+)/top1_agreement", "top-1 \\1"),
    (r"perplexity/(.+)/nll", "nll \\1"),
    (r"perplexity/(.+)/perplexity", "ppl \\1"),
    (r"([^/]+)/acc", "acc \\1"),
    (r"([^/]+)/acc_norm", "acc_norm \\1"),
    (r"memory/(bits_per_value)", "bits"),
    (r"memory/(weights)", "weights"),
    (r"latency/ttft/(.+)/p50", "TTFT \\1"),
    (r"latency/tpot/(.+)/p50", "TPOT \\1"),
)
SITE_COLUMNS = (
    ("format", "format"),
    ("percentile", "percentile"),
    ("inner_scale", "inner scale"),
    ("outer_scale", "outer scale"),
    ("threshold", "threshold"),
    ("knee", "knee"),
    ("ratio", "ratio"),
    ("outlier_share", "outliers"),
    ("codes_used", "codes used"),
    ("bits_per_value", "bits"),
    ("range_max", "max"),
    ("sqnr_db", "SQNR dB"),
)


def key_metrics(names: Iterable[str]) -> dict[str, str]:
    """The telling ones of ``names`` in their order, with a short head each."""
    names = list(names)
    chosen: dict[str, str] = {}
    for pattern, head in KEY_METRICS:
        for name in names:
            if match := re.fullmatch(pattern, name):
                chosen[name] = match.expand(head).replace("_", " ")
    return chosen


def number(value: Any, name: str = "") -> str:
    """A number as people read it: few digits, shares in percent, bytes in MB."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "" if value is None else str(value)
    if name.startswith("memory/") and "bits" not in name:
        return f"{value / 1e6:.2f} MB"
    if name.endswith(("/acc", "/acc_norm", "/top1_agreement", "outlier_share")):
        return f"{100 * value:.2f} %"
    if name.startswith("latency/"):
        return f"{value:.2f} ms"
    if name.endswith("/kl"):
        return f"{value:.5f}"
    return f"{value:.4g}" if abs(value) < 1 else f"{value:.4f}".rstrip("0").rstrip(".")


def show_run(result: Mapping[str, Any], folder: Path) -> None:
    """Print the key metrics of one run, what its SSM input's code is, and where everything lies."""
    table = Table(title=str(result["name"]), title_justify="left", title_style="bold", show_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("unit", style="dim")
    for name in key_metrics(result["metrics"]):
        metric = result["metrics"][name]
        shown = number(metric["value"], name)
        table.add_row(name, shown, "" if shown.endswith(("%", "ms", "MB")) else metric["unit"])
    console = Console()
    console.print(table)
    summary = {key.partition("/")[2]: v for key, v in result["site_summary"].items() if key.startswith("ssm_input/")}
    words = [f"{head} {number(summary[key], key)}" for key, head in SITE_COLUMNS if key in summary]
    if words:
        console.print("ssm_input, mean over layers: " + ", ".join(words), style="dim", highlight=False)
    console.print(f"{folder}/result.json", style="dim", highlight=False, soft_wrap=True)


def show_sites(sites: Sequence[Mapping[str, Any]], folder: Path, width: int) -> None:
    """Print one row for each site: its code and how it fits what was counted."""
    table = Table(title="codes of the sites", title_justify="left", title_style="bold", show_edge=False)
    table.add_column("site")
    for _, head in SITE_COLUMNS:
        table.add_column(head, justify="right")
    for site in sites:
        cells = (number(site.get(key), key) for key, _ in SITE_COLUMNS)
        table.add_row(str(site["name"]).replace(".mixer", ""), *cells)
    console = Console(width=max(width, 150))
    console.print(table if sites else "nothing is quantized")
    console.print(f"{folder}/result.json", style="dim", highlight=False, soft_wrap=True)
