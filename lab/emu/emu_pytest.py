"""Runs a tree's own operator tests through the emulated CUDA kernels (their "cpu" cases).

    cd YOUR_TREE; EMU_SOURCES="conv*.cu elementwise.cu" EMU_OPTIONS="seed=3 async=2" PYTHONPATH=.:lab/emu \\
        python -m pytest -p emu_pytest tests/ops/test_ops_conv.py -k cpu
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import emu
import torch


def pytest_configure(config) -> None:
    torch.set_num_threads(1)
    from dualscale_mamba.ops import dispatch

    tree = Path(dispatch.__file__).resolve().parents[2]
    sources = os.environ.get("EMU_SOURCES", "").split()
    emulated = emu.load(tree, sources or None)
    emu.options(**{name: int(value) for name, _, value in (each.partition("=") for each in os.environ.get("EMU_OPTIONS", "").split())})
    dispatch._compiled.update({name: getattr(emulated, name) for name in emulated})
    dispatch._loaded.add("cpu")
    emu._log(f"operators of {tree} run emulated")
