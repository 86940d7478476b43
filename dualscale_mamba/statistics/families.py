"""Several tests that make one claim together."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values: rejecting those below 5 % errs at all in at most 5 % of the families.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).

    Args:
        p_values: Of the tests, in any order.

    Returns:
        One each, in the same order, never below the given one and never above 1.
    """
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

    _, adjusted, _, _ = multipletests(list(p_values), method="holm")
    return [float(value) for value in adjusted]
