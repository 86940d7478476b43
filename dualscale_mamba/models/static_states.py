"""States at fixed addresses, the caches that take turns in them, and the weights that a captured graph reads."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from dualscale_mamba.models.cache import Cache, LayerCache
from dualscale_mamba.models.language_model import MambaLM


class GraphedCache:
    """The states of one batch of texts between calls of a graphed model; they lie in its static tensors or apart.

    Args:
        maker: The graphed model; no other may be called with it.
        batch_size: Number of sequences.

    Attributes:
        position: Number of tokens seen. While it is 0 the states are empty.
        apart: Copies of the states while another cache is in the static tensors, else None.
    """

    def __init__(self, maker: Any, batch_size: int) -> None:
        self.maker, self.batch_size = maker, batch_size
        self.position = 0
        self.apart: list[Tensor] | None = None


class Slot:
    """The static states of one batch size, and the static token.

    States of one type and shape lie in one tensor, so that emptying, saving and loading are a few copies.

    Args:
        model: Whose; its sites have their codes.
        batch: Number of sequences.

    Attributes:
        cache: What the model is called with; its position means nothing.
        token: int64 ``(batch,)``: what a step reads, and then the likeliest next one.
    """

    def __init__(self, model: MambaLM, batch: int) -> None:
        self.batch = batch
        # Calls outside inference mode write to these too.
        with torch.inference_mode(False), torch.no_grad():
            layers = [layer.tensors() for layer in model.allocate_cache(1).layers]
            empty = {(at, name): state for at, layer in enumerate(layers) for name, state in layer.items()}
            groups: dict[tuple[torch.dtype, torch.Size], list[tuple[int, str]]] = {}
            for place, state in empty.items():
                groups.setdefault((state.dtype, state.shape), []).append(place)
            # An int8 state is not zero when it is empty: one sequence's states say what is.
            self._empty = [_stacked([empty[place] for place in group]) for group in groups.values()]
            self._states = [
                each.expand(-1, batch, *each.shape[2:]).clone(memory_format=torch.contiguous_format)
                for each in self._empty
            ]
            self.token = torch.zeros(batch, dtype=torch.int64, device=model.device)
        views: list[dict[str, Tensor]] = [{} for _ in layers]
        for states, group in zip(self._states, groups.values(), strict=True):
            for number, (at, name) in enumerate(group):
                views[at][name] = states[number]
        self.cache = Cache([LayerCache(**each) for each in views])
        self._owner: weakref.ref[GraphedCache] | None = None

    def reset(self) -> None:
        """Empty the states, whosever they are."""
        for states, empty in zip(self._states, self._empty, strict=True):
            states.copy_(empty)

    def release(self) -> None:
        """Let whoever is here, if it is still in use, keep its states apart."""
        owner = None if self._owner is None else self._owner()
        if owner is not None and owner.position:
            owner.apart = [states.clone() for states in self._states]
        self._owner = None

    def give(self, cache: GraphedCache) -> None:
        """Make a cache the owner; its own states, if it has any, are forgotten, and the tensors hold anything."""
        if self._owner is None or self._owner() is not cache:
            self.release()
            self._owner = weakref.ref(cache)
        cache.apart = None

    def load(self, cache: GraphedCache) -> None:
        """Make a cache the owner, with its own states in the tensors."""
        if cache.position and self._owner is not None and self._owner() is cache:
            return
        apart = cache.apart
        self.give(cache)
        if apart is None:
            self.reset()
        else:
            for states, kept in zip(self._states, apart, strict=True):
                states.copy_(kept)


def _stacked(states: list[Tensor]) -> Tensor:
    """States of one type and shape as one tensor; float8 by its bytes, which every device can put together."""
    if states[0].dtype.itemsize != 1:
        return torch.stack(states)
    return torch.stack([state.view(torch.uint8) for state in states]).view(states[0].dtype)


class WeightsSeen:
    """The tensors of a model at one moment; their memory stays while this does.

    Args:
        model: Any module.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        stores = [store for each in model.modules() for store in (each._parameters, each._buffers)]
        self._named = [(store, name, tensor) for store in stores for name, tensor in store.items()]
        # A parameter that moves to another device stays the same object and takes other memory.
        self._parameters = [
            (tensor, tensor.data_ptr(), tensor.detach())
            for _, _, tensor in self._named
            if isinstance(tensor, torch.nn.Parameter)
        ]

    def are_there(self) -> bool:
        """Whether the model still consists of the very same tensors."""
        return all(store.get(name) is tensor for store, name, tensor in self._named) and all(
            tensor.data_ptr() == address for tensor, address, _ in self._parameters
        )
