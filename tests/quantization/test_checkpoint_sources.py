"""Where a checkpoint comes from and where it goes: both layouts of the source, a hub in both directions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from saved_models import Case, change_tensors, logits, quantized, save

from dualscale_mamba import ops
from dualscale_mamba.__main__ import main
from dualscale_mamba.errors import CheckpointError, ConfigError
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.models import names, pretrained
from dualscale_mamba.models.pretrained import ASSETS, load_pretrained
from dualscale_mamba.quantization.manifest import CARD, CONFIG, FILES, KEY, RESULT, TOKENIZER, WEIGHTS
from dualscale_mamba.quantization.recipe import WeightRecipe
from dualscale_mamba.tasks.checkpoints import check_settings, load_original

DUAL = Case({"scale_mode": Dual()})
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "mamba1": {"model_type": "mamba", "state_size": 16, "time_step_rank": 16, "intermediate_size": 512},
    "mamba2": {
        "model_type": "mamba2",
        **{"state_size": 64, "num_heads": 16, "head_dim": 32, "n_groups": 1, "chunk_size": 256},
        "time_step_limit": [0.0, float("inf")],
    },
}
SHARED = {
    "hidden_size": 256, "num_hidden_layers": 6, "vocab_size": 4096, "conv_kernel": 4, "tie_word_embeddings": True,
    "eos_token_id": 0, "architectures": ["some"], "layer_norm_epsilon": 1e-5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    with ops.implementation("reference"):
        yield


@pytest.fixture(params=["mamba1", "mamba2"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def in_layout(folder: Path, family: str, layout: str) -> Path:
    """The embedded checkpoint as published ones are."""
    shutil.copytree(ASSETS / f"{family}-tiny", folder)
    if layout == "transformers":
        tensors = load_file(folder / WEIGHTS)
        ours = {names.rename(name, names.FROM_CHECKPOINT): value for name, value in tensors.items()}
        table = names.TO_TRANSFORMERS[family]
        save_file({names.rename(name, table): value for name, value in ours.items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps({**SHARED, **TRANSFORMERS[family]}))
    return folder


@pytest.mark.parametrize("layout", ["state-spaces", "transformers"])
def test_both_layouts_save(tmp_path: Path, family: str, layout: str) -> None:
    source = in_layout(tmp_path / "source", family, layout)
    loaded, report = quantized(str(source), DUAL)
    manifest = save(tmp_path / "saved", loaded, report)
    again = load_pretrained(str(tmp_path / "saved"), family=family)
    assert torch.equal(logits(again), logits(loaded))
    assert again.config == loaded.config
    before, after = (json.loads((tmp_path / name / CONFIG).read_text()) for name in ("source", "saved"))
    assert set(after) - set(before) == {KEY}
    assert {name: value for name, value in after.items() if name not in (KEY, "time_step_limit")} == {
        name: value for name, value in before.items() if name != "time_step_limit"
    }
    assert (tmp_path / "saved" / TOKENIZER).read_bytes() == (source / TOKENIZER).read_bytes()
    card = (tmp_path / "saved" / CARD).read_text()
    assert "from `source`" in card
    assert str(tmp_path) not in card
    assert manifest["provenance"]["weights"] == loaded.weights_hash == again.weights_hash


def test_a_random_model_gets_a_config(tmp_path: Path, family: str) -> None:
    name = {"mamba1": "tiny", "mamba2": "mamba2-tiny"}[family]
    loaded, report = quantized(f"random:{name}", DUAL)
    save(tmp_path / "saved", loaded, report)
    again = load_pretrained(str(tmp_path / "saved"))
    assert again.config == loaded.config
    assert again.tokenizer == loaded.tokenizer
    assert torch.equal(logits(again), logits(loaded))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint."""
    case = Case({"scale_mode": Dual(), "weights": WeightRecipe(8, 128, 4, 4)})
    save(tmp_path / "saved", *quantized("random:tiny", case), metrics={"a/b": {"value": 1.5, "unit": "x"}})
    return tmp_path / "saved"


