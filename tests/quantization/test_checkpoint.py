"""Save in one process, reload in another: bitwise the same logits, whatever the widths, codes and layouts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import saved_models
import torch
from safetensors.torch import load_file
from saved_models import Case, logits, quantized, save
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.formats.float8 import Float8
from dualscale_mamba.formats.lloyd_max import LloydMax
from dualscale_mamba.granularity import PerGroup
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.quantization.manifest import FILES, WEIGHTS, manifest_at
from dualscale_mamba.quantization.recipe import WeightRecipe
from dualscale_mamba.sites import GROUPED
from dualscale_mamba.tasks.checkpoints import saved_report

HALF = {"dtype": torch.bfloat16, "residual_dtype": torch.bfloat16}
INT4 = {"weights": WeightRecipe(4, 64), "layers": {"*.dt_proj": "w8a8"}}
CASES: dict[str, dict[str, Case]] = {
    family: {
        "w8a8": Case({"scale_mode": Dual()}),
        "w4a8": Case({"scale_mode": Dual(), **int4}),
        "w4a16": Case(
            {"scale_mode": Dual(), "weights": WeightRecipe(4, 32, 4, 4), "layers": off, "sites": (ssm_input,)}
        ),
        "mixed": Case(
            {"scale_mode": Dual(), "layers": {"layers.[02].*": "w4a16", **off, "lm_head": "w8a16"}}
        ),
        "both_heads": Case({"weights": WeightRecipe(None, 128, 8, 8), "activation_bits": None}),
        "per_group": Case(
            {"scale_mode": Dual(), "granularity": PerGroup(), "scale_mode_sites": GROUPED[family]}
        ),
        "lloyd_max": Case({"scale_mode": LloydMax(iterations=3)}),
        "per_token": Case({"scale_mode": Dual(), "linear_input_scale": "per_token"}),
        "rotate_residual": Case({"scale_mode": Dual(), "rotate_residual": True}),
        "codes_alone": Case(
            {"scale_mode": Float8(), "weights": WeightRecipe(None), "sites": (ssm_input,), "rotate": False}
        ),
        "bfloat16": Case({"scale_mode": Dual(), **int4}, HALF),
    }
    for family, ssm_input, int4, off in (
        ("mamba1", "ssm_input", INT4, {"*.dt_proj": "w8a16"}),
        ("mamba2", "x", {"weights": WeightRecipe(4, 64)}, {}),
    )
}
CASES["mamba1"]["conv_output"] = Case({"scale_mode": Dual(), "x_proj_reads": "conv_output"})
CASES["mamba2"]["float16_state"] = Case({"scale_mode": Dual()}, {"state_dtype": torch.float16})
NAMES = [(family, name) for family, cases in CASES.items() for name in cases]

Reloaded = dict[tuple[str, str], tuple[Path, Tensor, Tensor]]
PROGRAM = """
import sys
from pathlib import Path
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[1])
from saved_models import logits
from dualscale_mamba.models.pretrained import load_pretrained
for folder in sys.argv[3:]:
    save_file({"logits": logits(load_pretrained(folder, device=sys.argv[2]))}, f"{folder}.logits")
