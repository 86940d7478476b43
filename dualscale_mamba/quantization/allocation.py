"""One width for each layer: the least divergence that a budget allows, as an integer program.

    minimize  sum_u sum_o kl[u, o] x[u, o]      subject to  sum_o x[u, o] = 1,   sum cost[u, o] x[u, o] <= budget

with one binary x for each option o of each unit u: a layer, a block, or what must be decided together. That the
divergences of single layers add up is an assumption; it is exact to first order where each is small, because the
divergence is quadratic in the error and the errors of different layers are nearly uncorrelated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from dualscale_mamba.errors import ConfigError

# The solver's tolerances are absolute (1e-6): what it sees is scaled to this.
SCALE = 1e4
TINY = 1e-300
# Two sums that differ by less, relatively, are equal: that of floating-point sums.
SAME = 1e-9
TRIES = 8

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Option:
    """One way to store a unit.

    Attributes:
        unit: Name of what is decided together.
        widths: Width by layer name.
        kl: Divergence that it alone brings, nats a token.
        cost: In the budget's unit.
    """

    unit: str
    widths: Mapping[str, str]
    kl: float
    cost: float


@dataclass(frozen=True)
class Allocated:
    """A choice for every unit.

    Attributes:
        options: The chosen ones, in the order of their units.
        kl: Sum of their divergences: the prediction for the whole.
        cost: Sum of their costs.
    """

    options: tuple[Option, ...]
    kl: float
    cost: float

    @property
    def widths(self) -> dict[str, str]:
        """Width by layer name."""
        return {layer: width for option in self.options for layer, width in option.widths.items()}


def allocate(options: Sequence[Option], budget: float, key: str = "task.budget") -> Allocated:
    """The best choice within a budget; of equally good ones the cheapest, then the first by position.

    Args:
        options: All of all units, in the units' order.
        budget: Largest sum of costs.
        key: Of the configuration, for the message.

    Raises:
        ConfigError: Even the cheapest choice costs more; the message says how much that is.
    """
    units = list(dict.fromkeys(option.unit for option in options))
    smallest = sum(min(o.cost for o in options if o.unit == unit) for unit in units)
    if smallest > budget * (1 + SAME):
        shown = f"{math.ceil(smallest * 1000) / 1000:.3f}".rstrip("0").rstrip(
            "."
        )  # upwards: typing it shall do
        allowed = f"at least {shown}, the cheapest choice of all"
        raise ConfigError(key, f"{budget:g}", allowed, "Add narrower widths to task.widths.")
    kl = np.array([option.kl for option in options])
    cost = np.array([option.cost for option in options])
    member = np.array([[float(option.unit == unit) for option in options] for unit in units])
    limit = max(budget, smallest)
    chosen = _solve(kl, member, [(cost, limit)])
    least = (kl, float(kl @ chosen))
    chosen = _solve(cost, member, [(cost, limit), least], chosen)
    chosen = _solve(_position(options, units), member, [(cost, float(cost @ chosen)), least], chosen)
    picked = tuple(option for option, taken in zip(options, chosen, strict=True) if taken > 0.5)
    return Allocated(picked, sum(o.kl for o in picked), sum(o.cost for o in picked))


def _position(options: Sequence[Option], units: Sequence[str]) -> Vector:
    """A price of every option for which ties have one winner: the first units take their first options."""
    seen: dict[str, int] = {}
    prices = []
    for option in options:
        rank = seen.get(option.unit, 0)
        seen[option.unit] = rank + 1
        prices.append(rank * (len(units) - units.index(option.unit)))
    return np.array(prices, dtype=float)


def _solve(
    objective: Vector, member: Vector, limits: Sequence[tuple[Vector, float]], known: Vector | None = None
) -> Vector:
    """x in {0, 1} of the least ``objective @ x`` with one option a unit and ``row @ x <= limit`` of each limit.

    The solver may exceed a limit by its tolerance: then it is given a smaller one. ``known`` holds the limits and is
    returned where nothing is found.
    """
    one_each = LinearConstraint(member, 1, 1)
    for attempt in range(TRIES):
        less = 1 + SAME / 2 if attempt == 0 else 1 - 1e-8 * 4.0**attempt
        rows = [(SCALE / max(float(row.max()), TINY), row, limit * less) for row, limit in limits]
        below = [LinearConstraint((scale * row)[None], -np.inf, scale * limit) for scale, row, limit in rows]
        found = milp(
            objective * (SCALE / max(float(objective.max()), TINY)), integrality=np.ones(len(objective)),
            bounds=Bounds(0, 1), constraints=[one_each, *below], options={"mip_rel_gap": 0.0},
        )  # fmt: skip
        taken: Vector | None = None if found.x is None else np.round(found.x)
        if taken is not None and all(row @ taken <= limit * (1 + SAME) for row, limit in limits):
            return taken
    if known is None:
        raise RuntimeError(f"the integer program was not solved: {found.message}")
    return known
