"""Rules of ``task=stress``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dualscale_mamba.configuration.allocation import counts
from dualscale_mamba.errors import ConfigError

TASK = "dualscale_mamba.tasks.stress.run"
LISTS = ("percentiles", "granularities", "calibrate")
GRANULARITIES = ("per_tensor", "per_channel")
SAME = "same"


def problems(plain: dict[str, Any]) -> Iterator[ConfigError]:
    """What keeps the trials from running.

    Args:
        plain: A resolved configuration.
    """
    task = plain["task"]
    if task.get("_target_") != TASK:
        return
    for key in LISTS:
        if not isinstance(task[key], list) or not task[key]:
            yield ConfigError(f"task.{key}", task[key], "a list with at least one element")
            return
    for key in ("formats", "observers"):
        if not (isinstance(task[key], list) or (key == "formats" and task[key] is None)):
            yield ConfigError(f"task.{key}", task[key], "a list")
            return
    yield from counts(task, ("channels",))  # tokens are those of every task
    for name in task["granularities"]:
        if name not in GRANULARITIES:
            yield ConfigError(
                "task.granularities", name, f"one of {', '.join(GRANULARITIES)} with task=stress"
            )
    if not isinstance(task["regimes"], dict) or not task["regimes"]:
        yield ConfigError("task.regimes", task["regimes"], "a map of names to settings of a regime")
        return
    for name in task["calibrate"]:
        if name != SAME and name not in task["regimes"]:
            yield ConfigError("task.calibrate", name, f"one of {SAME}, {', '.join(task['regimes'])}")
    from dualscale_mamba.data.synthetic import regimes_of

    try:
        regimes_of(task["regimes"])
    except ConfigError as error:
        yield error
