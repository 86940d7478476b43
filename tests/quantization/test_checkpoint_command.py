"""``save=DIR`` and ``model=DIR`` as they are typed: files, refusals before anything is loaded, equal results."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from saved_models import change_config

from dualscale_mamba.__main__ import main
from dualscale_mamba.configuration import startup
from dualscale_mamba.configuration.validate import problems
from dualscale_mamba.models.pretrained import ASSETS, load_pretrained
from dualscale_mamba.quantization.manifest import CONFIG, FILES, TOKENIZER, WEIGHTS, manifest_at
from dualscale_mamba.study.identity import job_id

ROOT = startup.CONF.parent
SMALL = ("debug=fast", "ops=reference", "profiling=[memory]", "evaluation=[perplexity,divergence]")
RECIPE = ("precision.weights.head=4", "precision.rotate_residual=true", "observer.percentile=98.5")
NAME = "outputs/saved_w8a8_dual"


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=400, check=False)


def result(folder: Path, name: str) -> dict[str, Any]:
    """The newest result of a name."""
    path = sorted((folder / "outputs" / name).glob("*/result.json"))[-1]
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a random model was saved by the command."""
    folder = tmp_path_factory.mktemp("place")
    done = command(folder, *SMALL, *RECIPE, "scale_mode=single", "save=out/saved")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def again(place: Path) -> dict[str, Any]:
    """The result of a run on it."""
    done = command(place, *SMALL, "model=out/saved/")
    assert done.returncode == 0, done.stderr
    assert "calibrate" not in done.stderr
    return result(place, "saved_w8a8_single")


def test_the_folder_has_everything(place: Path) -> None:
    assert sorted(path.name for path in (place / "out" / "saved").iterdir()) == sorted(FILES)
    assert [path.name for path in (place / "out").iterdir()] == ["saved"]
    first = result(place, "random_tiny_w8a8_single")
    assert json.loads((place / "out" / "saved" / "result.json").read_text()) == first
    assert first["artifacts"]["checkpoint"] == str(place / "out" / "saved")


def test_the_card_shows_the_numbers_of_the_run(place: Path) -> None:
    card = (place / "out" / "saved" / "README.md").read_text()
    kl = result(place, "random_tiny_w8a8_single")["metrics"]["divergence/generated_heldout/kl"]["value"]
    assert f"| divergence/generated_heldout/kl | {kl:.6g} | nats/token |" in card
    assert "python run.py model=FOLDER" in card
    assert "licence" in card
    assert "torch" in card


def test_a_run_on_it_measures_the_same_without_calibration(place: Path, again: dict[str, Any]) -> None:
    first = result(place, "random_tiny_w8a8_single")
    assert "calibrate" in first["seconds"]
    assert not {"calibrate", "convert"} & set(again["seconds"])
    for key, metric in first["metrics"].items():
        if not key.startswith(("latency/", "memory/peak")):
            assert again["metrics"][key] == metric, key
    assert again["sites"] == first["sites"]
    assert again["site_summary"] == first["site_summary"]


def test_its_result_tells_how_it_was_quantized(place: Path, again: dict[str, Any]) -> None:
    first = result(place, "random_tiny_w8a8_single")
    for name in ("precision", "scale_mode", "observer", "granularity", "rounding", "quantize", "calibration"):
        assert again["config"][name] == first["config"][name], name
    assert {**again["choices"], "model": ""} == {**first["choices"], "model": ""}
    assert again["choices"]["model"] == "saved"
    for name, fact in first["fairness"].items():
        assert again["fairness"][name] == fact, name
    assert again["hashes"]["weights"] == first["hashes"]["weights"]
    assert len(again["hashes"]["checkpoint"]) == 64


def test_text_is_generated(place: Path) -> None:
    words = ("task=generate", "task.tokens=4", "task.prompt='The old house'", "ops=reference")
    done = command(place, "model=out/saved", *words)
    assert done.returncode == 0, done.stderr
    assert "The old house" in done.stdout


