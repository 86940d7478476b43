"""Sites: the named places of a model where an activation may become int8.

A mixer asks its sites and never knows widths or modes. A site passes values through, observes them during
calibration, or carries the code that the operator before it must emit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from dualscale_mamba import ops
from dualscale_mamba.formats.base import NO_SIDE_DATA, Code, SideData

# The minimum of SiLU(x) = x * sigmoid(x): no SSM input is ever below it.
SILU_FLOOR = -0.27846454276107403


@dataclass(frozen=True)
class Coded:
    """An activation in int8.

    Attributes:
        codes: int8 ``(..., C)``.
        code: How to decode it. With ``row_scale`` its scale is 1.
        row_scale: fp32 ``(rows,)``, one scale a token, or None.
        side: What lies beside the codes where they alone do not say which scale they have.
    """

    codes: Tensor
    code: Code
    row_scale: Tensor | None = None
    side: SideData = NO_SIDE_DATA

    def decoded(self, dtype: torch.dtype) -> Tensor:
        """The values, ``(..., C)`` of type ``dtype``."""
        if self.side.mask is not None:
            codes = as_sequence(self.codes)
            values = ops.decode_pair(codes, self.code.rows, self.side.mask, self.side.outliers, dtype)
            return values.view_as(self.codes)
        values = ops.decode(self.codes, self.code.rows, torch.float32)
        if self.row_scale is not None:
            values = values * self.row_scale.reshape(*self.codes.shape[:-1], 1)
        return values.to(dtype)


Activation = Tensor | Coded


def as_sequence(values: Tensor) -> Tensor:
    """(B, C), one token, as a sequence (B, 1, C); what is one already as it is."""
    return values if values.dim() == 3 else values[:, None]


def values_of(activation: Activation, dtype: torch.dtype) -> Tensor:
    """Floating-point values of an activation, decoded where it is int8."""
    return activation.decoded(dtype) if isinstance(activation, Coded) else activation


class Statistic(Protocol):
    """What a site shows its values to during calibration."""

    def update(self, values: Tensor) -> None:
        """Take in values (..., channels)."""
        ...


class Site(nn.Module):
    """One named place; off by default.

    Attributes:
        floor: Analytic lower bound of the values (SiLU outputs), or None.
        statistic: What sees the values during calibration, or None.
        per_token: Whether the operator before computes one scale a token (then ``code`` is unused).
    """

    rows: Tensor | None

    def __init__(self, floor: float | None = None) -> None:
        super().__init__()
        self.floor = floor
        self.statistic: Statistic | None = None
        self.per_token = False
        self.code: Code | None = None
        self.register_buffer("rows", None, persistent=False)

    @property
    def is_on(self) -> bool:
        """Whether the activation is int8 here."""
        return self.code is not None

    def set_code(self, code: Code | None, *, per_token: bool = False) -> None:
        """Turn the site on with ``code``, or off with None."""
        self.code = code
        self.per_token = per_token
        # Without rows the operator before emits values, and wrap rounds them where the code is simulated.
        self.rows = code.rows if code is not None and code.is_stored else None

    def output_code(self) -> Tensor | None:
        """What the operator before must emit: code rows, or None for floating point or per-token scales."""
        return None if self.per_token else self.rows

    def side_data(self, like: Tensor) -> SideData:
        """Room for what the operator before must write beside its codes for a result of the shape of ``like``."""
        code = self._placed()
        return NO_SIDE_DATA if code is None or like.dim() > 3 else code.side_data(*as_sequence(like).shape)

    def wrap(
        self, values: Tensor, row_scale: Tensor | None = None, side: SideData = NO_SIDE_DATA
    ) -> Activation:
        """Dress an operator's result: observe it, or attach the code that it carries."""
        if self.statistic is not None and self.code is None:
            self.statistic.update(values)
        code = self._placed()
        if code is None:
            return values
        if not code.is_stored:
            return code.rounded(values)[1]
        return Coded(values, code, row_scale if self.per_token else None, side)

    def encode(self, values: Tensor) -> Activation:
        """What the operator before would have made of the values (B, L, C) or (B, C) by itself."""
        side = self.side_data(values)
        if self.rows is None or self.per_token:
            return self.wrap(values)
        if side.mask is None:
            return self.wrap(ops.encode(values, self.rows))
        codes = ops.encode_pair(as_sequence(values), self.rows, side.mask, side.outliers)
        return self.wrap(codes.view_as(values), side=side)

    def _placed(self) -> Code | None:
        """The code, its rows where the module, and so the buffer, has moved to."""
        if self.code is not None and self.rows is not None and self.rows is not self.code.rows:
            self.code = replace(self.code, rows=self.rows)
        return self.code
