#!/usr/bin/env python
"""Runs the cases of a tree's tests/ops/exercise_kernels.py through its emulated CUDA kernels, against its reference.

    python lab/emu/check.py --tree TREE convolution pairs --cases 40 -k "conv pair" --seed 3
"""

from __future__ import annotations

import argparse
import fnmatch
import random
import sys
import time
import traceback
from pathlib import Path

FAMILIES = {
    "elementwise": ["elementwise.cu"],
    "convolution": ["conv*.cu"],
    "scan": ["scan*.cu", "state_update.cu"],
    "ssd": ["ssd*.cu"],
    "rows": ["norm*.cu", "hadamard*.cu"],
    "linear": ["linear*.cu", "few_*.cu", "gemm*.cu", "weights.cu"],
    "large_linear": ["linear*.cu", "few_*.cu", "gemm*.cu", "weights.cu"],
    "pairs": ["pairs.cu", "conv*.cu", "scan*.cu", "state_update.cu"],
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="functions of exercise_kernels.py (default: all)")
    parser.add_argument("--tree", default=".", help="working tree (default: here)")
    parser.add_argument("--cases", type=int, default=0, help="how many of each family: the smaller ones and a sample (default: all)")
    parser.add_argument("-k", dest="pattern", default="", help="part of a case's name")
    parser.add_argument("--sample", type=int, default=0, help="seed of the sample")
    parser.add_argument("--sources", default="", help="further sources, comma-separated patterns; 'all' for all")
    parser.add_argument("--seed", type=int, default=0, help="random scheduling with this seed (0: a fixed order)")
    parser.add_argument("--asynchronous", default="late", choices=["late", "early", "random"], help="when copies under way complete")
    parser.add_argument("--uninitialised", action="store_true", help="refuse reads of shared memory that nobody wrote")
    parser.add_argument("--races", type=int, default=0, help="1: warn of races in shared memory, 2: in global memory too")
    parser.add_argument("--pdl", action="store_true", help="report global accesses before griddepcontrol.wait")
    parser.add_argument("--spurious", action="store_true", help="mbarrier.try_wait fails now and then, as it may")
    parser.add_argument("--diverge", action="store_true", help="with a seed: lanes of a warp part at random, until an instruction that needs them together")
    parser.add_argument("--resident", type=int, default=0, help="clusters that run at once from the start")
    parser.add_argument("--sms", type=int, default=132, help="multiprocessors of the device")
    parser.add_argument("--trace", action="store_true", help="print launches")
    parser.add_argument("--stress", type=int, default=0, help="run each case that often, with other seeds, completion times and divergence")
    parser.add_argument("-x", action="store_true", help="stop at the first failure")
    parser.add_argument("-v", action="store_true", help="print every case")
    return parser.parse_args()


# Rows, inputs, outputs (and the group size): tiles by the hundred, rings of copies that go round several times.
LARGE = ((130, 1024, 264), (257, 528, 520), (300, 2064, 96), (512, 1280, 512))
LARGE_INT4 = ((130, 1024, 264, 128), (257, 544, 520, 32), (300, 2048, 96, 1024), (150, 1536, 200, 64), (384, 1280, 384, 256))


def large_linear(make):
    """Cases of exercise_linear.py with other sizes."""
    import exercise_linear

    before = exercise_linear.SIZES, exercise_linear.INT4_SIZES
    exercise_linear.SIZES, exercise_linear.INT4_SIZES = LARGE, LARGE_INT4
    yield from exercise_linear.linear(make)
    exercise_linear.SIZES, exercise_linear.INT4_SIZES = before


def size_of(case: tuple[object, ...]) -> int:
    import torch

    return sum(each.numel() for each in case[2] if isinstance(each, torch.Tensor))  # type: ignore[attr-defined]


def shapes(case) -> str:
    import torch

    return ", ".join(f"{str(a.dtype)[6:]}{tuple(a.shape)}" if isinstance(a, torch.Tensor) else str(a) if not hasattr(a, "rows") else "code" for a in case[2])


