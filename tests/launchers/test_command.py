"""The words of a job's command, through a shell and through Hydra's grammar."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from dualscale_mamba.study.command import config_flags, job_arguments, quoted

TEXTS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1)


def folder_of(arguments: list[str]) -> str:
    (override,) = OverridesParser.create().parse_overrides([arguments[-1]])
    assert override.key_or_group == "hydra.run.dir"
    return str(override.value())


def test_job_runs_as_a_single_run_in_its_folder(tmp_path: Path) -> None:
    typed = [
        "hydra/launcher=local_gpus", "hydra/sweeper=union", "hydra.launcher.gpus=[0,1]", "hydra.mode=MULTIRUN",
        "hydra.sweeper.only_list=true", "+hydra.sweep.mode=0o700", "hydra.run.dir=/elsewhere", "hydra.verbose=true",
        "hydra.job.name=mine",
    ]  # fmt: skip
    job = ["scale_mode=dual", "quantize.sites=[x,B,C]", "hydra.sweep.dir=/a", "hydra.sweep.subdir=jobs/b"]
    words = job_arguments(job, tmp_path, "jobs/b", typed, 3)
    assert words[:-1] == [
        "hydra.verbose=true", "hydra.job.name=mine", "scale_mode=dual", "quantize.sites=[x,B,C]", "hydra.job.num=3",
    ]  # fmt: skip
    assert folder_of(words) == str(tmp_path / "jobs" / "b")


def test_keys_that_only_begin_alike_are_kept() -> None:
    job = ["sweeps=percentile", "hydra.sweep_other=1", "hydra.job.number=1", "hydra.run.directory=2"]
    assert job_arguments(job, "/s", "j")[:-1] == job


def test_relative_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_of(job_arguments([], "outputs/x", "jobs/1")) == str(tmp_path / "outputs/x/jobs/1")


@pytest.mark.parametrize(
    "name", ["plain", "with space", "it's", "a=b,c", "[x]", "back\\slash", "ends in\\", "q\\'", '"'], ids=repr
)
def test_any_folder_survives_shell_xargs_and_hydra(tmp_path: Path, name: str) -> None:
    words = job_arguments(["quantize.sites=[x,B,C]", "name='a b'"], tmp_path / name, "jobs/1")
    line = shlex.join(words)
    assert shlex.split(line) == words
    split = subprocess.run(
        ["xargs", "-n1", "printf", "%s\\n"], input=line, capture_output=True, text=True, check=True
    )
    assert split.stdout.splitlines() == words
    assert folder_of(words) == str(tmp_path / name / "jobs" / "1")


@given(TEXTS)
def test_quoted_text_is_read_back(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={quoted(f'/{text}')}"])
    assert override.value() == f"/{text}"


def test_flags_of_the_configuration_are_handed_on() -> None:
    typed = ["-m", "-cn", "other", "scale_mode=dual", "--config-dir", "my confs", "hydra/launcher=isolated"]
    assert config_flags(typed) == ["--config-name", "other", "--config-dir", "my confs"]
    assert config_flags(["-m", "scale_mode=dual"]) == []
