"""What scale modes that need more than a code ask of a recipe."""

from __future__ import annotations

from collections.abc import Iterable

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.sites import PAIRED


def check_channels(mode: object, granularity: str, key: str) -> None:
    """Refuse a mode whose scales are chosen by channels where a tensor has one code.

    Args:
        mode: Of some sites.
        granularity: Of these sites, by name.
        key: Of the mode in the configuration, for the message.

    Raises:
        ConfigError: Saying which granularity is needed.
    """
    if getattr(mode, "needs_channels", False) and granularity == "per_tensor":
        hint = f"{key}={_name_of(mode)} chooses a scale for each channel, or for each group of them."
        raise ConfigError("granularity", granularity, "per_channel or per_group", hint)


def check_selectors(mode: object, sites: Iterable[str], family: str, key: str) -> None:
    """Refuse selectors beside codes where the operators that follow cannot read them.

    Args:
        mode: Of some sites.
        sites: Their short names.
        family: A key of ``SITES``.
        key: Of the mode in the configuration, for the message.

    Raises:
        ConfigError: Naming the site.
    """
    if not getattr(mode, "has_side_data", False):
        return
    name = _name_of(mode)
    for site in sites:
        if site not in PAIRED[family]:
            allowed = "; ".join(f"{name} at {', '.join(own)} of {one}" for one, own in PAIRED.items() if own)
            hint = (
                "No other operator reads selectors beside codes. Use scale_mode=dual or dual_symmetric, whose codes say"
                " themselves which scale they have."
            )
            raise ConfigError(key, f"{name} at site {site}", allowed, hint)


def _name_of(mode: object) -> str:
    """The mode as it is typed: a file of the configuration has the name of the module."""
    return type(mode).__module__.rpartition(".")[2]
