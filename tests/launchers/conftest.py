"""The real command, and a task that takes no time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Stands for a task: notes where it ran. Seeds give it a part: 13 is killed, 17 waits until all others have begun.
PROBE = """
import json, os, signal, time
from pathlib import Path
from dualscale_mamba.tasks.record import RunFolder

def run(config):
    folder = Path(config.paths.run)
    seen = {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid(), "seed": config.seed}
    (folder / "seen.json").write_text(json.dumps(seen))
    if config.seed == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    while config.seed == 17 and len(list(folder.parent.glob("*/seen.json"))) < int(config.tags[0]):
        time.sleep(0.05)
    metrics = {"perplexity/none/nll": {"value": float(config.seed), "unit": "", "better": "lower"}}
    result = {"task": "probe", "metrics": metrics, "environment": {"command": ["run.py"]}}
    RunFolder.of(config).write_result(result)
"""
Command = Callable[..., "subprocess.Popen[str]"]


def starting(folder: Path) -> Command:
    """Starts ``python run.py ARGUMENTS`` in a folder where ``task._target_=probe.run`` exists."""
    (folder / "probe.py").write_text(PROBE)
    hidden = ("WANDB_", "HYDRA_", "CUDA_VISIBLE_DEVICES")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}

    found = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])

    def start(*arguments: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *arguments],
            cwd=folder,
            env={**environment, "PYTHONPATH": found, "OMP_NUM_THREADS": "1", **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def start(tmp_path: Path) -> Command:
    """The command in an empty folder."""
    return starting(tmp_path)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, standard output and errors."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def contents(folder: Path, name: str) -> list[dict[str, Any]]:
    """All files of a name in the jobs of a study, by the job's number."""
    found = [path for path in folder.rglob(name) if path.parent.parent.name == "jobs"]
    ranked = sorted(found, key=lambda path: json.loads((path.parent / "status.json").read_text())["number"])
    return [json.loads(path.read_text()) for path in ranked]
