"""What the command line prints: tables on a terminal, plain text elsewhere, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from rustq import text
from rustq.plain import plain
from rustq.report import FLOAT_HEADER, Report

if TYPE_CHECKING:
    from rustq.page.facts import Facts

__all__ = ["show_advice", "show_json", "show_notes", "show_quantized", "show_table"]


REASONS = 8
"""Why something stayed float, shown at most."""


def show_json(value: Any) -> None:
    """One JSON object on standard output."""
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def show_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table and an empty line: drawn on a terminal, plain columns where the output goes to a file
    or pipe."""
    if not rows:
        return
    if not sys.stdout.isatty():
        click.echo(f"{title}\n\n{text.table(header, rows)}\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in header:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
    click.echo()


def show_notes(notes: Sequence[str], *, most: int = 5) -> None:
    """The first few notes, one line each, and how many there are besides."""
    for note in notes[:most]:
        click.echo(f"note: {note}")
    if len(notes) > most:
        click.echo(f"note: {len(notes) - most} more, see --json")


def show_advice(facts: Facts) -> None:
    """What the runtime makes of a quantized model, and what to try next."""
    from rustq.page.advice import advice

    if facts.fusion and facts.fusion.kernels:
        click.echo(facts.fusion.summary())
    for line in advice(facts):
        click.echo(f"try next: {line}")


def show_quantized(report: Report) -> None:
    """The outcome of `rustq quantize`: the summary, and what stayed float by reason."""
    click.echo(f"{report.summary(reasons=False)}\n")
    rows = report.float_rows()
    show_table("in float", FLOAT_HEADER, rows[:REASONS])
    if len(rows) > REASONS:
        click.echo(f"{len(rows) - REASONS} more reasons, see --json\n")
    if report.notes:
        show_notes(report.notes)
        click.echo()
