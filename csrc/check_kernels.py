"""Compile every CUDA kernel for several architectures, print what each uses, and refuse register spills.

    python csrc/check_kernels.py [--arch 80,90,100] [--jobs 2]

No GPU is needed, only nvcc. The flags are those of :mod:`dualscale_mamba.ops.build`, so what is checked is
what users compile. A spill to memory in a hot loop costs more than the registers it saves; a kernel that
hardly runs may spill, if COLD_KERNELS says so. Without nvcc the check is skipped, aloud, with status 0.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from dualscale_mamba.ops.build import BuildError, Recipe, recipe

# Kernels that may spill: patterns over demangled names, each with the reason beside it.
COLD_KERNELS: tuple[str, ...] = (
    # Lists of outliers where the convolution does not read codes, or where each channel has scales of its own.
    "*convolve*<float, dualscale::PairResult*, dualscale::ListSelectors>",
    "*convolve_token<*, dualscale::PairResult<8>, dualscale::ListSelectors>",
)
# From ptxas -v: a "Compiling entry function" line opens a kernel, its properties follow. Functions that were
# not inlined have properties but no such line; they are charged to the kernel above them.
ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'")
SPILLS = re.compile(r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads")
USED = re.compile(r"Used (?P<registers>\d+) registers(?:.*?(?P<shared>\d+) bytes smem)?")


@dataclass
class Kernel:
    """What ptxas says of one kernel on one architecture; sizes in bytes."""

    source: str
    arch: str
    name: str
    registers: int = 0
    shared: int = 0
    spills: int = 0

    @property
    def is_cold(self) -> bool:
        """Whether it may spill."""
        return any(fnmatch(self.name, pattern) for pattern in COLD_KERNELS)


def parse(source: str, log: str) -> list[Kernel]:
    """The kernels of one compilation."""
    kernels: list[Kernel] = []
    for line in log.splitlines():
        if match := ENTRY.search(line):
            kernels.append(Kernel(source, match["arch"], match["name"]))
        elif kernels and (match := SPILLS.search(line)):
            kernels[-1].spills += int(match["stores"]) + int(match["loads"])
        elif kernels and (match := USED.search(line)):
            kernels[-1].registers = int(match["registers"])
            kernels[-1].shared = int(match["shared"] or 0)
    return kernels


def demangle(kernels: Sequence[Kernel]) -> None:
    """Replace the names by readable ones without arguments, where a demangler is installed."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None or not kernels:
        return
    names = "\n".join(kernel.name for kernel in kernels)
    readable = subprocess.run(
        [tool], input=names, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for kernel, name in zip(kernels, readable, strict=True):
        kernel.name = re.sub(r"\([^()]*\)$", "", name.replace("(anonymous namespace)::", "")).removeprefix(
            "void "
        )


def compile_one(made: Recipe, source: Path) -> tuple[list[Kernel], str]:
    """Compile one source for one architecture; returns its kernels, or an error text."""
    with tempfile.TemporaryDirectory(prefix="check-kernels-") as scratch:
        command = made.compile_command(source, Path(scratch) / "kernel.o")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    log = done.stdout + done.stderr
    if done.returncode:
        return [], f"{shlex.join(command)}\n{log}"
    return parse(source.name, log), ""


def table(kernels: Sequence[Kernel]) -> str:
    """One line a kernel, one value an architecture."""
    rows: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        rows.setdefault((kernel.source, kernel.name), []).append(kernel)
    lines = [f"{'source':<20} {'registers':>11} {'shared B':>17} {'spilled B':>9}  kernel"]
    for (source, name), found in sorted(rows.items()):
        registers, shared, spills = (
            "/".join(str(getattr(kernel, field)) for kernel in found)
            for field in ("registers", "shared", "spills")
        )
        lines.append(f"{source:<20} {registers:>11} {shared:>17} {spills:>9}  {name}")
    archs = "/".join(dict.fromkeys(kernel.arch for kernel in kernels))
    return "\n".join([f"values for {archs}", *lines])


def check(archs: Sequence[str], jobs: int) -> int:
    """Compile all, print the table and the verdict; returns the exit status."""
    try:
        recipes = [recipe("cuda", [arch], extra_flags=("-Xptxas", "-v")) for arch in archs]
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    tasks = [(made, source) for made in recipes for source in made.sources]
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        results = list(pool.map(lambda task: compile_one(*task), tasks))
    kernels = [kernel for found, _ in results for kernel in found]
    failures = [error for _, error in results if error]
    demangle(kernels)
    spilling = [kernel for kernel in kernels if kernel.spills and not kernel.is_cold]
    sys.stdout.write(f"{table(kernels)}\n")
    for failure in failures:
        sys.stderr.write(f"\ndoes not compile: {failure}\n")
    for kernel in spilling:
        sys.stderr.write(f"spills {kernel.spills} bytes: {kernel.name} on {kernel.arch}\n")
    verdict = f"{len(failures)} compilations failed, {len(spilling)} hot kernels spill"
    sys.stdout.write(f"{len(tasks)} compilations, {len(kernels)} kernels: {verdict}\n")
    return 1 if failures or spilling or not kernels else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compile every CUDA kernel and refuse register spills.")
    parser.add_argument("--arch", default="80,90,100", help="architectures (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time (default: %(default)s)")
    options = parser.parse_args(arguments)
    if shutil.which("nvcc") is None and shutil.which("nvcc", path="/usr/local/cuda/bin") is None:
        sys.stdout.write("SKIPPED: no nvcc on this machine, so the CUDA kernels were not compiled\n")
        return 0
    return check([arch for arch in options.arch.split(",") if arch], options.jobs)


if __name__ == "__main__":
    raise SystemExit(main())
