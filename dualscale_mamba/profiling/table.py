"""The command ``dualscale-mamba memory``: what published models take, computed without loading them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from rich.table import Table

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.dual_sparse import capacity_for
from dualscale_mamba.formats.pair import TILE_CHANNELS, TILE_TOKENS
from dualscale_mamba.models.config import Mamba2Config, MambaConfig, ModelConfig
from dualscale_mamba.profiling import footprint, memory, outliers, workspace
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.sites import SSM_INPUT

VOCABULARY, PADDED = 50280, 50288  # rows of the embedding in the checkpoints of Mamba-1 and Mamba-2
PUBLISHED: dict[str, ModelConfig] = {
    "mamba-130m": MambaConfig(768, 24, VOCABULARY),
    "mamba-370m": MambaConfig(1024, 48, VOCABULARY),
    "mamba-790m": MambaConfig(1536, 48, VOCABULARY),
    "mamba-1.4b": MambaConfig(2048, 48, VOCABULARY),
    "mamba-2.8b": MambaConfig(2560, 64, VOCABULARY),
    "mamba2-130m": Mamba2Config(768, 24, PADDED, d_state=128),
    "mamba2-370m": Mamba2Config(1024, 48, PADDED, d_state=128),
    "mamba2-780m": Mamba2Config(1536, 48, PADDED, d_state=128),
    "mamba2-1.3b": Mamba2Config(2048, 48, PADDED, d_state=128),
    "mamba2-2.7b": Mamba2Config(2560, 64, PADDED, d_state=128),
}
MODELS = ("mamba-130m", "mamba-370m", "mamba-1.4b", "mamba2-2.7b")
PRECISIONS = ("none", "w8a8", "w4a8")
DTYPE = torch.float16
MB = 1e6


@dataclass(frozen=True)
class Asked:
    """What the table is about.

    Attributes:
        models: Keys of ``PUBLISHED``, or folders with a ``config.json``.
        batch: Sequences.
        length: Tokens of each.
        density: Share of the SSM input's values that are outliers.
        measure: Whether the side data is also made and its tensors counted.
    """

    models: tuple[str, ...] = MODELS
    batch: int = 1
    length: int = 2048
    density: float = 0.001
    measure: bool = False

    def __post_init__(self) -> None:
        for key, value in (("--batch", self.batch), ("--length", self.length)):
            if value < 1:
                raise ConfigError(key, value, "a whole number above 0")
        if not 0 < self.density < 1:
            raise ConfigError("--density", self.density, "a share between 0 and 1, e.g. 0.001 for 0.1 %")


Lines = list[tuple[str, list[str], list[list[str]]]]


def show(asked: Asked, csv_file: Path | None = None, markdown_file: Path | None = None) -> None:
    """Print the tables, and write them where that is asked for.

    Args:
        asked: What they are about.
        csv_file: Receives one line for each number, in bytes.
        markdown_file: Receives the tables.

    Raises:
        ConfigError: There is no such model.
    """
    from dualscale_mamba.report.tables import console

    found = {name: numbers(size_of(name), asked) for name in asked.models}
    lines = tables(found, asked)
    for title, heads, rows in lines:
        table = Table(title=title, title_justify="left", title_style="bold", show_edge=False)
        for index, head in enumerate(heads):
            table.add_column(head, justify="right" if index > 1 else "left")
        for row in rows:
            table.add_row(*row)
        console().print(table, "")
    if csv_file:
        _write_csv(csv_file, found)
    if markdown_file:
        markdown_file.write_text("\n\n".join(markdown(*part) for part in lines) + "\n", encoding="utf-8")


def size_of(model: str, key: str = "--models") -> ModelConfig:
    """The sizes of a published model, or those in a folder's ``config.json``.

    Args:
        model: Name or folder.
        key: What the user has typed it for, for the message.

    Raises:
        ConfigError: It is neither.
    """
    if model in PUBLISHED:
        return PUBLISHED[model]
    from dualscale_mamba.models.config_json import config_from_json

    path = Path(model).expanduser() / "config.json"
    if not path.is_file():
        raise ConfigError(key, model, f"one of {', '.join(PUBLISHED)}, or a folder with config.json")
    return config_from_json(json.loads(path.read_text(encoding="utf-8")), str(path))


@cache
def recipe_of(precision: str, family: str, *others: str) -> Recipe:
    """What ``precision=NAME`` does to a family, all else as configured by default or as ``others`` say."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from dualscale_mamba.configuration import instantiate, startup

    startup.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(startup.CONF), version_base="1.3"):
        chosen = [f"precision={precision}", f"model.family={family}", *others]
        return instantiate.recipe(compose("config", chosen))


