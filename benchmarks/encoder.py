"""Speed of the encoder, compared with its plain form and with the machine's own matrix product.

    python benchmarks/encoder.py [--rounds 7] [--only TEXT] [--tiny] [--json FILE]

It runs on the CUDA device if there is one, else on the processor. The plain form runs as torch runs it by default; the fast
form runs in each precision that the machine has. `repeating` is the form that trains on a CUDA device: its sums have a fixed
order. The floating-point operations are those of the plain form's products, so work that the fast form avoids counts as
speed. Peak memory is that of a training step: of the device, or of one process per form (Linux). The growth table times
the fast form only.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import measure
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "model"))
import plain
from workloads import Workload, chosen

from llueve.model.batch import best_device
from llueve.model.kernels.matmul import quick_products
from llueve.step import gradients
from llueve.training.precision import BFLOAT16_WIDTH, has_bfloat16

DEVICE = best_device()
ON_CUDA = DEVICE.type == "cuda"
PRECISIONS = ("float32", *(("tf32",) if ON_CUDA else ()), *(("bfloat16",) if ON_CUDA or has_bfloat16(DEVICE) else ()))
GROWTH = {"context": (480, 960, 1440, 2880), "variables": (1, 4, 16, 64), "batch": (1, 4, 16, 32)}


class Subject:
    """The fast and the plain form of the same tensors, and a batch for both.

    Args:
        case: the sizes.
        backward: measure a training step; otherwise a forward pass.
    """

    def __init__(self, case: Workload, backward: bool) -> None:
        torch.manual_seed(0)
        self.backward = backward
        self.encoder = case.encoder().to(DEVICE).train(backward)
        self.equations = plain.PlainTimerXL(self.encoder, dropout=0.1).train(backward)
        self.x_BCL = torch.randn(case.batch, case.variables, case.context).to(DEVICE)

    def run(self, form: str) -> None:
        """Compute one form, such as `plain float32` or `fast bfloat16`; a step has no optimiser, which all forms share."""
        kind, precision, *repeating = form.split()
        fast, rounded = kind == "fast", precision == "bfloat16"
        with ExitStack() as stack:
            if ON_CUDA:
                torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
            if fast:
                stack.enter_context(quick_products())
                stack.enter_context(self.encoder.computing_in(torch.bfloat16 if rounded else torch.float32))
            elif rounded:
                stack.enter_context(torch.autocast(DEVICE.type, torch.bfloat16))
            if repeating:
                stack.enter_context(gradients._deterministic_sums(DEVICE))
            if not self.backward:
                stack.enter_context(torch.inference_mode())
            out = (self.encoder.tokens if fast else self.equations)(self.x_BCL)
            if self.backward:
                self.encoder.zero_grad(set_to_none=True)
                out.square().mean().backward()

    @property
    def forms(self) -> dict[str, Callable[[], None]]:
        """All forms by name."""
        names = [f"plain {each}" for each in (PRECISIONS if ON_CUDA else PRECISIONS[:1])]
        names += [f"fast {each}" for each in PRECISIONS]
        if ON_CUDA and self.backward:
            names += ["fast float32 repeating", "fast bfloat16 repeating"]
        return {name: lambda name=name: self.run(name) for name in names}  # type: ignore[misc]


def gigaflops(case: Workload, backward: bool) -> float:
    """Operations of the plain form's products, 10⁹: two per multiply-add, backward twice the forward."""
    tokens = case.variables * case.context // case.patch
    linear = 4 * case.width**2 + 2 * case.width * case.feed_forward
    layer = tokens * linear + 2 * tokens**2 * case.width
    total = 2 * case.batch * (case.layers * layer + tokens * case.patch * case.width)
    return total * (3 if backward else 1) / 1e9


def product_rate(precision: str, size: int) -> float:
    """The machine's own matrix product, GFLOP/s."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, dtype=dtype, device=DEVICE) for _ in range(2))
    if ON_CUDA:
        torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    with quick_products():
        times = measure.alternate({"product": lambda: a @ b}, 30, 3, measure.device_seconds)
    return 2 * size**3 / median(times["product"]) / 1e9


def compare(case: Workload, backward: bool, rounds: int, rates: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Time, ratio to the plain form, and rate of every form."""
    forms, found = Subject(case, backward).forms, {}
    times = measure.alternate(forms, rounds, 1, measure.device_seconds)
    for form, spread in measure.spread(times).items():
        precision = form.split()[1]
        like = f"plain {precision}" if f"plain {precision}" in times else "plain float32"
        gflops = gigaflops(case, backward) / spread["median"]
        ratio = measure.Ratio.of(times[like], times[form])
        found[form] = {"seconds": spread, "ratio": ratio, "gflops": gflops, "of_product": gflops / rates[precision]}
    return found


def step_memory(case: dict[str, int], form: str) -> float:
    """Peak memory of a training step beyond that of the model, in MiB."""
    subject = Subject(Workload(**case), True)
    if ON_CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        subject.run(form)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = measure.forget_peak()
    subject.run(form)
    return measure.peak_mib() - before


def growth(rounds: int) -> list[dict[str, Any]]:
    """Seconds of a forward pass at width 256 for growing context, variables and batch."""
    rows = []
    for axis, values in GROWTH.items():
        for value in values:
            case = Workload(
                **{"batch": 4, "variables": 16, "context": 960, axis: value}, width=256, layers=4, feed_forward=512
            )
            subject = Subject(case, False)
            times = measure.alternate({"forward": lambda each=subject: each.run("fast float32")}, rounds)  # type: ignore[misc]
            rows.append({"axis": axis, "value": value, "forward_s": median(times["forward"])})
            print(f"forward, {axis} {value:5}: {rows[-1]['forward_s']:.4f} s")
    return rows


def main() -> None:
    """Measure everything, print it, and write it."""
    given, found = measure.arguments(__doc__, 7, step_memory), {}
    size = 64 if given.tiny else 8192 if ON_CUDA else 1024
    rates = {precision: product_rate(precision, size) for precision in PRECISIONS}
    shown = ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in rates.items())
    print(f"{DEVICE.type}, matrix product: {shown}; precision auto takes bfloat16 from width {BFLOAT16_WIDTH}")
    for name, case in chosen(given).items():
        found[name] = {}
        for what in ("step", "forward"):
            found[name][what] = compare(case, what == "step", given.rounds, rates)
            for form, row in found[name][what].items():
                print(
                    f"{name}  {what:8}{form:24}{row['seconds']['median'] * 1e3:10.3f} ms  plain takes {row['ratio']}  "
                    f"{row['gflops']:9.1f} GFLOP/s ({row['of_product']:.0%} of the product)",
                    flush=True,
                )
        for form in found[name]["step"]:
            memory = (step_memory if ON_CUDA else measure.in_child)(case=vars(case), form=form)
            found[name]["step"][form]["memory_mib"] = memory
            print(f"{name}  memory of a step, {form}: {memory:.0f} MiB")
    measure.keep(given, product_gflops=rates, cases=found, growth=growth(1 if given.tiny else 5))


if __name__ == "__main__":
    main()