class TestComposed:
    @pytest.fixture(autouse=True)
    def at_the_place(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.chdir(place)
        GlobalHydra.instance().clear()
        startup.register()
        with initialize_config_dir(str(startup.CONF), version_base="1.3"):
            yield
        HydraConfig.instance().cfg = None

    def composed(self, *overrides: str) -> DictConfig:
        config = compose("config", ["paths.run=run", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config.copy())
        with open_dict(config):
            del config["hydra"]
        return config

    def test_settings_and_names_are_those_of_the_checkpoint(self) -> None:
        config = self.composed("model=out/saved")
        assert problems(config) == []
        assert config.name == "saved_w8a8_single"
        assert config.observer.percentile == 98.5
        assert config.precision.weights.head == 4
        assert config.precision.rotate_residual
        assert "fine_codes" not in config.scale_mode
        assert (config.model.family, config.model.source, config.model.dtype) == (
            *("mamba1", "out/saved"),
            "float32",
        )

    @pytest.mark.parametrize(
        ("override", "told"),
        [
            ("precision=w4a16", "precision=w4a16: allowed is w8a8, with which out/saved was quantized"),
            ("precision.rotate=false", "precision.rotate=False: allowed is true, with which"),
            ("precision.weights.head=8", "precision.weights.head=8: allowed is 4, with which"),
            ("scale_mode=dual", "scale_mode=Dual: allowed is Single, with which"),
            ("observer.percentile=99", "observer.percentile=99: allowed is 98.5, with which"),
            ("observer=absmax", "observer=AbsMax: allowed is Percentile, with which"),
            ("rounding=gptq", "rounding=Gptq: allowed is Nearest, with which"),
            ("granularity=per_channel", "granularity=PerChannel: allowed is PerTensor, with which"),
            ("quantize.sites=[B]", "quantize.sites=['B']: allowed is null, with which"),
            ("calibration=python_docs", "calibration.batch_size=4: allowed is 2, with which"),
            ("experiment=treatment", "=Dual: allowed is Single, with which"),
            ("model.dtype=float16", "model.dtype=float16: allowed is float32, in which out/saved was saved"),
            ("model.family=mamba2", "model.family=mamba2: allowed is mamba1"),
            ("model.implementation=mamba_ssm", "model.implementation=mamba_ssm: allowed is native"),
            (
                "task=calibrate",
                "task=calibrate: allowed is ptq, generate or profile, for out/saved is quantized",
            ),
            ("save=elsewhere", "save=elsewhere: allowed is null, for out/saved is a checkpoint"),
        ],
    )
    def test_what_contradicts_is_refused(self, override: str, told: str) -> None:
        found = problems(self.composed("model=out/saved", override))
        assert any(told in sentence for sentence in found), found
        assert all("\n" not in sentence for sentence in found)

    @pytest.mark.parametrize(
        "override", ["precision=w8a8", "seed=4", "calibration.cache=true", "model.dtype=auto", "ops=compiled"]
    )
    def test_what_agrees_is_not(self, override: str) -> None:
        typed = {"precision=w8a8": ("precision.weights.head=4", "precision.rotate_residual=true")}
        assert problems(self.composed("model=out/saved", override, *typed.get(override, ()))) == []

    def test_a_source_is_looked_at_too(self) -> None:
        (told,) = problems(self.composed("model.source=out/saved", "debug=fast", "model=mamba1_tiny"))[:1]
        assert "with which out/saved was quantized" in told

    def test_the_unquantized_model_must_be_somewhere(self, tmp_path: Path) -> None:
        other = Path(shutil.copytree("out/saved", tmp_path / "other"))
        origin = manifest_at(other)
        assert origin is not None
        change_config(other, provenance={**origin["provenance"], "source": "/no/such/folder/"})
        (told,) = problems(self.composed(f"model={other}", "evaluation=[divergence]"))
        assert "model.reference=None: allowed is the folder of the unquantized model" in told
        assert "evaluation=divergence" in told
        assert problems(self.composed(f"model={other}", "evaluation=[perplexity]")) == []
        here = ("model.reference=random:tiny", "evaluation=[divergence]")
        assert problems(self.composed(f"model={other}", *here)) == []

    def test_any_checkpoint_is_a_model(self, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(ASSETS / "mamba2-tiny", tmp_path / "mine"))
        config = self.composed(f"model={folder}")
        assert problems(config) == []
        assert (config.model.name, config.model.family, config.name) == (
            *("mine", "mamba2"),
            "mine_w8a8_dual",
        )
        (told,) = problems(self.composed(f"model={folder}", "model.reference=random:tiny"))
        assert "model.reference=random:tiny: allowed is null" in told
        (told,) = problems(self.composed("model=no/such/folder/"))
        assert "model.source=no/such/folder/: allowed is a folder that exists" in told

    @pytest.mark.parametrize(
        ("overrides", "told"),
        [
            (("save=out",), "save=out: allowed is a new or empty folder, or an older checkpoint"),
            (("save=new", "precision=none"), "save=new: allowed is null while nothing is quantized"),
            (("save=new", "task=generate"), "save=new: allowed is null with this task"),
            (("save=7",), "save=7: allowed is a folder, or null"),
        ],
    )
    def test_where_nothing_can_be_saved(self, overrides: tuple[str, ...], told: str) -> None:
        (sentence,) = problems(self.composed("debug=fast", *overrides))
        assert told in sentence

    def test_a_job_is_known_by_what_the_folder_holds(self, tmp_path: Path) -> None:
        same = Path(shutil.copytree("out/saved", tmp_path / "saved"))
        ids = [job_id(self.composed(f"model={folder}")) for folder in ("out/saved", same)]
        assert ids[0] == ids[1]
        (same / "result.json").unlink()
        assert job_id(self.composed(f"model={same}")) == ids[0]
        change_config(same, package_version="0.0.1")
        assert job_id(self.composed(f"model={same}")) != ids[0]


def test_damage_is_told_before_anything_is_loaded(place: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(place / "out" / "saved", tmp_path / "other"))
    (other / CONFIG).write_text((other / CONFIG).read_text().replace("98.5", "99.5"))
    done = command(tmp_path, "model=other")
    assert done.returncode == 1
    assert "other/config.json was changed after it was written" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_checkpoints_in_a_multirun(place: Path) -> None:
    (place / "plain").mkdir()
    for name in ("config.json", TOKENIZER, WEIGHTS):
        shutil.copy(ASSETS / "mamba1-tiny" / name, place / "plain")
    done = command(place, "-m", "model=out/saved,plain", "evaluation=[]", "hydra.sweeper.only_list=true")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["model=out/saved", "model=plain"]


def test_jobs_may_not_save_in_one_folder(place: Path) -> None:
    done = command(place, "-m", *SMALL, "seed=0,1", "save=one")
    assert done.returncode == 1
    assert "job 1 (" in done.stderr
    assert "save=one: allowed is a folder for each job" in done.stderr
    assert not (place / "one").exists()


def test_inspect(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(place / "out" / "saved", tmp_path / "saved"))
    assert main(["inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    for part in ("in_proj", "w8a8", "w4a16", "ssm_input", "threshold", "random:tiny", "intact: digest", "I8"):
        assert (part in shown) != (part == "I8"), part
    with (folder / WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert main(["inspect", str(folder)]) == 1
    assert "not intact" in capsys.readouterr().out
    assert main(["inspect", str(place)]) == 1
    assert "has no config.json" in capsys.readouterr().err


def test_inspect_needs_no_torch(place: Path) -> None:
    program = (
        "import sys\nfrom dualscale_mamba.__main__ import main\n"
        "assert main(['inspect', 'out/saved']) == 0\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_reloaded_model_is_what_python_loads(place: Path) -> None:
    loaded = load_pretrained(str(place / "out" / "saved"))
    assert loaded.manifest is not None
    assert loaded.weights_hash == load_pretrained("random:tiny").weights_hash