def main() -> int:
    options = arguments()
    tree = Path(options.tree).resolve()
    sys.path[:0] = [str(tree), str(tree / "tests/ops"), str(Path(__file__).resolve().parent)]
    import emu
    import torch

    torch.set_num_threads(1)
    import exercise_kernels as exercise
    from exercise_inputs import Inputs

    from dualscale_mamba import ops
    from dualscale_mamba.ops import dispatch

    families = options.families or [each for each in FAMILIES if each != "large_linear"]
    known = [pattern for patterns in FAMILIES.values() for pattern in patterns]
    sources = [pattern for family in families for pattern in FAMILIES.get(family, ["*.cu"])]
    sources += [p for p in options.sources.split(",") if p and p != "all"]
    sources += [each.name for each in (tree / "csrc/cuda").glob("*.cu") if not any(fnmatch.fnmatch(each.name, k) for k in known)]
    emulated = emu.load(tree, None if options.sources == "all" else sources)
    emu.options(seed=options.seed, async_=options.asynchronous, uninitialised=options.uninitialised, pdl=options.pdl,
                spurious=options.spurious, diverge=options.diverge, races=options.races, resident=options.resident, trace=options.trace, sms=options.sms)  # fmt: skip
    dispatch._compiled.update({name: getattr(emulated, name) for name in emulated})
    dispatch._loaded.add("cpu")
    failures, turn = 0, 0
    for family in families:
        cases = [case for case in (large_linear if family == "large_linear" else getattr(exercise, family))(Inputs("cpu")) if options.pattern in case[0]]
        cases = [case for case in cases if not (case[0] == "conv" and case[2][0].shape[1] == 0)]
        if options.cases and options.cases < len(cases):
            order = sorted(range(len(cases)), key=lambda at: size_of(cases[at]))
            picked = set(order[: options.cases // 4])
            picked |= set(random.Random(options.sample).sample(sorted(set(order) - picked), options.cases - len(picked)))
            cases = [cases[at] for at in sorted(picked)]
        cases.sort(key=size_of)
        done, bad, worst, apart, start = 0, 0, 0.0, 0, time.monotonic()
        for case in cases:
            name, function, inputs = case
            begin = time.monotonic()
            try:
                results = []
                for implementation in ("reference", *["compiled"] * max(options.stress, 1)):
                    own = [exercise.clone(each) for each in inputs]
                    if options.stress and implementation == "compiled":
                        turn += 1
                        emu.options(seed=options.seed * 1000 + turn, async_=turn % 3, diverge=turn // 3 % 2, spurious=turn % 5 == 0)
                    with ops.implementation(implementation):
                        result = function(*own)
                    changed = next((own[at] for prefix, at in exercise.STATE.items() if name.startswith(prefix)), None)
                    results.append(result if changed is None else (result, changed))
                for result in results[1:]:
                    error, count = exercise.compare(name, result, results[0])
                done, worst, apart = done + 1, max(worst, error), apart + count
                if options.v:
                    print(f"ok   {name} [{shapes(case)}] {time.monotonic() - begin:.2f} s", flush=True)
            except (Exception, AssertionError) as failure:
                bad += 1
                where = f" (--seed {options.seed} --stress: seed={options.seed * 1000 + turn} async={turn % 3} diverge={turn // 3 % 2})" if options.stress else ""
                text = str(failure) if isinstance(failure, (RuntimeError, AssertionError)) else traceback.format_exc()
                print(f"FAIL {name} [{shapes(case)}]{where}\n     {text}", flush=True)
                if options.x:
                    return 1
        failures += bad
        print(f"{family}: {done} cases agree, {bad} fail, largest fp32 error {worst:.1e}, {apart} codes one apart, "
              f"{time.monotonic() - start:.0f} s", flush=True)  # fmt: skip
    core = emu.core()
    print(f"{core.emu_launches()} launches, {core.emu_instructions() / 1e6:.1f} M warp instructions, {core.emu_warnings()} warnings")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
