"""Makes the top-level folder ``sweeps/`` a configuration group, wherever the command is typed."""

from __future__ import annotations

from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


class FolderAsGroup(FileConfigSource):
    """A folder that appears as one group of its own name.

    A ``file://`` entry would have to name the folder's parent, and all folders there would be groups.
    """

    @staticmethod
    def scheme() -> str:
        """Prefix of such an entry in the search path."""
        return "group"

    def _inside(self, config_path: str) -> str | None:
        """The path below the folder, or None for what is not in this group."""
        name = Path(self.path).name
        if config_path == name:
            return ""
        return config_path.removeprefix(f"{name}/") if config_path.startswith(f"{name}/") else None

    def available(self) -> bool:
        """Whether the folder exists."""
        return Path(self.path).is_dir()

    def is_group(self, config_path: str) -> bool:
        """Whether there is such a group here."""
        inside = self._inside(config_path)
        return config_path == "" or (inside is not None and super().is_group(inside))

    def is_config(self, config_path: str) -> bool:
        """Whether there is such a file here."""
        inside = self._inside(config_path)
        return bool(inside) and super().is_config(str(inside))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Groups and files below ``config_path``."""
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else [Path(self.path).name]
        folder = Path(self.path) / (self._inside(config_path) or "")
        files = [path.stem for path in folder.glob("*.yaml")] if results_filter != ObjectType.GROUP else []
        groups = (
            [path.name for path in folder.iterdir() if path.is_dir()]
            if results_filter != ObjectType.CONFIG
            else []
        )
        return sorted(files + groups)

    def load_config(self, config_path: str) -> ConfigResult:
        """Read one file of the group."""
        return super().load_config(self._inside(config_path) or config_path)


class SweepsSearchPath(SearchPathPlugin):
    """Adds ``sweeps/`` of the repository to the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """See :class:`hydra.plugins.search_path_plugin.SearchPathPlugin`."""
        search_path.append("dualscale_mamba", f"{FolderAsGroup.scheme()}://{SWEEPS}")