class TestOriginal:
    def test_it_is_where_the_checkpoint_says(self, folder: Path) -> None:
        manifest = load_pretrained(str(folder)).manifest
        assert manifest is not None
        again = load_original(manifest, None, torch.device("cpu"))
        assert torch.equal(logits(again), logits(load_pretrained("random:tiny")))

    @pytest.mark.parametrize(
        ("place", "told"),
        [
            ("random:mamba2-tiny", "cannot be loaded"),
            ("/no/such/folder/", "cannot be loaded"),
            ("embedded:mamba1-tiny", "holds other weights"),
            ("itself", "holds other weights"),
        ],
    )
    def test_another_one_is_refused(self, folder: Path, place: str, told: str) -> None:
        manifest = load_pretrained(str(folder)).manifest
        assert manifest is not None
        with pytest.raises(CheckpointError, match=told) as caught:
            load_original(manifest, str(folder) if place == "itself" else place, torch.device("cpu"))
        assert "give model.reference=FOLDER" in str(caught.value)
        assert "\n" not in str(caught.value)


class TestHub:
    def test_a_repository_is_loaded_like_a_folder(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []

        def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
            asked.append((repository, revision, allow_patterns))
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        loaded = load_pretrained("some/quantized")
        assert torch.equal(logits(loaded), logits(load_pretrained(str(folder))))
        assert {CONFIG, TOKENIZER, CARD, RESULT} <= set(asked[0][2])
        assert asked[0][2] == pretrained._SAFE_FILES
        manifest = loaded.manifest
        assert manifest is not None
        config = OmegaConf.create(
            {"model": {"source": "some/quantized", "dtype": "auto"}, "precision": {"name": "w8a8"}}
        )
        with pytest.raises(ConfigError, match="with which some/quantized was quantized") as caught:
            check_settings(config, manifest)
        assert f"It lies in {folder} now: model={folder} takes its settings." in str(caught.value)

    def stub(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list[Any]:
        calls: list[Any] = []

        class Api:
            def create_repo(self, repository: str, **options: Any) -> None:
                calls.append((repository, options))

            def upload_folder(self, **options: Any) -> str:
                if error is not None:
                    raise error
                calls.append(options)
                return "https://hub/commit/1"

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        return calls

    @pytest.mark.parametrize("private", [False, True])
    def test_push(
        self, folder: Path, private: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        calls = self.stub(monkeypatch)
        assert main(["push", str(folder), "me/model", *(["--private"] if private else [])]) == 0
        created, uploaded = calls
        assert created == ("me/model", {"private": private, "exist_ok": True})
        assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/model", str(folder))
        assert sorted(uploaded["allow_patterns"]) == sorted(FILES)
        assert "https://hub/commit/1" in capsys.readouterr().out

    def test_what_is_damaged_is_not_pushed(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        calls = self.stub(monkeypatch)
        rows = "backbone.layers.0.mixer.z.rows"
        sealed = (folder / CONFIG).read_bytes()
        change_tensors(folder, **{rows: load_file(folder / WEIGHTS)[rows] * 2})
        (folder / CONFIG).write_bytes(sealed)
        assert main(["push", str(folder), "me/model"]) == 1
        assert "is not what was written" in capsys.readouterr().err
        assert main(["push", str(ASSETS / "mamba1-tiny"), "me/model"]) == 1
        assert "holds no quantized checkpoint" in capsys.readouterr().err
        assert calls == []

    def test_a_hub_that_refuses_is_one_sentence(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.stub(monkeypatch, PermissionError("401 Unauthorized\nand more"))
        assert main(["push", str(folder), "me/model"]) == 1
        told = capsys.readouterr().err
        assert "could not be uploaded to me/model (PermissionError: 401 Unauthorized); check the name" in told
        assert told.count("\n") == 1
