"""Formats with selectors in a whole model: implementations, steps, checkpoints, memory, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import Case, logits, quantized, save, tokens

from dualscale_mamba import ops
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import ScaleMode
from dualscale_mamba.formats.dual_channel import DualChannel
from dualscale_mamba.formats.dual_mask import DualMask
from dualscale_mamba.formats.dual_sparse import DualSparse
from dualscale_mamba.formats.single import Single
from dualscale_mamba.granularity import PerChannel
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.profiling import workspace
from dualscale_mamba.profiling.base import Subject
from dualscale_mamba.profiling.memory import Memory
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.site_patterns import SiteFormat
from dualscale_mamba.sites import is_ssm_input

MODES: dict[str, dict[str, Any]] = {
    "mask": {"scale_mode": DualMask()},
    "sparse": {"scale_mode": DualSparse()},
    "sparse, no room": {"scale_mode": DualSparse(slack=0.0)},
    "mask per channel": {"scale_mode": DualMask(), "granularity": PerChannel()},
    "channel": {"scale_mode": DualChannel(), "granularity": PerChannel()},
}


def case(name: str, reads: str = "codes") -> Case:
    return Case({"observer": Percentile(97.0), "x_proj_reads": reads, **MODES[name]})


def made(name: str, reads: str = "codes") -> Any:
    with ops.implementation("reference"):
        return quantized("embedded:mamba1-tiny", case(name, reads))


@pytest.mark.parametrize("reads", ["codes", "conv_output"])
@pytest.mark.parametrize("name", MODES)
def test_compiled_and_reference_agree(name: str, reads: str, device: torch.device) -> None:
    """Logits of a prompt and of a step after it; codes may differ next to a tie alone."""
    loaded, _ = made(name, reads)
    loaded.model.to(device)
    found = []
    ids = tokens(loaded)
    for implementation in ("compiled", "reference"):
        with ops.implementation(implementation), torch.inference_mode():
            whole = loaded.model(ids)[0]
            cache = loaded.model.allocate_cache(1)
            loaded.model(ids[:, :-1], cache)
            found.append(torch.cat([whole, loaded.model.step(ids[:, -1], cache)]).float().cpu())
    assert (found[0] - found[1]).norm() <= 0.02 * found[1].norm()
    assert torch.equal(found[0].argmax(-1), found[1].argmax(-1))


def test_list_and_mask_are_the_same_model() -> None:
    one, two, three = (logits(made(name)[0]) for name in ("mask", "sparse", "sparse, no room"))
    assert torch.equal(one, two)
    assert torch.equal(one, three)


@pytest.mark.parametrize("name", MODES)
def test_saved_and_reloaded_bit_for_bit(name: str, tmp_path: Path) -> None:
    loaded, report = made(name)
    save(tmp_path / "saved", loaded, report)
    again = load_pretrained(str(tmp_path / "saved"))
    codes = [
        {name: site.code.facts() for name, site in each.model.sites().items() if site.code is not None}
        for each in (loaded, again)
    ]
    assert codes[0] == codes[1]
    assert torch.equal(logits(again), logits(loaded))


@pytest.mark.parametrize("name", MODES)
def test_bits_are_reported_and_counted(name: str) -> None:
    loaded, report = made(name)
    model = loaded.model
    assert isinstance(model, MambaLM)
    bits = {float(row["bits_per_value"]) for row in report.sites if is_ssm_input(str(row["name"]))}
    with ops.implementation("reference"):
        metrics = Memory((2,), (64,), measure=False)(Subject(model, torch.device("cpu")))
    side, computed = (metrics[f"memory/{part}side/batch_2_length_64"].value for part in ("", "computed/"))
    values = 2 * 64 * model.config.d_inner
    if name.startswith("mask"):
        assert bits == {9.0}
        assert side == computed == model.config.n_layer * values / 8
    elif name == "channel":
        assert all(8 < each < 9 for each in bits)
        assert side == 0
    else:
        assert all(8 < each < 9 for each in bits)
        assert side == computed
        assert metrics["memory/reserve/batch_2_length_64"].value == model.config.n_layer * values / 8


@pytest.mark.parametrize("name", ["mask", "sparse"])
def test_workspace_has_the_side_data(name: str) -> None:
    model = made(name)[0].model
    shell = workspace.shell_of(model)
    with ops.implementation("compiled"):
        for length in (5, 40):
            assert workspace.computed(shell, 2, length) == workspace.measured(model, 2, length)


def test_what_cannot_read_selectors_is_refused() -> None:
    def recipe(mode: ScaleMode, **settings: Any) -> Recipe:
        return Recipe(scale_mode=mode, **settings)

    for name, mode in (("dual_mask", DualMask()), ("dual_sparse", DualSparse())):
        allowed = rf"allowed is {name} at ssm_input of mamba1\. .* Use scale_mode=dual or"
        with pytest.raises(ConfigError, match=rf"scale_mode={name} at site x: {allowed}"):
            recipe(mode, family="mamba2")
        with pytest.raises(ConfigError, match=rf"{name} at site B: {allowed}"):
            recipe(mode, scale_mode_sites=("B",))
        with pytest.raises(ConfigError, match=rf"quantize.formats.z={name} at site z: {allowed}"):
            recipe(Single(), formats={"z": SiteFormat(mode)})
    with pytest.raises(ConfigError, match=r"granularity=per_tensor: .*per_channel or per_group"):
        recipe(DualChannel())
    assert recipe(DualChannel(), family="mamba2", granularity=PerChannel()).carriers == ("x",)
    assert recipe(Single(), x_proj_reads="decoded").width("layers.0.mixer.x_proj").activations is None
