"""``dualscale-mamba memory``: its options; what it does is in :mod:`dualscale_mamba.profiling.table`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Make ``memory`` a command."""
    parser = commands.add_parser(
        "memory",
        help="bytes of published models at several widths, and of the side data of a second scale; nothing is loaded",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="e.g. mamba-130m mamba2-2.7b, or folders with a config.json",
    )
    parser.add_argument("--batch", type=int, default=1, help="sequences")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a sequence")
    parser.add_argument(
        "--density",
        type=float,
        default=0.001,
        help="share of the SSM input beyond the threshold; 0.001 is 0.1 %%",
    )
    parser.add_argument("--measure", action="store_true", help="also make the side data and count its bytes")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every number there, in bytes")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.set_defaults(run=show_memory)


def show_memory(options: argparse.Namespace) -> int:
    """Print the table of published models."""
    from dualscale_mamba.profiling.table import MODELS, Asked, show

    models = tuple(options.models or MODELS)
    asked = Asked(models, options.batch, options.length, options.density, options.measure)
    show(asked, options.csv, options.markdown)
    return 0
