"""Folders as models: ``model=DIR`` composes, with the settings that a quantized checkpoint was made with.

A folder is an option of the group ``model``. Where it holds a quantized checkpoint of this package it is also one of
``precision``, ``scale_mode`` and the other groups that decided its content, so that the composed configuration says how
the model was quantized. What is typed still wins, and is refused afterwards if it says otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from dualscale_mamba.quantization.manifest import CONFIG, SETTINGS, Manifest, manifest_at

MODEL = "model"
# Settings that are groups; the others are plain nodes of conf/config.yaml.
GROUPS = tuple(name for name in SETTINGS if name != "quantize")
TYPES = ("dtype", "residual_dtype", "state_dtype")


class FolderAsOption(ConfigSource):
    """Answers for ``model/PATH``, and for ``precision/PATH`` and the like where PATH is a quantized checkpoint."""

    @staticmethod
    def scheme() -> str:
        """Prefix of such an entry in the search path."""
        return "folders"

    def available(self) -> bool:
        """Always."""
        return True

    def is_group(self, config_path: str) -> bool:
        """It adds no groups."""
        return False

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Nothing: folders are typed."""
        return []

    def is_config(self, config_path: str) -> bool:
        """Whether the path is that of a folder with a model, or at least looks like one."""
        group, _, place = config_path.partition("/")
        if group == MODEL:
            return is_place(place)
        return group in GROUPS and place != "" and manifest_at(Path(place)) is not None

    def load_config(self, config_path: str) -> ConfigResult:
        """The model's node and, of a quantized checkpoint, all others, or one group's node alone."""
        group, _, place = config_path.partition("/")
        found = manifest_at(Path(place))
        package = None
        if group == MODEL:
            content, package = _composed(place, found), "_global_"
        elif found is not None:
            content = found["settings"][group]
        else:
            raise ConfigLoadError(f"Config not found : {config_path}")
        made = OmegaConf.create(content)
        return ConfigResult(self.provider, f"{self.scheme()}://{place}", made, {"package": package})


class FoldersSearchPath(SearchPathPlugin):
    """Lets folders follow the options that have a file."""

    def manipulate_search_path(self, search_path: Any) -> None:
        """See :class:`hydra.plugins.search_path_plugin.SearchPathPlugin`."""
        search_path.append("dualscale_mamba", f"{FolderAsOption.scheme()}://")


def is_place(name: str) -> bool:
    """Whether the name of a model stands for a folder: it has a slash, or a ``config.json`` lies there."""
    return "/" in name or (name != "" and (Path(name) / CONFIG).is_file())


def _composed(place: str, found: Manifest | None) -> dict[str, Any]:
    """What ``model=PLACE`` adds to the configuration."""
    node: dict[str, Any] = {
        "name": Path(place).name or Path(place).absolute().name,
        "family": family_of(Path(place)) if found is None else found["family"],
        "source": place,
        "revision": None,
        "implementation": "native",
        "dtype": "auto",
        "residual_dtype": "float32",
        "state_dtype": "float32",
        "reference": None,  # the unquantized model, where it lies elsewhere than a checkpoint says
    }
    if found is None:
        return {MODEL: node}
    node |= {name: found[name] for name in TYPES}
    settings = found["settings"]
    plain = {name: settings[name] for name in settings if name not in GROUPS}
    served = [{f"override /{name}": place} for name in GROUPS if name in settings]
    return {"defaults": ["_self_", *served], MODEL: node, **plain}


def family_of(folder: Path) -> str:
    """The family that a ``config.json`` in either layout names; mamba1 where none can be read."""
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        layer = (raw.get("ssm_cfg") or {}).get("layer")
    except (OSError, ValueError, AttributeError):
        return "mamba1"
    return "mamba2" if raw.get("model_type") == "mamba2" or layer == "Mamba2" else "mamba1"


def option_name(group: str, option: str) -> str:
    """What an option is called: a folder by its name, or as the file that was chosen when it was quantized."""
    if not is_place(option):
        return option
    if group == MODEL:
        return Path(option).absolute().name
    found = manifest_at(Path(option)) if group in GROUPS else None
    return option if found is None else str(found["choices"].get(group, option))
