"""What formulas say is what tensors take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualscale_mamba import ops
from dualscale_mamba.formats.base import Range
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.formats.dual_mask import DualMask
from dualscale_mamba.granularity import PerChannel
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.profiling import footprint, memory, workspace
from dualscale_mamba.profiling.base import Subject
from dualscale_mamba.profiling.memory import Memory
from dualscale_mamba.quantization.pipeline import convert, prepare_and_calibrate
from dualscale_mamba.quantization.recipe import Recipe, WeightRecipe
from dualscale_mamba.quantization.weights import Grid, QuantizedWeight

FAMILIES = {"mamba1": "random:tiny", "mamba2": "random:mamba2-tiny"}
SMALL_DT = {"*.dt_proj": "w8a8"}
RECIPES = {
    "float": None,
    "w8a8": Recipe(scale_mode=Dual()),
    "w4a8": Recipe(weights=WeightRecipe(bits=4, group_size=32)),
    "w4a16": Recipe(
        weights=WeightRecipe(bits=4, embedding=4, head=4), activation_bits=None, granularity=PerChannel()
    ),
    "untied": Recipe(weights=WeightRecipe(bits=8, embedding=8, head=None)),
    "per_token": Recipe(linear_input_scale="per_token", granularity=PerChannel()),
}


def quantized(family: str, name: str) -> MambaLM:
    model: MambaLM = load_pretrained(FAMILIES[family]).model
    recipe = RECIPES[name]
    if recipe is not None:
        layers = {} if family == "mamba2" or recipe.weights.bits != 4 else SMALL_DT
        recipe = replace(recipe, family=family, layers=layers)
        batches = [torch.arange(32).reshape(2, 16)]
        convert(model, prepare_and_calibrate(model, batches, recipe), recipe, batches)
    return model


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_computed_is_measured(family: str, name: str) -> None:
    with ops.implementation("reference"):
        model = quantized(family, name)
        metrics = Memory(batch_sizes=(1, 3), lengths=(8,), measure=False)(Subject(model, torch.device("cpu")))
    found = {key: metric.value for key, metric in metrics.items() if "/side/" not in key}
    measured = {key: value for key, value in found.items() if "/computed/" not in key}
    computed = {key.replace("computed/", ""): value for key, value in found.items() if "/computed/" in key}
    assert measured == {key: value for key, value in computed.items() if "workspace" not in key}
    assert "memory/weights/other" not in measured, "every tensor belongs to a part"


@pytest.mark.parametrize("name", ["float", "w8a8", "per_token", "w4a16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_workspace_computed_is_workspace_counted(family: str, name: str) -> None:
    """The same operators on meta tensors and on real ones make the same storages."""
    model = quantized(family, name)
    shell = workspace.shell_of(model)
    assert all(tensor.is_meta for tensor in [*shell.parameters(), *shell.buffers()])
    for batch, length in ((1, 8), (3, 20)):
        assert workspace.computed(shell, batch, length) == workspace.measured(model, batch, length)


def test_workspace_is_the_worst_moment() -> None:
    kept = torch.zeros(1000)
    with workspace.LiveStorages([kept]) as alive:
        first = torch.ones(1000)
        second = first + kept  # 8,000 bytes at once
        del first
        third = second * 2  # again 8,000: the first is gone
        view = third[:10]
        del third
    assert alive.peak == 8000
    assert alive.now == 8000
    assert view.numel() == 10
    del second, view
    assert alive.now == 0


def test_workspace_grows_with_tokens_and_shrinks_with_int8() -> None:
    floating, int8 = (workspace.shell_of(quantized("mamba1", name)) for name in ("float", "w8a8"))
    assert workspace.computed(floating, 2, 64) > 1.9 * workspace.computed(floating, 1, 64)
    assert workspace.computed(int8, 1, 64) < workspace.computed(floating, 1, 64)


@settings(deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40).map(lambda n: 8 * n),
    grid=st.sampled_from([Grid(8), Grid(4, 32), Grid(4, 128)]),
)
def test_a_matrix_takes_what_its_tensors_take(rows: int, columns: int, grid: Grid) -> None:
    scale = grid.stored_scale(torch.ones(rows, grid.groups(columns)))
    made = QuantizedWeight(torch.zeros(rows, columns, dtype=torch.int8), scale, grid).stored()
    shape = (rows, columns)
    assert sum(tensor.nbytes for tensor in made) == footprint.matrix_bytes(shape, grid, 2)
    assert sum(tensor.nbytes for tensor in made[:2]) == footprint.matrix_bytes(shape, grid, 2, sums=False)


def test_side_data_is_what_lies_beyond_eight_bits() -> None:
    model = load_pretrained(FAMILIES["mamba1"]).model
    sizes = torch.ones(1, dtype=torch.float64)
    code = DualMask().fit(Range(-sizes, sizes, 2 * sizes))
    for block in model.blocks():
        block.mixer.ssm_input.set_code(code)
    metrics = Memory(batch_sizes=(2,), lengths=(16,), measure=False)(Subject(model, torch.device("cpu")))
    values = 2 * 16 * model.config.d_inner * model.config.n_layer
    assert metrics["memory/side/batch_2_length_16"].value == values / 8
    assert metrics["memory/computed/side/batch_2_length_16"].value == values / 8
    assert metrics["memory/weights/codes"].value == code.rows.nbytes  # one tensor for both blocks


def test_sizes_of_sites_are_those_of_the_activations() -> None:
    for family, source in FAMILIES.items():
        model = load_pretrained(source).model
        seen: dict[str, int] = {}

        class Width:
            def __init__(self, name: str, seen: dict[str, int] = seen) -> None:
                self.name, self.seen = name, seen

            def update(self, values: torch.Tensor) -> None:
                self.seen[self.name] = values.shape[-1]

        for name, site in model.sites().items():
            site.statistic = Width(name.rpartition(".")[2])
        with ops.implementation("reference"):
            model(torch.zeros(1, 4, dtype=torch.int64))
        assert seen == footprint.site_widths(model.config), family


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_allocator_sees_at_least_the_tensors(family: str) -> None:
    model = quantized(family, "float").to("cuda")
    computed = workspace.computed(workspace.shell_of(model), 4, 256)
    assert workspace.measured(model, 4, 256) >= 0.95 * computed
    assert memory.computed_state(model, 4) == model.allocate_cache(4).nbytes
