"""The one linear layer: any activation in, any activation out, float or int8 weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualscale_mamba import ops
from dualscale_mamba.models.code_rows import MadeOfCodes, join_rows
from dualscale_mamba.quantization.site import Activation, Coded, Site, values_of
from dualscale_mamba.quantization.weights import Int8Weight, quantize_weight


class Linear(nn.Module):
    """y = x W^T + b, each part of y emitted for its site.

    With an int8 weight and int8 activations of the knee family (one code for the tensor) the product is an
    integer one; anything else is decoded exactly and multiplied in floating point.

    Args:
        in_features: K.
        out_features: N.
        bias: Whether there is a b.
        dtype: Type of the weight and of floating-point results.
    """

    weight_codes: Tensor | None
    weight_scale: Tensor | None
    weight_sum: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype), requires_grad=False)
        self.bias = (
            nn.Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False) if bias else None
        )
        self.in_features, self.out_features = in_features, out_features
        for name in ("weight_codes", "weight_scale", "weight_sum"):
            self.register_buffer(name, None)
        self._joined = MadeOfCodes[Tensor]()

    @property
    def is_quantized(self) -> bool:
        """Whether the weight is int8."""
        return self.weight_codes is not None

    def quantize_weight(self) -> None:
        """Make the weight int8, one scale an output channel; the float weight keeps the decoded values.

        The decoded copy serves float readers (a site that is off, a table code); it is dropped by
        :meth:`drop_float_weight` where no one reads it.
        """
        made: Int8Weight = quantize_weight(self.weight)
        self.weight_codes, self.weight_scale = made.codes.contiguous(), made.scale
        self.weight_sum = made.codes.sum(1, dtype=torch.int32)
        self.weight.data = made.decoded(self.weight.dtype)

    def drop_float_weight(self) -> None:
        """Free the decoded copy: from now on only int8 activations are accepted."""
        self.weight.data = self.weight.data.new_empty(0)

    def forward(
        self, x: Activation, sites: Sequence[Site] = (), splits: Sequence[int] = ()
    ) -> tuple[Activation, ...]:
        """x (..., K) -> one activation a split (..., splits[i]); without sites one floating-point (..., N)."""
        code = self._joint_code(sites, splits) if sites else None
        y = self._integer_product(x, code) if self._reads_codes(x) else None
        if y is None:
            if not self.weight.numel():
                raise RuntimeError(
                    "this layer kept its int8 weight only, and its input is not int8 of one knee code"
                )
            y = F.linear(values_of(x, self.weight.dtype), self.weight, self.bias)
            code = None
        if not sites:
            return (y,)
        parts = torch.split(y, list(splits), dim=-1) if len(sites) > 1 else (y,)
        if code is not None:
            return tuple(site.wrap(part) for part, site in zip(parts, sites, strict=True))
        return tuple(_emit(part, site) for part, site in zip(parts, sites, strict=True))

    def _reads_codes(self, x: Activation) -> bool:
        return self.is_quantized and isinstance(x, Coded) and x.code.is_scalar_knee

    def _integer_product(self, x: Activation, code: Tensor | None) -> Tensor:
        assert isinstance(x, Coded)
        assert self.weight_codes is not None
        assert self.weight_scale is not None
        assert self.weight_sum is not None
        rows = None if x.row_scale is not None else x.code.rows
        bias = None if self.bias is None else self.bias.float()
        return ops.linear_w8a8(
            x.codes, rows, x.code.has_knee, x.row_scale, self.weight_codes, self.weight_scale,
            self.weight_sum, bias, code, self.weight.dtype,
        )  # fmt: skip

    def _joint_code(self, sites: Sequence[Site], splits: Sequence[int]) -> Tensor | None:
        """Code rows for the product's epilogue, one an output column; None unless every site can take int8 there."""
        rows = [site.output_code() for site in sites]
        present = [r for r in rows if r is not None and r.shape == (1, 8)]
        if len(present) != len(rows):
            return None
        return self._joined(present, lambda: join_rows(present, splits))


def _emit(values: Tensor, site: Site) -> Activation:
    code = site.output_code()
    return site.wrap(values if code is None else ops.encode(values, code))
