"""The CUDA kernels, run on the CPU: every operation, dtype and size class keeps the contract of docs/numerics.md.

With --kernels only (nox -s kernels). A launch is what the backend itself plans; support/cuda_on_cpu.py runs it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cuda_on_cpu as cpu
import numpy as np
import oracle as oracle
import pytest
from assertions import TINY, assert_same_bits, assert_within
from grid import KINDS, far_apart, labels, logits, near_the_top

from xpsoftmax.kernels.cuda import plan, sizes, texts

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(cpu.unusable() is not None, reason=f"CUDA cannot be run on this CPU: {cpu.unusable()}"),
]

DTYPES = tuple(texts.SCALARS)
LABEL_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
INF, NAN = np.inf, np.nan
ROWS = 3
STREAMED_CLASSES = 20_011  # odd; several steps of each thread


def id_of(kind: sizes.SizeClass) -> str:
    return f"{kind.lanes}x{kind.vectors}x{kind.blocks}{'-ring' * (kind.slots > 0)}" if kind.vectors else "streamed"


def every_class_and_dtype(*operations: str) -> Any:
    """Parametrize a test with the size classes of each dtype, of any of these operations."""
    cases = [
        (kind, dtype)
        for dtype in DTYPES
        for kind in dict.fromkeys(kind for operation in operations for kind in sizes.size_classes(operation, dtype))
    ]
    return pytest.mark.parametrize(("kind", "dtype"), cases, ids=[f"{dtype}-{id_of(kind)}" for kind, dtype in cases])


every_dtype = pytest.mark.parametrize("dtype", DTYPES)
every_class = pytest.mark.parametrize("kind", sizes.size_classes("softmax_loss", "float32"), ids=id_of)


class Setting(NamedTuple):
    """How a case lies in memory, and the order in which threads run."""

    offset: int = 0  # elements behind a 16-byte boundary
    gap: int = 0  # elements between rows
    apart: int = 0  # how much further the output is off
    in_place: bool = False
    schedule: int = 0


PLAIN = Setting()
SETTINGS = (
    PLAIN,
    Setting(offset=1, schedule=1),
    Setting(gap=3, in_place=True, schedule=2),
    Setting(offset=1, gap=1, apart=1, schedule=3),
    Setting(in_place=True, schedule=1),
)


def classes_of(kind: sizes.SizeClass, dtype: str, setting: Setting, number: int) -> int:
    """As many classes as this size class covers; every other time about half of them, or one."""
    if kind.vectors == 0:
        return (STREAMED_CLASSES, 511, 1)[number % 3]
    per = sizes.VECTOR // sizes.ITEMSIZES[dtype]
    most = kind.capacity * per + per - 1
    return max((most, most // 2 + 1, most, min(3, most))[number % 4], 1)


def place(x: np.ndarray, dtype: str, setting: Setting, *, wide: bool = False) -> tuple[cpu.Placed, cpu.Placed]:
    """Logits in memory, and where the result goes."""
    given = cpu.Placed(x, dtype, offset=setting.offset, gap=setting.gap)
    if setting.in_place and not wide:
        return given, given
    kind = cpu.working(dtype) if wide else x.dtype
    name = np.dtype(kind).name if wide else dtype
    blank = np.zeros(x.shape, kind)
    return given, cpu.Placed(blank, name, offset=setting.offset + setting.apart, gap=setting.gap)


class Results(np.ndarray):
    """Results in the working precision; `narrow` are those of the same call rounded to 16 bits, if they are others."""

    narrow: np.ndarray | None = None
    dtype_name: str = ""


def in_working_precision(launch_into: Any, x: np.ndarray, dtype: str, setting: Setting) -> Results:
    """Results before rounding to 16 bits.

    Below 256 classes they are those that a 16-bit result is rounded from. From there on a 16-bit result has quicker
    exponentials, and `within` checks that it is rounded once from numbers within the bound.
    """
    sixteen = dtype in ("float16", "bfloat16")
    if sixteen:
        given, wide = place(x, dtype, setting, wide=True)
        launch_into(given, wide)
        wide.assert_only_rows_changed()
    given, out = place(x, dtype, setting)
    launch_into(given, out)
    out.assert_only_rows_changed()
    results = (wide if sixteen else out).rows.copy().view(Results)
    if sixteen and texts.takes_quick(x.shape[1], dtype, dtype):
        results.narrow, results.dtype_name = out.rows.copy(), dtype
    elif sixteen:
        assert_same_bits(out.rows, cpu.to_bits(wide.rows, dtype).view(out.rows.dtype))
    return results


def loss(
    x: np.ndarray,
    dtype: str,
    y: np.ndarray,
    weights: Any = None,
    *,
    kind=None,
    setting=PLAIN,
    grad=True,
    change=None,
    smoothing=0.0,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Losses and gradient of labels, by the kernel."""
    real = cpu.working(dtype)
    weights = np.ones(len(x), real) if weights is None else np.asarray(weights, real)
    losses = np.full(len(x), -7, real)

    def launch_into(given: cpu.Placed, out: cpu.Placed | None) -> None:
        at = (cpu.address(y), y.dtype.name), cpu.address(weights), cpu.address(losses)
        written = None if out is None else out.matrix
        launch = plan.loss_launch(given.matrix, *at, written, 90, kind, label_smoothing=smoothing)
        memory = [array for array in (given, out, y, weights, losses) if array is not None]
        cpu.run(launch, schedule=setting.schedule, change=change, memory=memory)

    if not grad:
        launch_into(place(x, dtype, setting)[0], None)
        return losses, None
    return losses, in_working_precision(launch_into, x, dtype, setting)


