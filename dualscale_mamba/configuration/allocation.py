"""Rules of ``task=allocate``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.quantization.widths import WIDTHS

TASK = "dualscale_mamba.tasks.allocate.run"
BUDGETS = ("bits", "bytes", "latency")
CHOICES: dict[str, tuple[Any, ...]] = {
    "unit": ("layer", "block"),
    "latency": ("bytes", "measured"),
    "verify": (True, False),
}
LISTS = {"widths": WIDTHS, "outer": tuple(word for word in WIDTHS if word.endswith("a16"))}
COUNTS = ("windows", "length", "batch_size")


def problems(plain: dict[str, Any]) -> Iterator[ConfigError]:
    """What keeps an allocation from running.

    Args:
        plain: A resolved configuration.
    """
    task = plain["task"]
    if task.get("_target_") != TASK:
        return
    for key, allowed in CHOICES.items():
        if not any(task[key] is option or task[key] == option for option in allowed):
            yield ConfigError(f"task.{key}", task[key], f"one of {', '.join(map(_shown, allowed))}")
    for key, words in LISTS.items():
        yield from _list(f"task.{key}", task[key], words, may_be_empty=key == "outer")
    yield from counts(task, COUNTS)
    yield from _budget(task["budget"])
    if plain["model"].get("implementation") != "native":
        yield ConfigError(
            "model.implementation", plain["model"]["implementation"], "native with task=allocate"
        )


def counts(task: dict[str, Any], keys: tuple[str, ...]) -> Iterator[ConfigError]:
    """What is no whole number above 0 of a task's settings."""
    for key in keys:
        if not isinstance(task[key], int) or isinstance(task[key], bool) or task[key] < 1:
            yield ConfigError(f"task.{key}", task[key], "a whole number above 0")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _list(key: str, value: Any, words: tuple[str, ...], *, may_be_empty: bool) -> Iterator[ConfigError]:
    if not isinstance(value, list) or not (value or may_be_empty):
        yield ConfigError(key, value, f"a list of {', '.join(words)}")
        return
    for word in value:
        if word not in words:
            yield ConfigError(key, word, f"one of {', '.join(words)}")
        elif value.count(word) > 1:
            yield ConfigError(key, word, "each width once")
            return


def _budget(budget: Any) -> Iterator[ConfigError]:
    if not isinstance(budget, dict) or set(budget) - set(BUDGETS):
        yield ConfigError("task.budget", budget, f"{', '.join(BUDGETS)}, one of them a number")
        return
    given = {key: budget[key] for key in BUDGETS if budget.get(key) is not None}
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            yield ConfigError(f"task.budget.{key}", value, "a number above 0")
    if len(given) != 1:
        shown = ", ".join(f"{key}: {value}" for key, value in given.items()) or "null"
        hint = "Set the others to null, as in task.budget.bits=null task.budget.latency=0.7."
        yield ConfigError("task.budget", shown, f"exactly one of {', '.join(BUDGETS)}", hint)
