"""How fast the encoder is, beside its plain form and beside this machine's own matrix product.

    python benchmarks/encoder.py [--pairs 7] [--json FILE]

Both forms run in turn in one process, so that a machine whose speed drifts slows both; the median of the pairs' ratios
is quoted. The floating-point operations counted are those of the plain form's products, so work that the fast form
avoids counts as speed. Peak memory is of one process per form (Linux). The growth table times the fast form alone.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "model"))
import plain

from llueve.model.timer_xl import TimerXL

PATCH, STEPS, VARIABLES, HEADS = 96, 1440, 27, 8
CASES = {
    "width 256, 4 layers, batch 16": {"batch": 16, "width": 256, "layers": 4, "feed_forward": 512},
    "width 1024, 8 layers, batch 2": {"batch": 2, "width": 1024, "layers": 8, "feed_forward": 2048},
}
GROWTH = {"context": (480, 960, 1440, 2880), "variables": (1, 4, 16, 64), "batch": (1, 4, 16, 32)}

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


def product_rate(size: int = 1024) -> float:
    """This machine's float32 matrix product, GFLOP/s."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / median(seconds(lambda: a @ b) for _ in range(30)) / 1e9


def compare(name: str, pairs: int) -> list[dict[str, Any]]:
    """Training step and forward pass of one case, both forms in turn."""
    encoder, equations, x_BCL = build(CASES[name])

    def step(form: Form) -> float:
        return seconds(lambda: training_step(form, encoder, x_BCL))

    def forward(form: Form) -> float:
        with torch.inference_mode():
            return seconds(lambda: form(x_BCL))

    rows = []
    for what, run in (("step", step), ("forward", forward)):
        encoder.train(what == "step")
        equations.train(what == "step")
        times = [(run(equations), run(encoder.tokens)) for _ in range(pairs + 1)][1:]
        fast = median(b for _, b in times)
        rows.append(
            {
                "case": name,
                "what": what,
                "plain_s": round(median(a for a, _ in times), 3),
                "fast_s": round(fast, 3),
                "ratio": round(median(a / b for a, b in times), 2),
                "fast_gflops": round(gigaflops(CASES[name], what == "step") / fast, 1),
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
            with torch.inference_mode():
                times = [seconds(lambda x=x_BCL: encoder.tokens(x)) for _ in range(6)][1:]  # type: ignore[misc]
            rows.append({"axis": axis, "value": value, "forward_s": round(median(times), 4)})
    return rows


def main() -> None:
    """Measure everything, print it, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        name, form, steps = arguments.memory
        print(memory_of(name, form, int(steps)))
        return
    rate = product_rate()
    print(f"matrix product: {rate:.0f} GFLOP/s in float32 on {torch.get_num_threads()} threads")
    pairs = [row for name in CASES for row in compare(name, arguments.pairs)]
    for row in pairs:
        print(
            f"{row['case']}  {row['what']:8} plain {row['plain_s']:7.3f} s  fast {row['fast_s']:7.3f} s  "
            f"{row['ratio']:5.2f} times  {row['fast_gflops']:6.1f} GFLOP/s ({row['fast_gflops'] / rate:.0%} of the product)"
        )
    memory = [{"case": name, **{f"{form}_mib": peak_mib(name, form) for form in ("plain", "fast")}} for name in CASES]
    for row in memory:
        print(f"{row['case']}  memory of a step: plain {row['plain_mib']} MiB, fast {row['fast_mib']} MiB")
    grown = growth()
    for row in grown:
        print(f"forward, {row['axis']} {row['value']:5}: {row['forward_s']:.4f} s")
    if arguments.json:
        content = {"product_gflops": rate, "pairs": pairs, "memory": memory, "growth": grown}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
