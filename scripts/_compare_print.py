"""What compare_backends.py prints: tables, what their columns mean, and the verdict."""

from __future__ import annotations

import functools

from _compare_text import Content, legend, sure_row, verdict, why_slow
from rich.console import Console
from rich.table import Table

FORMULAS = ("textbook", "xpsoftmax")


def show(content: Content, console: Console) -> None:
    """Print everything, and the verdict last."""
    say = functools.partial(console.print, markup=False, highlight=False)
    console.print(_training(content))
    for reason in why_slow(content):
        say(reason)
    console.print(_differences(content))
    for column, meaning in legend(content).items():
        say(f"{column}: {meaning}")
    say(f"\n{sure_row(content)}")
    console.print(_sure_row(content))
    for name, reason in content["unusable"].items():
        say(f"not used: {name}: {reason}")
    for problem in content["problems"]:
        say(f"PROBLEM: {problem}", style="bold red")
    say(f"\n{verdict(content)}", style="bold")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title)
    table.add_column("backend")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "weights" else "right")
    return table


def _training(content: Content) -> Table:
    options = content["options"]
    title = f"Digits: {options['hidden']} hidden units, {options['epochs']} epochs, {options['dtype']}"
    table = _table(title, "train", "test", "final loss", "ms a step", "speed")
    for name, result in content["backends"].items():
        cells = (f"{result['train_accuracy']:.2%}", f"{result['test_accuracy']:.2%}", f"{result['final_loss']:.6f}")
        table.add_row(name, *cells, f"{1e3 * result['step_seconds'][1]:.3g}", f"{result['speed']:.3g} x")
    return table


def _differences(content: Content) -> Table:
    quantities = next(iter(next(iter(content["backends"].values()))["differences_eps"].values()))
    title = f"Largest difference from NumPy float64, in eps of {content['options']['dtype']}"
    table = _table(title, "weights", *quantities, "budget")
    for name, result in content["backends"].items():
        for state, found in result["differences_eps"].items():
            limit = content["budgets_eps"][state]
            cells = [f"{eps:.2f}" if eps <= limit else f"[bold red]{eps:.3g}[/]" for eps in found.values()]
            table.add_row(name, state, *cells, f"{limit:.0f}")
    return table


def _sure_row(content: Content) -> Table:
    right = content["sure_row"]["exact"]
    table = _table(
        "Loss and gradient of the sure row", *(f"{formula} {name}" for formula in FORMULAS for name in right)
    )
    for name, result in content["backends"].items():
        values = [result["sure_row"][formula][quantity] for formula in FORMULAS for quantity in right]
        table.add_row(name, *(f"{value + 0.0:.6g}" for value in values))  # + 0.0: no sign of zero
    table.add_section()
    table.add_row("exact", *(f"{right[quantity]:.6g}" for _ in FORMULAS for quantity in right))
    return table
