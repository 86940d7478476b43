"""Rules of ``task=fidelity``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dualscale_mamba.configuration.allocation import counts
from dualscale_mamba.errors import ConfigError

TASK = "dualscale_mamba.tasks.fidelity.run"
OBJECTIVES = ("mse", "output", "kl", None)
LISTS = ("formats", "percentiles", "granularities")
COUNTS = ("candidates", "windows", "length", "batch_size")


def problems(plain: dict[str, Any]) -> Iterator[ConfigError]:
    """What keeps a study of formats from running.

    Args:
        plain: A resolved configuration.
    """
    task = plain["task"]
    if task.get("_target_") != TASK:
        return
    for key in LISTS:
        if not isinstance(task[key], list) or not task[key]:
            yield ConfigError(f"task.{key}", task[key], "a list with at least one element")
    yield from counts(task, COUNTS)
    if task["objective"] not in OBJECTIVES:
        yield ConfigError("task.objective", task["objective"], "one of mse, output, kl, null")
    for key in ("verify", "drift"):
        if not isinstance(task[key], bool):
            yield ConfigError(f"task.{key}", task[key], "one of true, false")
    if plain["model"].get("implementation") != "native":
        name = plain["model"]["implementation"]
        yield ConfigError("model.implementation", name, "native with task=fidelity")
    if str(plain["scale_mode"].get("_target_")).endswith(".Unquantized"):
        yield ConfigError("scale_mode", "fp16", "a format, for task=fidelity proposes settings of it")
