"""Time whole models side by side in one process: this package's precisions, and others' implementations.

    python benchmarks/models.py --model mamba-130m --threads 2            # on the CPU, fp32
    python benchmarks/models.py --model mamba-2.8b --device cuda --batches 1,64

Weights are random, of the sizes of a published model or of a folder's config.json: times do not depend on them. The
arms are ``none`` (floating point), every precision named by ``--precisions`` with ``single`` and ``dual`` scales,
``transformers`` (that library's own model) and ``mamba_ssm`` with ``causal_conv1d`` on a GPU, each where it is
installed; ``PyTorch`` is ``none`` on this package's reference operators, in fp32 or whatever the type is. In every
round each arm reads the prompt once, makes ``--tokens`` tokens of which each is waited for, and as many more with one
wait at the end (streamed); the order turns round from one round to the next. Every token is the likeliest one, and the
next step reads it. Shown are medians over the rounds, and how many times faster than the first arm.

On a GPU this package's arms replay CUDA graphs of the prefill and of the step, and ``mamba_ssm`` the graph of the step
that its own ``generate(cg=True)`` makes; its prefill and all of ``transformers``, which have none, launch every kernel.
``--no-graphs`` lets all arms do that.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from model_arms import Arm, official_arm, own_arm, transformers_arm
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.models.config import DTYPES, ModelConfig
from dualscale_mamba.models.initial import initialize
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.profiling.latency import wait
from dualscale_mamba.profiling.table import recipe_of, size_of
from dualscale_mamba.quantization.pipeline import convert, prepare_and_calibrate

SCALE_MODES = ("single", "dual")
CALIBRATION = (2, 64)  # sequences and tokens
SEED = 0


def native(
    config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype, state_dtype: torch.dtype
) -> MambaLM:
    """This package's model with these weights; what it does not change it shares."""
    with torch.device("meta"):
        model = MambaLM(config, dtype, state_dtype=state_dtype)
    kept = {name: value.dtype for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.to(kept[name]) for name, value in weights.items()}, assign=True)
    model.tie()
    return model.eval()


def own_arms(config: ModelConfig, options: argparse.Namespace, dtype: torch.dtype) -> Iterator[Arm]:
    """Floating point, on kernels and on PyTorch's operators, and every precision with each scale mode."""
    device = torch.device(options.device)
    weights = initialize(config, SEED, device)
    plain = native(config, weights, dtype, DTYPES[options.state_dtype])
    yield own_arm("none", plain, options.graphs)
    if device.type == "cpu":
        yield own_arm("none, PyTorch", plain, False, "reference")
    ids = torch.randint(0, config.vocab_size, CALIBRATION, device=device)
    for precision in options.precisions.split(","):
        for mode in SCALE_MODES:
            recipe = recipe_of(precision, config.family, f"scale_mode={mode}", *options.override)
            model = native(config, weights, dtype, DTYPES[options.state_dtype])
            convert(model, prepare_and_calibrate(model, [ids], recipe), recipe)
            yield own_arm(f"{precision} {mode}", model, options.graphs)


def arms_of(config: ModelConfig, options: argparse.Namespace, dtype: torch.dtype) -> list[Arm]:
    """All that can run here."""
    device = torch.device(options.device)
    arms = list(own_arms(config, options, dtype))
    if options.peers and importlib.util.find_spec("transformers"):
        arms.append(transformers_arm(config, device, dtype))
    if options.peers and device.type == "cuda" and importlib.util.find_spec("mamba_ssm"):
        weights = initialize(config, SEED, device)
        arms.append(official_arm(config, weights, dtype, 2 * options.tokens, options.graphs))
    return arms


