"""Compute reference values of the softmax and its loss with mpmath, for tests/loss/test_reference.py.

    python scripts/make_reference.py --output tests/loss/reference.json

Every sum over "the other" classes leaves the class out, so nothing is subtracted from 1; with that, 60 digits are far
more than the 25 that are printed. Inputs of few classes are stored as hexadecimal floats. Inputs of many classes are
stored as [multiplier, offset, scale], which means

    k = (multiplier * j + offset) mod 2**32 >> 8,    x[j] = scale * (k - 2**23) / 2**23,    j = 0 ... C - 1

with `scale` a power of two: every x[j] is exact in float32. Of their results only the classes in `entries` are stored.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from pathlib import Path
from typing import Any

from mpmath import mp, mpf

mp.dps = 60
SMOOTHING = 0.1
Z_LOSS = 0.01
MULTIPLIERS = {"z": 2654435761, "v": 2246822519, "q": 3266489917, "w": 668265263}


def numbers(multiplier: int, offset: int, scale: float, count: int) -> list[float]:
    """Spread numbers evenly over [-scale, scale)."""
    return [scale * (((multiplier * j + offset) % 2**32 >> 8) - 2**23) / 2**23 for j in range(count)]


def full_mantissa(values: list[float], dtype: str) -> list[float]:
    """Make the differences of the values inexact, as those of real logits are."""
    values = [x * abs(x) / 3 for x in values]  # correctly rounded everywhere, as a sine would not be
    return [struct.unpack("f", struct.pack("f", x))[0] for x in values] if dtype == "float32" else values


def case(dtype: str, classes: int, scale: float, offset: int, label: int, lead: float | None) -> dict[str, Any]:
    """Inputs of a case; `lead` puts the label's logit so far above the largest of the others."""
    scales = {"z": scale, "v": 2.0, "q": 1.0, "w": 2.0}
    recipe = {name: [MULTIPLIERS[name], offset, scales[name]] for name in scales}
    return {"dtype": dtype, "classes": classes, "label": label, "lead": lead, "recipe": recipe}


def inputs(given: dict[str, Any]) -> dict[str, list[float]]:
    """Numbers of a case: logits z, tangent v, soft targets q and class weights w, the last two not negative."""
    C = given["classes"]
    values = {name: numbers(*recipe, C) for name, recipe in given["recipe"].items()}
    values["q"], values["w"] = ([abs(x) for x in values[name]] for name in ("q", "w"))
    if C <= 1000:
        values["z"], values["v"] = (full_mantissa(values[name], given["dtype"]) for name in ("z", "v"))
    if given["lead"] is not None:
        others = [x for j, x in enumerate(values["z"]) if j != given["label"]]
        values["z"][given["label"]] = float(math.ceil(max(others, default=0.0))) + given["lead"]
    return values


