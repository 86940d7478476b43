"""The command ``memory``: published sizes, the founding figures, files."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dualscale_mamba.__main__ import main
from dualscale_mamba.profiling import memory, workspace
from dualscale_mamba.profiling.table import DTYPE, MODELS, PUBLISHED, Asked, recipe_of, side_data

# Parameters of the checkpoints as their authors publish them, the padded vocabulary included.
PARAMETERS = {"mamba-130m": 129_135_360, "mamba-2.8b": 2_768_345_600, "mamba2-130m": 128_989_632}


@pytest.mark.parametrize("model", PARAMETERS)
def test_sizes_are_the_published_ones(model: str) -> None:
    shell = workspace.shell_for(PUBLISHED[model], recipe_of("none", PUBLISHED[model].family), DTYPE)
    assert sum(parameter.numel() for parameter in shell.parameters()) == PARAMETERS[model]


@pytest.mark.parametrize("model", MODELS)
def test_side_data_of_the_founding_note(model: str) -> None:
    found = side_data(PUBLISHED[model], Asked(density=0.001))
    assert found["map"] / found["ssm_input"] == 0.125
    assert 1 - found["entries"] / found["map"] == pytest.approx(0.976, abs=0.001)  # 0.97 in the note
    assert found["saved_share"] == 0.9375  # with room to spare
    assert found["list"] == pytest.approx(found["map"] * (1 - found["saved_share"]))
    assert found["dual"] == 0
    assert found["ssm_input"] == PUBLISHED[model].n_layer * 2048 * 2 * PUBLISHED[model].d_model


def test_measured_side_data_is_the_computed_of_one_layer() -> None:
    found = side_data(PUBLISHED["mamba-130m"], Asked(length=300, density=0.002, measure=True))
    layers = PUBLISHED["mamba-130m"].n_layer
    assert found["measured/map"] * layers == found["map"]
    assert found["measured/list"] * layers == found["list"]
    assert found["measured/full_share"] < 0.5


def test_int8_halves_what_is_quantized() -> None:
    sizes = {}
    for precision in ("none", "w8a8"):
        shell = workspace.shell_for(PUBLISHED["mamba-370m"], recipe_of(precision, "mamba1"), DTYPE)
        sizes[precision] = memory.computed_weights(shell)
    assert sizes["w8a8"]["projections"] == pytest.approx(sizes["none"]["projections"] / 2, rel=0.02)
    assert sizes["w8a8"]["embedding"] == sizes["none"]["embedding"]


def test_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--csv", str(tmp_path / "m.csv"), "--markdown", str(tmp_path / "m.md")]
    assert main(["memory", "--models", "mamba-130m", "--length", "64", *files]) == 0
    shown = capsys.readouterr().out
    assert "93.75%" in shown
    assert "97.6" in shown
    assert "12.5%" in shown
    rows = list(csv.DictReader((tmp_path / "m.csv").open()))
    values = {row["name"]: float(row["value"]) for row in rows if row["model"] == "mamba-130m"}
    assert values["map"] == values["ssm_input"] / 8
    assert values["w4a8/weights"] < values["w8a8/weights"] < values["none/weights"]
    assert (tmp_path / "m.md").read_text().count("| mamba-130m |") == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--models", "gpt2"], "--models=gpt2: allowed is one of mamba-130m"),
        (["--density", "1.5"], "--density=1.5: allowed is a share"),
        (["--length", "0"], "--length=0: allowed is a whole number above 0"),
    ],
)
def test_what_cannot_be_is_said(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["memory", *arguments]) == 1
    assert sentence in capsys.readouterr().err


def test_a_folder_with_a_configuration_is_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    import dualscale_mamba

    folder = Path(dualscale_mamba.__file__).parent / "assets" / "mamba2-tiny"
    assert main(["memory", "--models", str(folder), "--length", "16"]) == 0
    assert "w8a8" in capsys.readouterr().out
