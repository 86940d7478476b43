"""Words and symbols of a page: what a verdict, an effect and a light are called."""

from __future__ import annotations

from dualscale_mamba.report.html.quantities import Quantity
from dualscale_mamba.report.verdicts import Effect, Verdict

# Lines of a traceback that are shown.
TRACEBACK = 15
# State of a light: symbol, words.
LIGHTS = {
    "equal": ("✓", "equal"),
    "by design": ("◆", "differs by design"),
    "different": ("✗", "different"),
    "unknown": ("?", "unknown"),
}
EFFECT_HEADS = (
    "Metric",
    "Reference",
    "Candidate",
    "Difference",
    "95 % interval",
    "p",
    "p, adjusted",
    "Smallest detectable",
    "Items",
    "Test",
    "Verdict",
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


def effect_cells(effect: Effect) -> list[str]:
    """One row of the table of effects, in the order of ``EFFECT_HEADS``."""
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
        quantity.text(effect.detectable),
        f"{effect.items:,}" if effect.items else "",
        effect.test,
        "significant" if effect.significant else "within the noise",
    ]


def _signed(text: str) -> str:
    return text if not text or text.startswith("-") else f"+{text}"


def probability(value: float | None) -> str:
    """A p-value as papers print it."""
    if value is None:
        return ""
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"
