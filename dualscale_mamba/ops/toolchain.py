"""What it takes to compile the kernels of one device on this machine: compilers, flags, and the cache key."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
DEVICES = ("cpu", "cuda")
# The oldest torch whose stable ABI the sources may use (2.11).
TARGET_VERSION = "0x020b000000000000"
COMMON_FLAGS = ("-O3", "-std=c++17", f"-DTORCH_TARGET_VERSION={TARGET_VERSION}")
# GCC warns of uninitialised variables inside its own AVX-512 headers, hence the last two.
# No -ffast-math: NaN and infinity have a meaning here. No contraction: encode rounds each product and sum.
HOST_FLAGS = (
    "-fPIC", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off",
    "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas",
    "-Wno-uninitialized", "-Wno-maybe-uninitialized",
)  # fmt: skip
CUDA_FLAGS = ("-DUSE_CUDA", "-lineinfo", "-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off")
# From Hopper on, the instructions of one architecture (wgmma, TMA) need its own target.
FIRST_SPECIFIC_ARCH = 90


class BuildError(RuntimeError):
    """The kernels of a device cannot be built or loaded; the message says what is missing and what to run."""


@dataclass(frozen=True)
class Recipe:
    """All that decides a library.

    Attributes:
        device: "cpu" or "cuda".
        sources: Files to compile.
        headers: Files that they may include.
        compiler: Absolute path.
        flags: For compiling one source.
        paths: Where headers and libraries lie; no part of the key, because the same library results.
        libraries: For linking all objects.
    """

    device: str
    sources: tuple[Path, ...]
    headers: tuple[Path, ...]
    compiler: str
    flags: tuple[str, ...]
    paths: tuple[str, ...]
    libraries: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of the cache entry: a hash of contents and circumstances, not of paths."""
        digest = hashlib.sha256()
        facts = [
            self.device,
            torch.__version__,
            _version(self.compiler),
            _processor(),
            *self.flags,
            *self.libraries,
        ]
        digest.update("\0".join(facts).encode())
        for path in (*self.sources, *self.headers):
            digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
        return f"{self.device}-{digest.hexdigest()[:16]}"

    def compile_command(self, source: Path, target: Path) -> list[str]:
        """Command that turns one source into one object."""
        return [self.compiler, *self.flags, *self.paths, "-c", str(source), "-o", str(target)]

    def link_command(self, objects: Sequence[Path], target: Path) -> list[str]:
        """Command that turns the objects into the library."""
        return [self.compiler, "-shared", *map(str, objects), *self.paths, *self.libraries, "-o", str(target)]


def recipe(device: str, archs: Sequence[str] = (), *, extra_flags: Sequence[str] = ()) -> Recipe:
    """How the library of ``device`` is made on this machine.

    Args:
        device: "cpu" or "cuda".
        archs: CUDA architectures ("80", "90", "100"); default is that of the visible GPU.
        extra_flags: Appended to the compile flags; they are part of the cache key.

    Raises:
        BuildError: The sources or the compiler are missing, or no architecture is known.
    """
    if device not in DEVICES:
        raise BuildError(f"there are kernels for {' and '.join(DEVICES)}, not for device {device!r}")
    suffix = {"cpu": "*.cpp", "cuda": "*.cu"}[device]
    sources = tuple(sorted((SOURCES / device).glob(suffix)))
    if not sources:
        raise BuildError(
            f"no kernel sources ({suffix}) in {SOURCES / device}: install the package from its repository "
            "with `pip install -e .`, which keeps csrc/ beside it"
        )
    patterns = ("*.h", f"{device}/*.h", f"{device}/*.cuh")
    headers = tuple(sorted(path for pattern in patterns for path in SOURCES.glob(pattern)))
    torch_root = Path(torch.__file__).parent
    paths = (f"-I{SOURCES}", f"-I{torch_root / 'include'}", f"-L{torch_root / 'lib'}")
    if device == "cpu":
        compiler, libraries = _host_compiler(), ["-ltorch_cpu"]
        flags: tuple[str, ...] = HOST_FLAGS
    else:
        compiler = _cuda_compiler()
        flags = (*CUDA_FLAGS, *map(_gencode, archs or _visible_archs()))
        # A CPU build of torch lacks the second: such a library compiles, which is all one can ask there.
        found = [name for name in ("torch_cpu", "torch_cuda") if (torch_root / f"lib/lib{name}.so").exists()]
        libraries = [f"-l{name}" for name in found]
    flags = (*COMMON_FLAGS, *flags, *extra_flags)
    return Recipe(device, sources, headers, compiler, flags, paths, tuple(libraries))


def _host_compiler() -> str:
    for name in (os.environ.get("CXX", ""), "g++", "c++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise BuildError(
        "no C++ compiler found (looked for $CXX, g++, c++, clang++ on PATH). Install one, for example with "
        "`apt-get install g++`, then run `python -m dualscale_mamba.ops.build --device cpu`"
    )


def _cuda_compiler() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    path = shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(home) / "bin"))
    if path:
        return path
    raise BuildError(
        f"no CUDA compiler found (looked for nvcc on PATH and in {home}/bin). Install the CUDA toolkit "
        f"{torch.version.cuda or ''} that torch was built with, then run "
        "`python -m dualscale_mamba.ops.build --device cuda`"
    )


def _visible_archs() -> tuple[str, ...]:
    if not torch.cuda.is_available():
        raise BuildError(
            "no CUDA device is visible, so the architecture must be named: "
            "`python -m dualscale_mamba.ops.build --device cuda --arch 90`"
        )
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return tuple(f"{major}{minor}" for major, minor in sorted(capabilities))


def _gencode(arch: str) -> str:
    if not arch.isdigit():
        raise BuildError(f"a CUDA architecture is a number such as 80, 90 or 100, not {arch!r}")
    specific = f"{arch}a" if int(arch) >= FIRST_SPECIFIC_ARCH else arch
    return f"-gencode=arch=compute_{specific},code=sm_{specific}"


@cache
def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


@cache
def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(
        next((line for line in lines if line.startswith(key)), "")
        for key in ("model name", "flags", "Features")
    )
