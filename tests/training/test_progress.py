"""What a training shows: a bar that fits its terminal, and nothing where none watches."""

import io
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from llueve.progress import fitting
from llueve.training.epoch_progress import TrainingProgress, memory_bytes
from llueve.training.validation import brier_skill

CPU = torch.device("cpu")


def console(width, terminal=True):
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None, legacy_windows=False)


def drawn(screen, phase="training", epoch=98, epochs=100, steps=15_625, batch=64, loss=0.43214, skill=0.3123):
    """The bar in the middle of an epoch."""
    bar = TrainingProgress(screen, epochs, CPU)
    with bar:
        bar.start_epoch(phase, epoch, steps, 0, batch)
        bar.validated(skill)
        for done in (100, 200, 12_345):
            bar.step(done, loss, 1e-3, 128)
        task = bar._progress.tasks[0]
        task._progress.clear()  # as if 12,345 steps had taken 100 s
        task._progress.extend(
            [type("Sample", (), {"timestamp": t, "completed": c}) for t, c in ((0, 0), (100, 12_345))]
        )
        (line,) = [text for text in _lines(screen, bar._progress.get_renderable()) if text.strip()]
    return line


def _lines(screen, renderable):
    return ["".join(part.text for part in parts) for parts in screen.render_lines(renderable)]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("phase", ["all", "training", "a phase with a very long name"])
def test_the_bar_is_one_line_no_longer_than_the_terminal(width, phase):
    assert len(drawn(console(width), phase)) <= width


def test_a_hundred_columns_have_room_for_everything():
    line = drawn(console(100), phase="all", epoch=3, epochs=10, steps=12_890)
    for fact in (r"^all 3/10 ━+", r"12345/12890", r"loss 0\.4321", r"skill 0\.312", r"rate 1e-03", r"7,901/s"):
        assert re.search(fact, line), fact
    for fact in (r"0:0[456] left", r"\d+ [MG]B", r"skipped 128"):
        assert re.search(fact, line), fact


def test_a_narrow_terminal_keeps_what_matters_most():
    line = drawn(console(48), phase="all", epoch=3, epochs=10)
    assert "loss 0.4321" in line and "left" in line
    assert "rate" not in line and "B" not in line.replace("━", "")


def test_facts_leave_by_rank():
    facts = [(1, "one"), (0, "zero"), (2, ""), (3, "three")]
    assert [fitting(facts, room) for room in (14, 13, 8, 7, 4, 3)] == [
        "one zero three",
        "one zero",
        "one zero",
        "zero",
        "zero",
        "",
    ]


def test_nothing_is_drawn_where_no_terminal_watches():
    screen = console(100, terminal=False)
    with TrainingProgress(screen, 2, CPU) as bar:
        bar.start_epoch("all", 1, 10, 0, 16)
        bar.step(5, 0.5, 1e-3, 0)
        bar.line("epoch 1: loss 0.5")
    assert screen.file.getvalue() == "epoch 1: loss 0.5\n"


def test_the_memory_is_that_of_this_process():
    found = memory_bytes(CPU)
    if found is None:
        pytest.skip("this system has no /proc")
    held = torch.ones(50_000_000)
    assert memory_bytes(CPU) - found > 0.8 * held.numel() * 4


def test_skill_is_one_minus_the_ratio_of_brier_scores():
    # Forecasts of the event 0.75 and 0.5, events 1 and 0; always forecasting 0.25 is the reference.
    logits = np.log(np.array([[0.25, 0.75], [0.5, 0.5]], np.float32))
    expected = 1 - ((1 - 0.75) ** 2 + 0.5**2) / ((1 - 0.25) ** 2 + 0.25**2)
    assert brier_skill(logits, np.array([1, 0]), np.array([0.75, 0.25])) == pytest.approx(expected, abs=1e-7)


def test_skill_is_not_finite_where_there_is_none():
    y = np.array([1, 0])
    assert np.isnan(brier_skill(np.array([[0, np.nan], [0, 0]], np.float32), y, np.array([0.5, 0.5])))
    assert np.isnan(brier_skill(np.zeros((2, 2), np.float32), np.array([0, 0]), np.array([1.0, 0.0])))