"""


def read_elsewhere(device: str, *folders: Path) -> list[Tensor]:
    """The logits of checkpoints in a new process."""
    here = str(Path(saved_models.__file__).parent)
    line = [sys.executable, "-c", PROGRAM, here, device, *map(str, folders)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [load_file(f"{folder}.logits")["logits"] for folder in folders]


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> Reloaded:
    """Every case, saved here and reloaded by a new process: its folder, the logits here and those there."""
    made: dict[tuple[str, str], tuple[Path, Tensor]] = {}
    root = tmp_path_factory.mktemp("saved")
    with ops.implementation("reference"):
        for family, name in NAMES:
            folder = root / f"{family}_{name}"
            loaded, report = quantized(f"embedded:{family}-tiny", CASES[family][name])
            save(folder, loaded, report)
            made[family, name] = folder, logits(loaded)
    there = read_elsewhere("cpu", *(folder for folder, _ in made.values()))
    return {key: (*found, after) for (key, found), after in zip(made.items(), there, strict=True)}


@pytest.mark.parametrize(("family", "name"), NAMES)
def test_a_new_process_gives_the_same_logits(reloaded: Reloaded, family: str, name: str) -> None:
    folder, before, after = reloaded[family, name]
    assert torch.equal(before, after)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("family", list(CASES))
def test_widths_differ_in_what_they_say_and_hold(reloaded: Reloaded, family: str) -> None:
    """Equal logits prove nothing if every case were the same model."""
    found = {name: reloaded[family, name][1] for name in CASES[family]}
    names = list(found)
    assert not any(torch.equal(found[a], found[b]) for a in names for b in names if a < b)
    sizes = {name: (reloaded[family, name][0] / WEIGHTS).stat().st_size for name in names}
    assert sizes["w4a16"] < sizes["both_heads"] < sizes["codes_alone"]
    assert sizes["w4a8"] < sizes["w8a8"] < sizes["codes_alone"]


@pytest.mark.parametrize("family", list(CASES))
def test_the_manifest_says_what_is_there(reloaded: Reloaded, family: str) -> None:
    manifest = manifest_at(reloaded[family, "mixed"][0])
    assert manifest is not None
    layers = manifest["layers"]
    assert layers["layers.0.mixer.out_proj"] == {
        "width": "w4a16", "bits": 4, "group_size": 128, "decodes": True
    }  # fmt: skip
    assert layers["layers.1.mixer.out_proj"]["width"] == "w8a8"
    assert (layers["lm_head"]["bits"], layers["embedding"]["bits"], manifest["tied"]) == (8, None, False)
    assert "layers.0.mixer.in_proj_input" not in manifest["sites"]
    site = manifest["sites"]["layers.1.mixer.in_proj_input"]
    assert site["format"] == "single"
    assert site["threshold"] > 0
    ssm = "ssm_input" if family == "mamba1" else "x"
    assert manifest["sites"][f"layers.0.mixer.{ssm}"]["has_knee"]


@pytest.mark.parametrize("name", ["w8a8", "w4a16", "both_heads"])
def test_a_tied_head_stands_once(reloaded: Reloaded, name: str) -> None:
    folder = reloaded["mamba1", name][0]
    model = load_pretrained(str(folder)).model
    assert isinstance(model, MambaLM)
    head, embedding = model.lm_head, model.backbone.embedding
    assert head.decoded_weight().shape == (4096, 256)
    if head.is_quantized:
        assert head.weight_codes is embedding.weight_codes
    else:
        assert head.weight is embedding.weight
    assert not [tensor for tensor in load_file(folder / WEIGHTS) if tensor.startswith("lm_head")]


def test_a_rotated_residual_stream_unties_the_head(reloaded: Reloaded) -> None:
    folder = reloaded["mamba1", "rotate_residual"][0]
    model = load_pretrained(str(folder)).model
    assert isinstance(model, MambaLM)
    assert not torch.equal(model.lm_head.weight, model.backbone.embedding.weight)


def test_types_are_those_that_were_saved(reloaded: Reloaded) -> None:
    model = load_pretrained(str(reloaded["mamba1", "bfloat16"][0])).model
    assert (model.dtype, model.residual_dtype) == (torch.bfloat16, torch.bfloat16)
    model = load_pretrained(str(reloaded["mamba2", "float16_state"][0])).model
    assert isinstance(model, MambaLM)
    assert model.state_dtype == torch.float16


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["w8a8", "w4a16", "per_group", "lloyd_max"])
def test_a_checkpoint_moves_between_devices(reloaded: Reloaded, tmp_path: Path, name: str) -> None:
    """What a CPU has saved runs on a GPU, and what a GPU saves again is the same, byte for byte."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    folder = reloaded["mamba1", name][0]
    loaded = load_pretrained(str(folder), device="cuda")
    assert loaded.model(saved_models.tokens(loaded).cuda()).isfinite().all()
    assert loaded.manifest is not None
    save(tmp_path / "again", loaded, saved_report(loaded.model, loaded.manifest))
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("family", "name"), [(f, n) for f, n in NAMES if n in ("w8a8", "w4a8", "w4a16", "mixed")]
)
def test_a_gpu_says_the_same_again(tmp_path: Path, family: str, name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    case = Case(CASES[family][name].recipe, {"dtype": torch.float16})
    loaded, report = quantized(f"embedded:{family}-tiny", case, "cuda")
    save(tmp_path / "saved", loaded, report)
    assert torch.equal(read_elsewhere("cuda", tmp_path / "saved")[0], logits(loaded))
    assert load_pretrained(str(tmp_path / "saved")).model.dtype == torch.float16
