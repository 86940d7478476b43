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
from dualscale_mamba.sites import GROUPED, SITES, SSM_INPUT

LINEAR_INPUT_SCALES = ("static", "per_token")
X_PROJ_READERS = ("codes", "conv_output")


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    Args:
        family: ``mamba1`` or ``mamba2``; decides which sites there are.
        weights_bits: 8, or None to leave weights as they are.
        activation_bits: 8, or None to leave activations as they are.
        sites: Sites that become int8; None for every site of the family.
        scale_mode: How the codes of ``scale_mode_sites`` are spent.
        observer: Where their thresholds lie.
        granularity: How many codes they have.
        scale_mode_sites: Sites that carry ``scale_mode``, with its observer and granularity; the others carry `single`.
            None for the SSM input of the family.
        activation_observer: Where the thresholds of the other sites lie.
        overrides: Observers for single sites in place of ``activation_observer``.
        linear_input_scale: ``static`` (calibrated) or ``per_token``, for in_proj_input and out_proj_input.
        rotate: Whether out_proj's input is rotated by a Hadamard transform.
        x_proj_reads: ``codes`` (what deployment stores) or ``conv_output`` (isolates the scan).
    """

    family: str = "mamba1"
    weights_bits: int | None = 8
    activation_bits: int | None = 8
    sites: tuple[str, ...] | None = None
    scale_mode: ScaleMode | Unquantized = field(default_factory=Single)
    observer: Observer = field(default_factory=lambda: Percentile(99.99))
    granularity: Granularity = field(default_factory=PerTensor)
    scale_mode_sites: tuple[str, ...] | None = None
    activation_observer: Observer = field(default_factory=AbsMax)
    overrides: Mapping[str, Observer] = field(default_factory=lambda: {"out_proj_input": Percentile(99.99)})
    linear_input_scale: str = "static"
    rotate: bool = True
    x_proj_reads: str = "codes"

    def __post_init__(self) -> None:
        if self.family not in SITES:
            raise ConfigError("model.family", self.family, " or ".join(SITES))
        known = SITES[self.family]
        for key, names in (
            ("precision.activations.sites", self.sites),
            ("quantize.sites", self.scale_mode_sites),
            ("precision.activations.overrides", tuple(self.overrides)),
        ):
            for name in names or ():
                if name not in known:
                    raise ConfigError(key, name, f"one of {', '.join(known)} in a {self.family} model")
        for key, bits in (("weights", self.weights_bits), ("activations", self.activation_bits)):
            if bits not in (8, None):
                raise ConfigError(f"precision.{key}.bits", bits, "8 or null")
        if self.linear_input_scale not in LINEAR_INPUT_SCALES:
            raise ConfigError("precision.linear_input_scale", self.linear_input_scale, "static or per_token")
        if self.x_proj_reads not in X_PROJ_READERS:
            raise ConfigError("precision.x_proj_reads", self.x_proj_reads, "codes or conv_output")
        if self.x_proj_reads != "codes" and self.family != "mamba1":
            raise ConfigError(
                "precision.x_proj_reads", self.x_proj_reads, "codes: only Mamba-1 has an x_proj"
            )
        if (
            self.linear_input_scale == "per_token"
            and self.family == "mamba1"
            and not self.rotate
            and ("out_proj_input" in self.all_sites)
        ):  # the gate of a Mamba-1 block is fused into the scan, which knows no rows
            raise ConfigError("precision.rotate", False, "true with precision.linear_input_scale=per_token")
        self._check_modes()

    def _check_modes(self) -> None:
        mode = self.scale_mode
        if isinstance(mode, Unquantized):
            return
        name = type(mode).__name__.lower()
        has_floor = SITES[self.family]
        for site in self.carriers:
            if mode.needs_floor and not has_floor[site]:
                floored = ", ".join(s for s, floor in has_floor.items() if floor)
                raise ConfigError(
                    "scale_mode", f"{name} at site {site}", f"{name} only where values have a floor ({floored})",
                    "Use scale_mode=dual_symmetric for the others.",
                )  # fmt: skip
            if self.granularity.name != "per_tensor" and site not in GROUPED[self.family]:
                raise ConfigError(
                    "granularity", f"{self.granularity.name} at site {site}", "per_tensor at this site",
                    f"Other granularities are for {', '.join(GROUPED[self.family])}.",
                )  # fmt: skip

    @property
    def all_sites(self) -> tuple[str, ...]:
        """Sites that become int8 where activations do."""
        return tuple(SITES[self.family]) if self.sites is None else self.sites

    @property
    def carriers(self) -> tuple[str, ...]:
        """Sites that carry ``scale_mode``."""
        return SSM_INPUT[self.family] if self.scale_mode_sites is None else self.scale_mode_sites

    @property
    def grouped_sites(self) -> tuple[str, ...]:
        """Sites that have more than one code."""
        return () if self.granularity.name == "per_tensor" else self.carriers

    @property
    def quantizes_activations(self) -> bool:
        """Whether any site becomes int8."""
        return self.activation_bits is not None and bool(self.active_sites)

    @property
    def active_sites(self) -> tuple[str, ...]:
        """Sites that become int8, in the order of the data flow."""
        if self.activation_bits is None:
            return ()
        off = self.carriers if isinstance(self.scale_mode, Unquantized) else ()
        return tuple(s for s in SITES[self.family] if s in self.all_sites and s not in off)

    def mode_of(self, site: str) -> ScaleMode:
        """The scale mode that ``site`` carries."""
        if site in self.carriers and not isinstance(self.scale_mode, Unquantized):
            return self.scale_mode
        return Single()

    def observer_of(self, site: str) -> Observer:
        """The observer of ``site``."""
        if site in self.carriers:
            return self.observer
        return self.overrides.get(site, self.activation_observer)

    def is_per_token(self, site: str) -> bool:
        """Whether ``site`` has one scale a token."""
        return self.linear_input_scale == "per_token" and site in ("in_proj_input", "out_proj_input")
