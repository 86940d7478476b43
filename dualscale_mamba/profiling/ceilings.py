"""What a device can do at most, measured on it: bytes, products, exponentials a second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dualscale_mamba.profiling.flush import last_level_bytes
from dualscale_mamba.profiling.latency import wait

REPEATS = 7
# Of CUDA's special-function units, a clock and multiprocessor (CUDA programming guide, arithmetic throughput).
EXPONENTIALS_PER_CLOCK = 16
# Sides of the square matrices whose product is timed.
SIDE = {"cuda": 4096, "cpu": 512}
# On a CPU: a polynomial of degree five and the reduction of its argument, in fp32.
OPERATIONS_OF_AN_EXPONENTIAL = 16


@dataclass(frozen=True)
class Ceilings:
    """Rates a second that no operator can pass.

    Attributes:
        bytes: Read plus written, of a large copy.
        int8: Additions and multiplications of an int8 matrix product.
        values: The same of the model's type of values.
        exponentials: Of fp32.
    """

    bytes: float
    int8: float
    values: float
    exponentials: float


def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The ceilings of a device; takes about a second.

    Args:
        device: Which one.
        dtype: Of the model's values.
    """
    side = SIDE[device.type]
    size = max(8 * last_level_bytes(device), 2**26 if device.type == "cpu" else 2**30)
    source = torch.empty(min(size, 2**30), dtype=torch.int8, device=device).zero_()
    target = torch.empty_like(source)
    return Ceilings(
        2 * source.nbytes / _seconds(lambda: target.copy_(source), device),
        _int8_products(side, device),
        _products(side, dtype, device),
        _exponentials(side, device),
    )


def _products(side: int, dtype: torch.dtype, device: torch.device) -> float:
    values = torch.ones(side, side, dtype=dtype, device=device)
    return 2 * side**3 / _seconds(lambda: values @ values.t(), device)


def _int8_products(side: int, device: torch.device) -> float:
    codes = torch.ones(side, side, dtype=torch.int8, device=device)
    return 2 * side**3 / _seconds(lambda: torch._int_mm(codes, codes.t()), device)


def _exponentials(side: int, device: torch.device) -> float:
    if device.type == "cpu":
        return _products(side, torch.float32, device) / OPERATIONS_OF_AN_EXPONENTIAL
    properties = torch.cuda.get_device_properties(device)
    return EXPONENTIALS_PER_CLOCK * 1e3 * properties.clock_rate * properties.multi_processor_count


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    work()
    found, calls = [], 1 if device.type == "cpu" else 10  # a GPU is waited for once in ten
    for _ in range(REPEATS):
        wait(device)
        began = time.perf_counter()
        for _ in range(calls):
            work()
        wait(device)
        found.append((time.perf_counter() - began) / calls)
    return statistics.median(found)
