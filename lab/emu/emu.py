"""Runs the CUDA kernels of a tree on the CPU: ``from emu import load; ops = load("TREE"); ops.encode(x, code)``.

See README.md.
"""

from __future__ import annotations

import ctypes
import fcntl
import fnmatch
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
ASYNC = {"late": 0, "early": 1, "random": 2}
_core: ctypes.CDLL | None = None
_count = 0


def _log(text: str) -> None:
    print(f"emu: {text}", file=sys.stderr, flush=True)


@contextmanager
def _locked(name: str):
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def core() -> ctypes.CDLL:
    """The emulator itself, built if its sources are newer."""
    global _core
    if _core is None:
        if not os.environ.get("EMU_NO_BUILD"):
            with _locked("core"):
                done = subprocess.run(["bash", str(HERE / "build.sh")], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"the emulator does not build:\n{done.stdout}{done.stderr}")
        _core = ctypes.CDLL(str(CACHE / "libemu.so"), mode=ctypes.RTLD_GLOBAL if False else ctypes.RTLD_LOCAL)
        _core.emu_open.restype = ctypes.c_char_p
        _core.emu_range.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_char_p]
        _core.emu_option.argtypes = [ctypes.c_char_p, ctypes.c_int64]
        for name in ("emu_launches", "emu_instructions", "emu_warnings"):
            getattr(_core, name).restype = ctypes.c_uint64
    return _core


def options(**values: int | str | bool) -> None:
    """Sets options of all further launches; see README.md for them."""
    for name, value in values.items():
        number = ASYNC[value] if name == "async_" and isinstance(value, str) else int(value)
        core().emu_option(name.rstrip("_").encode(), number)


def _module(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _headers(source: Path, root: Path) -> list[Path]:
    """A source and all that it includes from the tree."""
    found: dict[Path, None] = {}
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found[path] = None
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.M):
            for folder in (path.parent, root):
                if (folder / name).exists():
                    waiting.append((folder / name).resolve())
                    break
    return sorted(found)


