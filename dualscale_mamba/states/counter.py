"""Random numbers that a counter names: the same on every device, in every order, under a CUDA graph.

A generator that remembers where it is would give a replayed graph the numbers of its capture, and two devices
different ones. Here each number is a hash of (seed, layer, position, element), in integers that tensors hold exactly:
32-bit words in int64, where no product with a factor leaves the type.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
# The mixer "lowbias32" (C. Wellons, hash-prospector, public domain). The second factor is written as a negative number
# of the same residue, so that no product reaches 2^63.
FIRST, SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)
GOLDEN = 0x9E3779B9
BITS = 24  # of a number: those that fp32 holds exactly


def mixed_(words: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every bit depends on every other, in place: int64 in [0, 2^32)."""
    words.bitwise_xor_(words >> 16).mul_(FIRST).bitwise_and_(WORD)
    words.bitwise_xor_(words >> 15).mul_(SECOND).bitwise_and_(WORD)
    return words.bitwise_xor_(words >> 16)


def mixed_number(word: int) -> int:
    """:func:`mixed_` of one number."""
    word ^= word >> 16
    word = (word * FIRST) & WORD
    word ^= word >> 15
    word = (word * SECOND) & WORD
    return word ^ (word >> 16)


def uniforms(seed: int, layer: int, position: Tensor, count: int) -> Tensor:
    """Uniform numbers for every element of some sequences.

    Args:
        seed: Of the run.
        layer: Number of the layer.
        position: int32 or int64 ``(B,)``, the tokens that each sequence has seen, on the device of the result.
        count: Elements of a sequence.

    Returns:
        fp32 ``(B, count)``, multiples of 2^-24 in [0, 1). A row depends on its own position alone, not on its place in
        the batch.
    """
    salt = mixed_number((seed & WORD) ^ mixed_number((layer + GOLDEN) & WORD))
    place = position.long()[:, None] & WORD
    first = mixed_(mixed_(place ^ salt))
    second = mixed_((place + (salt ^ GOLDEN)) & WORD)
    element = torch.arange(count, dtype=torch.int64, device=position.device)
    words = mixed_((element + first).bitwise_and_(WORD).bitwise_xor_(second))
    return words.bitwise_right_shift_(32 - BITS).float().mul_(2.0**-BITS)
