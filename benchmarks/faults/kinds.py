"""All kinds of fault, and the damage of each in the development and the held-out sizes."""

from functools import cache

from benchmarks.faults import cells, computation, optimiser, weights
from benchmarks.faults.fault import Fault


@cache
def kinds(held_out: bool = False) -> dict[str, Fault]:
    """Every kind by its title; with `held_out`, damage of sizes that were not used during development."""
    modules = (cells, weights, computation, optimiser)
    found = [
        each for module in modules for each in module.faults(lambda developed, other: other if held_out else developed)
    ]
    return {each.title: each for each in found}
