"""The real command, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SMALL = ("debug=fast", "ops=reference", "profiling=[memory]")
# Time is what two equal runs differ in.
TIMED = ("latency/", "memory/peak")


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HYDRA_"))}
    found = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**kept, "PYTHONPATH": found, "OMP_WAIT_POLICY": "passive", **more}


def line(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *arguments]


def run(command: Sequence[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=500, check=False
    )


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def results(study: Path) -> dict[str, dict[str, float]]:
    """Metrics that do not depend on time, by job id."""
    return {
        path.parent.name: {
            name: metric["value"]
            for name, metric in read(path)["metrics"].items()
            if not name.startswith(TIMED)
        }
        for path in (study / "jobs").glob("*/result.json")
    }


def statuses(study: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: read(path) for path in (study / "jobs").glob("*/status.json")}


def partial_files(study: Path) -> list[Path]:
    """Files that a write has not finished, or JSON that cannot be read."""
    found = [path for path in study.rglob(".*.json.*")]
    for path in study.rglob("*.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            found.append(path)
    return found
