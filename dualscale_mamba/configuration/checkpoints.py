"""Folders as models: ``model=DIR`` composes, with the settings that a quantized checkpoint was made with.

A folder is an option of the group ``model``. Where it holds a quantized checkpoint of this package it is also one of
``precision``, ``scale_mode`` and the other groups that decided its content, so that the composed configuration says how
the model was quantized. What is typed still wins, and is refused afterwards if it says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.quantization.manifest import CONFIG, SETTINGS, Manifest, is_checkpoint, manifest_at

MODEL = "model"
# Settings that are groups; the others are plain nodes of conf/config.yaml.
GROUPS = tuple(name for name in SETTINGS if name != "quantize")
TYPES = ("dtype", "residual_dtype", "state_dtype")
# Keys of a setting that do not decide what a model becomes.
WITHOUT_EFFECT = {"calibration": ("cache",)}


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
        if group == MODEL:
            content, header = _composed(place, found), {"package": "_global_"}
        elif found is not None:
            content, header = found["settings"][group], {}
        else:
            raise ConfigLoadError(f"Config not found : {config_path}")
        made = OmegaConf.create(content)
        return ConfigResult(self.provider, f"{self.scheme()}://{place}", made, dict(header))


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
    }
    if found is None:
        return {MODEL: node}
    node |= {name: found[name] for name in TYPES}
    node["reference"] = (
        None  # the unquantized model, where its place is not the one that the checkpoint names
    )
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


def quantized(plain: Mapping[str, Any]) -> Manifest | None:
    """The manifest of the model's source, where that is a quantized checkpoint on this machine.

    Args:
        plain: A resolved configuration.

    Raises:
        CheckpointError: It is damaged, or of another version.
    """
    source = Path(str(plain[MODEL]["source"])).expanduser()
    return manifest_at(source) if is_checkpoint(source) else None


def contradictions(plain: Mapping[str, Any], found: Manifest) -> Iterator[ConfigError]:
    """What a configuration says otherwise than the checkpoint that it names; the first of each part."""
    source = plain[MODEL]["source"]
    hint = "A checkpoint runs as it was saved: quantize its source again for other settings."
    for name, stored in found["settings"].items():
        for key, value, was in _differences(name, plain.get(name), stored):
            yield ConfigError(key, value, f"{_shown(was)}, with which {source} was quantized", hint)
            break
    for name in TYPES:
        value = plain[MODEL].get(name)
        if value not in (found[name], "auto"):
            yield ConfigError(
                f"{MODEL}.{name}", value, f"{found[name]}, in which {source} was saved",
                "Its logits are those of that type; quantize its source again in another one.",
            )  # fmt: skip
    if plain[MODEL].get("implementation") != "native":
        yield ConfigError(
            "model.implementation", plain[MODEL].get("implementation"), f"native: {source} is quantized"
        )


def _differences(key: str, value: Any, stored: Any) -> Iterator[tuple[str, Any, Any]]:
    """Keys of a setting whose values are not the stored ones, names of files and of classes first."""
    if not (isinstance(value, Mapping) and isinstance(stored, Mapping)):
        if value != stored:
            yield key, value, stored
        return
    ignored = WITHOUT_EFFECT.get(key, ())
    for name in ("name", "_target_"):
        if value.get(name) != stored.get(name):
            given, was = (str(node.get(name)).rpartition(".")[2] for node in (value, stored))
            yield key, given, was
            return
    for name in sorted({*value, *stored} - set(ignored)):
        yield from _differences(f"{key}.{name}", value.get(name), stored.get(name))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
