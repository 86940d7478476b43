"""What scale modes that need more than a code ask of a recipe."""

from __future__ import annotations

from collections.abc import Iterable

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.sites import PAIRED

WITH_SELECTORS = ("decoded", "conv_output")


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
        name = type(mode).__name__.lower()
        hint = f"{key} {name} chooses a scale for each channel, or for each group of them."
        raise ConfigError("granularity", granularity, "per_channel or per_group", hint)


def check_selectors(mode: object, sites: Iterable[str], family: str, x_proj_reads: str, key: str) -> None:
    """Refuse selectors beside codes where an operator would have to read codes alone.

    Args:
        mode: Of some sites.
        sites: Their short names.
        family: A key of ``SITES``.
        x_proj_reads: As configured.
        key: Of the mode in the configuration, for the message.

    Raises:
        ConfigError: Naming the site, or what x_proj may read.
    """
    if not getattr(mode, "has_side_data", False):
        return
    name = type(mode).__name__.lower()
    for site in sites:
        if site not in PAIRED[family]:
            hint = "No other operator reads the selectors; use a scale mode of eight bits."
            raise ConfigError(key, f"{name} at site {site}", f"{name} at ssm_input of a mamba1 model", hint)
        if x_proj_reads not in WITH_SELECTORS:
            hint = f"The product of x_proj cannot take codes with selectors beside them, as {name} has."
            raise ConfigError("precision.x_proj_reads", x_proj_reads, " or ".join(WITH_SELECTORS), hint)
