"""What the documents say can be done: links lead somewhere, commands compose, make targets exist."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from dualscale_mamba.configuration import startup

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "csrc").rglob("*.md")),
]
CONFIGS = sorted([*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "sweeps").rglob("*.yaml")])
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"")
COMMAND = re.compile(r"python run\.py(?=[\s`)]|$)`?")
TARGET = re.compile(r"`make ([a-z]+)")
# Choices of files that a run has written, which --config-dir finds.
MADE_BY_A_RUN = ("precision=allocated", "observer=proposed")
# What only shows or starts, and the argument that follows it.
FLAGS_WITH_VALUE = {
    "--config-dir",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--shell-completion",
    "-sc",
    "--package",
    "-p",
}


def text_of(path: Path) -> str:
    """The file, with shell lines that are continued by a backslash joined."""
    return re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))


def overrides_of(arguments: str) -> list[str]:
    """The overrides of a command as a shell would pass them; a comment begins after two spaces or at #."""
    command = re.split(r" {2,}|\t|(?<!\S)[#|;]|&&", arguments.strip(), maxsplit=1)[0]
    # Inside a comment or $(...) the command may end in a bracket or quote of the text around it.
    words = shlex.split(command if command.count('"') % 2 == 0 else command.rstrip(')"'))
    takes_value = [False, *(word in FLAGS_WITH_VALUE for word in words)]
    arguments_only = [word for word, skip in zip(words, takes_value, strict=False) if not skip]
    made = MADE_BY_A_RUN if "--config-dir" in words else ()
    given = [word for word in arguments_only if not word.startswith("-") and ("=" in word or word[0] == "~")]
    return [word for word in given if word not in made]


def commands() -> list[tuple[str, str]]:
    """Every ``python run.py ...`` of documents and of comments in configuration files, with its place."""
    found = []
    for path in [*DOCUMENTS, *CONFIGS]:
        for line in text_of(path).splitlines() if path.exists() else []:
            found += [(str(path.relative_to(ROOT)), part) for part in COMMAND.split(line)[1:]]
    return sorted(set(found))


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are typed at the repository root, with the project's plugins registered."""
    monkeypatch.chdir(ROOT)
    GlobalHydra.instance().clear()
    startup.register()


def composed(overrides: list[str]) -> DictConfig:
    """The configuration that Hydra makes of the overrides, its own node included."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=overrides, return_hydra_config=True)


@cache
def sweeper_of(stored: tuple[str, ...]) -> tuple[type[Any], dict[str, Any]]:
    """The sweeper's class and the settings that a stored sweep gives it."""
    settings = OmegaConf.to_container(composed(list(stored)).hydra.sweeper, resolve=False)
    assert isinstance(settings, dict)
    return get_class(settings.pop("_target_")), {str(key): value for key, value in settings.items()}


def jobs(overrides: list[str]) -> list[list[str]]:
    """The jobs of a multirun: a stored sweep's grids and choices ``a,b`` taken apart."""
    make, settings = sweeper_of(tuple(word for word in overrides if word.startswith("sweeps=")))
    params = [f"{key}={value}" for key, value in (settings.get("params") or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*params, *overrides])
    batches = make(**settings).split_arguments(parsed, None)
    return [list(job) for batch in batches for job in batch]


_composed: set[tuple[str, ...]] = set()


def check_composition(job: list[str], place: str) -> None:
    """Compose the job, unless others had each override, and each key together with the files chosen beside it.

    Whether a configuration can be composed depends on no more than that.
    """
    files = tuple(sorted(word for word in job if (ROOT / "conf" / word.partition("=")[0]).is_dir()))
    parts = {(word,) for word in job} | {(*files, word.partition("=")[0]) for word in job}
    if not parts <= _composed:
        assert composed(job).task is not None, place
        _composed.update(parts)


@pytest.mark.parametrize(("place", "arguments"), commands())
def test_command_composes(place: str, arguments: str) -> None:
    for job in jobs(overrides_of(arguments)):
        check_composition(job, place)


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_sweep_file_expands_to_jobs_that_compose(path: Path) -> None:
    found = jobs([f"sweeps={path.stem}"])
    is_search = "  search:\n" in path.read_text(
        encoding="utf-8"
    )  # it has one job until it runs: what all share
    assert (len(found) > 1) != is_search, "a sweep has at least two jobs"
    for job in found:
        check_composition(job, path.stem)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_local_links_lead_somewhere(path: Path) -> None:
    targets = [first or second for first, second in LINK.findall(text_of(path))]
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    missing = sorted({target for target in local if not (path.parent / target).exists()})
    assert not missing, f"{path.name} links to {missing}"


def test_readme_has_its_anchors() -> None:
    text = text_of(ROOT / "README.md")
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    missing = sorted({anchor for anchor in re.findall(r"\]\(#([^)]+)\)", text) if anchor not in slugs})
    assert not missing, f"no heading for {missing}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_exist(path: Path) -> None:
    known = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    named = set(TARGET.findall(text_of(path))) | set(
        re.findall(r"^make ([a-z]+)(?:  |$)", text_of(path), flags=re.MULTILINE)
    )
    assert named <= known, f"{path.name} names make targets that do not exist: {sorted(named - known)}"
