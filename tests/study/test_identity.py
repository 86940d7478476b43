"""What makes two jobs the same job."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig

from dualscale_mamba import environment
from dualscale_mamba.configuration import startup
from dualscale_mamba.study import identity
from dualscale_mamba.study.identity import job_id

ROOT = Path(__file__).resolve().parents[2]


def composed(*overrides: str) -> DictConfig:
    from hydra import compose, initialize_config_dir

    startup.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=["paths.run=/nowhere", *overrides])
        assert isinstance(config, DictConfig)
        return config


def test_labels_places_and_trackers_do_not_matter(tmp_path: Path) -> None:
    plain = job_id(composed())
    same = (
        "name=other", "group=g", "arm=control", "tags=[a]", "tracker=json", f"paths.outputs={tmp_path}",
        f"paths.cache={tmp_path}", "calibration.cache=false", "on_error=stop", "evaluation_cache_gib=0", "objective=x",
    )  # fmt: skip
    for override in same:
        assert job_id(composed(override)) == plain, override
    assert job_id(composed(*same)) == plain
    assert len(plain) == 12


@pytest.mark.parametrize(
    "override",
    ["observer.percentile=99.5", "scale_mode=single", "seed=1", "calibration.samples=7", "model=mamba2_tiny",
     "evaluation=[perplexity]", "profiling=[memory]", "ops=reference", "quantize.sites=[B]", "device=cpu", "save=out"],
)  # fmt: skip
def test_what_decides_a_result_matters(override: str) -> None:
    assert job_id(composed(override)) != job_id(composed())


def test_one_gpu_is_like_another() -> None:
    assert job_id(composed("device=cuda:1")) == job_id(composed("device=cuda:0"))


def test_text_counts_by_content_not_by_place(tmp_path: Path) -> None:
    ids = []
    for folder, text in (("a", "some text"), ("b", "some text"), ("c", "another text")):
        path = tmp_path / folder / "mine.txt"
        path.parent.mkdir()
        path.write_text(text)
        ids.append(job_id(composed(f"calibration.source=file:{path}")))
    assert ids[0] == ids[1] != ids[2]


def test_evaluation_text_counts_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("some text")
    override = f"evaluation.perplexity.source=file:{path}"
    before = job_id(composed(override))
    path.write_text("some more text")
    assert job_id(composed(override)) != before


def test_checkpoint_counts_by_content_not_by_place(tmp_path: Path) -> None:
    ids = []
    for folder, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        path = tmp_path / folder / "checkpoint"
        path.mkdir(parents=True)
        (path / "config.json").write_text("{}")
        (path / "model.safetensors").write_bytes(weights)
        ids.append(job_id(composed(f"model.source={path}")))
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("name", ["kernel_hash", "numerics_hash"])
def test_changed_sources_make_other_jobs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = job_id(composed())
    monkeypatch.setattr(environment, name, lambda: "changed")
    assert job_id(composed()) != before


def test_sources_of_the_numerics_are_all_that_compute() -> None:
    """A package that is added must be counted, or be known to compute nothing."""
    silent = {"assets", "configuration", "report", "statistics", "study", "tasks", "tracking"}
    folders = {path.name for path in (ROOT / "dualscale_mamba").iterdir() if (path / "__init__.py").is_file()}
    assert folders - silent == set(environment.NUMERICS)


def test_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"1")
    first = identity.content(path)
    monkeypatch.setattr(identity.hashlib, "sha256", lambda: pytest.fail("read again"))
    assert identity.content(path) == first
