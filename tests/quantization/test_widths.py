"""Patterns of layers, words for widths, and what does not fit a model."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from dualscale_mamba.configuration.validate import problems
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.widths import WIDTHS, condensed, parse
from dualscale_mamba.sites import INPUT_SITES
from dualscale_mamba.tasks.session import Session, open_session

Compose = Callable[..., DictConfig]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+precision.layers={*.q_proj: w8a8}", r"precision\.layers=\{\*\.q_proj: w8a8\}: allowed is a pattern that"
         r" matches a layer of this model, such as embedding, layers\.0\.mixer\.in_proj"),
        ("+precision.layers={layers.9.*: w8a8}", r"layers\.9\.\*: w8a8.* such as .*layers\.5\..*, lm_head"),
        ("precision.weights.bits=4 +precision.layers={*.dt_proj: w4a8} model.source=random:tiny",
         r"precision=w4a8 for layers\.0\.mixer\.dt_proj: allowed is 8 bits for its 4 inputs.*multiple of 8"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_told_before_calibration(
    composed: Compose, override: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "calibration_batches", lambda self: pytest.fail("calibrated"))
    config = composed(*override.replace(": ", ":").split())
    assert problems(config) == []
    with pytest.raises(ConfigError, match=message), open_session(config):
        pytest.fail("opened")


def test_a_pattern_of_the_other_family_is_without_effect() -> None:
    recipe = Recipe("mamba2", layers={"*.dt_proj": "w8a8", "*.x_proj": "w4a16"})
    recipe.check(["embedding", "layers.0.mixer.in_proj", "layers.0.mixer.out_proj", "lm_head"])


def test_scales_of_a_token_need_the_rotation_wherever_a_pattern_asks_for_int8() -> None:
    more = {"activation_bits": None, "linear_input_scale": "per_token", "rotate": False}
    names = ["embedding", "layers.0.mixer.in_proj", "layers.0.mixer.out_proj", "lm_head"]
    Recipe(layers={"*.in_proj": "w8a8"}, sites=(), **more).check(names)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"precision\.rotate=False: allowed is true with"):
        Recipe(layers={"*_proj": "w8a8"}, sites=(), **more).check(names)  # type: ignore[arg-type]


NAMES = st.sampled_from([f"layers.{i}.mixer.{kind}" for i in (0, 1, 10) for kind in INPUT_SITES["mamba1"]])
PATTERNS = st.sampled_from(
    ["*", "layers.*", "layers.1*", "layers.0.*", "*.in_proj", "*_proj", "layers.1.mixer.[xd]*"]
)
WORDS = st.sampled_from(WIDTHS)


@given(st.dictionaries(PATTERNS, WORDS, max_size=4), NAMES)
def test_the_last_pattern_that_matches_wins(layers: dict[str, str], name: str) -> None:
    layers |= {"embedding": "w8a16", "lm_head": "w8a16"}
    recipe = Recipe(layers=layers)
    word = next((layers[p] for p in reversed(list(layers)) if fnmatchcase(name, p)), "w8a8")
    assert recipe.width_of(name) == word
    grid = recipe.grid_of(name)
    assert (None if grid is None else grid.bits) == parse(word).weights
    mixer, _, kind = name.rpartition(".")
    if kind != "x_proj":
        assert recipe.is_active(f"{mixer}.{INPUT_SITES['mamba1'][kind]}") == (parse(word).activations == 8)


@given(WORDS)
def test_widths_are_spelled_as_they_are_read(word: str) -> None:
    assert str(parse(word)) == word


def test_widths_by_kind_of_layer() -> None:
    widths = {"embedding": "w8a16", "layers.0.mixer.in_proj": "w8a8", "layers.1.mixer.in_proj": "w4a8"}
    widths |= {"layers.2.mixer.in_proj": "w4a8", "layers.2.mixer.out_proj": "w4a8"}
    assert condensed(widths) == {"embedding": "w8a16", "in_proj": "w4a8, w8a8 in 0", "out_proj": "w4a8"}