def numbers(config: ModelConfig, asked: Asked) -> dict[str, float]:
    """Every number of a model, in bytes, by name; shares are named so."""
    found: dict[str, float] = {}
    for precision in PRECISIONS:
        shell = workspace.shell_for(config, recipe_of(precision, config.family), DTYPE)
        found |= {
            f"{precision}/weights": sum(memory.computed_weights(shell).values()),
            f"{precision}/state": memory.computed_state(shell, asked.batch),
            f"{precision}/workspace": workspace.computed(shell, asked.batch, asked.length),
        }
    return found | side_data(config, asked)


def side_data(config: ModelConfig, asked: Asked) -> dict[str, float]:
    """The SSM input of a model in 8 bits, and what a second scale stores beside it.

    The names ``measured/...`` are bytes of real tensors for the SSM input of one layer.
    """
    widths = footprint.site_widths(config)
    shape = (asked.batch, asked.length, sum(widths[site] for site in SSM_INPUT[config.family]))
    values = math.prod(shape)
    found: dict[str, float] = {
        "ssm_input/layer": values,
        "ssm_input": config.n_layer * values,
        "map": config.n_layer * outliers.map_bytes(shape),
        "list": config.n_layer * outliers.lists_bytes(shape, asked.density),
        "entries": config.n_layer * outliers.entries_bytes(shape, asked.density),
        "saved_share": outliers.saved(shape, asked.density),
        "dual": 0,
    }
    if asked.measure:
        made = outliers.write(shape, asked.density)
        found |= {"measured/map": made.mask.nbytes, "measured/list": made.outliers.nbytes}
        found["measured/saved_share"] = 1 - made.used_bytes / made.mask.nbytes
        found["measured/full_share"] = made.full_share
    return found


def tables(found: dict[str, dict[str, float]], asked: Asked) -> Lines:
    """Title, heads and rows of both tables."""
    place = f"batch {asked.batch}, length {asked.length}"
    weights = [
        [name if precision == PRECISIONS[0] else "", "fp16" if precision == "none" else precision,
         *(_mb(of[f"{precision}/{part}"]) for part in ("weights", "state", "workspace")),
         f"{of[f'{precision}/weights'] / of['none/weights']:.1%}"]
        for name, of in found.items() for precision in PRECISIONS
    ]  # fmt: skip
    first = (
        f"Weights, states and workspace, {place}, computed (MB)",
        ["model", "precision", "weights", "states", "workspace of a prefill", "weights / fp16"],
        weights,
    )
    heads = ["model", "layers", "SSM input in 8 bits", "dense map, 1 bit", "map / input", "entries alone", "saved",
             "lists with room", "saved", "dual"]  # fmt: skip
    rows = [
        [name, str(round(of["ssm_input"] / of["ssm_input/layer"])), _mb(of["ssm_input"]), _mb(of["map"]),
         f"{of['map'] / of['ssm_input']:.1%}", _mb(of["entries"]), f"{1 - of['entries'] / of['map']:.2%}",
         _mb(of["list"]), f"{of['saved_share']:.2%}", "0"]
        for name, of in found.items()
    ]  # fmt: skip
    room = capacity_for(asked.density)
    second = (
        f"The SSM input of all layers and a second scale, {place}, {asked.density:.2%} outliers (MB; the list of a"
        f" tile of {TILE_TOKENS} tokens and {TILE_CHANNELS} channels is its length and room for {room}"
        " places, 16 bits each; a full one takes its part of a map that stands by for a layer at a time)"
    )
    return [first, (second, heads, rows), *_measured(found, asked)]


def _measured(found: dict[str, dict[str, float]], asked: Asked) -> Lines:
    if not asked.measure:
        return []
    heads = [
        "model",
        "values",
        "computed map",
        "measured map",
        "computed list",
        "measured list",
        "full lists",
        "saved with their part of the map",
    ]
    rows = []
    for name, of in found.items():
        layers = of["ssm_input"] / of["ssm_input/layer"]
        sizes = (of["map"] / layers, of["measured/map"], of["list"] / layers, of["measured/list"])
        rows.append(
            [
                name,
                f"{of['ssm_input/layer']:,.0f}",
                *(f"{size:,.0f}" for size in sizes),
                f"{of['measured/full_share']:.2%}",
                f"{of['measured/saved_share']:.2%}",
            ]
        )
    return [(f"Side data of one layer, from made values, {asked.density:.2%} outliers (bytes)", heads, rows)]


def _mb(size: float) -> str:
    return f"{size / MB:,.2f}"


def markdown(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """One table with its title."""
    ruler = ["---" if index < 2 else "---:" for index in range(len(heads))]
    return "\n".join([f"{title}:", "", *(f"| {' | '.join(row)} |" for row in (heads, ruler, *rows))])


def _write_csv(path: Path, found: dict[str, dict[str, float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "name", "value"])
        writer.writerows((model, name, value) for model, of in found.items() for name, value in of.items())
