"""The commands about quantized checkpoints: ``dualscale-mamba inspect`` and ``push``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Add both to the parser of ``python -m dualscale_mamba``.

    Args:
        commands: Its subparsers.
    """
    look = commands.add_parser(
        "inspect", help="what is inside a quantized checkpoint, and whether it is intact"
    )
    look.add_argument("folder", type=Path, help="what save=DIR wrote")
    look.set_defaults(run=show)
    send = commands.add_parser("push", help="upload a quantized checkpoint to the Hugging Face hub")
    send.add_argument("folder", type=Path, help="what save=DIR wrote")
    send.add_argument("repository", help="owner/name on the hub; made if there is none")
    send.add_argument("--private", action="store_true", help="make a new repository private")
    send.set_defaults(run=upload)


def show(options: argparse.Namespace) -> int:
    """Print the tables; 1 if the checkpoint is not as it was written."""
    from dualscale_mamba.report.inspection import inspect
    from dualscale_mamba.report.inspection import show as tables
    from dualscale_mamba.report.tables import console

    found = inspect(options.folder)
    console().print(tables(found), soft_wrap=False)
    return 1 if found.faults else 0


def upload(options: argparse.Namespace) -> int:
    """Upload, and print the address."""
    from dualscale_mamba.quantization.hub import push
    from dualscale_mamba.report.tables import console

    console().print(push(options.folder, options.repository, options.private), soft_wrap=True)
    return 0