def results(values: dict[str, list[float]], label: int, entries: list[int]) -> dict[str, Any]:
    """Every quantity of the contract for one row."""
    z, v, q, w = ([mpf(x) for x in values[name]] for name in ("z", "v", "q", "w"))
    C = len(z)
    hot = max(range(C), key=lambda j: z[j])
    e = [mp.exp(x - z[hot]) for x in z]
    rest = mp.fsum(e[j] for j in range(C) if j != hot)
    total = rest + e[hot]
    p = [x / total for x in e]
    lse = z[hot] + mp.log1p(rest)
    log_p = [x - z[hot] - mp.log1p(rest) for x in z]

    def others(x: list[Any], k: int) -> Any:
        return mp.fsum(x[j] for j in range(C) if j != k)

    def soft(mass: list[Any]) -> tuple[Any, list[Any]]:
        loss = mp.fsum(-m * x for m, x in zip(mass, log_p, strict=True))
        return loss, [others(mass, k) * p[k] - mass[k] * others(p, k) for k in entries]

    label_rest = mp.fsum(mp.exp(z[j] - z[label]) for j in range(C) if j != label)
    hard_loss = mp.log1p(label_rest)
    hard_grad = [-others(p, label) if k == label else p[k] for k in entries]
    eps, share = mpf(SMOOTHING), mpf(Z_LOSS) * w[label]
    soft_loss, soft_grad = soft(q)
    smooth_loss, smooth_grad = soft([((1 - eps) * (j == label) + eps / C) * w[j] for j in range(C)])
    return {
        "softmax": text([p[k] for k in entries]),
        "log_softmax": text([log_p[k] for k in entries]),
        "logsumexp": text([lse]),
        "softmax_jvp": text([p[k] * mp.fsum(p[j] * (v[k] - v[j]) for j in range(C)) for k in entries]),
        "hard_loss": text([hard_loss]),
        "hard_grad": text(hard_grad),
        "soft_loss": text([soft_loss]),
        "soft_grad": text(soft_grad),
        "smooth_loss": text([smooth_loss]),
        "smooth_grad": text(smooth_grad),
        "z_loss_loss": text([w[label] * hard_loss + share * lse**2]),
        "z_loss_grad": text([w[label] * g + 2 * share * lse * p[k] for g, k in zip(hard_grad, entries, strict=True)]),
    }


def text(values: list[Any]) -> list[str]:
    """Print 25 digits: more than the 21 that an 80-bit float needs to come back as it was."""
    return [mp.nstr(x, 25) for x in values]


def record(given: dict[str, Any]) -> dict[str, Any]:
    """One case as it is stored."""
    values, C, label = inputs(given), given["classes"], given["label"]
    top = max(range(C), key=lambda j: values["z"][j])
    entries = list(range(C)) if C <= 10 else sorted({0, label, top, C - 1, *range(7, C, C // 12)})
    if C <= 1000:
        stored = {name: [x.hex() for x in value] for name, value in values.items()}
    else:  # the one logit that the formula does not give
        stored = given["recipe"] | {"top": values["z"][label].hex() if given["lead"] is not None else None}
    head = {key: given[key] for key in ("dtype", "classes", "label")}
    return head | {"inputs": stored, "entries": entries, "results": results(values, label, entries)}


def worked() -> list[dict[str, Any]]:
    """Rows whose gradient is known from elsewhere."""
    rows = [([float(mp.log(mpf(x))) for x in ("0.2", "0.3", "0.5")], 1), ([37.42994775023705, 0.0], 0)]
    found = []
    for z, label in rows:
        C = len(z)
        values = {"z": z, "v": [1.0] * C, "q": [1.0] * C, "w": [1.0] * C}
        stored = {name: [x.hex() for x in value] for name, value in values.items()}
        head = {"dtype": "float64", "classes": C, "label": label, "inputs": stored, "entries": list(range(C))}
        found.append(head | {"results": results(values, label, list(range(C)))})
    return found


def build(sizes: tuple[int, ...] = (1, 2, 3, 10, 1000, 50257)) -> dict[str, Any]:
    """Make all records of the given numbers of classes."""
    records = worked()
    for dtype, leads in (("float32", (17.0, 60.0)), ("float64", (37.0, 500.0))):
        for C in sizes:
            for i, scale in enumerate((1.0, 16.0) if C > 10 else (1.0, 16.0, 64.0)):
                records.append(record(case(dtype, C, scale, 12345 * (i + 1), (C * (i + 1)) // 4, None)))
            for i, lead in enumerate(leads[:1] if C > 10 else leads):
                records.append(record(case(dtype, C, 4.0, 54321 * (i + 1), C // 2, lead)))
    return {"label_smoothing": SMOOTHING, "z_loss": Z_LOSS, "records": records}


def main() -> None:
    """Write the file, one record a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("tests/loss/reference.json"))
    arguments = parser.parse_args()
    document = build()
    lines = ",\n".join(json.dumps(item) for item in document.pop("records"))
    head = json.dumps(document)[:-1]
    arguments.output.write_text(f'{head}, "records": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
