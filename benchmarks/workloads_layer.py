"""What the kernel benchmark times of whole Mamba-1 layers of a token: one kernel beside the eight that it joins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from workloads import RANGE, STATES, Work, codes, normal, plain, rows_of
from workloads_linear import filled

from dualscale_mamba import ops
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.models.code_rows import join_rows
from dualscale_mamba.ops import dispatch
from dualscale_mamba.ops.composed import Composed
from dualscale_mamba.quantization.rotation import base_for

SIZES = {
    "mamba-2.8b": (2560, 160),
    "mamba-1.4b": (2048, 128),
    "mamba-370m": (1024, 64),
    "mamba-130m": (768, 48),
}
BATCHES = (1, 2, 4)
GROUP_SIZE = 128


def weight(name: str, rows: int, columns: int, bits: int) -> dict[str, Tensor]:
    """Codes, scales and sums of rows, as the operator names them."""
    if bits == 8:
        values = codes(rows, columns)
        parts = (values, filled(0.01 / columns**0.5, rows), values.sum(1, dtype=torch.int32))
    else:
        scale = filled(0.2 / columns**0.5, rows, -(-columns // GROUP_SIZE)).half()
        parts = (codes(rows, columns // 2).view(torch.uint8), scale, filled(0.0, rows))
    return {f"{name}_{part}": tensor for part, tensor in zip(("weight", "scale", "sum"), parts, strict=True)}


def arguments(width: int, rank: int, bits: int, batch: int) -> dict[str, Any]:
    """Of one layer, in the order of the operator."""
    E, site, dual = 2 * width, plain(), rows_of(Dual().fit(RANGE))
    return {
        "hidden": normal(batch, width),
        "residual": normal(batch, width).float(),
        "norm_weight": filled(1.0, width),
        "eps": 1e-5,
        "in_code": site,
        **weight("in", 2 * E, width, bits),
        "x_code": site,
        "z_code": site,
        "conv_state": codes(batch, 3, E),
        "conv_weight": normal(E, 4).float(),
        "conv_bias": normal(E).float(),
        "u_code": dual,
        "knee": True,
        **weight("x_proj", rank + 2 * STATES, E, bits),
        "dt_code": site,
        "B_code": site,
        "C_code": site,
        **weight("dt_proj", E, rank, bits),
        "delta_code": site,
        "state": filled(0.0, batch, E, STATES),
        "A": -torch.arange(1, STATES + 1, device="cuda").float().repeat(E, 1),
        "D": normal(E).float(),
        "delta_bias": normal(E).float() - 4,
        "base": base_for(E).cuda(),
        "out_code": site,
        **weight("out", width, E, bits),
        "group_size": 0 if bits == 8 else GROUP_SIZE,
        "residual_dtype": torch.float32,
    }


def joined_once() -> Callable[..., Tensor]:
    """Rows of neighbouring codes, kept as a model keeps them."""
    kept: dict[tuple[int, ...], Tensor] = {}

    def join(*parts: tuple[Tensor, int]) -> Tensor:
        key = tuple(number for rows, columns in parts for number in (rows.data_ptr(), columns))
        if key not in kept:
            kept[key] = join_rows([rows for rows, _ in parts], [columns for _, columns in parts])
        return kept[key]

    return join


def layer_work() -> Iterator[Work]:
    """Eight kernels and one, both with weights read ahead, as a model's graph runs them; and one without."""
    ops.ensure_loaded("cuda")
    for name, (width, rank) in SIZES.items():
        workspace = ops.layer_workspace("cuda", 2 * width, rank)
        separate = Composed(dispatch._compiled.__getitem__, joined_once()).mamba_layer_step
        for bits in (8, 4):
            for batch in BATCHES:
                like, order = normal(batch, width), base_for(2 * width).shape[0]
                if not ops.fits_layer_step(like, 2 * width, STATES, rank, order):
                    continue
                make = lambda w=width, r=rank, k=bits, b=batch: tuple(arguments(w, r, k, b).values())  # noqa: E731

                def apart(*given: Any, run: Any = separate, own: Tensor = workspace) -> object:
                    return run(*given, own, True)

                def ahead(*given: Any, own: Tensor = workspace) -> object:
                    return ops.mamba_layer_step(*given, own, reads_ahead=True)

                def plainly(*given: Any, own: Tensor = workspace) -> object:
                    return ops.mamba_layer_step(*given, own)

                weights = width * (2 * 2 * width + 2 * width) + 2 * width * (2 * rank + 2 * STATES)
                moved = weights * bits // 8 + 2 * width * STATES * (8 * batch + 4)
                shape = f"w{bits}a8, {batch}, {name}"
                for arm, call in (("operators", apart), ("one kernel", ahead), ("not read ahead", plainly)):
                    yield Work("layer", shape, arm, make, call, moved)


FAMILIES: dict[str, Callable[[], Iterator[Work]]] = {"layer": layer_work}
