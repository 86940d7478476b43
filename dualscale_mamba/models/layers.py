"""The small parts of a model: embedding, norms, convolution weight; the last two are fp32 always."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualscale_mamba import ops
from dualscale_mamba.models.operands import Operand
from dualscale_mamba.models.weight_layer import WeightLayer
from dualscale_mamba.quantization.site import Activation, Site
from dualscale_mamba.quantization.weights import QuantizedWeight


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """An uninitialized weight that takes no gradient."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)


class RMSNorm(nn.Module):
    """Residual add, then x / sqrt(mean(x^2) + eps) * weight, emitted for a site; the weight is fp32."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype, residual_dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(width)
        self.eps, self.dtype, self.residual_dtype = eps, dtype, residual_dtype

    def forward(
        self, x: Tensor, residual: Tensor | None, site: Site | None = None
    ) -> tuple[Activation, Tensor]:
        """x, residual (..., D) -> the normalized sum, and the sum as the next residual."""
        code, per_token = (None, False) if site is None else (site.output_code(), site.per_token)
        y, residual, row_scale = ops.rms_norm_quant(
            x, residual, self.weight, self.eps, code, per_token, self.residual_dtype, self.dtype
        )
        return (y if site is None else site.wrap(y, row_scale)), residual


class GatedRMSNorm(nn.Module):
    """RMSNorm in groups of channels of x * SiLU(z), or x * SiLU(z) after it; the weight is fp32."""

    def __init__(
        self, width: int, eps: float, group_size: int, norm_before_gate: bool, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.weight = parameter(width)
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.dtype = dtype

    def forward(
        self, x: Tensor, z: Operand, code: Tensor | None = None, per_token: bool = False
    ) -> tuple[Tensor, Tensor]:
        """x (..., E) and z (..., E), the gate before SiLU -> (..., E) as ``code`` or ``per_token`` say, row scales."""
        return ops.gated_rms_norm_quant(
            x, *z, self.weight, self.eps, self.group_size, self.norm_before_gate, code, per_token, self.dtype
        )


class CausalConv(nn.Module):
    """Weight (C, W) and bias (C,) of the causal depthwise convolution, fp32."""

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = parameter(channels, width)
        self.bias = parameter(channels) if bias else None


class Embedding(WeightLayer):
    """Rows of a (V, D) weight; of one that is quantized only the rows that are asked for are decoded."""

    def forward(self, ids: Tensor) -> Tensor:
        """ids int64 (...) -> (..., D)."""
        if self.grid is None:
            return F.embedding(ids, self.weight)
        assert self.weight_codes is not None
        assert self.weight_scale is not None
        flat = ids.reshape(-1)
        codes, scale = self.weight_codes[flat], self.weight_scale[flat]
        rows = QuantizedWeight.from_stored(codes, scale, self.grid, self.columns)
        return rows.decoded(self.weight.dtype).reshape(*ids.shape, self.columns)
