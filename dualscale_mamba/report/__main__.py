"""``python -m dualscale_mamba.report DIR``: write the comparison of a study again, from its files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dualscale_mamba.report.compare import write_comparison


def main() -> int:
    """Compare every run below the folders.

    Returns:
        0, or 1 where there is nothing to compare.
    """
    parser = argparse.ArgumentParser(prog="python -m dualscale_mamba.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a multirun, or any folder with runs below it")
    folder = parser.parse_args().folder
    if not write_comparison(folder):
        sys.stderr.write(f"{folder}: no folder below it has a status.json\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
