"""The recipe: what becomes int8, where, and how its codes are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import ScaleMode
from dualscale_mamba.formats.single import Single
from dualscale_mamba.formats.unquantized import Unquantized
from dualscale_mamba.granularity import Granularity, PerTensor
from dualscale_mamba.observers.absmax import AbsMax
from dualscale_mamba.observers.base import Observer
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.sites import MAMBA1_SITES

LINEAR_INPUT_SCALES = ("static", "per_token")
X_PROJ_READERS = ("codes", "conv_output")


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    Args:
        weights_bits: 8, or None to leave weights as they are.
        activation_bits: 8, or None to leave activations as they are.
        sites: Sites that become int8.
        scale_mode: How the codes of ``scale_mode_sites`` are spent.
        observer: Where their thresholds lie.
        granularity: How many codes they have.
        scale_mode_sites: Sites that carry ``scale_mode``; the others carry `single`.
        activation_observer: Where the thresholds of the other sites lie.
        overrides: Observers for single sites in place of ``activation_observer``.
        linear_input_scale: ``static`` (calibrated) or ``per_token``, for in_proj_input and out_proj_input.
        rotate: Whether out_proj's input is rotated by a Hadamard transform.
        x_proj_reads: ``codes`` (what deployment stores) or ``conv_output`` (isolates the scan).
    """

    weights_bits: int | None = 8
    activation_bits: int | None = 8
    sites: tuple[str, ...] = tuple(MAMBA1_SITES)
    scale_mode: ScaleMode | Unquantized = field(default_factory=Single)
    observer: Observer = field(default_factory=lambda: Percentile(99.99))
    granularity: Granularity = field(default_factory=PerTensor)
    scale_mode_sites: tuple[str, ...] = ("ssm_input",)
    activation_observer: Observer = field(default_factory=AbsMax)
    overrides: Mapping[str, Observer] = field(default_factory=lambda: {"out_proj_input": Percentile(99.99)})
    linear_input_scale: str = "static"
    rotate: bool = True
    x_proj_reads: str = "codes"

    def __post_init__(self) -> None:
        for key, names in (("sites", self.sites), ("scale_mode_sites", self.scale_mode_sites)):
            for name in names:
                if name not in MAMBA1_SITES:
                    raise ConfigError(f"precision.{key}", name, "one of " + ", ".join(MAMBA1_SITES))
        for key, bits in (("weights", self.weights_bits), ("activations", self.activation_bits)):
            if bits not in (8, None):
                raise ConfigError(f"precision.{key}.bits", bits, "8 or null")
        if self.linear_input_scale not in LINEAR_INPUT_SCALES:
            raise ConfigError("precision.linear_input_scale", self.linear_input_scale, "static or per_token")
        if self.x_proj_reads not in X_PROJ_READERS:
            raise ConfigError("precision.x_proj_reads", self.x_proj_reads, "codes or conv_output")
        if self.linear_input_scale == "per_token" and "out_proj_input" in self.sites and not self.rotate:
            raise ConfigError("precision.rotate", False, "true with precision.linear_input_scale=per_token")
        self._check_modes()

    def _check_modes(self) -> None:
        mode = self.scale_mode
        if isinstance(mode, Unquantized):
            return
        name = type(mode).__name__.lower()
        for site in self.scale_mode_sites:
            if mode.needs_floor and not MAMBA1_SITES[site]:
                floored = ", ".join(s for s, has_floor in MAMBA1_SITES.items() if has_floor)
                raise ConfigError(
                    "scale_mode", f"{name} at site {site}", f"{name} only where values have a floor ({floored})",
                    "Use scale_mode=dual_symmetric for the others.",
                )  # fmt: skip
            if self.granularity.name != "per_tensor" and site != "ssm_input":
                raise ConfigError(
                    "granularity", f"{self.granularity.name} at site {site}", "per_tensor at this site"
                )

    @property
    def quantizes_activations(self) -> bool:
        """Whether any site becomes int8."""
        return self.activation_bits is not None and bool(self.active_sites)

    @property
    def active_sites(self) -> tuple[str, ...]:
        """Sites that become int8, in the order of the data flow."""
        if self.activation_bits is None:
            return ()
        off = self.scale_mode_sites if isinstance(self.scale_mode, Unquantized) else ()
        return tuple(s for s in MAMBA1_SITES if s in self.sites and s not in off)

    def mode_of(self, site: str) -> ScaleMode:
        """The scale mode that ``site`` carries."""
        if site in self.scale_mode_sites and not isinstance(self.scale_mode, Unquantized):
            return self.scale_mode
        return Single()

    def observer_of(self, site: str) -> Observer:
        """The observer of ``site``."""
        if site in self.scale_mode_sites:
            return self.observer
        return self.overrides.get(site, self.activation_observer)

    def groups_of(self, site: str, channels: int) -> int:
        """Number of codes of ``site``."""
        return self.granularity.groups(channels) if site in self.scale_mode_sites else 1

    def is_per_token(self, site: str) -> bool:
        """Whether ``site`` has one scale a token."""
        return self.linear_input_scale == "per_token" and site in ("in_proj_input", "out_proj_input")