def measure(arms: list[Arm], batch: int, options: argparse.Namespace) -> None:
    """Rounds in which every arm runs once; the first is not counted."""
    device = torch.device(options.device)
    prompt = torch.randint(0, 1000, (batch, options.prompt), device=device)
    token = prompt[:, -1]
    for number in range(options.rounds + 1):
        for arm in arms if number % 2 else arms[::-1]:
            with ops.implementation(arm.ops):
                caches: list[Any] = []
                first = _milliseconds(partial(_prefill, arm, caches, prompt), device)
                made = [token]
                step = partial(_step, arm, caches, made)
                following = [_milliseconds(step, device) for _ in range(options.tokens)]
                streamed = _milliseconds(partial(_repeat, step, options.tokens), device)
                # An arm whose turn comes twice would else have to save the states of the first in its prefill.
                caches.clear()
            if number:
                arm.first.append(first)
                arm.following.append(statistics.median(following))
                arm.streamed.append(streamed / options.tokens)


def _prefill(arm: Arm, caches: list[Any], prompt: Tensor) -> None:
    caches.append(arm.prefill(prompt))


def _step(arm: Arm, caches: list[Any], made: list[Tensor]) -> None:
    made.append(arm.step(made.pop(), caches[0]))


def _repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def _milliseconds(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return 1e3 * (time.perf_counter() - began)


def shown(arms: list[Arm], title: str) -> Table:
    """Medians and ratios to the first arm."""
    table = Table(title=title, title_justify="left")
    heads = ["arm", "graphs", "weights MB"]
    for head in ("prefill ms", "token ms waited", "token ms streamed"):
        heads += [head, "times faster"]
    for head in heads:
        is_arm = head == "arm"
        table.add_column(head, justify="left" if is_arm else "right", no_wrap=is_arm)
    base = arms[0]
    for arm in arms:
        cells: list[str] = []
        pairs = (arm.first, base.first), (arm.following, base.following), (arm.streamed, base.streamed)
        for own, other in pairs:
            time_of, time_of_base = statistics.median(own), statistics.median(other)
            cells += [f"{time_of:.3f}", f"{time_of_base / time_of:.2f}"]
        table.add_row(arm.name, "yes" if arm.graphs else "no", f"{arm.bytes / 1e6:.1f}", *cells)
    return table


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time whole models side by side.")
    parser.add_argument(
        "--model", default="mamba-130m", help="a published size, or a folder with config.json"
    )
    parser.add_argument("--precisions", default="w8a8,w4a8,w4a16,w8a16")
    parser.add_argument(
        "--override", nargs="*", default=[], help="more of the configuration: precision.weights.head=8"
    )
    parser.add_argument("--batches", default="1")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16 on a GPU, float32 on the CPU")
    parser.add_argument(
        "--state-dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of this package's states; float16 for Mamba-2 alone, and what mamba_ssm keeps in its graph",
    )
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument(
        "--no-graphs", dest="graphs", action="store_false", help="launch every kernel on a GPU"
    )
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="this package alone")
    parser.add_argument("--out", type=Path, help="write all numbers as JSON")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    """Command line."""
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    device = torch.device(options.device)
    name = options.dtype or ("float16" if device.type == "cuda" else "float32")
    config = size_of(options.model, "--model")
    arms = arms_of(config, options, DTYPES[name])
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    results = []
    for batch in map(int, options.batches.split(",")):
        for arm in arms:
            arm.first, arm.following, arm.streamed = [], [], []
        measure(arms, batch, options)
        title = f"{options.model}, {name}, batch {batch}, {options.prompt} tokens, {where}, torch {torch.__version__}"
        Console(width=None if sys.stdout.isatty() else 120).print(shown(arms, title))
        for arm in arms:
            times = {"prefill_ms": arm.first, "token_ms": arm.following, "streamed_token_ms": arm.streamed}
            facts = {"arm": arm.name, "graphs": arm.graphs, "batch": batch, "bytes": arm.bytes}
            results.append({**facts, **times})
    if options.out:
        facts = {"model": options.model, "dtype": name, "device": where, "prompt": options.prompt}
        options.out.write_text(json.dumps({**facts, "results": results}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        raise SystemExit(str(error)) from None
