"""From stored rows and facts back to a code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dualscale_mamba.formats.base import Code
from dualscale_mamba.formats.pair import PAIR_WIDTH, PairCode


def stored_code(rows: Tensor, facts: Mapping[str, Any]) -> Code:
    """The code whose :meth:`~dualscale_mamba.formats.base.Code.facts` these are; the width of its rows says which.

    Raises:
        FormatError: The rows are those of no family.
        KeyError: A fact is missing.
    """
    bits, has_knee = float(facts["bits_per_value"]), bool(facts["has_knee"])
    if rows.dim() == 2 and rows.shape[1] == PAIR_WIDTH:
        capacity = facts.get("capacity")
        return PairCode(rows, bits, has_knee, None if capacity is None else int(capacity))
    return Code(rows, bits, has_knee)
