"""From activations to what the operators take: a tensor and the code that decodes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dualscale_mamba.quantization.site import Activation, Coded, values_of

Operand = tuple[Tensor, Tensor | None]


def operand(activation: Activation, dtype: torch.dtype) -> Operand:
    """int8 and its code where that is one knee row; values of type ``dtype`` otherwise."""
    if isinstance(activation, Coded) and activation.row_scale is None and activation.code.is_scalar_knee:
        return activation.codes, activation.code.rows
    return values_of(activation, dtype), None


def any_operand(activation: Activation) -> Operand:
    """int8 and its code, of whatever family, for an operator that decodes them all; values otherwise."""
    if isinstance(activation, Coded):
        return activation.codes, activation.code.rows
    return activation, None


def operands(activations: Sequence[Activation], dtype: torch.dtype) -> list[Operand]:
    """The same for arguments that an operator takes all as int8 or all as values."""
    pairs = [operand(activation, dtype) for activation in activations]
    if all(code is not None for _, code in pairs):
        return pairs
    return [(values_of(activation, dtype), None) for activation in activations]
