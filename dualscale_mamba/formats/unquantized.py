"""Off: the site keeps its floating-point values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Unquantized:
    """No code: what the other modes are compared with."""

    needs_floor: ClassVar[bool] = False
