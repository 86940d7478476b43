"""The one linear layer: any activation in, any activation out, its weight in floating point or on any grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualscale_mamba import ops
from dualscale_mamba.formats.base import Code
from dualscale_mamba.models.code_rows import MadeOfCodes, join_rows
from dualscale_mamba.models.weight_layer import WeightLayer
from dualscale_mamba.quantization.site import Activation, Coded, Site, values_of


class Linear(WeightLayer):
    """y = x W^T + b, each part of y emitted for its site.

    With a quantized weight and int8 activations of the knee family (one code for the tensor) the product is that of
    the codes; anything else is decoded exactly and multiplied in floating point.

    Args:
        in_features: K.
        out_features: N.
        bias: Whether there is a b.
        dtype: Type of the weight and of floating-point results.

    Attributes:
        decodes: Whether int8 activations are decoded first all the same (a width ``a16``).
        constant_weight: Promises the operators that no kernel queued just before a product writes its weight; see
            :func:`reading_ahead`.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(out_features, in_features, dtype)
        self.bias = (
            nn.Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False) if bias else None
        )
        self.in_features, self.out_features = in_features, out_features
        self.decodes = False
        self.constant_weight = False
        self._joined = MadeOfCodes[Tensor]()

    def forward(
        self, x: Activation, sites: Sequence[Site] = (), splits: Sequence[int] = ()
    ) -> tuple[Activation, ...]:
        """x (..., K) -> one activation a split (..., splits[i]); without sites one floating-point (..., N)."""
        code = self._joint_code(sites, splits) if sites and self.is_quantized else None
        y = self._product(x, code)
        if not sites:
            return (y,)
        parts = torch.split(y, list(splits), dim=-1) if len(sites) > 1 else (y,)
        if code is not None:
            return tuple(site.wrap(part) for part, site in zip(parts, sites, strict=True))
        return tuple(_emit(part, site) for part, site in zip(parts, sites, strict=True))

    def multiplies_codes(self, code: Code | None) -> bool:
        """Whether activations of this code are multiplied as they are, not decoded first."""
        return self.is_quantized and not self.decodes and code is not None and code.is_scalar_knee

    def _product(self, x: Activation, code: Tensor | None) -> Tensor:
        if not self.is_quantized:
            return F.linear(values_of(x, self.weight.dtype), self.weight, self.bias)
        if isinstance(x, Coded) and self.multiplies_codes(x.code):
            return self._product_of_codes(x, code)
        return self._product_of_values(values_of(x, self.weight.dtype), code)

    def _product_of_codes(self, x: Coded, code: Tensor | None) -> Tensor:
        assert self.grid is not None
        assert self.weight_codes is not None
        assert self.weight_scale is not None
        assert self.weight_sum is not None
        rows = None if x.row_scale is not None else x.code.rows
        inputs = (x.codes, rows, x.code.has_knee, x.row_scale)
        weight = (self.weight_codes, self.weight_scale, self.weight_sum)
        end = (self._bias(), code, self.weight.dtype)
        if self.grid.group_size is None:
            return ops.linear_w8a8(*inputs, *weight, *end, constant_weight=self.constant_weight)
        return ops.linear_w4a8(
            *inputs, *weight, self.grid.group_size, *end, constant_weight=self.constant_weight
        )

    def _product_of_values(self, x: Tensor, code: Tensor | None) -> Tensor:
        assert self.grid is not None
        assert self.weight_codes is not None
        assert self.weight_scale is not None
        end = (self._bias(), code, self.weight.dtype)
        if self.grid.group_size is None:
            return ops.linear_w8a16(
                x, self.weight_codes, self.weight_scale, *end, constant_weight=self.constant_weight
            )
        return ops.linear_w4a16(
            x,
            self.weight_codes,
            self.weight_scale,
            self.grid.group_size,
            *end,
            constant_weight=self.constant_weight,
        )

    def _bias(self) -> Tensor | None:
        return None if self.bias is None else self.bias.float()

    def _joint_code(self, sites: Sequence[Site], splits: Sequence[int]) -> Tensor | None:
        """Code rows for the product's epilogue, one an output column; None unless every site can take int8 there."""
        rows = [site.output_code() for site in sites]
        present = [r for r in rows if r is not None and r.shape == (1, 8)]
        if len(present) != len(rows):
            return None
        return self._joined(present, lambda: join_rows(present, splits))


@contextmanager
def reading_ahead(model: nn.Module) -> Iterator[None]:
    """Within the block, products may read their weights while the kernel before them runs; nothing there writes any."""
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    for layer in layers:
        layer.constant_weight = True
    try:
        yield
    finally:
        for layer in layers:
            layer.constant_weight = False


def _emit(values: Tensor, site: Site) -> Activation:
    code = site.output_code()
    return site.wrap(values if code is None else ops.encode(values, code))