def elementwise(operation: str, x: np.ndarray, dtype: str, *, kind=None, setting=PLAIN) -> np.ndarray:
    def launch_into(given: cpu.Placed, out: cpu.Placed) -> None:
        launch = plan.rows_launch(operation, given.matrix, out.matrix, 90, kind)
        cpu.run(launch, schedule=setting.schedule, memory=(given, out))

    return in_working_precision(launch_into, x, dtype, setting)


def logsumexp(x: np.ndarray, dtype: str, *, kind=None, setting=PLAIN) -> np.ndarray:
    given, _ = place(x, dtype, setting)
    sums = np.zeros(len(x), x.dtype)
    launch = plan.rows_launch("logsumexp", given.matrix, cpu.address(sums), 90, kind)
    cpu.run(launch, schedule=setting.schedule, memory=(given, sums))
    return sums


def cases(rng, kind: sizes.SizeClass, dtype: str):
    """Each kind of logits in one of the settings: bits, the same in the working precision, setting."""
    for number, name in enumerate(KINDS):
        setting = SETTINGS[number % len(SETTINGS)]
        classes = classes_of(kind, dtype, setting, number)
        z = logits(rng, name, classes, "float64", ROWS)
        x = cpu.to_bits(z, dtype)
        yield x, cpu.from_bits(x, dtype), setting, LABEL_TYPES[number % len(LABEL_TYPES)]


def rounded_towards(x: np.ndarray, end: float) -> np.ndarray:
    """The float32 number at or beside x, in the direction of `end`."""
    nearest = x.astype("f4")
    return np.where((nearest > x) if end < 0 else (nearest < x), np.nextafter(nearest, np.float32(end)), nearest)


def assert_rounded_once(actual: Results, exact: oracle.Exact) -> None:
    """The 16-bit results are some numbers within the bound, rounded: rounding keeps the order of numbers."""
    compared = np.broadcast_to(exact.where, exact.value.shape) & np.isfinite(exact.value)
    value, bound = (
        np.where(compared, part, 0) for part in (exact.value, np.broadcast_to(exact.bound, exact.value.shape))
    )
    ends = rounded_towards(value - bound, -np.inf), rounded_towards(value + bound, np.inf)
    low, high = (cpu.from_bits(cpu.to_bits(end, actual.dtype_name), actual.dtype_name) for end in ends)
    narrow = cpu.from_bits(actual.narrow, actual.dtype_name)
    wrong = compared & ~((low <= narrow) & (narrow <= high))
    assert not wrong.any(), f"{narrow[wrong][:3]}, not from {low[wrong][:3]} to {high[wrong][:3]}"
    assert (np.isnan(narrow) == np.isnan(exact.value)).all()


def within(actual: np.ndarray, exact: oracle.Exact, least: int, entries: list[int]) -> None:
    compared = assert_within(actual, exact.value, bound=exact.bound, where=exact.where)
    if getattr(actual, "narrow", None) is not None:
        assert_rounded_once(actual, exact)
    assert compared >= least, f"only {compared} entries were compared, not {least}"
    entries.append(compared)