def _compile(source: Path, recipe: Any, root: Path, defines: Sequence[str]) -> Path:
    """Folder with kernel.o and kernel.ptx of one source; cached by content."""
    flags = [each for each in recipe.flags if not each.startswith("-gencode")]
    flags += ["-gencode=arch=compute_90a,code=compute_90a", "-Xcompiler", "-O1", *defines]
    digest = hashlib.sha256("\0".join([*flags, torch.__version__]).encode())
    for path in _headers(source, root):
        digest.update(f"\0{path.relative_to(root)}\0".encode() + path.read_bytes())
    folder = CACHE / "sources" / f"{source.stem}-{digest.hexdigest()[:20]}"
    if (folder / "kernel.ptx").exists():
        os.utime(folder)
        return folder
    with _locked(folder.name[:60]):
        if (folder / "kernel.ptx").exists():
            return folder
        start = time.monotonic()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            command = ["nice", "-n", "10", recipe.compiler, *flags, *recipe.paths, "-c", str(source), "-o", f"{scratch}/kernel.o"]
            done = subprocess.run([*command, "-keep", "-keep-dir", scratch], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
            target = Path(f"{folder}.{os.getpid()}")
            target.mkdir(exist_ok=True)
            shutil.move(f"{scratch}/kernel.o", target / "kernel.o")
            shutil.move(f"{scratch}/{source.stem}.ptx", target / "kernel.ptx")
            (target / "from").write_text(f"{source}\n")
            os.replace(target, folder)
        _log(f"compiled {source.name} in {time.monotonic() - start:.0f} s")
    return folder


def _extents(tensor: torch.Tensor) -> tuple[int, int]:
    """Address and bytes that the elements of a tensor span."""
    if tensor.numel() == 0:
        return tensor.data_ptr(), 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


class Operators:
    """The operators of one tree; each attribute is a callable."""

    def __init__(self, space: str, schemas: dict[str, str]) -> None:
        self._space, self._schemas = space, schemas
        self._made: dict[str, Callable[..., Any]] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name not in self._schemas:
            raise AttributeError(name)
        if name not in self._made:
            self._made[name] = self._wrap(name)
        return self._made[name]

    def __iter__(self):
        return iter(self._schemas)

    def _wrap(self, name: str) -> Callable[..., Any]:
        packet = getattr(getattr(torch.ops, self._space), name).default
        names = re.findall(r"(\w+)(?:=[^,()]*)?(?=,|\) ->)", self._schemas[name])

        def call(*args: Any, **kwargs: Any) -> Any:
            library = core()
            library.emu_clear()
            for at, each in [*enumerate(args), *kwargs.items()]:
                for tensor in each if isinstance(each, (list, tuple)) else [each]:
                    if isinstance(tensor, torch.Tensor):
                        label = names[at] if isinstance(at, int) and at < len(names) else at
                        address, size = _extents(tensor)
                        if size:
                            library.emu_range(address, size, f"tensor {label} {tuple(tensor.shape)} {tensor.dtype}".encode())
            with torch.no_grad():
                return packet(*args, **kwargs)

        return call


def load(tree: str | Path = ".", sources: Iterable[str] | None = None, defines: Sequence[str] = ()) -> Operators:
    """Compiles the CUDA sources of a tree and gives its operators.

    Args:
        tree: Root of the working tree.
        sources: Names or patterns of files in csrc/cuda ("conv*.cu"); default: all. An operator whose file calls
            functions of a file that is left out ends the process when it calls them.
        defines: Further nvcc flags, such as "-DX=1".
    """
    global _count
    tree = Path(tree).resolve()
    toolchain = _module(tree / "dualscale_mamba/ops/toolchain.py", f"emu_toolchain_{_count}")
    schema = _module(tree / "dualscale_mamba/ops/schema.py", f"emu_schema_{_count}")
    recipe = toolchain.recipe("cuda", ["90"])
    chosen = [each for each in recipe.sources if sources is None or any(fnmatch.fnmatch(each.name, pattern) for pattern in sources)]
    if not chosen:
        raise ValueError(f"no source matches {sources}")
    folders = [_compile(each, recipe, tree / "csrc", defines) for each in chosen]
    library = core()
    key = hashlib.sha256("\0".join([*(each.name for each in folders), str((CACHE / "libemu.so").stat().st_mtime_ns)]).encode())
    target = CACHE / "linked" / f"lib{key.hexdigest()[:20]}.so"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_suffix(f".{os.getpid()}")
        command = ["g++", "-shared", "-Wl,-Bsymbolic", *(str(each / "kernel.o") for each in folders), str(CACHE / "libemu.so")]
        command += [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", f"-Wl,-rpath,{CACHE}", "-o", str(temporary)]
        subprocess.run(command, check=True)
        os.replace(temporary, target)
    if _count:  # the same file twice would be the same library
        copy = Path(tempfile.mkdtemp(prefix="emu-")) / f"lib{_count}.so"
        shutil.copy(target, copy)
        target = copy
    space = f"emulated{_count}"
    _count += 1
    definitions = torch.library.Library(space, "DEF")
    for name, text in schema.SCHEMAS.items():
        definitions.define(name + text)
    _keep.append(definitions)
    library.emu_begin_library(space.encode())
    for each in folders:
        library.emu_add_ptx(str(each / "kernel.ptx").encode())
    error = library.emu_open(str(target).encode())
    library.emu_end_library()
    if error:
        raise RuntimeError(error.decode())
    return Operators(space, schema.SCHEMAS)


_keep: list[object] = []


def translate(tree: str | Path, sources: Iterable[str] | None = None) -> int:
    """Compiles sources and decodes all their kernels without running any; returns how many cannot be."""
    tree = Path(tree).resolve()
    recipe = _module(tree / "dualscale_mamba/ops/toolchain.py", "emu_toolchain_only").recipe("cuda", ["90"])
    bad = 0
    for each in recipe.sources:
        if sources is None or any(fnmatch.fnmatch(each.name, pattern) for pattern in sources):
            folder = _compile(each, recipe, tree / "csrc", ())
            count = core().emu_translate(str(folder / "kernel.ptx").encode())
            print(f"{each.name}: {'all kernels are understood' if not count else f'{count} kernels are not understood'}", flush=True)
            bad += count
    return bad


if __name__ == "__main__":  # python emu.py TREE [SOURCE ...]
    raise SystemExit(1 if translate(sys.argv[1], sys.argv[2:] or None) else 0)
