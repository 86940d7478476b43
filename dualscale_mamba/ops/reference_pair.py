"""Codes of two scales with selectors beside them, in plain PyTorch: see :mod:`dualscale_mamba.formats.pair`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dualscale_mamba.formats.base import CODE_SPACE_LIMIT
from dualscale_mamba.formats.pair import SYMMETRIC_MAX, TILE_CHANNELS, TILE_TOKENS
from dualscale_mamba.ops.rounding import round_half_away


def encode_bits(x: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., C) float -> codes (..., C) int8 and whether each has the outer scale, bool."""
    x = torch.where(torch.isnan(x), 0.0, x.float())
    _, inv_inner, _, inv_outer, limit = code.unbind(1)
    is_outlier = x.abs() >= limit
    t = (x * torch.where(is_outlier, inv_outer, inv_inner)).clamp(-CODE_SPACE_LIMIT, CODE_SPACE_LIMIT)
    return round_half_away(t).clamp(-SYMMETRIC_MAX, SYMMETRIC_MAX).to(torch.int8), is_outlier


def decode_bits(codes: Tensor, code: Tensor, is_outlier: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes (..., C) and their selectors -> values (..., C) of type ``dtype``."""
    inner, _, outer, _, _ = code.unbind(1)
    return (torch.where(is_outlier, outer, inner) * codes.float()).to(dtype)


def pack(bits: Tensor) -> Tensor:
    """bool (..., C) -> uint8 (..., ceil(C / 8)), the first channel in the lowest bit."""
    size = -(-bits.shape[-1] // 8)
    padded = F.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8)).reshape(*bits.shape[:-1], size, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(-1, dtype=torch.uint8)


def unpack(mask: Tensor, channels: int) -> Tensor:
    """uint8 (..., ceil(channels / 8)) -> bool (..., channels)."""
    bits = (mask[..., None] >> torch.arange(8, dtype=torch.uint8, device=mask.device)) & 1
    return bits.flatten(-2)[..., :channels].bool()


def tiled(bits: Tensor) -> Tensor:
    """(B, L, C) -> (B, tiles of tokens, tiles of channels, elements of a tile), padded with zeros."""
    batch, length, channels = bits.shape
    tokens, groups = -(-length // TILE_TOKENS), -(-channels // TILE_CHANNELS)
    padded = F.pad(bits, (0, groups * TILE_CHANNELS - channels, 0, tokens * TILE_TOKENS - length))
    cut = padded.reshape(batch, tokens, TILE_TOKENS, groups, TILE_CHANNELS)
    return cut.transpose(2, 3).flatten(3)


def untiled(tiles: Tensor, length: int, channels: int) -> Tensor:
    """Inverse of :func:`tiled`."""
    cut = tiles.reshape(*tiles.shape[:3], TILE_TOKENS, TILE_CHANNELS).transpose(2, 3)
    return cut.flatten(3, 4).flatten(1, 2)[:, :length, :channels]


def write_selectors(bits: Tensor, mask: Tensor, outliers: Tensor | None) -> None:
    """Selectors, bool (B, L, C), into a mask, or into lists and the mask of those tiles that are too full."""
    if outliers is None:
        mask.copy_(pack(bits))
        return
    capacity, own = outliers.shape[3] - 1, tiled(bits)
    count = own.sum(3)
    place = own.cumsum(3) - 1
    tile = torch.nonzero(own & (place < capacity), as_tuple=True)
    outliers[..., 0] = count.to(torch.int16)
    outliers[(*tile[:3], place[tile] + 1)] = tile[3].to(torch.int16)
    full = untiled((count > capacity)[..., None].expand(own.shape), *bits.shape[1:])[..., ::8]
    mask.copy_(torch.where(full, pack(bits), mask))


def read_selectors(mask: Tensor, outliers: Tensor | None, channels: int) -> Tensor:
    """What :func:`write_selectors` wrote, bool (B, L, C)."""
    dense = unpack(mask, channels)
    if outliers is None:
        return dense
    count, capacity = outliers[..., :1].long(), outliers.shape[3] - 1
    entries = torch.arange(capacity, device=mask.device)
    tile = torch.nonzero((entries < count) & (count <= capacity), as_tuple=True)
    own = tiled(torch.zeros_like(dense))
    own[(*tile[:3], outliers[..., 1:][tile].long())] = True
    length = mask.shape[1]
    full = untiled((count > capacity).expand(own.shape), length, channels)
    return torch.where(full, dense, untiled(own, length, channels))


def encode_pair(x: Tensor, code: Tensor, mask: Tensor, outliers: Tensor | None) -> Tensor:
    """x (B, L, C) float -> codes (B, L, C) int8, and their selectors into ``mask`` and ``outliers``."""
    codes, is_outlier = encode_bits(x, code)
    write_selectors(is_outlier, mask, outliers)
    return codes


def decode_pair(
    codes: Tensor, code: Tensor, mask: Tensor, outliers: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """codes (B, L, C) int8 with their selectors -> values (B, L, C) of type dtype."""
    return decode_bits(codes, code, read_selectors(mask, outliers, codes.shape[-1]), dtype)
