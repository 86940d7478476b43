"""In which unit, and with how many digits, a metric is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dualscale_mamba.report.collect import Job

EMBEDDED_DIGITS = 6
ARROWS = {"lower": "↓", "higher": "↑"}
# Unit as recorded: factor, unit as shown, decimals.
UNITS: dict[str, tuple[float, str, int]] = {
    "fraction": (100.0, "%", 2),
    "bytes": (1e-6, "MB", 2),
    "ms": (1.0, "ms", 3),
    "perplexity": (1.0, "", 3),
    "points": (1.0, "points", 2),
}


@dataclass(frozen=True)
class Quantity:
    """A metric as a reader sees it.

    Attributes:
        name: As recorded.
        head: Short, for a column or an axis.
        unit: As shown; may be empty.
        better: ``lower``, ``higher`` or empty.
        factor: From recorded to shown values.
        decimals: After the point, or None for three significant digits.
    """

    name: str
    head: str
    unit: str
    better: str
    factor: float = 1.0
    decimals: int | None = None

    @classmethod
    def of(cls, name: str, head: str, unit: str, better: str) -> Quantity:
        """The quantity of a metric that is recorded in ``unit``."""
        factor, shown, decimals = UNITS.get(unit, (1.0, unit, None))
        return cls(name, head, shown, better, factor, decimals)

    @property
    def title(self) -> str:
        """Head with unit, as on an axis."""
        return f"{self.head}, {self.unit}" if self.unit else self.head

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return ARROWS.get(self.better, "")

    def text(self, value: float | None) -> str:
        """The number alone, without its unit."""
        if value is None:
            return ""
        if not math.isfinite(value):
            return str(value)
        value *= self.factor
        return significant(value) if self.decimals is None else f"{value:.{self.decimals}f}"

    def embedded(self, value: float | None) -> float | None:
        """The shown value with few digits, or None for what JSON cannot hold."""
        return None if value is None else finite(value * self.factor)

    def described(self) -> dict[str, Any]:
        """For the page's own script."""
        return {
            "name": self.name,
            "head": self.head,
            "unit": self.unit,
            "better": self.better,
            "title": self.title,
            "decimals": self.decimals,
        }


def significant(value: float) -> str:
    """Three significant digits, ending zeros kept, so that the numbers of a column look alike."""
    return f"{value:#.3g}".rstrip(".") if abs(value) < 1000 else f"{value:.0f}"


def finite(value: Any, digits: int = EMBEDDED_DIGITS) -> float | None:
    """A number with few digits, or None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def quantities(jobs: Sequence[Job], heads: Mapping[str, str]) -> list[Quantity]:
    """Every metric that some job has measured, those with a head first.

    Args:
        jobs: Of the study.
        heads: Short heads of the telling metrics, in their order.
    """
    recorded: dict[str, Mapping[str, Any]] = {}
    for job in jobs:
        recorded = {**(job.result or {}).get("metrics", {}), **recorded}
    names = [*heads, *sorted(name for name in recorded if name not in heads)]
    return [
        Quantity.of(
            name,
            heads.get(name, name.replace("_", " ")),
            str(recorded[name].get("unit", "")),
            str(recorded[name].get("better", "")),
        )
        for name in names
        if name in recorded
    ]