@every_class_and_dtype("softmax_loss")
def test_loss_and_gradient(rng, kind, dtype, record_property):
    entries: list[int] = []
    for x, z, setting, label_type in cases(rng, kind, dtype):
        y = labels(rng, z)
        if z.shape[1] > np.iinfo(label_type).max:
            y = np.minimum(y, np.iinfo(label_type).max)
        y = y.astype(label_type)
        weights = rng.uniform(0.5, 2, ROWS)
        weights[1] = 0
        weights = weights.astype(cpu.working(dtype))
        exact = oracle.softmax_loss(z, y.astype("i8"), sample_weight=weights, reduction="none")
        losses, grad = loss(x, dtype, y, weights, kind=kind, setting=setting)
        within(losses, exact.loss, 1, entries)
        within(grad, exact.grad, near_the_top(z) // 2, entries)
        assert (grad[1] == 0).all()
        assert_same_bits(loss(x, dtype, y, weights, kind=kind, setting=setting, grad=False)[0], losses)
    record_property("compared", sum(entries))


@every_class_and_dtype("softmax", "log_softmax")
@pytest.mark.parametrize("operation", ["softmax", "log_softmax"])
def test_softmax_and_its_logarithm(rng, kind, dtype, operation, record_property):
    entries: list[int] = []
    for x, z, setting, _ in cases(rng, kind, dtype):
        within(
            elementwise(operation, x, dtype, kind=kind, setting=setting),
            getattr(oracle, operation)(z),
            near_the_top(z) // 2,
            entries,
        )
    record_property("compared", sum(entries))


@every_class_and_dtype("logsumexp")
def test_logsumexp(rng, kind, dtype, record_property):
    entries: list[int] = []
    for x, z, setting, _ in cases(rng, kind, dtype):
        exact = oracle.logsumexp(z)
        sums = logsumexp(x, dtype, kind=kind, setting=setting)
        if dtype in ("float16", "bfloat16"):  # rounded to what the logits are: half a unit of these more
            exact = exact._replace(bound=exact.bound + 2.0 ** (-11 if dtype == "float16" else -8) * np.abs(exact.value))
        within(cpu.from_bits(sums, dtype), exact, 1, entries)
    record_property("compared", sum(entries))


# --- options ----------------------------------------------------------------------------------------------------------

OPTIONS = {
    "smoothing": {"label_smoothing": 0.1},
    "smoothing all": {"label_smoothing": 1.0},
    "class weights": {"label_smoothing": 0.2, "class_weight": True},
    "z-loss": {"z_loss": 0.5},
    "soft": {"soft": True},
    "soft, class weights": {"soft": True, "class_weight": True},
    "everything": {"soft": True, "label_smoothing": 0.3, "class_weight": True, "z_loss": 0.01},
    "labels, everything": {"label_smoothing": 0.3, "class_weight": True, "z_loss": 0.01},
}


def loss_of_masses(
    x,
    dtype,
    targets,
    weights=None,
    *,
    class_weight=None,
    label_smoothing=0.0,
    z_loss=0.0,
    setting=PLAIN,
    grad=True,
    change=None,
):
    real = cpu.working(dtype)
    weights = np.ones(len(x), real) if weights is None else np.asarray(weights, real)
    losses = np.full(len(x), -7, real)
    soft = None if targets.ndim == 1 else cpu.Placed(targets, np.dtype(real).name, gap=setting.gap)

    def launch_into(given: cpu.Placed, out: cpu.Placed | None) -> None:
        launch = plan.masses_launch(
            given.matrix,
            (cpu.address(targets), targets.dtype.name) if soft is None else soft.matrix,
            cpu.address(weights),
            cpu.address(losses),
            None if out is None else out.matrix,
            class_weights=cpu.address(class_weight),
            label_smoothing=label_smoothing,
            z_loss=z_loss,
        )
        arrays = given, out, soft, targets, weights, losses, class_weight
        memory = [array for array in arrays if array is not None]
        cpu.run(launch, schedule=setting.schedule, memory=memory, change=change)

    if not grad:
        launch_into(place(x, dtype, setting)[0], None)
        return losses, None
    return losses, in_working_precision(launch_into, x, dtype, setting)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("classes", [1, 3, 117, 509, 5003, 8209])
@every_dtype
def test_options(rng, dtype, classes, option, record_property):
    entries: list[int] = []
    real = cpu.working(dtype)
    given = dict(OPTIONS[option])
    soft, weighted = given.pop("soft", False), given.pop("class_weight", False)
    for number, name in enumerate(KINDS):
        if name == "minus-inf" and (given.get("label_smoothing") or soft):
            continue  # an infinite loss: test_rows_without_numbers
        setting = SETTINGS[number % len(SETTINGS)]
        x = cpu.to_bits(logits(rng, name, classes, "float64", ROWS), dtype)
        z = cpu.from_bits(x, dtype)
        targets = rng.dirichlet(np.ones(classes), ROWS).astype(real) * 1.5 if soft else labels(rng, z).astype("i4")
        weights = rng.uniform(0.5, 2, ROWS).astype(real)
        class_weight = rng.uniform(0, 2, classes).astype(real) if weighted else None
        exact = oracle.softmax_loss(
            z, targets, sample_weight=weights, class_weight=class_weight, reduction="none", **given
        )
        losses, grad = loss_of_masses(x, dtype, targets, weights, class_weight=class_weight, setting=setting, **given)
        within(losses, exact.loss, 1, entries)
        within(grad, exact.grad, near_the_top(z) // 2, entries)
        without = loss_of_masses(
            x, dtype, targets, weights, class_weight=class_weight, setting=setting, grad=False, **given
        )[0]
        assert_same_bits(without, losses)
    record_property("compared", sum(entries))


ORDERS = {  # of logits and masses along a row: each class takes the place of one that was set apart, or none does
    "both rising": (1, 1),
    "both falling": (-1, -1),
    "masses against logits": (1, -1),
    "logits against masses": (-1, 1),
    "logits as they come": (0, 1),
    "masses as they come": (1, 0),
}


def ordered(x: np.ndarray, order: int) -> np.ndarray:
    return x if order == 0 else np.sort(x, axis=1)[:, ::order]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("classes", [7, 300, 2003, 8193, 12_301])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masses_in_any_order(rng, dtype, classes, order, record_property):
    """8193 classes are read in one piece by some threads and in two by others; 12301 in as many as three."""
    of_logits, of_masses = ORDERS[order]
    z = ordered(rng.normal(size=(ROWS, classes)) * 10, of_logits).astype(dtype)
    q = ordered(rng.dirichlet(np.ones(classes), ROWS), of_masses).astype(dtype)
    exact = oracle.softmax_loss(z, q, reduction="none")
    losses, grad = loss_of_masses(z, dtype, q)
    entries: list[int] = []
    within(losses, exact.loss, 1, entries)
    within(grad, exact.grad, near_the_top(z) // 2, entries)
    record_property("compared", sum(entries))


@pytest.mark.parametrize("classes", [2, 3, 4, 130])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_with_subnormal_probabilities(rng, dtype, ahead, classes, record_property):
    """As in test_loss_options.py: a slope of the z-loss, or a large q, makes normal numbers of them.

    Where subnormal numbers are flushed a small q over the sum of the exponentials may be lost.
    """
    z, hot = far_apart(rng, classes, dtype, ahead=ahead)
    q = np.zeros(z.shape)
    size = 10 ** rng.uniform(6, 20, len(z)) if ahead else np.finfo(dtype).tiny * 10 ** rng.uniform(0, 3, len(z))
    q[np.arange(len(z)), hot] = size
    q, z_loss = q.astype(dtype), 0.0 if ahead else 10.0
    exact = oracle.softmax_loss(z, q, z_loss=z_loss, reduction="none")
    losses, grad = loss_of_masses(z, dtype, q, z_loss=z_loss)
    entries: list[int] = []
    within(losses, exact.loss, len(z) * 9 // 10, entries)
    lost = classes * TINY[dtype] if dtype == "float32" and not ahead else 0
    within(grad, exact.grad._replace(bound=exact.grad.bound + lost), z.size * 9 // 10, entries)
    record_property("compared", sum(entries))


@every_class_and_dtype("softmax_loss_smoothed")
def test_smoothed_loss_and_gradient(rng, kind, dtype, record_property):
    entries: list[int] = []
    for number, (x, z, setting, label_type) in enumerate(cases(rng, kind, dtype)):
        if np.isneginf(z).any():
            continue  # an infinite loss: test_smoothing_of_an_impossible_class
        smoothing = (0.1, 1.0, plan.LEAST_SMOOTHING, 0.5)[number % 4]
        y = np.minimum(labels(rng, z), min(np.iinfo(label_type).max, 2**62)).astype(label_type)
        weights = rng.uniform(0.5, 2, ROWS)
        weights[1] = 0
        weights = weights.astype(cpu.working(dtype))
        exact = oracle.softmax_loss(
            z, y.astype("i8"), sample_weight=weights, label_smoothing=smoothing, reduction="none"
        )
        losses, grad = loss(x, dtype, y, weights, kind=kind, setting=setting, smoothing=smoothing)
        within(losses, exact.loss, 1, entries)
        within(grad, exact.grad, near_the_top(z) // 2, entries)
        assert (grad[1] == 0).all()
        without = loss(x, dtype, y, weights, kind=kind, setting=setting, grad=False, smoothing=smoothing)[0]
        assert_same_bits(without, losses)
    record_property("compared", sum(entries))


@every_class
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_smoothing_of_an_impossible_class(rng, kind, smoothing):
    """The loss is infinite, the gradient finite, and of the class it is its share alone."""
    z = rng.normal(size=(3, classes_of(kind, "float32", PLAIN, 0))).astype("f4")
    z[:, 1] = -np.inf
    losses, grad = loss(z, "float32", np.array([0, 1, 2]), kind=kind, smoothing=smoothing)
    assert (losses == np.inf).all()
    exact = oracle.softmax_loss(z, np.array([0, 1, 2]), label_smoothing=smoothing, reduction="none")
    within(grad, exact.grad, grad.size // 2, [])
    np.testing.assert_allclose(grad[[0, 2], 1], -smoothing / z.shape[1], rtol=1e-6)


@every_class_and_dtype("softmax_loss_smoothed")
def test_smoothed_rows_that_have_no_number_or_do_not_count(kind, dtype):
    z = np.array([[NAN, 0, 1], [0, INF, 1], [-INF, -INF, -INF], [1, 2, 3], [1, 2, 3], [NAN, INF, 0], [1, 2, 3]])
    x = cpu.to_bits(z, dtype)
    losses, grad = loss(x, dtype, np.array([1, 0, 0, 3, -1, 77, 0]), [1, 1, 1, 1, 1, 0, 1], kind=kind, smoothing=0.1)
    assert np.isnan(losses[:5]).all()
    assert np.isnan(grad[:5]).all()
    assert (losses[5], *grad[5]) == (0, 0, 0, 0)
    assert np.isfinite(losses[6])
    assert np.isfinite(grad[6]).all()


@pytest.mark.parametrize("shape", ["rising", "falling", "one far above"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_smoothing_of_a_long_row(rng, dtype, shape, record_property):
    """Streamed: what was summed so far is below a largest logit that rises all the time."""
    classes = 524_309
    steps = np.arange(classes) / classes
    z = {"rising": 60 * steps, "falling": -60 * steps, "one far above": 90.0 * (np.arange(classes) == 70_000)}[shape]
    x = cpu.to_bits(np.stack([z, rng.permutation(z)]), dtype)
    z = cpu.from_bits(x, dtype)
    y = np.array([70_000, 3])
    exact = oracle.softmax_loss(z, y, label_smoothing=0.1, reduction="none")
    losses, grad = loss(x, dtype, y, kind=sizes.STREAMED, smoothing=0.1)
    entries: list[int] = []
    within(losses, exact.loss, 2, entries)
    within(grad, exact.grad, z.size // 2, entries)
    record_property("compared", sum(entries))


@every_dtype
@pytest.mark.parametrize(("smoothing", "masses"), [(0.0, False), (0.1, False), (0.1, True)])
def test_all_rows_may_have_one_weight(rng, dtype, smoothing, masses):
    """Then no array of weights is read: the same bits as with one."""
    x, real = cpu.to_bits(rng.normal(size=(ROWS, 37)), dtype), cpu.working(dtype)
    y = rng.integers(37, size=ROWS)
    results = []
    for weights, of_all in ((np.full(ROWS, 0.3, real), 0.0), (None, 0.3)):
        losses, (given, out) = np.zeros(ROWS, real), place(x, dtype, PLAIN)
        at = (cpu.address(y), "int64"), cpu.address(weights), cpu.address(losses), out.matrix
        options = {"label_smoothing": smoothing, "weight_of_all": of_all}
        cpu.run(
            plan.masses_launch(given.matrix, *at, class_weights=0, z_loss=0.1, **options)
            if masses
            else plan.loss_launch(given.matrix, *at, 90, **options)
        )
        results.append((losses, out.rows.copy()))
    assert_same_bits(results[0][0], results[1][0])
    assert_same_bits(results[0][1], results[1][1])


# --- rows without numbers, rows that do not count ---------------------------------------------------------------------

ROUTES = {  # a size class of each kind, and the kernel for masses
    "lanes": sizes.size_classes("softmax_loss", "float32")[0],
    "block": sizes.SizeClass(128, 4),
    "cluster": sizes.SizeClass(512, 4, 2, 1),
    "ring": sizes.SizeClass(64, 4, 2, 1, slots=4, group=2),
    "streamed": sizes.STREAMED,
    "masses": None,
}
every_route = pytest.mark.parametrize("route", ROUTES)


def loss_by(route: str, x: np.ndarray, dtype: str, y: np.ndarray, weights: Any = None) -> tuple[np.ndarray, np.ndarray]:
    if ROUTES[route] is None:
        return loss_of_masses(x, dtype, y, weights)
    return loss(x, dtype, y, weights, kind=ROUTES[route])


@every_route
@every_dtype
def test_rows_without_numbers(route, dtype):
    z = np.array(
        [[NAN, 0, 1], [0, INF, 1], [-INF, -INF, -INF], [INF, INF, 0], [1, 2, -INF], [1, 2, -INF], [-INF, 5, -INF]]
    )
    x = cpu.to_bits(z, dtype)
    losses, grad = loss_by(route, x, dtype, np.array([1, 0, 0, 0, 0, 2, 1]))
    p = 1 / (1 + np.exp(np.longdouble(1)))
    np.testing.assert_allclose(losses[:6], [NAN, NAN, NAN, NAN, -np.log(p), INF], rtol=1e-6)
    assert losses[6] == 0
    assert np.isnan(grad[:4]).all()
    np.testing.assert_allclose(grad[4:], [[p - 1, 1 - p, 0], [p, 1 - p, -1], [0, 0, 0]], rtol=1e-6)
    assert (grad[4, 2], *grad[6]) == (0, 0, 0, 0)


@every_route
@every_dtype
def test_bad_labels_are_read_nowhere(route, dtype):
    """Their rows are nan, but for weight 0; a label far away would end the process if it were read."""
    bad = (-1, -100, 3, 2**40, -(2**40), 2**63 - 1, -(2**63))
    x = cpu.to_bits(np.tile([1.0, 2.0, 3.0], (len(bad) + 2, 1)), dtype)
    weights = np.ones(len(x))
    weights[-1] = 0
    losses, grad = loss_by(route, x, dtype, np.array([*bad, 1, 77]), weights)
    assert np.isnan(losses[: len(bad)]).all()
    assert np.isnan(grad[: len(bad)]).all()
    assert np.isfinite(losses[len(bad) :]).all()
    assert np.isfinite(grad[len(bad) :]).all()
    assert losses[-1] == 0
    assert (grad[-1] == 0).all()


@every_route
def test_unsigned_labels_beyond_int64_are_bad(route):
    x = np.zeros((2, 3), "f4")
    losses, grad = loss_by(route, x, "float32", np.array([2**64 - 1, 2], "u8"))
    assert np.isnan(losses[0])
    assert np.isnan(grad[0]).all()
    assert np.isfinite(losses[1])


@every_route
@every_dtype
def test_rows_of_weight_zero_may_hold_anything(route, dtype):
    x = cpu.to_bits(np.array([[NAN, INF, -INF], [-INF, -INF, -INF], [0, 1, 2]]), dtype)
    losses, grad = loss_by(route, x, dtype, np.array([0, 1, 2]), [0, 0, 1])
    assert (losses[:2] == 0).all()
    assert (grad[:2] == 0).all()
    assert np.isfinite(grad[2]).all()


@pytest.mark.parametrize("route", ["lanes", "block", "cluster", "ring", "streamed"])
@every_dtype
def test_softmax_of_rows_without_numbers(route, dtype):
    kind = ROUTES[route]
    z = np.array([[NAN, 0, 1], [0, INF, 1], [INF, INF, 0], [INF, NAN, 0], [-INF, -INF, -INF], [-INF, 3, -INF]])
    x = cpu.to_bits(z, dtype)
    p = elementwise("softmax", x, dtype, kind=kind)
    assert np.isnan(p[:5]).all()
    np.testing.assert_array_equal(p[5], [0, 1, 0])
    log_p = elementwise("log_softmax", x, dtype, kind=kind)
    assert np.isnan(log_p[:5]).all()
    np.testing.assert_array_equal(log_p[5], [-INF, 0, -INF])
    sums = cpu.from_bits(logsumexp(x, dtype, kind=kind), dtype)
    np.testing.assert_array_equal(sums, [NAN, INF, INF, NAN, -INF, 3])


@pytest.mark.parametrize("bad", [-1.0, NAN, INF])
def test_a_bad_soft_target_makes_its_row_nan(bad):
    q = np.array([[0.5, bad, 0.5], [0.2, 0.3, 0.5]], "f4")
    losses, grad = loss_of_masses(np.zeros((2, 3), "f4"), "float32", q)
    assert np.isnan(losses[0])
    assert np.isnan(grad[0]).all()
    assert np.isfinite(losses[1])
    assert np.isfinite(grad[1]).all()


def test_mass_on_an_impossible_class_is_an_infinite_loss():
    z = np.array([[0.0, -INF, 1.0], [0.0, -INF, 1.0]], "f4")
    q = np.array([[0.5, 0.5, 0], [0.5, 0, 0.5]], "f4")
    losses, grad = loss_of_masses(z, "float32", q)
    assert losses[0] == INF
    assert np.isfinite(losses[1])
    np.testing.assert_array_equal(grad[:, 1], [-0.5, 0])
    assert loss_of_masses(z, "float32", np.array([0, 2]), label_smoothing=0.1)[0].tolist() == [INF, INF]


# --- long and sure rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["rising", "falling", "nearly equal", "staircase"])
@every_dtype
def test_half_a_million_classes(rng, dtype, shape, record_property):
    """Streamed: the shift moves with a rising row, and thousands of terms are added by each thread."""
    classes = 524_309 + sizes.size_classes("softmax_loss", dtype)[-2].capacity * sizes.VECTOR // sizes.ITEMSIZES[dtype]
    steps = np.arange(classes) / classes
    z = {"rising": 60 * steps, "falling": -60 * steps, "nearly equal": 1e-3 * steps, "staircase": np.floor(steps * 40)}
    x = cpu.to_bits(np.stack([z[shape], rng.permutation(z[shape])]), dtype)
    z = cpu.from_bits(x, dtype)
    y = labels(rng, z)
    exact = oracle.softmax_loss(z, y, reduction="none")
    losses, grad = loss(x, dtype, y, setting=Setting(offset=1))
    entries: list[int] = []
    within(losses, exact.loss, 2, entries)
    within(grad, exact.grad, near_the_top(z) // 2, entries)
    record_property("compared", sum(entries))


@pytest.mark.parametrize(
    "kind",
    [sizes.SizeClass(512, 16, 2, 1), sizes.SizeClass(480, 18, 2, 1, slots=6, group=6), sizes.STREAMED],
    ids=["cluster", "ring", "streamed"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sure_rows_keep_the_sum_of_the_others(dtype, kind):
    """Each of the others is subnormal beside the label, their sum is not (docs/adr/0001)."""
    classes, lead = (50_257, 95) if dtype == "float32" else (30_001, 716)
    x = np.full((2, classes), -lead, dtype)
    x[:, 7] = 0
    exact = oracle.softmax_loss(x, np.array([7, 7]), reduction="none")
    losses, grad = loss(x, dtype, np.array([7, 7]), kind=kind)
    entries: list[int] = []
    within(losses, exact.loss, 2, entries)
    within(grad, exact.grad, 2, entries)
    assert (losses > 0).all()
    assert (grad[:, 7] < 0).all()
    within(elementwise("log_softmax", x, dtype, kind=kind), oracle.log_softmax(x), 2 * classes, entries)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lead", [3.0, 87.7, 88.5, 709.0, 711.0])
def test_a_stream_that_rises_a_little_late(dtype, lead, record_property):
    """By less than its shift is moved for: a probability is normal where exp(the first logits - the label's) is not."""
    classes = STREAMED_CLASSES
    x = np.zeros((2, classes), dtype)
    x[:, classes // 2 :] = 3.9
    x[0, 5] = x[1, classes - 5] = lead
    y = np.array([5, classes - 5])
    entries: list[int] = []
    exact = oracle.softmax_loss(x, y, reduction="none")
    losses, grad = loss(x, dtype, y, kind=sizes.STREAMED)
    within(losses, exact.loss, 0, entries)
    within(grad, exact.grad, 0, entries)
    record_property("compared", sum(entries))


@pytest.mark.parametrize("label", [1.0, 3.5, 3.9, 5.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_smoothing_of_a_stream_that_rises_a_little_late(dtype, label):
    """The label's logit is above the first ones, and below, beside or above the largest."""
    x = np.zeros((1, STREAMED_CLASSES), dtype)
    x[0, 9000:9100] = 3.9
    x[0, 5] = label
    exact = oracle.softmax_loss(x, np.array([5]), label_smoothing=0.1, reduction="none")
    losses, grad = loss(x, dtype, np.array([5]), kind=sizes.STREAMED, smoothing=0.1)
    within(losses, exact.loss, 1, [])
    within(grad, exact.grad, x.size, [])


# --- what goes around the rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", [1, 31, 512, 5000, plan.TOTAL_PART, plan.TOTAL_PART + 1, 3 * plan.TOTAL_PART - 7])
def test_totals(rng, dtype, length):
    """Within an eps of the sum of the sizes: what is lost in a thread is carried, nine levels are left."""
    x = (rng.normal(size=length) * 10.0 ** rng.integers(-3, 4, length)).astype(dtype)
    sums = np.full(plan.total_parts(length), 7, dtype)
    cpu.run(plan.total_launch(cpu.address(x), cpu.address(sums), length, dtype), schedule=length % 4)
    for part, found in enumerate(sums):
        terms = x[part * plan.TOTAL_PART : (part + 1) * plan.TOTAL_PART].astype(oracle.LD)
        bound = 5 * float(np.finfo(dtype).eps) * np.abs(terms).sum()
        assert_within(found, terms.sum(), bound=bound)


@pytest.mark.parametrize("worst", [INF, -INF, NAN])
def test_the_total_of_what_is_not_finite(worst):
    x, total = np.ones(1500), np.zeros(1)
    x[700] = worst
    cpu.run(plan.total_launch(cpu.address(x), cpu.address(total), len(x), "float64"))
    np.testing.assert_array_equal(total, [worst])


@pytest.mark.parametrize("kind", LABEL_TYPES)
@pytest.mark.parametrize("place", [0, 255, 256, 299])
def test_bad_labels_are_found(kind, place):
    for value in (-1, 3, 127, np.iinfo(kind).max, np.iinfo(kind).min, 2):
        if not np.iinfo(kind).min <= value <= np.iinfo(kind).max:
            continue
        y, found = np.ones(300, kind), np.zeros(1, "i4")
        y[place] = value
        cpu.run(plan.bad_labels_launch((cpu.address(y), kind), cpu.address(found), len(y), 3))
        assert found[0] == (not 0 <= value < 3)


# --- bits -------------------------------------------------------------------------------------------------------------


@every_class
def test_a_rows_bits_are_its_own(rng, kind):
    """Whatever the other rows are: the same bits (at the same address modulo 16).

    A schedule is one order of threads, and one GPU: it has errors of ex2.approx of its own.
    """
    classes = classes_of(kind, "float32", Setting(), 0) // 4 * 4
    x = rng.normal(size=(5, classes)).astype("f4") * 10
    y = labels(rng, x)
    for schedule in range(4):
        setting = Setting(schedule=schedule)
        losses, grad = loss(x, "float32", y, kind=kind, setting=setting)
        again = loss(x[3:4], "float32", y[3:4], kind=kind, setting=setting)
        assert_same_bits(again[0], losses[3:4])
        assert_same_bits(again[1], grad[3:4])
        others = np.where(np.arange(5)[:, None] == 3, x, np.float32(np.nan))
        assert_same_bits(loss(others, "float32", y, kind=kind, setting=setting)[1][3], grad[3])


@pytest.mark.parametrize("kind", sizes.size_classes("softmax_loss", "float64"), ids=id_of)
def test_the_order_of_threads_changes_no_bit(rng, kind):
    """In float64, where no schedule has errors of its own."""
    x = rng.normal(size=(5, classes_of(kind, "float64", Setting(), 0))) * 10
    y = labels(rng, x)
    losses, grad = loss(x, "float64", y, kind=kind)
    for schedule in (1, 2, 3):
        again = loss(x, "float64", y, kind=kind, setting=Setting(schedule=schedule))
        assert_same_bits(again[0], losses)
        assert_same_bits(again[1], grad)
