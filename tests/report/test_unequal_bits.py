"""Bits that differ inside a comparison are never called equal, even where settings vary them too."""

from __future__ import annotations

from typing import Any, cast

import pytest

from dualscale_mamba.report.compare import _fairness
from dualscale_mamba.report.fairness import BITS, BY_DESIGN, DIFFERENT, EQUAL, Light
from dualscale_mamba.report.verdicts import Verdict


class Told:
    """What of a verdict is read: its lights."""

    def __init__(self, state: str) -> None:
        self.lights = (Light(BITS, state, {"nine": "9", "eight": "8"}),)


@pytest.mark.parametrize(("inside", "is_varied"), [(EQUAL, True), (BY_DESIGN, False), (DIFFERENT, False)])
def test_bits_are_equal_within_comparisons_only_where_they_are(inside: str, is_varied: bool) -> None:
    whole = Light(BITS, DIFFERENT, {"nine": "9", "eight": "8", "all eight": "8.1"})
    said = [text for text, _ in _fairness([whole], [cast(Verdict, cast(Any, Told(inside)))])]
    assert any(text.startswith("varied between settings, equal within") for text in said) == is_varied
    assert any(text.startswith("not equal between jobs: bits") for text in said) != is_varied
