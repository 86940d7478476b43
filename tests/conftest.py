"""Fixtures that every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn; CUDA is skipped, aloud, where there is none."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Checkpoints with golden outputs and third-party evaluation data, which the project does not ship."""
    path = Path(os.environ.get("DUALSCALE_SHARED", ROOT.parent / "shared"))
    if not (path / "checkpoints").is_dir():
        pytest.skip(
            f"no checkpoints at {path}: set DUALSCALE_SHARED to the folder that holds checkpoints/ and data/"
        )
    return path
