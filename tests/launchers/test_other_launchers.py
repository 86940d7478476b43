"""joblib, submitit and Ray run the jobs in workers that never saw ``run.py``; the results are those of one process."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, contents, ended, starting

from dualscale_mamba.configuration.launchers import EXTRAS, missing_extra

REAL = ("-m", "debug=fast", "ops=reference", "profiling=[memory]", "scale_mode=single,dual,affine")
LAUNCHERS = {
    "joblib": ("joblib", "hydra.launcher.n_jobs=2"),
    "submitit_local": ("submitit",),
    "ray": ("ray", "+hydra.launcher.ray.init.num_cpus=2"),
    "isolated": ("hydra", "hydra.launcher.processes=2"),
}


def measured(folder: Path) -> list[tuple[Any, ...]]:
    """What must not depend on the launcher, of each job."""
    results = contents(folder, "result.json")
    return [(r["id"], r["name"], r["number"], r["overrides"], r["metrics"], r["sites"]) for r in results]


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """The jobs, all in one process."""
    folder = tmp_path_factory.mktemp("basic")
    code, _, err = ended(starting(folder)(*REAL))
    assert code == 0, err
    return measured(folder)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_same_results_as_in_one_process(
    start: Command, tmp_path: Path, launcher: str, basic: list[tuple[Any, ...]]
) -> None:
    package, *settings = LAUNCHERS[launcher]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    # Ray leaves files in the home folder.
    code, out, err = ended(start(*REAL, f"hydra/launcher={launcher}", *settings, HOME=str(tmp_path)))
    assert code == 0, out + err
    assert len(basic) == 3
    assert measured(tmp_path / "outputs") == basic
    assert list((tmp_path / "outputs").rglob("comparison.md"))


def test_launcher_that_is_not_installed_is_one_sentence(start: Command) -> None:
    if importlib.util.find_spec("ray") is not None:
        pytest.skip("ray is installed")
    code, _, err = ended(start("-m", "hydra/launcher=ray", "scale_mode=single,dual"))
    assert code == 1
    assert err.strip().splitlines() == [missing_extra("hydra/launcher", "ray")]
    assert "dualscale_mamba[ray]" in err


def test_other_options_have_no_extra() -> None:
    assert missing_extra("hydra/launcher", "local_gpu") is None
    assert missing_extra("model", "joblib") is None
    assert {missing_extra("hydra/launcher", name) for name in EXTRAS}.isdisjoint({None})
