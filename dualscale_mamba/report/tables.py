"""Tables on the console."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dualscale_mamba.sites import is_ssm_input

# Metrics of a table, most telling first: pattern, and the column's head (\1 is the source or task).
KEY_METRICS = (
    (r"divergence/(.+)/kl", "KL"),
    (r"divergence/(.+)/top1_agreement", "top-1"),
    (r"perplexity/(.+)/perplexity", "ppl"),
    (r"([^/]+)/acc", "acc"),
    (r"([^/]+)/acc_norm", "acc_norm"),
    (r"latency/tpot/(.+)/p50", "TPOT"),
    (r"allocation/predicted_kl()", "KL predicted"),
    (r"allocation/bits()", "bits a weight"),
    (r"perplexity/(.+)/nll", "nll"),
    (r"memory/bits_per_value()", "bits"),
    (r"memory/weights()", "weights"),
    (r"latency/ttft/(.+)/p50", "TTFT"),
)
# So many kinds of KEY_METRICS fit beside a label on a narrow console.
KINDS_ON_CONSOLE = 8
PIPED_WIDTH = 140
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


def key_metrics(names: Iterable[str], kinds: int = len(KEY_METRICS)) -> dict[str, str]:
    """The telling ones of ``names`` in their order, with a short head each.

    Args:
        names: Of metrics.
        kinds: How many of ``KEY_METRICS`` are wanted.
    """
    names = list(names)
    chosen: dict[str, str] = {}
    for pattern, kind in KEY_METRICS[:kinds]:
        found = {name: match[1] for name in names if (match := re.fullmatch(pattern, name))}
        for name, source in found.items():
            chosen[name] = kind if len(found) == 1 else f"{kind} {source}".replace("_", " ")
    return chosen


def console() -> Console:
    """Standard output, wide enough where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def near(path: Path) -> Path:
    """A path as a person would type it: from where they are, if it lies there."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path


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
    if name.startswith("throughput/"):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    if name.endswith("/perplexity"):
        return f"{value:.3f}"
    if name.endswith("/kl"):
        return f"{value:.3g}"
    return f"{value:.4g}" if abs(value) < 1 else f"{value:.4f}".rstrip("0").rstrip(".")


def show_run(result: Mapping[str, Any], folder: Path) -> None:
    """Print the key metrics of one run, what its SSM input's code is, and where everything lies.

    Args:
        result: Content of ``result.json``.
        folder: Where it lies.
    """
    out = console()
    heads = key_metrics(result["metrics"])
    shown = {name: number(result["metrics"][name]["value"], name) for name in heads}
    table = Table(title=str(result["name"]), title_justify="left", title_style="bold", show_edge=False)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("unit", style="dim")
    for name, value in shown.items():
        table.add_row(
            name, value, "" if value.endswith(("%", "ms", "MB")) else result["metrics"][name]["unit"]
        )
    out.print(table)
    site, summary = _ssm_input(result["site_summary"])
    words = [f"{head} {number(summary[key], key)}" for key, head in SITE_COLUMNS if key in summary]
    if words:
        out.print(f"{site}, mean over layers: " + ", ".join(words), style="dim")
    out.print(f"{near(folder)}/result.json", style="dim", soft_wrap=True)


def _ssm_input(summary: Mapping[str, float]) -> tuple[str, dict[str, float]]:
    """Name of the SSM input and its numbers, which are keyed ``site/number``."""
    found = [(*key.partition("/")[::2], value) for key, value in summary.items()]
    mine = {number: value for site, number, value in found if is_ssm_input(site)}
    return next((site for site, _, _ in found if is_ssm_input(site)), ""), mine


def show_sites(sites: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Print one row for each site: its code and how it fits what was counted."""
    table = Table(title="codes of the sites", title_justify="left", title_style="bold", show_edge=False)
    table.add_column("site", no_wrap=True)
    for _, head in SITE_COLUMNS:
        table.add_column(head, justify="right")
    for site in sites:
        cells = (number(site.get(key), key) for key, _ in SITE_COLUMNS)
        table.add_row(str(site["name"]).replace(".mixer", ""), *cells)
    out = console()
    out.print(table if sites else "nothing is quantized")
    out.print(f"{near(folder)}/result.json", style="dim", soft_wrap=True)
