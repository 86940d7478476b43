from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dualscale_mamba.errors import CheckpointError, ConfigError
from dualscale_mamba.models import names, pretrained, weights
from dualscale_mamba.models.config import Mamba2Config, MambaConfig
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import Pretrained, check_source, load_pretrained

IDS = torch.randint(0, 4096, (1, 12), generator=torch.Generator().manual_seed(2))
CONV = "backbone.layers.0.mixer.conv1d.weight"


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_embedded(tiny: Pretrained) -> None:
    assert tiny.config == MambaConfig(d_model=256, n_layer=6, vocab_size=4096)
    assert tiny.tokenizer.vocab_size == tiny.config.vocab_size == 4096
    assert len(tiny.weights_hash) == 64
    assert tiny.model.sites()
    model = tiny.model
    assert isinstance(model, MambaLM)
    assert model.lm_head.weight is model.backbone.embedding.weight


def test_untied_head(folder: Path, tiny: Pretrained) -> None:
    change_config(folder, tie_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing lm_head\.weight"):
        load_pretrained(str(folder))

    def add_head(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = -tensors[names.EMBEDDING]

    change_weights(folder, add_head)
    torch.testing.assert_close(load_pretrained(str(folder)).model(IDS), -tiny.model(IDS))
    change_config(folder, tie_embeddings=True)
    with pytest.raises(CheckpointError, match="ties the embeddings, but"):
        load_pretrained(str(folder))


def test_a_stored_alias_of_a_tied_head_is_dropped(folder: Path, tiny: Pretrained) -> None:
    change_weights(folder, lambda tensors: tensors.update({names.HEAD: tensors[names.EMBEDDING].clone()}))
    torch.testing.assert_close(load_pretrained(str(folder)).model(IDS), tiny.model(IDS), atol=0, rtol=0)


def test_shards(folder: Path, tiny: Pretrained) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {name: shards[i % 2] for i, name in enumerate(tensors)}
    for shard in shards:
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    torch.testing.assert_close(load_pretrained(str(folder)).model(IDS), tiny.model(IDS), atol=0, rtol=0)
    (folder / shards[1]).unlink()
    with pytest.raises(CheckpointError, match=f"missing: {shards[1]}"):
        load_pretrained(str(folder))
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_pretrained(str(folder))


@pytest.mark.parametrize("size", [0, 5, 2000, 100_000])
def test_truncated_file(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=rf"model\.safetensors \({size} bytes\) is truncated"):
        load_pretrained(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(CONV), f"missing {CONV}"),
        (lambda t: t.update(stranger=torch.ones(1)), "unexpected stranger"),
        (
            lambda t: t.update({CONV: t[CONV][:, :, :3].clone()}),
            r"shape \(512, 3\), config.json asks for \(512, 4\)",
        ),
        (lambda t: t.update({CONV: t[CONV].to(torch.int8)}), "int8, not floating"),
        (lambda t: t.update({CONV: t[CONV] * float("inf")}), f"not finite as torch.float32: {CONV}"),
    ],
)
def test_wrong_weights_are_named(
    folder: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_pretrained(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_damaged_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text('{"a')
    with pytest.raises(CheckpointError, match=name):
        load_pretrained(str(folder))


def test_embedded_mamba2(tiny2: Pretrained) -> None:
    assert tiny2.config == Mamba2Config(d_model=256, n_layer=6, vocab_size=4096, d_state=64, head_dim=32)
    assert tiny2.tokenizer.vocab_size == 4096
    logits = tiny2.model(IDS)
    assert torch.isfinite(logits).all()
    again = load_pretrained("embedded:mamba2-tiny", family="mamba2", state_dtype=torch.float16).model
    assert isinstance(again, MambaLM)
    assert again.state_dtype == torch.float16
    torch.testing.assert_close(again(IDS), logits, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("source", "asked", "is_of"),
    [
        ("embedded:mamba1-tiny", "mamba2", "mamba1"),
        ("embedded:mamba2-tiny", "mamba1", "mamba2"),
        ("random:mamba2-tiny", "mamba1", "mamba2"),
        ("random:tiny", "mamba3", "mamba1"),
    ],
)
def test_another_family_than_configured_is_refused(source: str, asked: str, is_of: str) -> None:
    with pytest.raises(ConfigError, match=f"model.family={asked}: allowed is {is_of}, which .* is") as caught:
        load_pretrained(source, family=asked)
    assert caught.value.key == "model.family"
    assert load_pretrained(source, family=is_of).config.family == is_of


def test_tokenizer_of_another_model(folder: Path) -> None:
    change_config(folder, vocab_size=2048)
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_pretrained(str(folder))


class TestPickles:
    def as_pickle(self, folder: Path, content: object) -> Path:
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")
        return folder

    def test_tensors_are_read(self, folder: Path, tiny: Pretrained) -> None:
        self.as_pickle(folder, load_file(folder / "model.safetensors"))
        torch.testing.assert_close(load_pretrained(str(folder)).model(IDS), tiny.model(IDS), atol=0, rtol=0)

    def test_code_is_refused_and_not_run(self, folder: Path) -> None:
        proof = folder / "ran"

        class Attack:
            def __reduce__(self) -> tuple[object, tuple[str, ...]]:
                return Path.touch, (proof,)  # type: ignore[return-value]

        self.as_pickle(folder, {"backbone.embedding.weight": Attack()})
        with pytest.raises(CheckpointError, match="refused"):
            load_pretrained(str(folder))
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Attack()}))
        with pytest.raises(CheckpointError, match="refused"):
            load_pretrained(str(folder))
        assert not proof.exists()

    def test_an_old_torch_refuses(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.as_pickle(folder, {})
        monkeypatch.setattr(weights.torch, "__version__", "2.9.1+cpu")
        with pytest.raises(CheckpointError, match=r"torch 2\.10 or newer"):
            load_pretrained(str(folder))

    def test_a_training_state_is_refused(self, folder: Path) -> None:
        self.as_pickle(folder, {"step": 3, "model": {}})
        with pytest.raises(CheckpointError, match="no table of tensors"):
            load_pretrained(str(folder))

    def test_truncated(self, folder: Path) -> None:
        path = self.as_pickle(folder, {"a": torch.ones(1000)}) / "pytorch_model.bin"
        path.write_bytes(path.read_bytes()[:700])
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
            load_pretrained(str(folder))


class TestSources:
    @pytest.mark.parametrize(
        "source", ["embedded:nothing", "random:huge", "/no/such/folder", "checkpoints/here/"]
    )
    def test_impossible_ones(self, source: str) -> None:
        with pytest.raises(ConfigError, match=r"model\.source"):
            check_source(source)

    def test_a_file(self, folder: Path) -> None:
        with pytest.raises(ConfigError, match="not a file"):
            check_source(str(folder / "model.safetensors"))

    def test_hub_ids_are_not_fetched(self) -> None:
        check_source("state-spaces/mamba-130m-hf")

    def test_an_unreachable_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        def offline(*_: object, **__: object) -> str:
            raise ConnectionError("no route to host\nand more")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
        with pytest.raises(CheckpointError, match=r"some/model .*revision abc .*no route to host\)"):
            load_pretrained("some/model", revision="abc")

    def test_the_hub_serves_the_needed_files(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        asked: list[tuple[str, object, object]] = []

        def download(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
            asked.append((repository, revision, allow_patterns))
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        found = load_pretrained("some/model", revision="abc")
        assert asked == [("some/model", "abc", pretrained._SAFE_FILES)]
        assert found.source == "some/model"

        (folder / "tokenizer.json").rename(folder / "kept")
        (folder / "model.safetensors").rename(folder / "weights")
        with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
            load_pretrained("other/model")
        assert asked[-1][2] == pretrained._PICKLED_FILES

    @pytest.mark.parametrize("name", ["mamba-130m", "mamba2-130m"])
    def test_published_checkpoints_without_a_tokenizer(
        self, name: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub

        (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")

        def download(repository: str, **_: object) -> str:
            return str({f"state-spaces/{name}": folder, pretrained.NEOX_TOKENIZER: tmp_path}[repository])

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        assert load_pretrained(f"state-spaces/{name}").tokenizer.vocab_size == 4096

    def test_unknown_implementation(self) -> None:
        with pytest.raises(ConfigError, match=r"model\.implementation"):
            load_pretrained("random:tiny", implementation="other")

    def test_official_needs_cuda(self) -> None:
        with pytest.raises(ConfigError, match="CUDA"):
            load_pretrained("random:tiny", implementation="mamba_ssm", device="cpu")


@pytest.mark.parametrize("source", ["random:tiny", "random:mamba2-tiny"])
def test_random_is_seeded(source: str) -> None:
    first, second, third = (load_pretrained(source, seed=seed) for seed in (0, 0, 1))
    assert first.weights_hash == second.weights_hash != third.weights_hash
    torch.testing.assert_close(first.model(IDS), second.model(IDS), atol=0, rtol=0)
    assert torch.isfinite(first.model(IDS)).all()


def test_random_mamba2_starts_like_the_official_one() -> None:
    state = load_pretrained("random:mamba2-tiny").model.state_dict()
    mixer = {name.split("mixer.")[1]: value for name, value in state.items() if "layers.0.mixer" in name}
    assert mixer["A_log"].shape == mixer["dt_bias"].shape == mixer["D"].shape == (8,)
    assert ((mixer["A_log"].exp() >= 1) & (mixer["A_log"].exp() <= 16)).all()
    delta = torch.nn.functional.softplus(mixer["dt_bias"])
    assert ((delta >= 0.99e-3) & (delta <= 0.101)).all()
    assert (mixer["norm.weight"] == 1).all()


def test_dtype(tiny: Pretrained) -> None:
    model = load_pretrained("embedded:mamba1-tiny", dtype=torch.float16).model
    types = {
        name.rsplit(".", 1)[0].rsplit(".", 1)[-1]: value.dtype for name, value in model.state_dict().items()
    }
    assert types["in_proj"] == types["embedding"] == torch.float16
    assert types["conv1d"] == types["norm"] == types["norm_f"] == torch.float32
    assert load_pretrained("embedded:mamba1-tiny", dtype=torch.float16).weights_hash == tiny.weights_hash


def test_hash_follows_the_bytes(folder: Path, tiny: Pretrained) -> None:
    assert load_pretrained(str(folder)).weights_hash == tiny.weights_hash
    change_weights(folder, lambda tensors: tensors["backbone.norm_f.weight"].add_(1))
    assert load_pretrained(str(folder)).weights_hash != tiny.weights_hash
