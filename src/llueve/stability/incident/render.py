"""Incidents as tables. Their words come from files that anyone may have written, so what is not printable is shown as �."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from llueve.errors import listed
from llueve.stability.incident.description import Description
from llueve.stability.incident.reading import Listed


def render_list(incidents: Sequence[Listed]) -> Table:
    """One row per incident."""
    table = Table("N", "epoch", "step", "kind", "reason")
    for each in incidents:
        about = each.about
        cells = (
            ("", "", "unusable", each.fault or "")
            if about is None
            else (str(about.epoch), str(about.step), about.kind, about.reason)
        )
        table.add_row(str(each.number), *map(plain, cells))
    return table


def render_description(about: Description) -> Table:
    """One row per fact."""
    machine = about.machine
    samples = [f"{site} at {time}" for site, time in zip(about.sites, about.times, strict=True)]
    rows = {
        "kind": about.kind,
        "reason": about.reason,
        "when": f"epoch {about.epoch}, step {about.step}",
        "loss": f"{about.loss.value} (bits {about.loss.bits})",
        "gradient norm": f"{about.gradient_norm.value} (bits {about.gradient_norm.bits})",
        "learning rates": ", ".join(f"{float(rate):g}" for rate in about.rates),
        "precision": f"{about.precision} on {about.device}, {machine.threads} thread(s)",
        "model": f"{about.model.architecture}, width {about.model.width}, head {about.model.head}",
        "variables": listed([name for name, _ in about.variables], 10),
        "samples": f"{len(samples)}: {listed(samples, 10)}",
        "machine": f"{machine.processor} ({machine.instructions}), {machine.cores} cores, {machine.platform}",
        "versions": ", ".join(f"{name} {version}" for name, version in about.versions.items()),
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, plain(value))
    return table


def plain(text: str) -> Text:
    """Text without markup, and without what would steer a terminal."""
    return Text("".join(letter if letter.isprintable() else "\ufffd" for letter in text))
