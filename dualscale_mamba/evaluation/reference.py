"""The unquantized model's logits: computed once for an evaluation's windows, and read by every job that compares.

Where all of them are on disk no job needs the unquantized model at all. They are kept in the model's own type, so that
a comparison is bitwise the same as with the model itself.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from dualscale_mamba.evaluation.base import LanguageModel, evaluating
from dualscale_mamba.evaluation.windows import Windows
from dualscale_mamba.progress import bar
from dualscale_mamba.quantization.storage import alone, is_kept, write_atomically

VERSION: Final = "1"
GIB: Final = 2**30
FOLDER: Final = "reference"
# The folder may hold this many of the largest evaluations; the ones that were not read for longest go first.
EVALUATIONS_KEPT: Final = 4
# A partial file of this age in seconds is of a process that was killed.
STALE: Final = 3600.0
SUMS: Final = "crc32"

log = logging.getLogger(__name__)


@dataclass
class Reference:
    """The unquantized model, or what it has said before.

    Attributes:
        load: Makes the model, when it is needed.
        cache: Folder of caches; None asks the model always.
        limit_gib: Logits of one evaluation that are larger are not kept.
        bytes_per_token: Of its logits.
        facts: What decides them besides the tokens.
        device: Where the model runs.
        peak: Most bytes of device memory in use before the counter was set back: what making the logits takes is
            not a cost of the model under test, and not every job pays it.
    """

    load: Callable[[], LanguageModel]
    cache: Path | None = None
    limit_gib: float = 0.0
    bytes_per_token: int = 0
    facts: Sequence[str] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    peak: int = 0
    _model: LanguageModel | None = field(default=None, repr=False)

    @classmethod
    def live(cls, model: LanguageModel) -> Reference:
        """A model that is there and is asked always."""
        return cls(lambda: model)

    def logits(self, windows: Windows) -> Iterator[Tensor]:
        """Logits (batch, length, vocabulary) of each batch in turn, on any device."""
        path = self.path(windows)
        if path is None:
            yield from self._ask(windows.batches)
            return
        with alone(path) as is_usable:
            file = _opened(path, len(windows.batches)) if is_usable else None
            made = self._compute(windows.batches) if file is None and is_usable else None
            if made is not None and is_kept(path, lambda place: _save(place, made)):
                prune(path.parent, int(self.limit_gib * GIB) * EVALUATIONS_KEPT, path)
        if made is not None:
            yield from made
        elif file is not None:
            yield from self._read(file, path, windows.batches)
        else:
            yield from self._ask(windows.batches)

    def model(self) -> LanguageModel:
        """The model itself, which stays for the next evaluation."""
        if self._model is None:
            self._model = self.load()
        return self._model

    def path(self, windows: Windows) -> Path | None:
        """Where the logits of these windows are kept; None where they are too large."""
        tokens = sum(batch[:, 1:].numel() for batch in windows.batches)
        if self.cache is None or tokens * self.bytes_per_token > self.limit_gib * GIB:
            return None
        own = [str(windows.facts[key]) for key in ("tokens_hash", "length", "batch_size")]
        key = sha256("\n".join([VERSION, *self.facts, *own]).encode()).hexdigest()[:24]
        return self.cache / FOLDER / f"{key}.safetensors"

    def _ask(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """From the model."""
        model = self.model()
        for batch in batches:
            yield _run(model, batch)

    def _compute(self, batches: Sequence[Tensor]) -> list[Tensor]:
        """All logits, in main memory; a model that was loaded for them goes at once."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            self.peak = max(self.peak, torch.cuda.max_memory_allocated(self.device))
        model = self._model or self.load()
        made = [_run(model, batch).cpu() for batch in bar(batches, "reference", "batch")]
        del model
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        return made

    def _read(self, file: Any, path: Path, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """From the file; what is damaged in it comes from the model, and the next job writes it again."""
        sums = json.loads(file.metadata()[SUMS])
        for index in range(len(batches)):
            tensor = file.get_tensor(str(index))
            if _sum(tensor) != sums[index]:
                log.warning("%s is damaged; computing the rest of it again", path)
                path.unlink(missing_ok=True)
                yield from self._ask(batches[index:])
                return
            yield tensor


@torch.inference_mode()
def _run(model: LanguageModel, windows: Tensor) -> Tensor:
    evaluating(model)
    return model(windows[:, :-1].to(model.device))


def _save(path: Path, made: Sequence[Tensor]) -> None:
    tensors = {str(index): tensor for index, tensor in enumerate(made)}
    write_atomically(path, tensors, {SUMS: json.dumps([_sum(tensor) for tensor in made])})


def _sum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _opened(path: Path, batches: int) -> Any:
    """The file ready to be read, marked as used; None where it is not there or cannot be read."""
    if not path.exists():
        return None
    try:
        file: Any = safe_open(str(path), framework="pt")
        if len(file.keys()) != batches or SUMS not in (file.metadata() or {}):
            raise ValueError("it holds something else")
    except Exception as error:  # whatever is wrong with it, it can be computed again
        log.warning("%s cannot be read (%s); computing it again", path, error)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return file


def prune(folder: Path, limit: int, keep: Path) -> None:
    """Remove the files of ``folder`` that were not used for longest, until ``limit`` bytes are left.

    Args:
        folder: Of cached logits.
        limit: Bytes.
        keep: A file that stays in any case.
    """
    for partial in folder.glob(".*.safetensors.*"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > STALE:
                partial.unlink()
    files = []
    for path in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):  # another job has removed it
            facts = path.stat()
            files.append((max(facts.st_atime, facts.st_mtime), facts.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            return
        if path != keep:
            with contextlib.suppress(OSError):
                path.unlink()
                Path(f"{path}.lock").unlink(missing_ok=True)
            total -= size
