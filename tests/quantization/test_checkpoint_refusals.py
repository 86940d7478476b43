"""What is not as it was written is refused in one sentence that names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from saved_models import Case, change_config, change_tensors, quantized, save, seal

from dualscale_mamba import ops
from dualscale_mamba.errors import CheckpointError, ConfigError
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.models.pretrained import check_source, load_pretrained
from dualscale_mamba.quantization.manifest import (
    CARD,
    CONFIG,
    DIGEST,
    KEY,
    RESULT,
    TOKENIZER,
    WEIGHTS,
    check_target,
    manifest_at,
)

CODES = "backbone.layers.0.mixer.in_proj.weight_codes"
ROWS = "backbone.layers.1.mixer.ssm_input.rows"


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    with ops.implementation("reference"):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that nobody changes."""
    folder = tmp_path_factory.mktemp("whole") / "saved"
    with ops.implementation("reference"):
        save(folder, *quantized("random:tiny", Case({"scale_mode": Dual()})))
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "saved"))


def refused(folder: Path) -> str:
    """The sentence with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(str(folder))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(folder) in sentence
    return sentence


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.01, 0.5, 0.999])
def test_truncated_weights(folder: Path, share: float) -> None:
    path = folder / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "is truncated or no safetensors file" in refused(folder)


def test_bytes_behind_the_weights(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"\0")
    assert "is truncated or no safetensors file" in refused(folder)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_in_the_weights(whole: Path, share: float, bit: int) -> None:
    manifest = manifest_at(whole)
    assert manifest is not None
    content = bytearray((whole / WEIGHTS).read_bytes())
    header = int.from_bytes(content[:8], "little")
    place = 8 + header + int((len(content) - 8 - header) * share)
    content[place] ^= 1 << bit
    other = Path(shutil.copytree(whole, whole.with_name("flipped"), dirs_exist_ok=True))
    (other / WEIGHTS).write_bytes(content)
    assert "is not what was written: its tensors do not have the digest" in refused(other)


@pytest.mark.parametrize("place", range(0, 4000, 137))
def test_a_flipped_bit_in_the_header(folder: Path, place: int) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[place] ^= 4
    (folder / WEIGHTS).write_bytes(content)
    assert WEIGHTS in refused(folder)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c[KEY]["layers"]["layers.0.mixer.in_proj"].update(decodes=True),
        lambda c: c[KEY]["sites"]["layers.0.mixer.z"].update(has_knee=True),
        lambda c: c[KEY]["provenance"].update(source="somewhere/else"),
        lambda c: c[KEY]["settings"]["precision"].update(name="w4a4"),
        lambda c: c[KEY].update(more=1),
        lambda c: c[KEY][DIGEST].update(tensors="0" * 64),
        lambda c: c.update(norm_eps=1e-6),
        lambda c: c["ssm_cfg"].update(d_conv=3),
    ],
)
def test_an_edited_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(folder, change)
    assert f"{CONFIG} was changed after it was written" in refused(folder)


def test_the_order_of_fields_and_white_space_do_not_matter(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config, sort_keys=True, indent=7))
    assert load_pretrained(str(folder)).manifest is not None


@pytest.mark.parametrize(
    ("version", "advice"),
    [(0, "save it again from the source"), (2, "install a newer one"), (99, "install a newer one"),
     ("1", "save it again"), (None, "save it again")],
)  # fmt: skip
def test_another_format_version(folder: Path, version: Any, advice: str) -> None:
    change_config(folder, format_version=version)
    sentence = refused(folder)
    assert f"format_version {version}, written by dualscale_mamba 0." in sentence
    assert advice in sentence


@pytest.mark.parametrize("field", ["layers", "sites", "settings", "provenance", "dtype", "tied", "tokenizer"])
def test_a_missing_field(folder: Path, field: str) -> None:
    change_config(folder, **{field: None})
    assert f"quantization_config has no {field}" in refused(folder)


@pytest.mark.parametrize("digest", [None, {}, "abc", {"tensors": "0" * 64}])
def test_a_missing_digest(folder: Path, digest: Any) -> None:
    change_config(folder, is_sealed=False, digest=digest)
    assert "has no digest" in refused(folder)


def test_another_package(folder: Path) -> None:
    change_config(folder, quant_method="gptq")
    assert "quantized already, by gptq, which this package cannot read" in refused(folder)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        (CODES, None, f"missing {CODES}"),
        (ROWS, None, f"missing {ROWS}"),
        ("stranger", torch.ones(1), "unexpected stranger"),
        (CODES, torch.zeros(4, 64, dtype=torch.int8), r"is I8 (4, 64), config.json asks for I8 (256, 64)"),
        (CODES, torch.zeros(256, 64), "is F32 (256, 64), config.json asks for I8"),
        (ROWS, torch.zeros(3, 8), "site layers.1.mixer.ssm_input is none that config.json describes"),
        (ROWS, torch.zeros(1, 9), "site layers.1.mixer.ssm_input is none that config.json describes"),
    ],
)
def test_tensors_that_do_not_fit(folder: Path, name: str, changed: torch.Tensor | None, message: str) -> None:
    change_tensors(folder, **{name: changed})
    assert message in refused(folder)


def test_other_sizes(folder: Path) -> None:
    edit(folder, lambda c: c.update(d_model=128))
    seal(folder)
    assert "config.json asks for" in refused(folder)


def test_a_layer_without_a_width(folder: Path) -> None:
    edit(folder, lambda c: c[KEY]["layers"].pop("lm_head"))
    seal(folder)
    assert "describes no model: 'lm_head'" in refused(folder)


def test_a_config_of_another_family(folder: Path) -> None:
    edit(folder, lambda c: c.update(ssm_cfg={"layer": "Mamba2", "headdim": 16, "d_state": 16}))
    assert "was changed after it was written" in refused(folder)
    seal(folder)
    assert "describes a mamba2 model, but its quantization_config one of mamba1" in refused(folder)


def test_another_family_than_asked_for(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.family=mamba2: allowed is mamba1, which .* is"):
        load_pretrained(str(folder), family="mamba2")
    with pytest.raises(ConfigError, match=r"model\.family=mamba2: allowed is mamba1, which .* is"):
        check_source(str(folder), "mamba2")


def test_tokenizer(folder: Path) -> None:
    tokenizer = (folder / TOKENIZER).read_text()
    (folder / TOKENIZER).write_text(tokenizer + "\n")
    assert "is not the tokenizer that was saved" in refused(folder)
    (folder / TOKENIZER).unlink()
    assert f"has no {TOKENIZER}" in refused(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refused(folder)


@pytest.mark.parametrize("name", [CARD, RESULT])
def test_what_only_people_read_may_change(folder: Path, name: str) -> None:
    (folder / name).write_text("other")
    assert load_pretrained(str(folder)).manifest is not None
    (folder / name).unlink()
    assert load_pretrained(str(folder)).manifest is not None


@pytest.mark.parametrize("name", ["dtype", "residual_dtype"])
def test_other_types(folder: Path, name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"model\.{name}=float16: allowed is float32, in which .* was saved"
    ):
        load_pretrained(str(folder), **{name: torch.float16})


def test_another_implementation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualscale_mamba.models.pretrained.check_available", lambda *_: None)
    with pytest.raises(ConfigError, match=r"native: .* is quantized"):
        load_pretrained(str(folder), implementation="mamba_ssm")


class TestPlaces:
    def test_new_and_empty_ones(self, tmp_path: Path) -> None:
        check_target(tmp_path / "a" / "b" / "c")
        (tmp_path / "empty").mkdir()
        check_target(tmp_path / "empty")

    def test_an_older_checkpoint_is_replaced(self, folder: Path) -> None:
        before = load_file(folder / WEIGHTS)
        (folder / CARD).unlink()
        with ops.implementation("reference"):
            save(folder, *quantized("random:tiny", Case({})))
        assert (folder / CARD).is_file()
        assert not torch.equal(load_file(folder / WEIGHTS)[ROWS], before[ROWS])
        assert [path.name for path in folder.parent.iterdir()] == ["saved"]

    @pytest.mark.parametrize("stranger", ["notes.txt", ".git"])
    def test_other_files_are_kept(self, folder: Path, stranger: str) -> None:
        (folder / stranger).write_text("mine")
        with pytest.raises(
            ConfigError, match=rf"save=.*: allowed is a new or empty folder.* holds {stranger}"
        ):
            check_target(folder)

    def test_a_checkpoint_that_is_not_quantized(self, folder: Path) -> None:
        edit(folder, lambda config: config.pop(KEY))
        with pytest.raises(ConfigError, match="allowed is a new or empty folder"):
            check_target(folder)

    def test_a_file(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="a folder, not a file"):
            check_target(folder / CARD)
        with pytest.raises(ConfigError, match="where you may write"):
            check_target(folder / CARD / "below")

    def test_a_write_that_fails_leaves_what_was_there(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = quantized("random:tiny", Case({}))
        before = (folder / CONFIG).read_bytes()
        monkeypatch.setattr(
            "dualscale_mamba.quantization.checkpoint_folder.card", lambda *_: 1 / 0
        )  # the last file
        with pytest.raises(ZeroDivisionError):
            save(folder, *made)
        assert (folder / CONFIG).read_bytes() == before
        assert [path.name for path in folder.parent.iterdir()] == ["saved"]
