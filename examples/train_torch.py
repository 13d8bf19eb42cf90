"""Train the same PyTorch model with F.cross_entropy and with xpsoftmax.torch.cross_entropy, from the same seed.

The task is addition modulo a prime, which a model of two layers learns by heart. Printed are, as training goes on, the
loss and the share of rows whose gradient at the label is exactly zero: rows that no longer teach the model anything.
With the defaults PyTorch's loss ends at 0, and none of its rows has a gradient; with xpsoftmax every row keeps its
gradient, and the loss goes on falling.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import one_hot

from xpsoftmax.torch import cross_entropy

LOSSES: dict[str, Callable[..., Any]] = {"torch": torch.nn.functional.cross_entropy, "xpsoftmax": cross_entropy}


def sums(prime: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs of numbers below a prime, one-hot, and their sums modulo the prime."""
    a, b = torch.cartesian_prod(torch.arange(prime), torch.arange(prime)).T
    return torch.cat([one_hot(a, prime), one_hot(b, prime)], dim=1).float(), (a + b) % prime


def trained(
    loss: Callable[..., Any], prime: int, steps: int, every: int, rate: float
) -> list[tuple[int, float, float]]:
    """Return step, loss and share of rows without a gradient at the label, now and then."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the matrices are small
    X, y = sums(prime)
    model = torch.nn.Sequential(torch.nn.Linear(2 * prime, 200), torch.nn.ReLU(), torch.nn.Linear(200, prime))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    seen = []
    for step in range(steps + 1):
        logits = model(X)
        logits.retain_grad()
        value = loss(logits, y)
        optimizer.zero_grad()
        value.backward()
        if step % every == 0:
            at_label = logits.grad.gather(1, y[:, None])
            seen.append((step, float(value.detach()), float((at_label == 0.0).double().mean())))
        optimizer.step()
    return seen


def main(arguments: Sequence[str] | None = None) -> dict[str, list[tuple[int, float, float]]]:
    """Train with each loss and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prime", type=int, default=11)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--every", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=0.1)
    options = vars(parser.parse_args(arguments))
    found = {name: trained(loss, **options) for name, loss in LOSSES.items()}
    print(f"{'step':>6}", *(f"{name + ': loss':>18} {'no gradient':>12}" for name in found))
    for rows in zip(*found.values(), strict=True):
        print(f"{rows[0][0]:>6}", *(f"{loss:>18.3g} {100.0 * share:>10.1f} %" for _, loss, share in rows))
    return found


if __name__ == "__main__":
    main()
