"""How fast the encoder is, beside its plain form and beside this machine's own matrix product.

    python benchmarks/encoder.py [--rounds 7] [--json FILE]

The plain form, as torch runs it by default, and the fast form in each precision that the machine has run in turn in one
process, so that a machine whose speed drifts slows all; the median of the rounds' ratios is quoted. The floating-point
operations counted are those of the plain form's products, so work that the fast form avoids counts as speed. Peak memory
is of one process per form (Linux). The growth table times the fast form alone.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "model"))
import plain

from llueve.model.products import quick_products
from llueve.model.timer_xl import TimerXL
from llueve.training.precision import BFLOAT16_WIDTH, has_bfloat16

PATCH, STEPS, VARIABLES, HEADS = 96, 1440, 27, 8
CASES = {
    "width 256, 4 layers, batch 16": {"batch": 16, "width": 256, "layers": 4, "feed_forward": 512},
    "width 1024, 8 layers, batch 2": {"batch": 2, "width": 1024, "layers": 8, "feed_forward": 2048},
}
GROWTH = {"context": (480, 960, 1440, 2880), "variables": (1, 4, 16, 64), "batch": (1, 4, 16, 32)}

PRECISIONS = (torch.float32, *((torch.bfloat16,) if has_bfloat16(torch.device("cpu")) else ()))

Form = Callable[[torch.Tensor], torch.Tensor]


def build(case: dict[str, int]) -> tuple[TimerXL, Any, torch.Tensor]:
    """The fast form, the plain form of the same tensors, and a batch for both."""
    torch.manual_seed(0)
    encoder = TimerXL(PATCH, case["width"], case["layers"], HEADS, case["feed_forward"], dropout=0.1)
    return encoder, plain.PlainTimerXL(encoder, dropout=0.1), torch.randn(case["batch"], VARIABLES, STEPS)


def training_step(form: Form, encoder: TimerXL, x_BCL: torch.Tensor) -> None:
    """Forward and backward, without the optimiser that both would share."""
    encoder.zero_grad(set_to_none=True)
    form(x_BCL).square().mean().backward()


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def gigaflops(case: dict[str, int], backward: bool) -> float:
    """Operations of the plain form's products, 10⁹: two per multiply-add, backward twice the forward."""
    tokens = VARIABLES * STEPS // PATCH
    linear = 4 * case["width"] ** 2 + 2 * case["width"] * case["feed_forward"]
    layer = tokens * linear + 2 * tokens**2 * case["width"]
    total = 2 * case["batch"] * (case["layers"] * layer + tokens * PATCH * case["width"])
    return total * (3 if backward else 1) / 1e9


def product_rate(dtype: torch.dtype, size: int = 1024) -> float:
    """This machine's own matrix product, GFLOP/s."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    with quick_products():
        return 2 * size**3 / median(seconds(lambda: a @ b) for _ in range(30)) / 1e9


def name_of(dtype: torch.dtype) -> str:
    """`float32` or `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def compare(name: str, rounds: int, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Training step and forward pass of one case, all forms in turn."""
    encoder, equations, x_BCL = build(CASES[name])

    def fast(run: Callable[[Form], float], dtype: torch.dtype) -> float:
        with quick_products(), encoder.computing_in(dtype):
            return run(encoder.tokens)

    def step(form: Form) -> float:
        return seconds(lambda: training_step(form, encoder, x_BCL))

    def forward(form: Form) -> float:
        with torch.inference_mode():
            return seconds(lambda: form(x_BCL))

    rows = []
    for what, run in (("step", step), ("forward", forward)):
        encoder.train(what == "step")
        equations.train(what == "step")
        times = [(run(equations), *(fast(run, dtype) for dtype in PRECISIONS)) for _ in range(rounds + 1)][1:]
        for n, dtype in enumerate(PRECISIONS, start=1):
            took = median(each[n] for each in times)
            gflops = gigaflops(CASES[name], what == "step") / took
            rows.append(
                {
                    "case": name,
                    "what": what,
                    "precision": name_of(dtype),
                    "plain_s": round(median(each[0] for each in times), 3),
                    "fast_s": round(took, 3),
                    "ratio": round(median(each[0] / each[n] for each in times), 2),
                    "gflops": round(gflops, 1),
                    "of_product": round(gflops / rates[name_of(dtype)], 2),
                }
            )
    return rows


def peak_mib(name: str, form: str) -> int:
    """Peak memory of a process that takes one training step, less that of one that only builds the model."""
    command = [sys.executable, __file__, "--memory", name, form]
    built, stepped = (int(subprocess.check_output([*command, steps])) for steps in ("0", "1"))
    return stepped - built


def memory_of(name: str, form: str, steps: int) -> int:
    """Peak resident MiB of this process after so many training steps."""
    encoder, equations, x_BCL = build(CASES[name])
    dtype = next((each for each in PRECISIONS if name_of(each) == form), torch.float32)
    with quick_products() if form != "plain" else nullcontext(), encoder.computing_in(dtype):
        for _ in range(steps):
            training_step(equations if form == "plain" else encoder.tokens, encoder, x_BCL)
    # Not getrusage: a child's figure there begins with the size of the process that started it.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024


def growth() -> list[dict[str, Any]]:
    """Seconds of a forward pass at width 256 as one of context, variables and batch grows."""
    torch.manual_seed(0)
    encoder = TimerXL(PATCH, 256, 4, HEADS, 512).eval()
    rows = []
    for axis, values in GROWTH.items():
        for value in values:
            shape = {"batch": 4, "variables": 16, "context": 960, axis: value}
            x_BCL = torch.randn(shape["batch"], shape["variables"], shape["context"])
            with torch.inference_mode(), quick_products():
                times = [seconds(lambda x=x_BCL: encoder.tokens(x)) for _ in range(6)][1:]  # type: ignore[misc]
            rows.append({"axis": axis, "value": value, "forward_s": round(median(times), 4)})
    return rows


def main() -> None:
    """Measure everything, print it, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        name, form, steps = arguments.memory
        print(memory_of(name, form, int(steps)))
        return
    rates = {name_of(dtype): product_rate(dtype) for dtype in PRECISIONS}
    shown = ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in rates.items())
    print(
        f"matrix product: {shown} on {torch.get_num_threads()} threads; auto takes the last from width {BFLOAT16_WIDTH}"
    )
    rows = [row for name in CASES for row in compare(name, arguments.rounds, rates)]
    for row in rows:
        print(
            f"{row['case']}  {row['what']:8}{row['precision']:9} plain {row['plain_s']:6.3f} s  fast {row['fast_s']:6.3f} s"
            f"  {row['ratio']:5.2f} times  {row['gflops']:6.1f} GFLOP/s ({row['of_product']:.0%} of the product)"
        )
    forms = ("plain", *(name_of(dtype) for dtype in PRECISIONS))
    memory = [{"case": name, **{f"{form}_mib": peak_mib(name, form) for form in forms}} for name in CASES]
    for row in memory:
        print(f"{row['case']}  memory of a step: " + ", ".join(f"{form} {row[f'{form}_mib']} MiB" for form in forms))
    grown = growth()
    for row in grown:
        print(f"forward, {row['axis']} {row['value']:5}: {row['forward_s']:.4f} s")
    if arguments.json:
        content = {"product_gflops": rates, "rounds": rows, "memory": memory, "growth": grown}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
