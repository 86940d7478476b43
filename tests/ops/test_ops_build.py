"""Building: concurrent, killed, changed, broken. A stand-in compiler makes builds short and observable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dualscale_mamba.ops import build, toolchain

# Compiles nothing: writes its target after a pause, and one line a call into the journal.
COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo "stand-in 1.0"; exit 0; fi
echo call >> "{journal}"
sleep {pause}
while [ $# -gt 1 ]; do [ "$1" = -o ] && target="$2"; shift; done
[ "${{target:-}}" ] || target="$1"
echo built > "$target"
"""
CALL = """
import sys
from pathlib import Path
from dualscale_mamba.ops import build
print(build.build("cpu", cache_dir=Path(sys.argv[1])))
"""


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in compiler for this test and the processes it starts; returns where its calls are counted."""
    path = tmp_path / "journal"
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER.format(journal=path, pause=0.3))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return path


def start(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CALL, str(cache)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def calls(journal: Path) -> int:
    return len(journal.read_text().splitlines()) if journal.exists() else 0


def expected_calls() -> int:
    return len(toolchain.recipe("cpu").sources) + 1


def test_two_cold_builds_at_once_compile_once(journal: Path, tmp_path: Path) -> None:
    builds = [start(tmp_path / "cache") for _ in range(2)]
    paths = [Path(process.communicate(timeout=60)[0].strip()) for process in builds]
    assert [process.returncode for process in builds] == [0, 0]
    assert paths[0] == paths[1]
    assert paths[0].read_text() == "built\n"
    assert calls(journal) == expected_calls()


def test_killed_build_leaves_nothing_in_the_way(journal: Path, tmp_path: Path) -> None:
    first = start(tmp_path / "cache")
    deadline = time.monotonic() + 60
    while not calls(journal) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(timeout=10)
    assert not list((tmp_path / "cache").glob(f"*/{build.LIBRARY}"))
    library = build.build("cpu", cache_dir=tmp_path / "cache")
    assert library.read_text() == "built\n"
    assert not list(library.parent.glob("build-*"))


def test_the_cache_is_used(journal: Path, tmp_path: Path) -> None:
    assert build.build("cpu", cache_dir=tmp_path) == build.build("cpu", cache_dir=tmp_path)
    assert calls(journal) == expected_calls()


def test_the_key_covers_flags_sources_and_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(*flags: str) -> str:
        return toolchain.recipe("cpu", extra_flags=flags).key

    plain = key()
    assert key() == plain
    assert key("-DX") != plain
    copy = tmp_path / "csrc"
    for path in [*toolchain.SOURCES.rglob("*.h"), *toolchain.SOURCES.rglob("*.cpp")]:
        target = copy / path.relative_to(toolchain.SOURCES)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    monkeypatch.setattr(toolchain, "SOURCES", copy)
    assert key() == plain  # contents decide, not where they lie
    (copy / "code.h").write_text((copy / "code.h").read_text() + "\n")
    assert key() != plain
    before = key()
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert key() != before


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        build.BuildError, match=r"no C\+\+ compiler found .*python -m dualscale_mamba.ops.build"
    ):
        build.build("cpu", cache_dir=tmp_path)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(build.BuildError, match=r"no CUDA compiler found .*--device cuda"):
        build.build("cuda", ["90"], cache_dir=tmp_path)


def test_errors_show_the_command(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match=r"failed with status 1:\n.*-fno-such-flag.*\n.*no-such-flag"):
        build.build("cpu", extra_flags=["-fno-such-flag-at-all"], cache_dir=tmp_path)
    assert not list(tmp_path.glob("*/build-*"))


def test_missing_sources_and_odd_requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match="not for device 'mps'"):
        build.build("mps")
    if toolchain.shutil.which("nvcc"):
        with pytest.raises(build.BuildError, match="a number such as 80, 90 or 100, not 'hopper'"):
            build.build("cuda", ["hopper"])
    monkeypatch.setattr(toolchain, "SOURCES", tmp_path)
    with pytest.raises(build.BuildError, match=r"no kernel sources .*pip install -e \."):
        build.build("cpu")


def test_an_unwritable_cache_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(build.BuildError, match="cannot write to the cache folder"):
        build.build("cpu", cache_dir=blocked)


def test_command_line(journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.main(["--device", "cpu", "--cache-dir", str(tmp_path / "cache"), "--verbose"]) == 0
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX")
    assert build.main(["--device", "cpu", "--cache-dir", str(tmp_path / "other")]) == 1
