"""Names of sites in a configuration: ``z`` in every layer, ``layers.3.z`` in one, ``all``, and ``-z`` without it.

    [-] [layers.LAYER.] NAME        LAYER and NAME as in file names, with *, ? and [abc]; NAME may be ``all``

A list is read from left to right and the last name that fits a site decides. A list that begins with an exclusion
begins with all sites.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.sites import ALL_SITES, SITES

if TYPE_CHECKING:
    from dualscale_mamba.formats.base import ScaleMode
    from dualscale_mamba.formats.unquantized import Unquantized
    from dualscale_mamba.observers.base import Observer

EVERY = "*"
_WRITTEN = re.compile(
    r"(?P<out>-?)(?:layers\.(?P<layer>[^.]+)(?:\.mixer)?(?:\.(?P<inside>[^.]+))?|(?P<name>[^.]+))"
)
_FULL = re.compile(r"layers\.(?P<layer>\d+)\.mixer\.(?P<name>[^.]+)")


@dataclass(frozen=True)
class SiteFormat:
    """A format for some sites in place of the one that they would have.

    Attributes:
        mode: How their codes are spent; `Unquantized` leaves them in floating point.
        observer: Where their thresholds lie; None for the observer that they would have.
    """

    mode: ScaleMode | Unquantized
    observer: Observer | None = None


@dataclass(frozen=True)
class SitePattern:
    """One name of a list.

    Attributes:
        layer: Pattern of the layer's number.
        name: Pattern of the site's short name.
        excludes: Whether it takes sites out.
    """

    layer: str
    name: str
    excludes: bool = False

    @classmethod
    def of(cls, text: str) -> SitePattern | None:
        """The pattern that a text says; None where it says none."""
        found = _WRITTEN.fullmatch(text)
        if found is None:
            return None
        name = found["name"] or found["inside"] or EVERY
        return cls(found["layer"] or EVERY, EVERY if name == ALL_SITES else name, bool(found["out"]))

    def has(self, site: str) -> bool:
        """Whether a site, by its full name, fits."""
        found = _FULL.fullmatch(site)
        return found is not None and fnmatchcase(found["layer"], self.layer) and self.names(found["name"])

    def names(self, short: str) -> bool:
        """Whether a site, by its short name, fits in some layer."""
        return fnmatchcase(short, self.name)


def within(names: Iterable[str], layers: Sequence[int] | None) -> tuple[str, ...]:
    """Names that say no layer, said of some layers alone; what says one is left as it is.

    Args:
        names: As in a configuration.
        layers: Numbers, or None for every layer.
    """
    if layers is None:
        return tuple(names)
    made: list[str] = []
    for name in names:
        sign, bare = ("-", name[1:]) if name.startswith("-") else ("", name)
        if bare.startswith("layers."):
            made.append(name)
            continue
        if sign and not made:  # it begins with all sites, which are those of these layers
            made += [f"layers.{layer}" for layer in layers]
        made += [f"{sign}layers.{layer}.{bare}" for layer in layers]
    return tuple(made)


def contains(names: Sequence[str], site: str) -> bool:
    """Whether a list of valid names has a site, by its full name, e.g. ``layers.3.mixer.z``."""
    patterns = _patterns(names)
    decided = [pattern for pattern in patterns if pattern.has(site)]
    return not decided[-1].excludes if decided else _begins_with_all(patterns)


def occurs(names: Sequence[str], short: str) -> bool:
    """Whether a list of valid names may have a site, by its short name, in some layer."""
    patterns = _patterns(names)
    is_in = _begins_with_all(patterns)
    for pattern in patterns:
        if pattern.names(short) and not (pattern.excludes and pattern.layer != EVERY):
            is_in = not pattern.excludes
    return is_in


def format_at(formats: Mapping[str, SiteFormat], site: str) -> SiteFormat | None:
    """The format of the last name that fits a site, by its full name."""
    return next((formats[text] for text in reversed(tuple(formats)) if contains((text,), site)), None)


def check_names(names: Iterable[str], family: str, key: str) -> None:
    """Refuse a name that no site of a family has.

    Args:
        names: As in a configuration.
        family: A key of ``SITES``.
        key: Of the configuration, for the message.

    Raises:
        ConfigError: Naming the first of them, and what is allowed.
    """
    for text in names:
        pattern = SitePattern.of(str(text))
        if pattern is None or not any(pattern.names(short) for short in SITES[family]):
            raise ConfigError(
                key, text, f"one of {', '.join(SITES[family])} in a {family} model",
                "Or all, a pattern such as layers.3.* or *_input, and -NAME for all but that.",
            )  # fmt: skip


def check_places(names: Iterable[str], sites: Sequence[str], key: str) -> None:
    """Refuse a name that fits no site of a model: it has no such layer.

    Args:
        names: Valid for the family.
        sites: Full names of all sites of the model.
        key: Of the configuration, for the message.

    Raises:
        ConfigError: Naming the first of them, and the layers that there are.
    """
    numbers = [int(found["layer"]) for found in map(_FULL.fullmatch, sites) if found]
    for text in names:
        pattern = SitePattern.of(text)
        if numbers and pattern is not None and not any(pattern.has(site) for site in sites):
            raise ConfigError(key, text, f"a layer in 0 to {max(numbers)}, those of this model")


def check_floor(mode: ScaleMode | Unquantized, shorts: Iterable[str], family: str, key: str) -> None:
    """Refuse a mode that needs a floor at a site without one.

    Args:
        mode: Of the sites.
        shorts: Their short names.
        family: A key of ``SITES``.
        key: Of the configuration, for the message.

    Raises:
        ConfigError: Naming the first of them, and the sites with a floor.
    """
    if not getattr(mode, "needs_floor", False):
        return
    for site in shorts:
        if not SITES[family][site]:
            name = type(mode).__name__.lower()
            floored = ", ".join(s for s, floor in SITES[family].items() if floor)
            raise ConfigError(
                key, f"{name} at site {site}", f"{name} only where values have a floor ({floored})",
                "Use scale_mode=dual_symmetric for the others.",
            )  # fmt: skip


def _patterns(names: Sequence[str]) -> list[SitePattern]:
    found = (SitePattern.of(text) for text in names)
    return [pattern for pattern in found if pattern is not None]


def _begins_with_all(patterns: Sequence[SitePattern]) -> bool:
    return bool(patterns) and patterns[0].excludes
