"""How fast training is on a CUDA device, beside the encoder's plain form, and what guard, trace and explanation cost there.

    python benchmarks/accelerator.py [--rounds 20] [--json FILE] [--profile FILE] [--tiny]

Times are of the device's own clock, from the first kernel's start to the last one's end with all gaps between; the forms
take turns, and medians are quoted. `repeating` is the form that trains: its sums have one order. `--tiny` tries the script
with small models, on a processor if need be.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from encoder import CASES, build, gigaflops, name_of, training_step
from guard import course_of
from torch import nn
from torch.profiler import ProfilerActivity, profile

from llueve.forecasting import best_device
from llueve.model.products import quick_products
from llueve.stability import step as steps
from llueve.stability.causes import Step, explain
from llueve.stability.step import loss_and_gradients, random_states
from llueve.stability.trace import trace_step
from llueve.training.course import Course

DEVICE = best_device()
CASES = {
    **CASES,
    "width 1024, 8 layers, batch 16": {"batch": 16, "width": 1024, "layers": 8, "feed_forward": 2048},
}
TINY = {"width 32, 2 layers, batch 2": {"batch": 2, "width": 32, "layers": 2, "feed_forward": 32}}
WARM_UPS = 3
NARROW = 256


def took(work: Callable[[], object]) -> float:
    """Milliseconds of one call until the device is done with it."""
    if DEVICE.type == "cpu":
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3
    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    work()
    last.record()
    last.synchronize()
    return first.elapsed_time(last)


def in_turn(forms: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each form in each round."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + WARM_UPS):
        for name, form in list(forms.items())[:: 1 if number % 2 else -1]:
            spent = took(form)
            if number >= WARM_UPS:
                times[name].append(spent)
    return times


def peak_mib(work: Callable[[], object]) -> int | None:
    """Memory that a call takes beyond what is there before it."""
    if DEVICE.type == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) // 2**20


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Inside, float32 products may be computed in TensorFloat-32, or not."""
    switch: Any = torch.backends.cuda.matmul
    before = switch.fp32_precision
    switch.fp32_precision = "tf32" if wanted else "ieee"
    try:
        yield
    finally:
        switch.fp32_precision = before


def product_rates(size: int) -> dict[str, float]:
    """The device's own matrix product, TFLOP/s."""
    rates = {}
    for name, dtype, wanted in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        a, b = (torch.randn(size, size, dtype=dtype, device=DEVICE) for _ in range(2))
        with tf32(wanted):
            times = [took(lambda a=a, b=b: a @ b) for _ in range(13)][3:]  # type: ignore[misc]
        rates[name] = round(2 * size**3 / median(times) / 1e9, 1)
    return rates


def encoder_forms(case: dict[str, int], what: str) -> dict[str, Callable[[], object]]:
    """The encoder's step, or forward pass, plain and fast, in each precision."""
    encoder, equations, x_BCL = build(case)
    encoder.to(DEVICE).train(what == "step")
    equations.state = encoder.state_dict(keep_vars=True)
    equations.train(what == "step")
    x_BCL = x_BCL.to(DEVICE)

    def form(
        run: Callable[[torch.Tensor], torch.Tensor], *around: Callable[[], AbstractContextManager[Any]]
    ) -> Callable[[], object]:
        def call() -> None:
            with ExitStack() as stack:
                for each in around:
                    stack.enter_context(each())
                if what == "step":
                    training_step(run, encoder, x_BCL)
                else:
                    with torch.inference_mode():
                        run(x_BCL)

        return call

    def rounded() -> AbstractContextManager[Any]:
        return encoder.computing_in(torch.bfloat16)

    def repeating() -> AbstractContextManager[Any]:
        return steps._repeating(DEVICE)

    fast = encoder.tokens
    forms = {
        "plain float32": form(equations, lambda: tf32(False)),
        "plain tf32": form(equations, lambda: tf32(True)),
        "plain bfloat16": form(equations, lambda: torch.autocast(DEVICE.type, torch.bfloat16)),
        "fast float32": form(fast, lambda: tf32(False), quick_products),
        "fast tf32": form(fast, lambda: tf32(True), quick_products),
        "fast bfloat16": form(fast, quick_products, rounded),
    }
    if what == "step":
        forms["fast float32, repeating"] = form(fast, lambda: tf32(False), quick_products, repeating)
        forms["fast bfloat16, repeating"] = form(fast, quick_products, rounded, repeating)
    return forms


def compare(name: str, case: dict[str, int], rounds: int) -> list[dict[str, Any]]:
    """Training step and forward pass of one case, all forms in turn."""
    rows = []
    for what in ("step", "forward"):
        forms = encoder_forms(case, what)
        memory = {form: peak_mib(work) for form, work in forms.items()}
        times = in_turn(forms, rounds)
        for form, spent in times.items():
            plain = times["plain " + form.split()[1].rstrip(",")]
            rows.append(
                {
                    "case": name,
                    "what": what,
                    "form": form,
                    "ms": round(median(spent), 3),
                    "quartiles_ms": [round(each, 3) for each in quantiles(spent, n=4)[::2]],
                    "of_plain": round(median(a / b for a, b in zip(plain, spent, strict=True)), 2),
                    "tflops": round(gigaflops(case, what == "step") / median(spent), 2),
                    "peak_mib": memory[form],
                }
            )
    return rows


