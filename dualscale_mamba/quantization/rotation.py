"""Hadamard rotation: spread a few large channels over all of them without changing the model's function.

A site in front of a linear layer is rotated online (``y -> Q y``, fused with the encoding) and the layer's weight
offline (``W -> W Q^T``), so that ``W Q^T Q y = W y``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.ops import reference

# Orders of the dense factor; the rest of the dimension is a power of two. 40 * 2^k is 20 * 2^(k + 1).
BASE_ORDERS = (1, 12, 20, 28)


def _jacobsthal(q: int) -> Tensor:
    """chi(i - j) over the field of a prime q: chi is 0, 1 on squares, -1 elsewhere."""
    squares = {i * i % q for i in range(1, q)}
    chi = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)])
    index = torch.arange(q)
    return chi[(index[:, None] - index[None]) % q]


def hadamard_base(order: int) -> Tensor:
    """A Hadamard matrix of ``order`` in {1, 12, 20, 28}, fp32 with entries +-1 (Paley 1933).

    Raises:
        ValueError: Another order.
    """
    if order == 1:
        return torch.ones(1, 1)
    if order in (12, 20):  # first construction: order - 1 is a prime that leaves 3 modulo 4
        skew = torch.nn.functional.pad(_jacobsthal(order - 1), (1, 0, 1, 0))
        skew[0, 1:], skew[1:, 0] = 1.0, -1.0
        matrix = skew + torch.eye(order)
    elif order == 28:  # second construction: order / 2 - 1 = 13 leaves 1 modulo 4
        conference = torch.nn.functional.pad(_jacobsthal(13), (1, 0, 1, 0))
        conference[0, 1:], conference[1:, 0] = 1.0, 1.0
        plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        minus = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
        matrix = torch.kron(conference, plus) + torch.kron(torch.eye(14), minus)
    else:
        raise ValueError(f"no Hadamard base of order {order}; there are {BASE_ORDERS}")
    if not torch.equal(matrix @ matrix.T, order * torch.eye(order)):
        raise AssertionError(f"the matrix of order {order} is not Hadamard")
    return matrix


def base_for(channels: int) -> Tensor:
    """The dense factor with which ``channels`` = order * 2^k.

    Raises:
        ConfigError: ``channels`` is not 2^k, 12*2^k, 20*2^k, 28*2^k or 40*2^k.
    """
    for order in BASE_ORDERS:
        power, rest = divmod(channels, order)
        if rest == 0 and power > 0 and power & (power - 1) == 0:
            return hadamard_base(order)
    raise ConfigError(
        "precision.rotate",
        True,
        f"false for {channels} channels",
        "A rotation needs m * 2^k, m in 1, 12, 20, 28, 40.",
    )


def rotate_columns(weight: Tensor, base: Tensor) -> Tensor:
    """W -> W Q^T for the Q that ``hadamard_quant`` applies: weight (N, K) -> (N, K), rounded once to its type."""
    rotated, _ = reference.hadamard_quant(weight, base.to(weight.device), None, False, torch.float32)
    return rotated.to(weight.dtype)
