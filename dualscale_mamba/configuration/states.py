"""Rules of the group ``state`` that concern other groups; those of its own settings are in their constructor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dualscale_mamba.errors import ConfigError

STATE, OFF = "state", "UnquantizedState"
# Tasks that never make a step, so that no state would be encoded.
WITHOUT_STEPS = tuple(f"dualscale_mamba.tasks.{name}.run" for name in ("calibrate", "allocate", "fidelity"))


def is_encoded(plain: Mapping[str, Any]) -> bool:
    """Whether the state lies in codes between steps.

    Args:
        plain: A resolved configuration.
    """
    node = plain.get(STATE)
    return isinstance(node, Mapping) and str(node.get("_target_")).rpartition(".")[2] != OFF


def problems(plain: Mapping[str, Any]) -> Iterator[ConfigError]:
    """What of a configuration does not go with an encoded state.

    Args:
        plain: A resolved configuration.
    """
    if not is_encoded(plain):
        return
    model, task = plain["model"], str(plain["task"].get("_target_"))
    if model.get("state_dtype") != "float32":
        hint = "The codes are what is stored; or use state=unquantized."
        yield ConfigError(
            "model.state_dtype", model.get("state_dtype"), "float32 where the state is encoded", hint
        )
    if model.get("implementation") != "native":
        yield ConfigError(
            "model.implementation", model.get("implementation"), "native where the state is encoded",
            "Use state=unquantized.",
        )  # fmt: skip
    if task in WITHOUT_STEPS:
        name = task.split(".")[-2]
        yield ConfigError(
            "task", name, "ptq, generate or profile where the state is encoded: this one makes no steps",
            "Use state=unquantized.",
        )  # fmt: skip
