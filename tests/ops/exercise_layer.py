"""Whole layers of a token for exercise_kernels.py: the smallest sizes, every kind of weight and code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from exercise_inputs import Case, Inputs
from layer_cases import SIZES, Layer

from dualscale_mamba import ops


def layer(make: Inputs) -> Iterator[Case]:
    """Some follow each other on one workspace."""
    width, rank = SIZES[1].width, SIZES[1].rank
    if make.device.type == "cuda":
        like = torch.empty(1, width, dtype=torch.float16, device=make.device)
        if not ops.fits_layer_step(like, 2 * width, 16, rank, 12):
            return
    workspace = None
    for bits in (8, 4):
        for knee, at in ((True, 31.0), (True, -40.0), (False, 31.0)):
            for batch in (1, 3):
                size = replace(SIZES[1], bits=bits, knee=knee, knee_at=at, batch=batch, has_extras=batch == 3)
                if bits == 4 and at < 0:
                    size = replace(size, delta_bits=8)
                made = Layer(size, make.device, batch, workspace)
                workspace = made.arguments["workspace"]
                yield f"layer step {size}", ops.mamba_layer_step, (*made.arguments.values(), batch == 1)
