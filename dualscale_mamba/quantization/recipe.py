"""The recipe: what becomes int8, where, and how its codes are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import ScaleMode
from dualscale_mamba.formats.single import Single
from dualscale_mamba.formats.unquantized import Unquantized
from dualscale_mamba.granularity import Granularity, PerTensor
from dualscale_mamba.observers.absmax import AbsMax
from dualscale_mamba.observers.base import Observer
from dualscale_mamba.observers.per_layer import PerLayer
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.quantization.mode_rules import check_channels, check_selectors
from dualscale_mamba.quantization.site_patterns import (
    SiteFormat,
    check_floor,
    check_names,
    check_places,
    contains,
    format_at,
    occurs,
)
from dualscale_mamba.quantization.weight_recipe import WeightRecipe
from dualscale_mamba.quantization.weights import Grid
from dualscale_mamba.quantization.widths import Width, check_patterns, chosen, parse
from dualscale_mamba.rounding.base import Rounding
from dualscale_mamba.rounding.nearest import Nearest
from dualscale_mamba.sites import EMBEDDING, GROUPED, HEAD, INPUT_SITES, SITES, SSM_INPUT, short_name

__all__ = ["Recipe", "WeightRecipe"]

LINEAR_INPUT_SCALES = ("static", "per_token")
X_PROJ_READERS = ("codes", "decoded", "conv_output")


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized.

    Args:
        family: ``mamba1`` or ``mamba2``; decides which sites there are.
        weights: Widths of the weights.
        layers: Widths of single layers by pattern, e.g. ``{"*.dt_proj": "w8a8", "lm_head": "w4a16"}``; the last pattern
            that matches wins over ``weights`` and, for the layer's own input, over ``sites``.
        rounding: How weights become codes.
        activation_bits: 8, or None to leave activations as they are.
        sites: Sites that become int8, as :mod:`site_patterns` names them; None for every site of the family.
        scale_mode: How the codes of ``scale_mode_sites`` are spent.
        observer: Where their thresholds lie.
        granularity: How many codes they have.
        scale_mode_sites: Sites that carry ``scale_mode``, with its observer and granularity, named likewise; the others
            carry `single`. None for the SSM input of the family.
        formats: Other formats of some sites, whether they carry the scale mode or not; the last name that fits wins.
        activation_observer: Where the thresholds of the other sites lie.
        overrides: Observers for single sites in place of ``activation_observer``.
        linear_input_scale: ``static`` (calibrated) or ``per_token``, for in_proj_input and out_proj_input.
        rotate: Whether out_proj's input is rotated by a Hadamard transform, while the model runs.
        rotate_residual: Whether the residual stream is rotated, in the weights alone.
        x_proj_reads: ``codes`` (what deployment stores), ``decoded`` (the same as values) or ``conv_output`` (isolates
            the scan).
    """

    family: str = "mamba1"
    weights: WeightRecipe = field(default_factory=WeightRecipe)
    layers: Mapping[str, str] = field(default_factory=dict)
    rounding: Rounding = field(default_factory=Nearest)
    activation_bits: int | None = 8
    sites: tuple[str, ...] | None = None
    scale_mode: ScaleMode | Unquantized = field(default_factory=Single)
    observer: Observer = field(default_factory=lambda: Percentile(99.99))
    granularity: Granularity = field(default_factory=PerTensor)
    scale_mode_sites: tuple[str, ...] | None = None
    formats: Mapping[str, SiteFormat] = field(default_factory=dict)
    activation_observer: Observer = field(default_factory=AbsMax)
    overrides: Mapping[str, Observer] = field(default_factory=lambda: {"out_proj_input": Percentile(99.99)})
    linear_input_scale: str = "static"
    rotate: bool = True
    rotate_residual: bool = False
    x_proj_reads: str = "codes"

    def __post_init__(self) -> None:
        if self.family not in SITES:
            raise ConfigError("model.family", self.family, " or ".join(SITES))
        for key, names in self.named_sites:
            check_names(names, self.family, key)
        if self.activation_bits not in (8, None):
            raise ConfigError("precision.activations.bits", self.activation_bits, "8 or null")
        for pattern, word in self.layers.items():
            parse(word, f"precision.layers.{pattern}")
        for name in (EMBEDDING, HEAD):
            chosen(self.layers, name)
        if self.linear_input_scale not in LINEAR_INPUT_SCALES:
            raise ConfigError("precision.linear_input_scale", self.linear_input_scale, "static or per_token")
        if self.x_proj_reads not in X_PROJ_READERS:
            raise ConfigError("precision.x_proj_reads", self.x_proj_reads, ", ".join(X_PROJ_READERS))
        if self.x_proj_reads != "codes" and self.family != "mamba1":
            raise ConfigError(
                "precision.x_proj_reads", self.x_proj_reads, "codes: only Mamba-1 has an x_proj"
            )
        if self._may_be_on("out_proj_input"):
            self._check_rows()
        self._check_modes()

    def _check_rows(self) -> None:
        # The gate of a Mamba-1 block is fused into the scan, which knows no rows.
        if self.linear_input_scale == "per_token" and self.family == "mamba1" and not self.rotate:
            raise ConfigError("precision.rotate", False, "true with precision.linear_input_scale=per_token")

    @property
    def named_sites(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The names of sites under each key of the configuration."""
        return (
            ("quantize.sites", self.scale_mode_sites or ()),
            ("precision.activations.sites", self.sites or ()),
            ("quantize.formats", tuple(self.formats)),
            ("precision.activations.overrides", tuple(self.overrides)),
        )

    def _check_modes(self) -> None:
        everywhere = [one for one in self.formats if not one.startswith(("layers.", "-"))]
        for text, own in self.formats.items():
            named = [site for site in SITES[self.family] if occurs((text,), site)]
            check_floor(own.mode, named, self.family, f"quantize.formats.{text}")
            check_selectors(own.mode, named, self.family, f"quantize.formats.{text}")
            if self.activation_bits is not None and not any(map(self._may_be_on, named)):
                hint = "Name it in quantize.sites, or in precision.activations.sites."
                raise ConfigError("quantize.formats", text, "a site that is quantized", hint)
        mode = self.scale_mode
        if isinstance(mode, Unquantized):
            return
        if isinstance(self.observer, PerLayer):
            self.observer.check(mode)
        plain = [site for site in self.carriers if not occurs(everywhere, site)]
        check_floor(mode, plain, self.family, "scale_mode")
        check_selectors(mode, plain, self.family, "scale_mode")
        check_channels(mode, self.granularity.name, "scale_mode")
        for site in self.carriers:
            if self.granularity.name != "per_tensor" and site not in GROUPED[self.family]:
                raise ConfigError(
                    "granularity", f"{self.granularity.name} at site {site}", "per_tensor at this site",
                    f"Other granularities are for {', '.join(GROUPED[self.family])}.",
                )  # fmt: skip

    def _may_be_on(self, short: str) -> bool:
        """Whether a site, by its short name, is among those that become int8, in some layer."""
        return self.activation_bits is not None and (self.sites is None or occurs(self.sites, short))

    @property
    def carrier_names(self) -> tuple[str, ...]:
        """What names the sites that carry ``scale_mode``."""
        return SSM_INPUT[self.family] if self.scale_mode_sites is None else self.scale_mode_sites

    @property
    def carriers(self) -> tuple[str, ...]:
        """Short names of the sites that carry ``scale_mode`` in some layer, in the order of the data flow."""
        return tuple(site for site in SITES[self.family] if occurs(self.carrier_names, site))

    def carries(self, site: str) -> bool:
        """Whether a site, by its full name, carries ``scale_mode``, its observer and its granularity."""
        return contains(self.carrier_names, site)

    @property
    def grouped_sites(self) -> tuple[str, ...]:
        """Sites that have more than one code."""
        return () if self.granularity.name == "per_tensor" else self.carriers

    @property
    def quantizes_activations(self) -> bool:
        """Whether any site becomes int8."""
        named = any(parse(word).activations is not None for word in self.layers.values())
        return named or bool(self.active_sites)

    @property
    def quantizes_weights(self) -> bool:
        """Whether the weight of any layer does."""
        named = any(parse(word).weights is not None for word in self.layers.values())
        return named or any((self.weights.bits, self.weights.embedding, self.weights.head))

    @property
    def active_sites(self) -> tuple[str, ...]:
        """Short names of the sites that become int8 in some layer wherever ``layers`` does not say otherwise."""
        off = self.carriers if isinstance(self.scale_mode, Unquantized) and not self.formats else ()
        return tuple(site for site in SITES[self.family] if site not in off and self._may_be_on(site))

    def _is_chosen(self, site: str) -> bool:
        """Whether a site, by its full name, becomes int8 where ``layers`` says nothing of it."""
        if self.activation_bits is None or self.mode_of(site) is None:
            return False
        return self.sites is None or contains(self.sites, site)

    def is_active(self, site: str) -> bool:
        """Whether a site, by its full name, becomes int8.

        The width of a layer that ``layers`` names turns the site of its own input on or off. The SSM input is no
        layer's own: the scan reads it too, and x_proj decodes it where its width says ``a16``.
        """
        mixer, _, short = site.rpartition(".")
        if self.mode_of(site) is None:
            return False
        layer = next((name for name, own in INPUT_SITES[self.family].items() if own == short), None)
        if layer is not None and short not in SSM_INPUT[self.family]:
            width = chosen(self.layers, f"{mixer}.{layer}")
            if width is not None:
                return width.activations is not None
        return self._is_chosen(site)

    def width(self, layer: str) -> Width:
        """The width of a layer by its name: ``layers.3.mixer.in_proj``, ``embedding`` or ``lm_head``.

        Without a pattern of its own x_proj multiplies the codes of the SSM input where the input of another layer is
        int8 too; where only the sites of ``quantize.sites`` are, every layer reads values.

        Raises:
            ConfigError: ``layers`` gives it a width that it cannot have.
        """
        width = chosen(self.layers, layer)
        if layer in (EMBEDDING, HEAD):
            own = Width(self.weights.embedding if layer == EMBEDDING else self.weights.head, None)
            return width or own
        mixer, _, short = layer.rpartition(".")
        own_site = INPUT_SITES[self.family][short]
        bits = self.weights.bits if width is None else width.weights
        reads_codes = self.is_active(f"{mixer}.{own_site}")
        if own_site in SSM_INPUT[self.family]:
            others = set(INPUT_SITES[self.family].values()) - {own_site}
            by_default = any(self._is_chosen(f"{mixer}.{other}") for other in others)
            wanted = by_default if width is None else width.activations is not None
            reads_codes = reads_codes and wanted and self.x_proj_reads == "codes"
        return Width(bits, 8 if reads_codes else None)

    def grid_of(self, layer: str) -> Grid | None:
        """The grid of a layer's weight, or None to leave it as it is.

        Raises:
            ConfigError: As :meth:`width`.
        """
        return self.weights.grid(self.width(layer).weights)

    def width_of(self, layer: str) -> str:
        """The word for a layer's width, e.g. ``w4a8``.

        Raises:
            ConfigError: As :meth:`width`.
        """
        return str(self.width(layer))

    def check(self, layers: Sequence[str], sites: Sequence[str] = ()) -> None:
        """Refuse what does not fit the model.

        Args:
            layers: Names of all layers of the model.
            sites: Names of all its sites.

        Raises:
            ConfigError: A pattern matches no layer, or gives one a width that it cannot have; a site is named in a
                layer that is not there; or the observer names a site that does not carry the scale mode.
        """
        check_patterns(self.layers, layers)
        for key, names in self.named_sites:
            check_places(names, sites, key)
        if isinstance(self.observer, PerLayer):
            carriers = [site for site in sites if self.carries(site)]
            for site in self.observer.sites:
                if site not in carriers:
                    ends = f" {carriers[0]} to {carriers[-1]}" if carriers else ""
                    allowed = (
                        f"one of the {len(carriers)} sites{ends} that carry the scale mode in this model"
                    )
                    raise ConfigError("observer.sites", site, allowed)
        for name in layers:
            reads_codes = self.width(name).activations is not None
            if reads_codes and name.endswith(".out_proj"):
                self._check_rows()

    def mode_of(self, site: str) -> ScaleMode | None:
        """The scale mode of a site by its full name; None where it is to have no code."""
        own = format_at(self.formats, site)
        mode = own.mode if own else self.scale_mode if self.carries(site) else Single()
        return None if isinstance(mode, Unquantized) else mode

    def observer_of(self, site: str) -> Observer:
        """The observer of a site by its full name."""
        own = format_at(self.formats, site)
        if own is not None and own.observer is not None:
            return own.observer
        if self.carries(site):
            return self.observer.at(site) if isinstance(self.observer, PerLayer) else self.observer
        return self.overrides.get(short_name(site), self.activation_observer)

    def is_per_token(self, site: str) -> bool:
        """Whether ``site`` has one scale a token."""
        return self.linear_input_scale == "per_token" and site in ("in_proj_input", "out_proj_input")
