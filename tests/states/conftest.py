from __future__ import annotations

from collections.abc import Iterator

import pytest

from dualscale_mamba import ops


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    """The readable operators, where a test does not ask for others."""
    with ops.implementation("reference"):
        yield
