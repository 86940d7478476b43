"""A threshold for each layer, and whatever else of the scale mode suits it: what ``task=fidelity`` proposes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import ScaleMode
from dualscale_mamba.observers.base import Fitted
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.observers.percentile import Percentile

PERCENTILE = "percentile"


@dataclass(frozen=True)
class Chosen:
    """A percentile, and settings of the scale mode in place of its own.

    Args:
        percentile: In (50, 100].
        settings: By the names of the scale mode's fields, e.g. ``fine_codes``.
    """

    percentile: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Percentile(self.percentile)  # refuses what is out of range

    def fit(self, histogram: Histogram, floor: float | None, mode: ScaleMode) -> Fitted:
        """See :class:`~dualscale_mamba.observers.base.Observer`."""
        return Percentile(self.percentile).fit(histogram, floor, self.mode(mode))

    def mode(self, mode: ScaleMode) -> ScaleMode:
        """The scale mode with these settings.

        Raises:
            ConfigError: It has no such setting, or refuses the value.
        """
        if not self.settings or not is_dataclass(mode):
            return mode
        known = [each.name for each in fields(mode) if each.init]
        for key in self.settings:
            if key not in known:
                name = type(mode).__name__.lower()
                allowed = ", ".join([PERCENTILE, *known])
                raise ConfigError(key, self.settings[key], f"one of {allowed} with scale_mode={name}")
        changed: Any = replace(mode, **self.settings)
        made: ScaleMode = changed
        return made


@dataclass(frozen=True)
class PerLayer:
    """An observer for each site by its full name.

    Args:
        sites: By full name, e.g. ``layers.3.mixer.ssm_input``: ``percentile``, and settings of the scale mode.
        percentile: Of sites that are not named, in (50, 100].
    """

    sites: Mapping[str, Mapping[str, Any]]
    percentile: float = 99.0

    def __post_init__(self) -> None:
        Percentile(self.percentile)
        for site, settings in self.sites.items():
            if not isinstance(settings, Mapping):
                allowed = "settings such as {percentile: 99.0, fine_codes: 160}"
                raise ConfigError(f"observer.sites.{site}", settings, allowed)
            with _named(site):
                self.at(site)

    def at(self, site: str) -> Chosen:
        """The observer of a site by its full name."""
        settings = dict(self.sites.get(site, {}))
        return Chosen(settings.pop(PERCENTILE, self.percentile), settings)

    def check(self, mode: ScaleMode) -> None:
        """Refuse settings that the scale mode does not have.

        Raises:
            ConfigError: Naming the site.
        """
        for site in self.sites:
            with _named(site):
                self.at(site).mode(mode)

    def fit(self, histogram: Histogram, floor: float | None, mode: ScaleMode) -> Fitted:
        """As for a site that is not named."""
        return Percentile(self.percentile).fit(histogram, floor, mode)


@contextmanager
def _named(site: str) -> Iterator[None]:
    """Errors inside the block name the site."""
    try:
        yield
    except ConfigError as error:
        key = f"observer.sites.{site}.{error.key.rpartition('.')[2]}"
        raise ConfigError(key, error.value, error.allowed) from None
