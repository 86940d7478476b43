"""Words and symbols of a page: what a verdict, an effect and a light are called."""

from __future__ import annotations

from collections.abc import Sequence

from dualscale_mamba.report.html.quantities import Quantity
from dualscale_mamba.report.verdicts import Effect, Verdict

# Verdicts that are shown at once; more are folded away.
SHOWN_VERDICTS = 8
# Lines of a traceback that are shown.
TRACEBACK = 15
# State of a light: symbol, words.
LIGHTS = {
    "equal": ("✓", "equal"),
    "by design": ("◆", "differs by design"),
    "different": ("✗", "different"),
    "unknown": ("?", "unknown"),
}
# Columns of the table of effects: head, and whether it holds words.
EFFECT_COLUMNS = (
    ("Metric", True),
    ("Reference", False),
    ("Candidate", False),
    ("Difference", False),
    ("95 % interval", False),
    ("p", False),
    ("p, adjusted", False),
    ("Verdict", True),
    ("Detectable", False),
    ("Items", False),
    ("Test", True),
)


def significance(verdict: Verdict) -> tuple[str, str]:
    """Which tested metrics of a verdict differ beyond the noise, and which way.

    Returns:
        ``better``, ``worse``, ``mixed`` or ``noise``, and the same in words.
    """
    found: dict[str, list[str]] = {"better": [], "worse": []}
    for effect in verdict.effects:
        if effect.significant and effect.p_value is not None:
            is_lower = effect.difference < 0
            found["better" if is_lower == (effect.better == "lower") else "worse"].append(effect.head)
    said = [f"significantly {word}: {', '.join(heads)}" for word, heads in found.items() if heads]
    kinds = [word for word, heads in found.items() if heads]
    kind = "mixed" if len(kinds) > 1 else (kinds or ["noise"])[0]
    text = "; ".join(said) or "no significant difference"
    return kind, text[0].upper() + text[1:]


def effect_table(effects: Sequence[Effect]) -> tuple[list[tuple[str, bool]], list[list[tuple[str, bool]]]]:
    """The columns of a table of effects that hold anything: heads, then rows, each text with whether it is words."""
    rows = [effect_cells(effect) for effect in effects]
    used = [place for place in range(len(EFFECT_COLUMNS)) if any(row[place] for row in rows)]
    heads = [EFFECT_COLUMNS[place] for place in used]
    return heads, [[(row[place], EFFECT_COLUMNS[place][1]) for place in used] for row in rows]


def effect_cells(effect: Effect) -> list[str]:
    """One row of the table of effects, in the order of ``EFFECT_COLUMNS``."""
    quantity = Quantity.of(effect.metric, effect.head, effect.unit, effect.better)
    interval = "" if effect.low is None else f"{quantity.text(effect.low)} to {quantity.text(effect.high)}"
    return [
        f"{quantity.title} {quantity.arrow}".strip(),
        quantity.text(effect.reference),
        quantity.text(effect.candidate),
        _signed(quantity.text(effect.difference)),
        interval,
        probability(effect.p_value),
        probability(effect.adjusted),
        "significant" if effect.significant else "within the noise",
        quantity.text(effect.detectable),
        f"{effect.items:,}" if effect.items else "",
        effect.test,
    ]


def _signed(text: str) -> str:
    return text if not text or text.startswith("-") else f"+{text}"


def probability(value: float | None) -> str:
    """A p-value as papers print it."""
    if value is None:
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"
