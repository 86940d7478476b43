"""Count the outliers of every tile of a text in a model that was saved with scale_mode=dual_sparse.

    python benchmarks/full_lists.py out/sparse TEXT_FILE [--length 2048] [--room 3,7,15]

For each layer: the share of outliers; and for its own room, or for each room that is asked for, the share of lists that
are full and the bytes that a tile of 32 tokens and 64 channels takes on average, the part of the mask of the full ones
included. The mask alone takes 256. Runs on the CPU, without building anything.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.formats.base import NO_SIDE_DATA, SideData
from dualscale_mamba.formats.pair import ENTRY_BYTES, TILE
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.quantization.site import Activation, Site

Counts = list[tuple[Tensor, int]]


@contextmanager
def counting(found: Counts) -> Iterator[None]:
    """Collects the counts of all lists (tiles,), and their room, in the order of the layers."""
    plain = Site.wrap

    def wrap(
        site: Site, values: Tensor, row_scale: Tensor | None = None, side: SideData = NO_SIDE_DATA
    ) -> Activation:
        if side.outliers is not None:
            found.append((side.outliers[..., 0].flatten().double(), side.outliers.shape[3] - 1))
        return plain(site, values, row_scale, side)

    Site.wrap = wrap  # type: ignore[method-assign]
    try:
        yield
    finally:
        Site.wrap = plain  # type: ignore[method-assign]


def cell(counts: Tensor, room: int) -> str:
    """What lists of that room would be."""
    full = float((counts > room).double().mean())
    return f"{full:.1%}, {ENTRY_BYTES * (1 + room) + full * TILE / 8:.0f} B"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Count the outliers of every tile.")
    parser.add_argument("model", help="folder that save= has written")
    parser.add_argument("text", type=Path)
    parser.add_argument("--length", type=int, default=2048, help="tokens (default: %(default)s)")
    parser.add_argument("--room", default="", help="other rooms than the model's, e.g. 3,7,15")
    options = parser.parse_args()
    loaded = load_pretrained(options.model)
    characters = options.text.read_text(encoding="utf-8")[: 16 * options.length]
    ids = torch.tensor(loaded.tokenizer.encode(characters)[: options.length])[None]
    found: Counts = []
    with torch.inference_mode(), ops.implementation("reference"), counting(found):
        loaded.model(ids)
    rooms = [int(room) for room in options.room.split(",") if room]
    table = Table(title=f"{ids.shape[1]} tokens", show_edge=False)
    for head in (
        "layer",
        "outliers",
        "room",
        "full lists, bytes a tile",
        *(f"room {room}" for room in rooms),
    ):
        table.add_column(head, justify="right")
    for layer, (counts, room) in enumerate(found):
        others = (cell(counts, other) for other in rooms)
        table.add_row(
            str(layer), f"{float(counts.mean()) / TILE:.3%}", str(room), cell(counts, room), *others
        )
    every = torch.cat([counts for counts, _ in found]) if found else torch.zeros(1)
    table.add_row("all", f"{float(every.mean()) / TILE:.3%}", "", "", *(cell(every, room) for room in rooms))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
