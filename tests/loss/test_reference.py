"""The oracle and the package against mpmath values: reference.json, made by scripts/make_reference.py."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import oracle as exact
import pytest
from assertions import assert_within
from paths import SCRIPTS

import xpsoftmax as xs

REFERENCE = json.loads(Path(__file__).with_name("reference.json").read_text(encoding="utf-8"))
RECORDS = REFERENCE["records"]
QUANTITIES = tuple(RECORDS[0]["results"])
IDS = [f"{i}-{r['dtype']}-{r['classes']}" for i, r in enumerate(RECORDS)]
EVERY = pytest.mark.parametrize("record", RECORDS, ids=IDS)


def rebuilt(record):
    """Inputs z, v, q, w of a record, (1, C), in its dtype."""
    given, values = record["inputs"], {}
    for name in "zvqw":
        if record["classes"] <= 1000:
            values[name] = np.array([float.fromhex(x) for x in given[name]])
        else:
            multiplier, offset, scale = given[name]
            k = (np.uint64(multiplier) * np.arange(record["classes"], dtype=np.uint64) + np.uint64(offset)) % 2**32 >> 8
            values[name] = scale * (k.astype(np.float64) - 2**23) / 2**23
    if record["classes"] > 1000:
        values |= {name: np.abs(values[name]) for name in "qw"}
        if given["top"] is not None:
            values["z"][record["label"]] = float.fromhex(given["top"])
    for name, x in values.items():
        assert np.array_equal(x.astype(record["dtype"]), x), f"{name} is not exact in {record['dtype']}"
    return {name: x[None, :].astype(record["dtype"]) for name, x in values.items()}


def loss_cases(x, label):
    """Targets and options of each loss in the file."""
    y = np.array([label])
    return {
        "hard": (y, {}),
        "soft": (x["q"], {}),
        "smooth": (y, {"label_smoothing": REFERENCE["label_smoothing"], "class_weight": x["w"][0]}),
        "z_loss": (y, {"z_loss": REFERENCE["z_loss"], "class_weight": x["w"][0]}),
    }


def from_oracle(record, quantity):
    """The oracle's value and bound at the stored entries."""
    x, entries = rebuilt(record), record["entries"]
    if quantity == "softmax_jvp":
        return exact.Exact(*(part[0] for part in exact.softmax_jvp(x["z"], x["v"], entries)))
    if quantity in ("softmax", "log_softmax"):
        return exact.Exact(*(part[0, entries] for part in getattr(exact, quantity)(x["z"])))
    if quantity == "logsumexp":
        return exact.logsumexp(x["z"])
    kind, _, part = quantity.rpartition("_")
    targets, options = loss_cases(x, record["label"])[kind]
    result = exact.softmax_loss(x["z"], targets, **options, reduction="none")
    return result.loss if part == "loss" else exact.Exact(*(a[0, entries] for a in result.grad))


def from_package(record, quantity, backend, impl):
    x, entries = rebuilt(record), record["entries"]
    z = backend.asarray(x["z"])
    if quantity == "softmax_jvp":
        return backend.to_numpy(xs.softmax_jvp(z, backend.asarray(x["v"])))[0, entries]
    if quantity in ("softmax", "log_softmax"):
        return backend.to_numpy(getattr(xs, quantity)(z, impl=impl))[0, entries]
    if quantity == "logsumexp":
        return backend.to_numpy(xs.logsumexp(z, impl=impl))
    kind, _, part = quantity.rpartition("_")
    targets, options = loss_cases(x, record["label"])[kind]
    given = {k: backend.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    pair = xs.softmax_loss_and_grad(z, backend.asarray(targets), **given, reduction="none", impl=impl)
    return backend.to_numpy(pair[0]) if part == "loss" else backend.to_numpy(pair[1])[0, entries]


def stored(record, quantity):
    return np.array([np.longdouble(x) for x in record["results"][quantity]])


@EVERY
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_oracle_keeps_the_contract_in_its_own_precision(record, quantity):
    """The bound of the contract with the eps of longdouble: the oracle's errors are invisible beside the package's."""
    z = rebuilt(record)["z"]
    own = exact.bound(z, precision=np.longdouble)[0, 0] / exact.bound(z)[0, 0]
    result = from_oracle(record, quantity)
    value = stored(record, quantity)
    assert assert_within(result.value, value, bound=own * result.bound) == value.size


def check(records, quantity, backend, impl):
    """All records keep the bound; most of their entries are normal numbers, and compared."""
    compared = stored_entries = 0
    for record in records:
        desired, value = from_oracle(record, quantity), stored(record, quantity)
        actual = from_package(record, quantity, backend, impl)
        compared += assert_within(actual, value, bound=desired.bound, where=desired.where)
        stored_entries += value.size
    assert compared >= stored_entries * 2 // 3, f"only {compared} of {stored_entries} entries were compared"


@pytest.mark.backends("numpy", "array_api_strict", "torch", "cupy")
@pytest.mark.parametrize("classes", sorted({r["classes"] for r in RECORDS}))
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_package_is_within_the_bound_of_the_reference(backend, impl, dtype, classes, quantity):
    records = [r for r in RECORDS if (r["classes"], r["dtype"]) == (classes, dtype)]
    check(records, quantity, backend, impl)


@pytest.mark.backends("array_api_strict:device1", "dask", "jax")
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_the_package_is_within_the_bound_of_some_of_the_reference(backend, impl, dtype, quantity):
    records = [r for r in RECORDS if (r["classes"], r["dtype"]) == (10, dtype)]
    check(records[::3], quantity, backend, impl)  # one of even classes, one that is sure


def test_the_bound_is_that_of_the_contract():
    """By hand: T is 2, C is 8, so (4 + 1 + 3) eps."""
    z = np.array([[0.0, -1.0, -2.0, 0.0, 0.0, 0.0, -np.inf, -200.0]], np.float32)  # exp(-200) is not normal
    assert exact.bound(z)[0, 0] == 8 * 2.0**-23
    assert exact.bound(z.astype(np.float64))[0, 0] == (4 + 100 + 3) * 2.0**-52


def test_the_committed_file_is_what_the_script_makes():
    spec = importlib.util.spec_from_file_location("make_reference", SCRIPTS / "make_reference.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = json.loads(json.dumps(script.build(sizes=(1, 2, 3, 10))))
    small = [r for r in RECORDS if r["classes"] <= 10]
    assert len(small) == len(made["records"])
    assert made == REFERENCE | {"records": small}
