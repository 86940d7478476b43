"""Compile the kernels of one device into a shared library, once, and load it.

``python -m dualscale_mamba.ops.build`` does it ahead of time; otherwise the first call of an operator does.
The compiler is called directly, one process a source file, in a private folder; the finished library is moved
into the cache in one step, so that a build killed half-way leaves nothing that a later one could pick up.
Builds of the same library wait for each other through a lock that the operating system drops with its holder.

The key of the cache covers everything that decides the result: sources, flags, compiler and torch versions,
and the processor (code is generated for the very machine). CPU and CUDA are two libraries, because one that
refers to CUDA symbols cannot be loaded beside a CPU build of torch.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from dualscale_mamba.ops.toolchain import DEVICES, BuildError, Recipe, recipe

logger = logging.getLogger(__name__)

__all__ = ["BuildError", "Recipe", "build", "default_cache_dir", "load", "main", "recipe"]

LIBRARY = "libdualscale.so"


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/dualscale_mamba``, or the same under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dualscale_mamba"


def build(
    device: str,
    archs: Sequence[str] = (),
    *,
    extra_flags: Sequence[str] = (),
    cache_dir: Path | None = None,
    verbose: bool = False,
) -> Path:
    """The library of ``device``, compiled unless the cache has it.

    Args:
        device: "cpu" or "cuda".
        archs: As in :func:`recipe`.
        extra_flags: As in :func:`recipe`.
        cache_dir: Where libraries are kept; default :func:`default_cache_dir`.
        verbose: Log every command and what the compiler says.

    Returns:
        Path of the shared library.

    Raises:
        BuildError: Something is missing or does not compile.
    """
    made = recipe(device, archs, extra_flags=extra_flags)
    folder = (cache_dir or default_cache_dir()) / made.key
    library = folder / LIBRARY
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquire(FileLock(folder / "lock"))
    except OSError as error:
        raise BuildError(f"cannot write to the cache folder {folder}: {error}") from error
    try:
        if not library.exists():
            _build_locked(made, folder, library, verbose)
    finally:
        lock.release()
    return library


def _acquire(lock: FileLock) -> FileLock:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is building the same kernels: waiting for it")
        lock.acquire()
    return lock


def _build_locked(made: Recipe, folder: Path, library: Path, verbose: bool) -> None:
    for leftover in folder.glob("build-*"):  # of a build that was killed: we hold the lock, so nobody uses it
        shutil.rmtree(leftover, ignore_errors=True)
    logger.info("building the %s kernels (%d files) into %s", made.device, len(made.sources), folder)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as scratch:
        objects = [Path(scratch) / f"{source.stem}.o" for source in made.sources]
        commands = [made.compile_command(*pair) for pair in zip(made.sources, objects, strict=True)]
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            list(pool.map(lambda command: _run(command, verbose), commands))
        linked = Path(scratch) / LIBRARY
        _run(made.link_command(objects, linked), verbose)
        os.replace(linked, library)
    logger.info("built the %s kernels in %.1f s", made.device, time.monotonic() - start)


def _run(command: Sequence[str], verbose: bool) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    output = (done.stdout + done.stderr).strip()
    if done.returncode:
        raise BuildError(
            f"this command failed with status {done.returncode}:\n{shlex.join(command)}\n{output}"
        )
    if verbose:
        logger.info("%s\n%s", shlex.join(command), output)


def load(device: str, *, cache_dir: Path | None = None, verbose: bool = False) -> Path:
    """Build the library of ``device`` if need be and register its kernels; further calls do nothing.

    Raises:
        BuildError: It cannot be built, or cannot be loaded into this process.
    """
    if device not in _loaded:
        library = build(device, cache_dir=cache_dir, verbose=verbose)
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError as error:
            raise BuildError(
                f"the {device} kernels were built but do not load into this torch: {error}"
            ) from error
        _loaded[device] = library
    return _loaded[device]


_loaded: dict[str, Path] = {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dualscale_mamba.ops.build", description="Build the kernels."
    )
    parser.add_argument(
        "--device", choices=(*DEVICES, "all"), help="default: cpu, and cuda where a GPU is visible"
    )
    parser.add_argument(
        "--arch", default="", help="CUDA architectures, for example 80,90,100 (default: the visible GPU)"
    )
    parser.add_argument("--cache-dir", type=Path, help=f"default: {default_cache_dir()}")
    parser.add_argument("--verbose", action="store_true", help="show commands and what the compilers say")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    default = DEVICES if torch.cuda.is_available() else ("cpu",)
    devices = DEVICES if options.device == "all" else (options.device,) if options.device else default
    archs = tuple(part for part in options.arch.split(",") if part)
    extra = ("-Xptxas", "-v") if options.verbose else ()
    try:
        for device in devices:
            flags = extra if device == "cuda" else ()
            library = build(
                device, archs, extra_flags=flags, cache_dir=options.cache_dir, verbose=options.verbose
            )
            logger.info("%s: %s", device, library)
    except BuildError as error:
        logger.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
