"""Where a result comes from: versions, hardware, the state of the repository, content of the kernels."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import dualscale_mamba

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch",
    "numpy",
    "hydra-core",
    "omegaconf",
    "lm-eval",
    "wandb",
    "safetensors",
    "tokenizers",
    "mamba-ssm",
)
NUMERICS = (
    "data",
    "evaluation",
    "formats",
    "models",
    "observers",
    "ops",
    "profiling",
    "quantization",
    "rounding",
    "states",
)


def describe(device: str) -> dict[str, Any]:
    """Facts about this machine and this installation.

    Args:
        device: The device of the run, e.g. ``cuda:0``.

    Returns:
        A mapping of plain values, ready for JSON.
    """
    import torch

    return {
        "package": dualscale_mamba.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "driver": _driver() if device.startswith("cuda") else None,
        "libraries": _versions(),
        "git": _git(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


@cache
def kernel_hash() -> str | None:
    """SHA-256 over the kernel sources, or None where they are not installed."""
    folder = ROOT / "csrc"
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".h", ".cuh", ".cpp", ".cu"))
    return _content(folder, files) if files else None


@cache
def numerics_hash() -> str:
    """SHA-256 over the Python sources that decide a result: a changed formula shall not pass for the old one."""
    folder = Path(__file__).resolve().parent
    files = [folder / f"{name}.py" for name in ("granularity", "sites")]
    files += [path for name in NUMERICS for path in (folder / name).rglob("*.py")]
    return _content(folder, sorted(files))


def _content(folder: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"\0{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@cache
def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, platform.processor() or platform.machine())


@cache
def _driver() -> str | None:
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader,nounits")


@cache
def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any]:
    sha = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    dirty = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return {"sha": sha, "dirty": None if sha is None else bool(dirty)}


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
