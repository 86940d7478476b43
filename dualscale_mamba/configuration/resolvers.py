"""The few functions that configuration files may call in an interpolation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import Container, ListConfig, OmegaConf

from dualscale_mamba.configuration.folders import option_name

# Name of a study that is not stored but typed.
TYPED_STUDY = "multirun"


def _choices(root: Container | None) -> dict[str, Any]:
    """Chosen file of each group; Hydra's node is in the config while composing, and apart in a job."""
    chosen: Any = OmegaConf.select(root, "hydra.runtime.choices") if root is not None else None
    if chosen is None and HydraConfig.initialized():
        chosen = HydraConfig.get().runtime.choices
    return chosen_options(chosen or {})


def chosen_options(choices: Mapping[Any, Any]) -> dict[str, Any]:
    """The option of each group that is not Hydra's own; what a quantized checkpoint set is named as when it was made.

    Args:
        choices: ``hydra.runtime.choices``.

    Returns:
        A name by group, a list of names where several files were chosen, or None.
    """
    ours = {str(group): option for group, option in choices.items() if not str(group).startswith("hydra")}
    return {group: _plain(group, option) for group, option in ours.items()}


def _plain(group: str, option: Any) -> Any:
    if isinstance(option, (list, tuple, ListConfig)):
        return [str(name) for name in option]
    return option_name(group, option) if isinstance(option, str) else option


def choice(group: str, *, _root_: Container) -> str:
    """Name of the file that was chosen in ``group``; of a list the names joined by a plus."""
    chosen = _choices(_root_).get(group)
    if isinstance(chosen, (list, tuple, ListConfig)):
        return "+".join(str(name) for name in chosen)
    return "none" if chosen in (None, "null") else str(chosen).replace("/", "-")


def sweep_name(*, _root_: Container) -> str:
    """Name of the stored study, or ``multirun`` for one that was typed."""
    name = choice("sweeps", _root_=_root_)
    return TYPED_STUDY if name == "none" else name


def register() -> None:
    """Make ``${choices:GROUP}``, ``${sweep_name:}`` and ``${home:}`` known."""
    OmegaConf.register_new_resolver("choices", choice, replace=True)
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("home", lambda: str(Path.home()), replace=True)
