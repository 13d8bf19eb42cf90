"""What compare_backends.py says about its numbers, in print and on its page."""

from __future__ import annotations

from typing import Any, TypeAlias

Content: TypeAlias = dict[str, Any]
"""What compare_backends.py writes as JSON, in which numbers that are not finite may still be."""


def counted(number: int, one: str, many: str) -> str:
    """Spell a number with its noun."""
    return f"{number} {one if number == 1 else many}"


def verdict(content: Content) -> str:
    """Say in one sentence what came out."""
    results = content["backends"].values()
    libraries = counted(len(results), "library", "libraries")
    if content["problems"]:
        return f"Not as it should be: {counted(len(content['problems']), 'problem', 'problems')} with {libraries}."
    accuracies = [result["test_accuracy"] for result in results]
    low, high = (f"{end(accuracies):.1%}" for end in (min, max))
    farthest = max(eps for result in results for eps in result["differences_eps"]["trained"].values())
    budget = content["budgets_eps"]["trained"]
    accuracy = low if low == high else f"{low} to {high}"
    return (
        f"Every library is within its limits: {libraries} with a test accuracy of {accuracy}, and loss and gradients "
        f"at most {farthest:.1f} eps from NumPy in float64, where {budget:.0f} are allowed."
    )


def sure_row(content: Content) -> str:
    """Say in one sentence what both formulas make of the sure row."""
    found, right = content["sure_row"], content["sure_row"]["exact"]
    results = content["backends"].values()
    lost = sum(result["sure_row"]["textbook"]["gradient"] == 0.0 for result in results)
    return (
        f"A sure row: logits {', '.join(f'{logit:g}' for logit in found['logits'])} in {content['options']['dtype']}, "
        f"label 0. The gradient at the label is {right['gradient']:.4g}. The textbook formula, softmax(z) - 1, gives 0 "
        f"on {lost} of {counted(len(results), 'library', 'libraries')}: this row teaches the network nothing any more."
    )


SLOW = {
    "array-api-strict": "it checks each operation against the Array API standard in Python: it is for tests",
    "dask": "it builds a graph of small tasks for each step and runs it in Python, which costs more than the "
    "arithmetic of so small a batch: it is for data that do not fit in memory, or that lie on many machines",
}


def why_slow(content: Content) -> list[str]:
    """Say of the libraries that must be slow on this problem by how much, and why."""
    speeds = {name: content["backends"][name]["speed"] for name in SLOW if name in content["backends"]}
    return [
        f"{name} takes {1.0 / speed:.0f} times as long as NumPy: {SLOW[name]}."
        for name, speed in speeds.items()
        if speed < 0.5
    ]


def legend(content: Content) -> dict[str, str]:
    """Explain each column in one line."""
    options, eps = content["options"], {"float32": "1.19e-07", "float64": "2.22e-16"}[content["options"]["dtype"]]
    return {
        "train, test": "share of images classified correctly: images trained on, other images",
        "final loss": "mean softmax loss of the images trained on, after the last epoch",
        "ms a step": f"median milliseconds of a step: {options['batch_size']} images, their loss, gradients and update",
        "speed": "NumPy's time of a step divided by this library's: 2 x is twice as fast as NumPy",
        "eps": f"{eps}, from 1 to the next {options['dtype']}; differences are relative to the largest entry",
        "budget": "the largest difference that rounding alone can cause",
    }
