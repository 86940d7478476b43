"""Time whole models side by side in one process: this package's precisions, and others' implementations.

    python benchmarks/models.py --model mamba-130m --threads 2            # on the CPU, fp32
    python benchmarks/models.py --model mamba-2.8b --device cuda --batches 1,64

Weights are random, of the sizes of a published model or of a folder's config.json: times do not depend on them. The
arms are ``none`` (floating point), every precision named by ``--precisions`` with ``single`` and ``dual`` scales,
``transformers`` (that library's own model) and ``mamba_ssm`` with ``causal_conv1d`` on a GPU, each where it is
installed; ``PyTorch`` is ``none`` on this package's reference operators, in fp32 or whatever the type is. In every
round each arm reads the prompt once and then makes ``--tokens`` tokens, one after the other, each waited for; the order
turns round from one round to the next. Shown are medians over the rounds, and how many times faster than the first arm.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.models.config import DTYPES, Mamba2Config, MambaConfig, ModelConfig
from dualscale_mamba.models.initial import initialize
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.profiling.latency import wait
from dualscale_mamba.profiling.memory import stored_tensors
from dualscale_mamba.profiling.table import recipe_of, size_of
from dualscale_mamba.quantization.pipeline import convert, prepare_and_calibrate

SCALE_MODES = ("single", "dual")
CALIBRATION = (2, 64)  # sequences and tokens
SEED = 0


@dataclass
class Arm:
    """One implementation: ``prefill`` gives a cache, ``step`` makes one token with it."""

    name: str
    prefill: Callable[[Tensor], Any]
    step: Callable[[Tensor, Any], Any]
    bytes: int
    ops: str = "compiled"
    first: list[float] = field(default_factory=list)
    following: list[float] = field(default_factory=list)


def native(config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype) -> MambaLM:
    """This package's model with these weights; what it does not change it shares."""
    with torch.device("meta"):
        model = MambaLM(config, dtype)
    kept = {name: value.dtype for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.to(kept[name]) for name, value in weights.items()}, assign=True)
    model.tie()
    return model.eval()


def own_arm(name: str, model: MambaLM, implementation: str = "compiled") -> Arm:
    """An arm of this package."""

    def prefill(prompt: Tensor) -> Any:
        cache = model.allocate_cache(len(prompt))
        model(prompt, cache=cache, last_only=True).argmax(-1)
        return cache

    size = sum(tensor.nbytes for _, tensor in stored_tensors(model))
    return Arm(name, prefill, lambda token, cache: model.step(token, cache).argmax(-1), size, implementation)


def own_arms(config: ModelConfig, options: argparse.Namespace, dtype: torch.dtype) -> Iterator[Arm]:
    """Floating point, on kernels and on PyTorch's operators, and every precision with each scale mode."""
    device = torch.device(options.device)
    weights = initialize(config, SEED, device)
    plain = native(config, weights, dtype)
    yield own_arm("none", plain)
    if device.type == "cpu":
        yield own_arm("none, PyTorch", plain, "reference")
    ids = torch.randint(0, config.vocab_size, CALIBRATION, device=device)
    for precision in options.precisions.split(","):
        for mode in SCALE_MODES:
            recipe = recipe_of(precision, config.family, f"scale_mode={mode}", *options.override)
            model = native(config, weights, dtype)
            convert(model, prepare_and_calibrate(model, [ids], recipe), recipe)
            yield own_arm(f"{precision} {mode}", model)


