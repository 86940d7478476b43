from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dualscale_mamba import ops
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import ASSETS, Pretrained, load_pretrained


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    """Most inputs here are short: the readable operators do, and nothing needs to be built."""
    with ops.implementation("reference"):
        yield


@pytest.fixture(scope="session")
def tiny() -> Pretrained:
    return load_pretrained("embedded:mamba1-tiny")


@pytest.fixture(scope="session")
def tiny2() -> Pretrained:
    return load_pretrained("embedded:mamba2-tiny")


@pytest.fixture
def small() -> MambaLM:
    model = load_pretrained("random:tiny").model
    assert isinstance(model, MambaLM)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint that a test may damage."""
    return Path(shutil.copytree(ASSETS / "mamba1-tiny", tmp_path / "checkpoint"))