def step_costs(name: str, case: dict[str, int], precision: torch.dtype, rounds: int) -> dict[str, Any]:
    """A whole training step with and without the guard, and what else is in it; then trace and explanation."""
    course = course_of(case, precision)
    config = course.effective_config
    chosen = np.arange(case["batch"])
    batch = course.batch(chosen)
    course.optimiser.set_rates(1e-3)

    def step(guarded: bool) -> None:
        loss = loss_and_gradients(course.model, batch, config, precision)
        norm = nn.utils.clip_grad_norm_(course.model.parameters(), config.clip_norm, foreach=True)
        if guarded:
            course.guard.refuses(course.read(batch, loss, norm, config))
        else:
            torch.stack((loss, norm)).tolist()
        course.optimiser.adamw.step()
        course.place.batches += 1

    def whole() -> None:
        course.place.position, course.random_state = 0, random_states(DEVICE)
        attempt = course.attempt()
        assert attempt is not None
        course.guard.refuses(attempt.reading)
        course.apply(attempt)

    loss = norm = torch.ones((), device=DEVICE)
    forms: dict[str, Callable[[], object]] = {
        "unguarded": lambda: step(False),
        "guarded": lambda: step(True),
        "guard alone": lambda: course.guard.refuses(course.read(batch, loss, norm, config)),
        "batch": lambda: course.batch(chosen),
        "whole": whole,
    }
    times = in_turn(forms, rounds)
    shares = [(b - a) / a for a, b in zip(times["unguarded"], times["guarded"], strict=True)]
    ms = {form: median(spent) for form, spent in times.items()}
    found: dict[str, Any] = {"case": name, "precision": name_of(precision)}
    found |= {f"{form.replace(' ', '_')}_ms": round(spent, 3) for form, spent in ms.items()}
    found["guard_share"] = round(median(shares), 5)
    found["guard_share_quartiles"] = [round(each, 5) for each in quantiles(shares, n=4)[::2]]
    found["guard_alone_share"] = round(ms["guard alone"] / ms["unguarded"], 5)
    found["step_peak_mib"] = peak_mib(lambda: step(True))
    if precision == torch.float32 and case["width"] > NARROW:
        return found  # the search is as in bfloat16, and long
    return found | searching(course, batch, ms["unguarded"])


def searching(course: Course, batch: steps.Batch, step_ms: float) -> dict[str, Any]:
    """Trace and explanation of a step with one cell that is not finite, as multiples of a step."""
    config, precision = course.effective_config, course.precision
    batch.x_BLC[0, 700, 3] = float("nan")
    states = random_states(DEVICE)
    refused = Step(
        model=course.model,
        batch=batch,
        config=config,
        precision=precision,
        random_state=states,
        kind="loss",
        moments={},
        rates=(1e-3, 1e-3),
        fresh=course.surroundings.fresh,
    )
    trace_step(course.model, batch, config, precision)
    traces = [took(lambda: trace_step(course.model, batch, config, precision)) for _ in range(3)]
    start = time.perf_counter()
    explanation = explain(refused)
    explained = (time.perf_counter() - start) * 1e3
    return {
        "trace_ms": round(median(traces), 1),
        "trace_steps": round(median(traces) / step_ms, 1),
        "explain_ms": round(explained, 1),
        "explain_steps": round(explained / step_ms, 1),
        "experiments": len(explanation.experiments),
        "cause": explanation.cause,
    }


def profiled(case: dict[str, int]) -> str:
    """The kernels of one training step in bfloat16, by their time."""
    course = course_of(case, torch.bfloat16)
    batch = course.batch(np.arange(case["batch"]))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE.type == "cuda" else [])]
    for _ in range(WARM_UPS):
        loss_and_gradients(course.model, batch, course.effective_config, torch.bfloat16)
    with profile(activities=activities) as seen:
        loss_and_gradients(course.model, batch, course.effective_config, torch.bfloat16)
    order = "self_device_time_total" if DEVICE.type == "cuda" else "self_cpu_time_total"
    return str(seen.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=70))


def main() -> None:
    """Measure everything, print it, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", type=Path, help="kernels of one step, as a table")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    if DEVICE.type == "cpu" and not arguments.tiny:
        parser.exit(2, "torch sees no CUDA device here; --tiny tries the script on the processor\n")
    cases = TINY if arguments.tiny else CASES
    content: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "processor",
        "torch": torch.__version__,
        "product_tflops": product_rates(64 if arguments.tiny else 8192),
        "encoder": [],
        "steps": [],
    }

    def keep() -> None:
        if arguments.json:
            arguments.json.write_text(json.dumps(content, indent=2) + "\n")

    print(f"{content['device']}, torch {content['torch']}; matrix product in TFLOP/s: {content['product_tflops']}")
    for name, case in cases.items():
        for precision in (torch.float32, torch.bfloat16) if DEVICE.type == "cuda" else (torch.float32,):
            with tf32(False) if DEVICE.type == "cuda" else nullcontext():
                row = step_costs(name, case, precision, arguments.rounds)
            content["steps"].append(row)
            keep()
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    for name, case in cases.items():
        for row in compare(name, case, arguments.rounds):
            content["encoder"].append(row)
            print(
                f"{row['case']}  {row['what']:8}{row['form']:25}{row['ms']:9.3f} ms  {row['of_plain']:6.2f} times plain"
                f"  {row['tflops']:7.2f} TFLOP/s  peak {row['peak_mib']} MiB",
                flush=True,
            )
        keep()
    if arguments.profile:
        arguments.profile.write_text(profiled(next(iter(cases.values()))) + "\n")


if __name__ == "__main__":
    main()