def transformers_arm(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Arm:
    """That library's model; it takes the official kernels where they are installed, and PyTorch's operators else."""
    from transformers import Mamba2Config as Second
    from transformers import Mamba2ForCausalLM, MambaForCausalLM
    from transformers import MambaConfig as First

    shared = {
        "hidden_size": config.d_model, "num_hidden_layers": config.n_layer, "vocab_size": config.vocab_size,
        "state_size": config.d_state, "conv_kernel": config.d_conv, "expand": config.expand,
        "tie_word_embeddings": config.tie_embeddings,
    }  # fmt: skip
    with torch.device(device):
        if isinstance(config, MambaConfig):
            model: Any = MambaForCausalLM(First(**shared, time_step_rank=config.dt_rank))
        else:
            assert isinstance(config, Mamba2Config)
            own = {
                "num_heads": config.n_heads, "head_dim": config.head_dim, "n_groups": config.n_groups,
                "chunk_size": config.chunk_size,
            }  # fmt: skip
            model = Mamba2ForCausalLM(Second(**shared, **own))
    model = model.to(dtype).eval()

    def prefill(prompt: Tensor) -> Any:
        output = model(prompt, use_cache=True, logits_to_keep=1)
        output.logits.argmax(-1)
        return output.cache_params

    def step(token: Tensor, cache: Any) -> Any:
        return model(token[:, None], cache_params=cache, use_cache=True).logits.argmax(-1)

    return Arm("transformers", prefill, step, sum(p.nbytes for p in model.parameters()))


def official_arm(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Arm:
    """The models of ``mamba_ssm``."""
    from dualscale_mamba.models.official import OfficialLM

    weights = {name: value.to(dtype) for name, value in initialize(config, SEED, device).items()}
    model = OfficialLM(config, weights, dtype, torch.float32, device)

    def prefill(prompt: Tensor) -> Any:
        cache = model.allocate_cache(len(prompt))
        model(prompt, cache=cache, last_only=True).argmax(-1)
        return cache

    size = sum(p.nbytes for p in model.parameters())
    return Arm("mamba_ssm", prefill, lambda token, cache: model.step(token, cache).argmax(-1), size)


def arms_of(config: ModelConfig, options: argparse.Namespace, dtype: torch.dtype) -> list[Arm]:
    """All that can run here."""
    device = torch.device(options.device)
    arms = list(own_arms(config, options, dtype))
    if options.peers and importlib.util.find_spec("transformers"):
        arms.append(transformers_arm(config, device, dtype))
    if options.peers and device.type == "cuda" and importlib.util.find_spec("mamba_ssm"):
        arms.append(official_arm(config, device, dtype))
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
                first = _milliseconds(lambda a=arm, c=caches: c.append(a.prefill(prompt)), device)
                following = [
                    _milliseconds(lambda a=arm, c=caches: a.step(token, c[0]), device)
                    for _ in range(options.tokens)
                ]
            if number:
                arm.first.append(first)
                arm.following.append(statistics.median(following))


def _milliseconds(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return 1e3 * (time.perf_counter() - began)


def shown(arms: list[Arm], title: str) -> Table:
    """Medians and ratios to the first arm."""
    table = Table(title=title, title_justify="left")
    for head in ("arm", "weights MB", "prefill ms", "times faster", "token ms", "times faster"):
        table.add_column(head, justify="left" if head == "arm" else "right")
    base = arms[0]
    for arm in arms:
        cells: list[str] = []
        for own, other in ((arm.first, base.first), (arm.following, base.following)):
            time_of, time_of_base = statistics.median(own), statistics.median(other)
            cells += [f"{time_of:.2f}", f"{time_of_base / time_of:.2f}"]
        table.add_row(arm.name, f"{arm.bytes / 1e6:.1f}", *cells)
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
    parser.add_argument("--threads", type=int, help="of the CPU")
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
            arm.first, arm.following = [], []
        measure(arms, batch, options)
        title = f"{options.model}, {name}, batch {batch}, {options.prompt} tokens, {where}, torch {torch.__version__}"
        Console(width=None if sys.stdout.isatty() else 120).print(shown(arms, title))
        for arm in arms:
            times = {"prefill_ms": arm.first, "token_ms": arm.following}
            results.append({"arm": arm.name, "batch": batch, "bytes": arm.bytes, **times})
    if options.out:
        facts = {"model": options.model, "dtype": name, "device": where, "prompt": options.prompt}
        options.out.write_text(json.dumps({**facts, "results": results}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        raise SystemExit(str(error)) from None
