"""Verdicts in words."""

from __future__ import annotations

from collections.abc import Sequence

from dualscale_mamba.report.costs import EXACT, ONCE, SPREAD
from dualscale_mamba.report.effects import Effect
from dualscale_mamba.report.items import OVER_TASKS

LEAST_P = 1e-4
MEGABYTE = 1e6


def sentence(
    setting: str,
    names: tuple[str, str],
    effects: Sequence[Effect],
    mismatches: Sequence[str],
    *,
    split: str | None,
    seeds: int,
) -> str:
    """A verdict on one line.

    Args:
        setting: Where it holds.
        names: Of the reference and of the candidate.
        effects: The deciding one first.
        mismatches: Why something could not be compared.
        split: Kind of items on one half of which settings were chosen.
        seeds: Runs of each arm.
    """
    place = f"{setting}: " if setting else ""
    tested = [effect for effect in effects if effect.p_value is not None]
    rest = [effect for effect in effects if effect.p_value is None]
    parts = [told(tested[0])] if tested else []
    parts += [told(effect, brief=True) for effect in _others(tested)]
    if not tested:
        parts.append("not comparable" + ("" if mismatches else ": no items of both are there"))
    parts += [told(effect) for effect in rest]
    parts += list(mismatches)
    if tested:
        runs = f"{seeds} seeds" if seeds > 1 else "of these two runs (one seed)"
        chosen = f", settings chosen on one half of the {split}, compared there on the other" if split else ""
        parts.append(runs + chosen)
    return f"{place}{names[1]} vs {names[0]}: " + "; ".join(parts)


def _others(tested: Sequence[Effect]) -> list[Effect]:
    """One of each kind beside the deciding effect; the tasks of an average are left to the tables."""
    found: dict[str, Effect] = {}
    for effect in tested[1:]:
        if effect.unit != "points" and effect.unit != tested[0].unit:
            found.setdefault(effect.unit, effect)
    return list(found.values())


def told(effect: Effect, brief: bool = False) -> str:
    """One effect in words, e.g. ``+0.31 points over 6 tasks, 95 % CI [0.08, 0.55], p = 0.009``.

    Args:
        effect: What to tell.
        brief: Without its p value.
    """
    if effect.test in (EXACT, ONCE, SPREAD):
        return _told_cost(effect)
    if effect.low is None or effect.high is None or effect.p_value is None:
        return f"{effect.head} {effect.difference:+.3g} {effect.unit}"
    place = _place(effect)
    if effect.equal:
        return f"{place} equal in all {effect.items} items"
    if not effect.significant:
        seen = f"no difference seen in {place}"
        shown = f"{_size(effect, effect.difference)}, {_p(effect)}"
        if effect.detectable is not None:
            shown += f"; this sample would show {_size(effect, effect.detectable).lstrip('+')}"
        return seen if brief else f"{seen} ({shown})"
    ends = _interval(effect)
    if brief:
        return f"{place} {_size(effect, effect.difference)} {ends}"
    if effect.unit == "points" and effect.metric.startswith(OVER_TASKS):
        place = effect.metric.removeprefix("accuracy ")
        return f"{_size(effect, effect.difference)} {place}, 95 % CI {ends}, {_p(effect)}"
    if effect.unit == "points":
        return f"{_size(effect, effect.difference)} on {place}, 95 % CI {ends}, {_p(effect)}"
    return f"{place} {_size(effect, effect.difference)}, 95 % CI {ends}, {_p(effect)}"


def _place(effect: Effect) -> str:
    if effect.metric.startswith(OVER_TASKS):
        return effect.metric
    if effect.unit == "points" and not effect.metric.startswith("divergence/"):
        return effect.metric.partition("/")[0]
    return effect.head.replace("ppl", "perplexity", 1) if effect.unit == "perplexity" else effect.head


def _size(effect: Effect, value: float) -> str:
    """A difference: points as they are, all else in percent of the reference."""
    if effect.unit == "points":
        return f"{value:+.2f} points"
    if effect.relative is None:
        return f"{value:+.3g} {effect.unit}"
    return f"{_percent(value / effect.reference)} %"


def _interval(effect: Effect) -> str:
    if effect.relative is not None:
        return f"[{_percent(effect.relative[1])}, {_percent(effect.relative[2])}]"
    form = ".2f" if effect.unit == "points" else ".3g"
    return f"[{effect.low:{form}}, {effect.high:{form}}]"


def _percent(share: float) -> str:
    return f"{100 * share:+.{2 if abs(share) < 0.01 else 1}f}"


def _p(effect: Effect) -> str:
    p_value = effect.p_value if effect.adjusted is None else effect.adjusted
    assert p_value is not None
    shown = f"p < {LEAST_P:.4f}" if p_value < LEAST_P else f"p = {p_value:.2g}"
    return shown if effect.adjusted is None else f"{shown} (Holm)"


def _told_cost(effect: Effect) -> str:
    if effect.test == EXACT:
        change = effect.difference / MEGABYTE
        return "memory +0" if effect.difference == 0 else f"memory {change:+.3g} MB"
    share = 100 * effect.difference / effect.reference if effect.reference else 0.0
    doubt = "" if effect.significant else " (within its spread)" if effect.test == SPREAD else f" ({ONCE})"
    return f"latency {share:+.1f} %{doubt}"
