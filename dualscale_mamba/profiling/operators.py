"""Where the time of a prefill or of a step goes, operator by operator, and how far each is from its floor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.ops.dispatch import JOINED
from dualscale_mamba.profiling.ceilings import Ceilings
from dualscale_mamba.profiling.latency import median, timed, wait
from dualscale_mamba.profiling.work import READS_WHAT_IT_GIVES, Work, is_free, is_own, name_of, work_of

# Spans of this profiler among all that torch's records.
MARK = "dualscale: "


@dataclass(frozen=True)
class OperatorTime:
    """One kind of call within a prefill or step.

    Attributes:
        name: The operator, and of a linear layer which, e.g. ``linear_w8a8 in_proj``.
        calls: How many.
        milliseconds: Of all of them: of the kernels on CUDA, of the calls on the CPU.
        work: Of all of them.
        floor: Milliseconds that no implementation can beat: the largest of the work's parts over its ceiling.
        bound: The part: ``bytes``, ``int8``, ``values`` or ``exponentials``.
    """

    name: str
    calls: int
    milliseconds: float
    work: Work
    floor: float
    bound: str

    @property
    def roofline(self) -> float:
        """Floor over time: the share of the roofline that is reached."""
        return self.floor / self.milliseconds if self.milliseconds else 0.0


@dataclass(frozen=True)
class Breakdown:
    """One prefill or step.

    Attributes:
        milliseconds: Of the whole, timed without any instrument, by CUDA graphs where they are used.
        operators: Longest first. What they leave of the whole is time in which no operator runs: Python and launches,
            or in a graph what lies between two kernels.
    """

    milliseconds: float
    operators: list[OperatorTime]

    @property
    def rest(self) -> float:
        """Milliseconds outside operators; 0 where the instrument has cost more, or kernels overlap by more."""
        return max(0.0, self.milliseconds - sum(each.milliseconds for each in self.operators))


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, times every operator's call, names it as a span for torch's profiler and counts its work.

    Args:
        roles: Names of linear layers by the address of their weights.

    Attributes:
        work: By name.
        calls: By name.
        milliseconds: Until the calls came back, by name: the time of the operators on the CPU, of launches on CUDA.
    """

    def __init__(self, roles: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._roles = roles
        self.milliseconds: dict[str, float] = {}
        self.work: dict[str, Work] = {}
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator within its span."""
        kwargs = kwargs or {}
        if is_free(func):
            return func(*args, **kwargs)
        name = self._name(func, args)
        with record_function(MARK + name):
            began = time.perf_counter()
            result = func(*args, **kwargs)
            spent = 1e3 * (time.perf_counter() - began)
        self.milliseconds[name] = self.milliseconds.get(name, 0.0) + spent
        self.work[name] = self.work.get(name, Work()) + work_of(func, args, kwargs, result)
        self.calls[name] = self.calls.get(name, 0) + 1
        return result

    def _name(self, func: Any, args: tuple[Any, ...]) -> str:
        name = name_of(func) if is_own(func) else f"aten {name_of(func)}"
        # An embedding, whose weight may be the head's; an operator with the weights of many layers.
        if name_of(func) in (*READS_WHAT_IT_GIVES, JOINED):
            return name
        tensors = (each for each in tree_iter(args) if isinstance(each, torch.Tensor))
        role = next((self._roles[each.data_ptr()] for each in tensors if each.data_ptr() in self._roles), "")
        return f"{name} {role}".strip()


def roles_of(model: object) -> dict[int, str]:
    """Kinds of the linear layers by the address of their weights; the embedding's is that of a tied head."""
    if not isinstance(model, MambaLM):
        return {}
    roles: dict[int, str] = {}
    for name, layer in model.weight_layers().items():
        stored = layer.weight if layer.weight_codes is None else layer.weight_codes
        roles[stored.data_ptr()] = name.rpartition(".")[2]
    return roles


@torch.inference_mode()
def break_down(
    work: Callable[[], object],
    roles: Mapping[int, str],
    ceilings: Ceilings,
    device: torch.device,
    repeats: int,
    warmup: int,
    whole: Callable[[], object] | None = None,
) -> Breakdown:
    """Time a call as it is, then once more with every operator named.

    Args:
        work: The call; repeated. Its operators are seen one by one, so it is no replay of a graph.
        roles: From :func:`roles_of`.
        ceilings: Of the device.
        device: Where it runs.
        repeats: Of each; medians are taken.
        warmup: Calls before that are not counted.
        whole: What is timed as it is in the place of ``work``: the same kernels, replayed.
    """
    total = median(timed(work if whole is None else whole, device, warmup, repeats))
    if whole is not None:
        timed(work, device, warmup, 0)  # what it makes once belongs to no operator
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        recorder = Recorder(roles)
        for name, spent in _spans(work, recorder, device).items():
            found.setdefault(name, []).append(spent)
    operators = []
    for name, times in found.items():
        floor, bound = floor_of(recorder.work[name], ceilings)
        operators.append(
            OperatorTime(name, recorder.calls[name], median(times), recorder.work[name], floor, bound)
        )
    return Breakdown(total, sorted(operators, key=lambda each: -each.milliseconds))


def _spans(work: Callable[[], object], recorder: Recorder, device: torch.device) -> dict[str, float]:
    """Milliseconds by name, of one call."""
    if device.type == "cpu":
        with recorder:
            work()
        return recorder.milliseconds
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as seen:
        with recorder:
            work()
        wait(device)
    return kernel_times(seen.events())


def kernel_times(events: Iterable[Any]) -> dict[str, float]:
    """Milliseconds of the kernels that were launched within each span, by name.

    Args:
        events: Of torch's profiler.
    """
    spent: dict[str, float] = {}
    for event in events:
        # A span is recorded on the device too, there with the gaps between its kernels.
        if event.name.startswith(MARK) and event.device_type == DeviceType.CPU:
            name = event.name.removeprefix(MARK)
            spent[name] = spent.get(name, 0.0) + event.device_time_total / 1e3
    return spent


def floor_of(work: Work, ceilings: Ceilings) -> tuple[float, str]:
    """Milliseconds at the least, and what asks for them."""
    products = "int8" if work.is_int8 else "values"
    rate = ceilings.int8 if work.is_int8 else ceilings.values
    parts = {
        "bytes": work.bytes / ceilings.bytes,
        products: work.products / rate,
        "exponentials": work.exponentials / ceilings.exponentials,
    }
    bound = max(parts, key=lambda name: parts[name])
    return 1e3 * parts[bound], bound
