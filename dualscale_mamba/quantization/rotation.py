"""Hadamard rotation: spread a few large channels over all of them without changing the model's function.

A site in front of a linear layer is rotated online (``y -> Q y``, fused with the encoding) and the layer's weight
offline (``W -> W Q^T``), so that ``W Q^T Q y = W y``. The residual stream is rotated offline alone: a norm without
weights does not see a rotation, so that whatever writes into the stream and whatever reads from it can turn together
(Ashkboos et al. 2024, SliceGPT, arXiv:2401.15024, section 3; QuaRot, arXiv:2404.00456, section 4, stage 1a).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.layers import RMSNorm
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


def base_for(channels: int, key: str = "precision.rotate") -> Tensor:
    """The dense factor with which ``channels`` = order * 2^k.

    Args:
        channels: To be rotated.
        key: What asks for it, for the message.

    Raises:
        ConfigError: ``channels`` is not 2^k, 12*2^k, 20*2^k, 28*2^k or 40*2^k.
    """
    for order in BASE_ORDERS:
        power, rest = divmod(channels, order)
        if rest == 0 and power > 0 and power & (power - 1) == 0:
            return hadamard_base(order)
    raise ConfigError(
        key,
        True,
        f"false for {channels} channels",
        "A rotation needs m * 2^k, m in 1, 12, 20, 28, 40.",
    )


def rotate_columns(weight: Tensor, base: Tensor) -> Tensor:
    """W -> W Q^T for the Q that ``hadamard_quant`` applies: weight (N, K) -> (N, K), rounded once to its type."""
    rotated, _ = reference.hadamard_quant(weight, base.to(weight.device), None, False, torch.float32)
    return rotated.to(weight.dtype)


def rotate_rows(weight: Tensor, base: Tensor) -> Tensor:
    """W -> Q W: weight (N, K) -> (N, K), rounded once to its type."""
    return rotate_columns(weight.T, base).T.contiguous()


def rotate_residual(model: MambaLM) -> None:
    """Rotate the residual stream, in place; the model's function stays the same.

    With Q the normalised Hadamard transform of the width: the embedding and every out_proj write Q r in the place of
    r; the weights of the norms move into the layers behind them, in_proj and the head, which take Q^T in. The head is
    no longer the embedding afterwards.

    Args:
        model: In floating point; reordered or with out_proj's input rotated or not, both commute with this.

    Raises:
        ConfigError: The width has no Hadamard transform here.
        ValueError: The residual stream is rotated already, or a weight is on a grid.
    """
    if model.residual_is_rotated:
        raise ValueError("the residual stream is rotated already")
    base = base_for(model.config.d_model, "precision.rotate_residual").to(model.device)
    embedding, head = model.backbone.embedding, model.lm_head
    layers = [projection for block in model.blocks() for projection, _ in block.mixer.projections()]
    if any(layer.is_quantized for layer in (embedding, head, *layers)):
        raise ValueError("the residual stream is rotated before the weights are rounded")
    head.weight = _reading(head.weight, model.backbone.norm_f, base)  # before the embedding, which it may be
    embedding.weight = _parameter(rotate_columns(embedding.weight, base))
    model.config = replace(model.config, tie_embeddings=False)
    for block in model.blocks():
        out_proj = block.mixer.out_proj
        block.mixer.in_proj.weight = _reading(block.mixer.in_proj.weight, block.norm, base)
        out_proj.weight = _parameter(rotate_rows(out_proj.weight, base))
        if out_proj.bias is not None:
            out_proj.bias = _parameter(rotate_columns(out_proj.bias[None], base)[0])
    model.residual_is_rotated = True


def _reading(weight: Tensor, norm: RMSNorm, base: Tensor) -> nn.Parameter:
    """W -> W diag(w) Q^T for the weight behind a norm, and 1 for the norm's weight w; rounded once to W's type."""
    folded = rotate_columns(weight.float() * norm.weight, base).to(weight.dtype)
    norm.weight.data = torch.ones_like(norm.weight)
    return _parameter(folded)


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
