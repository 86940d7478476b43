"""Which implementation an operator's call goes to, and the registration of the schemas with torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dualscale_mamba.ops import fake, reference, reference_linear, reference_ssd
from dualscale_mamba.ops.composed import Composed
from dualscale_mamba.ops.schema import NAMESPACE, SCHEMAS

IMPLEMENTATIONS = ("compiled", "reference")
JOINED = "mamba_layer_step"

# The library must outlive the process's last call: torch unregisters the schemas when it is collected.
_library = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{_name}", getattr(fake, _name), lib=_library)

_compiled: dict[str, Callable[..., Any]] = {
    name: getattr(getattr(torch.ops, NAMESPACE), name).default for name in SCHEMAS
}
_references = {"ssd": reference_ssd, "linear": reference_linear}  # by the first word; the others: reference
_reference: dict[str, Callable[..., Any]] = {
    name: getattr(_references.get(name.split("_")[0], reference), name) for name in SCHEMAS if name != JOINED
}
# On the CPU, and as a reference, it is made of the operators that it joins.
_reference[JOINED] = Composed(_reference.__getitem__).mamba_layer_step
_library.impl(JOINED, Composed(_compiled.__getitem__).mamba_layer_step, "CPU")  # type: ignore[no-untyped-call]
_loaded = {"meta"}
_implementation = "compiled"


def current_implementation() -> str:
    """Which implementation calls go to: "compiled" or "reference"."""
    return _implementation


def set_implementation(name: str) -> None:
    """Send all further calls to the "compiled" kernels or to the PyTorch "reference"."""
    global _implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={name!r}: allowed is {' or '.join(IMPLEMENTATIONS)}")
    _implementation = name


@contextmanager
def implementation(name: str) -> Iterator[None]:
    """Within the block, send calls to the "compiled" kernels or to the PyTorch "reference"."""
    before = _implementation
    set_implementation(name)
    try:
        yield
    finally:
        set_implementation(before)


def ensure_loaded(device: torch.device | str) -> None:
    """Build and load the kernels of ``device`` now rather than at the first call.

    Raises:
        BuildError: They cannot be built or loaded.
    """
    kind = torch.device(device).type
    if kind not in _loaded:
        from dualscale_mamba.ops import (
            build,
        )  # here, so that `python -m dualscale_mamba.ops.build` is loaded once

        build.load(kind)
        _loaded.add(kind)


def kernel(name: str, tensor: Tensor) -> Callable[..., Any]:
    """What runs operator ``name`` on the device of ``tensor``; kernels are built and loaded if need be."""
    if _implementation == "reference":
        return _reference[name]
    if tensor.device.type not in _loaded:
        ensure_loaded(tensor.device)
    return _compiled[name]
