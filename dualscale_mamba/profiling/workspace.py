"""Workspace: what a forward pass needs at its worst moment beyond weights and states.

Three ways to know it:

computed
    the same forward pass runs on torch's ``meta`` device, where tensors have sizes and no memory; every storage is
    counted from its birth to its end. It takes the model's sizes and codes, no memory and little time.
measured on CUDA
    the caching allocator's own statistics.
measured on the CPU
    storages are counted as on ``meta``, on the real tensors.

Where storages are counted, memory that a kernel takes and returns inside one operator is not seen; on CUDA it is.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from dualscale_mamba.formats.base import KNEE_WIDTH, Code
from dualscale_mamba.models.config import ModelConfig
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.linear import Linear
from dualscale_mamba.models.mamba import MambaMixer
from dualscale_mamba.ops import implementation
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.rotation import base_for
from dualscale_mamba.quantization.weights import Grid
from dualscale_mamba.sites import short_name


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, follows the bytes of all storages that operators make.

    Args:
        known: Tensors that exist already and do not count.

    Attributes:
        now: Bytes alive.
        peak: The most of them at any moment.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and take in the storages of its results."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._take(tensor.untyped_storage())
        return made

    def _take(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known or key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._let_go, key)

    def _let_go(self, key: int) -> None:
        self.now -= self._alive.pop(key)


def measured(model: MambaLM, batch: int, length: int) -> int:
    """Bytes at the peak of a prefill (batch, length) that asks for the last logits, on the model's device.

    On CUDA the counter of the peak is set back.
    """
    cache = model.allocate_cache(batch)
    ids = torch.zeros(batch, length, dtype=torch.int64, device=model.device)

    def work() -> None:
        model(ids, cache=cache, last_only=True)

    for block in model.blocks():
        block.mixer.decay()  # made once and kept: it belongs to the weights
    if model.device.type != "cuda":
        states = [tensor for layer in cache.layers for tensor in layer.tensors().values()]
        return _counted(work, [*model.parameters(), *model.buffers(), *states, ids])
    work()  # libraries take what they keep
    torch.cuda.synchronize(model.device)
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    work()
    torch.cuda.synchronize(model.device)
    return torch.cuda.max_memory_allocated(model.device) - before


def _counted(work: Callable[[], None], known: Iterable[Tensor]) -> int:
    with LiveStorages(known) as alive:
        work()
    return int(alive.peak)


def computed(shell: MambaLM, batch: int, length: int) -> int:
    """What :func:`measured` finds for a model of the same sizes, codes and widths; ``shell`` from :func:`shell_of`."""
    with implementation("compiled"):  # the kernels' own results; the reference has intermediate ones
        return measured(shell, batch, length)


def shell_of(model: MambaLM) -> MambaLM:
    """The same sizes, codes and widths without any values: every tensor is on torch's ``meta`` device."""
    shell = _empty(model.config, model.dtype, model.residual_dtype, model.state_dtype)
    for name, layer in model.weight_layers().items():
        _reserve(shell, name, layer.grid, isinstance(layer, Linear) and layer.decodes)
    for site, like in zip(shell.sites().values(), model.sites().values(), strict=True):
        if like.code is not None:
            site.set_code(like.code.to("meta"), per_token=like.per_token)
    for block, other in zip(shell.blocks(), model.blocks(), strict=True):
        base = other.mixer.rotation
        block.mixer.rotation = None if base is None else base.to("meta")
        block.mixer.state_store.follow(other.mixer.state_store)
        if isinstance(block.mixer, MambaMixer) and isinstance(other.mixer, MambaMixer):
            block.mixer.x_proj_reads = other.mixer.x_proj_reads
    return shell


def shell_for(config: ModelConfig, recipe: Recipe, dtype: torch.dtype) -> MambaLM:
    """A model without values as the recipe would make it, its codes one knee a site."""
    shell = _empty(config, dtype)
    for name in shell.weight_layers():
        _reserve(shell, name, recipe.grid_of(name), recipe.width(name).activations is None)
    code = Code(torch.empty(1, KNEE_WIDTH, device="meta"), has_knee=True)
    for name, site in shell.sites().items():
        if recipe.is_active(name):
            site.set_code(code, per_token=recipe.is_per_token(short_name(name)))
    for block in shell.blocks():
        block.mixer.rotation = base_for(config.d_inner).to("meta") if recipe.rotate else None
        if isinstance(block.mixer, MambaMixer):
            block.mixer.x_proj_reads = recipe.x_proj_reads
    return shell


def _empty(config: ModelConfig, *dtypes: torch.dtype) -> MambaLM:
    with torch.device("meta"):
        return MambaLM(config, *dtypes)


def _reserve(shell: MambaLM, name: str, grid: Grid | None, decodes: bool) -> None:
    layer = shell.weight_layers()[name]
    if grid is not None:
        layer.reserve(grid)
    if isinstance(layer, Linear):
        layer.decodes = decodes
