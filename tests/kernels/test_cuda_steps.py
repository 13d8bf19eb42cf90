"""Steps of training as programs, on a fake CuPy: each operation is its kernel, run on the CPU, and graphs are replayed.

With --kernels only (nox -s kernels). What NumPy's formulas make of the same program is the reference.
"""

from __future__ import annotations

import gc
import itertools
import signal
import sys
import threading
import weakref
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import cuda_on_cpu as cpu
import numpy as np
import pytest
from fake_cupy import Array, Recorder, array
from program_reference import ReferenceRunner

from xpsoftmax._train.programs import ENTRIES_OF_A_PART, Step, step_program
from xpsoftmax.kernels.activations import ACTIVATIONS
from xpsoftmax.kernels.cuda import clip_plan, plan, step_plan, table_plan, texts
from xpsoftmax.kernels.rules import ADAM, ADAMW, MOMENTUM, SGD

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(cpu.unusable() is not None, reason=f"CUDA cannot be run on this CPU: {cpu.unusable()}"),
]

N, ROWS = 12, 4
EPS = {"float32": 2e-5, "float64": 1e-13}
STEP = Step(
    rows=ROWS,
    all_rows=N,
    sizes=(5, 6, 3),
    activation=ACTIVATIONS["relu"],
    dtype="float64",
    cast=False,
    soft=False,
    weighted=False,
    class_weighted=False,
    mean=True,
    reg=0.0,
    averaged=False,
    label_smoothing=0.0,
    z_loss=0.0,
    rule=SGD,
    kept=0,
)


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder(90)
    recorder.backend(monkeypatch)
    return recorder


@pytest.fixture
def nvmath(recorder, monkeypatch):
    parent = ModuleType("nvmath")
    parent.__spec__ = ModuleSpec("nvmath", None)
    monkeypatch.setitem(sys.modules, "nvmath", parent)
    monkeypatch.setitem(sys.modules, "nvmath.bindings", ModuleType("nvmath.bindings"))
    monkeypatch.setitem(sys.modules, "nvmath.bindings.cublas", recorder.cublas())


@pytest.fixture
def runner(recorder):
    return recorder.modules["capture"].Runner


def arrays_of(
    step: Step, rng: np.random.Generator, x_dtype: str | None = None, target_dtype: str | None = None
) -> dict[str, np.ndarray]:
    dtype = step.dtype
    named = {
        "memory": np.full(step_program(step).size, 99, "u1"),
        "X": rng.normal(size=(N, step.sizes[0])).astype(x_dtype or dtype),
        "targets": rng.dirichlet(np.ones(step.sizes[-1]), N).astype(target_dtype or dtype)
        if step.soft
        else rng.integers(step.sizes[-1], size=N),
        "counting": rng.uniform(0.5, 2, N).astype(dtype),
        "class_weight": rng.uniform(0.5, 2, step.sizes[-1]).astype(dtype),
        "order": rng.permutation(N),
        "place": np.zeros(3, "i8"),
        "numbers": np.full((8, 8), 0.05, dtype) * rng.uniform(0.5, 1, (8, 1)).astype(dtype),
        "finite": np.array(True),
        "losses": np.full(9, -1, dtype),
    }
    named["counting"][::5] = 0
    named["row_weight"] = named["counting"] * dtype_of(dtype)(1.5)
    if step.weighted:
        named["X"][::5] = np.nan  # rows that weigh nothing
    for i, (fan_in, units) in enumerate(zip(step.sizes[:-1], step.sizes[1:], strict=True)):
        for name, shape in ((f"weight{i}", (fan_in, units)), (f"bias{i}", (units,))):
            named[name] = rng.normal(size=shape).astype(dtype)
            named |= {f"{name}.kept{k}": np.abs(rng.normal(size=shape)).astype(dtype) for k in range(step.kept)}
    return named


def dtype_of(name):
    return np.dtype(name).type


def run(runner):
    with runner.in_order(Array.device):
        runner.run()


def check(runner, step, rng, times=3, x_dtype=None, target_dtype=None):
    """Run a program a few times, by both runners; the parameters go on changing from step to step."""
    program = step_program(step)
    wanted = arrays_of(step, rng, x_dtype, target_dtype)
    found = {name: array(value.copy()) for name, value in wanted.items()}
    reference, made = ReferenceRunner(program, wanted), runner(program, found)
    for _ in range(times):
        run(reference)
        run(made)
        for name, value in wanted.items():
            if name == "memory":
                continue
            eps = EPS[step.dtype]
            scale = np.nanmax(np.abs(value), initial=1) if value.dtype.kind == "f" else 1
            np.testing.assert_allclose(np.asarray(found[name]), value, rtol=eps, atol=eps * scale, err_msg=name)
    return made


VARIANTS = {
    "plain": {},
    "float32": {"dtype": "float32"},
    "one layer": {"sizes": (5, 3)},
    "three layers": {"sizes": (5, 6, 4, 3)},
    "tanh": {"activation": ACTIVATIONS["tanh"]},
    "gelu": {"activation": ACTIVATIONS["gelu"], "dtype": "float32"},
    "identity": {"activation": ACTIVATIONS["identity"]},
    "sum": {"mean": False},
    "penalty": {"reg": 0.1},
    "penalty of a mean": {"reg": 0.1, "averaged": True},
    "weights": {"weighted": True},
    "weights of a sum": {"weighted": True, "mean": False, "reg": 0.1},
    "weights and penalty": {"weighted": True, "reg": 0.1, "averaged": True},
    "smoothing": {"label_smoothing": 0.1},
    "a little smoothing": {"label_smoothing": 1e-7},
    "z-loss": {"z_loss": 0.01},
    "soft": {"soft": True},
    "class weights": {"soft": True, "class_weighted": True, "weighted": True},
    "momentum": {"rule": MOMENTUM, "kept": 1},
    "adamw": {"rule": ADAMW, "kept": 2},
    "all rows": {"rows": N, "rule": MOMENTUM, "kept": 1},
    "all rows, weights": {"rows": N, "weighted": True, "reg": 0.1, "averaged": True},
    "all rows, weights of a sum": {"rows": N, "weighted": True, "mean": False},
    "all rows, soft": {"rows": N, "soft": True, "class_weighted": True, "weighted": True},
    "a loss in parts": {"sizes": (plan.TOTAL_PART, plan.TOTAL_PART // 4, 2), "reg": 0.1, "dtype": "float32"},
    "chunks": {"chunk": 3},
    "chunks of a row": {"chunk": 1, "sizes": (5, 6, 4, 3), "spare": 100, "activation": ACTIVATIONS["gelu"], "reg": 0.1},
    "chunks with weights": {"chunk": 3, "weighted": True, "reg": 0.1, "averaged": True, "spare": 100},
    "chunks of a weighted sum": {"chunk": 2, "weighted": True, "mean": False, "dtype": "float32", "spare": 1},
    "chunks of soft targets": {"chunk": 3, "soft": True, "class_weighted": True, "max_norm": 0.1},
    "chunks of all rows": {"chunk": 5, "rows": N, "weighted": True},
    "many layers": {"sizes": (5, 6, 4, 6, 6, 4, 3), "activation": ACTIVATIONS["tanh"], "chunk": 3},
    "clipped": {"max_norm": 0.1, "reg": 0.1, "dtype": "float32"},
    "not clipped": {"max_norm": 1e3},
    "clipped in parts": {"max_norm": 0.1, "sizes": (ENTRIES_OF_A_PART // 4 + 1, 5, 3)},
    "a sum in parts": {"sizes": (ENTRIES_OF_A_PART // 4 + 1, 5, 3), "reg": 0.1, "dtype": "float64"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_operations_are_those_of_the_reference(recorder, runner, rng, name):
    """Without nvmath-python nothing is captured."""
    check(runner, replace(STEP, **VARIANTS[name]), rng)
    assert ("graph", 101) not in recorder.order


@pytest.mark.parametrize("name", VARIANTS)
def test_a_captured_step_gives_the_same_numbers(recorder, runner, nvmath, rng, name):
    """The first step runs one by one; the others are one graph, which reads what the arrays hold then."""
    check(runner, replace(STEP, **VARIANTS[name]), rng, times=4)  # the fourth begins at the first row again
    assert recorder.order.count(("graph", 101)) == 3


@pytest.mark.parametrize("rows", [ROWS, N])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("x_dtype", "target_dtype"), [("float16", None), ("float16", "float64"), ("float32", "float16"), ("float32", None)]
)
def test_other_dtypes_are_gathered_in_the_working_precision(runner, rng, x_dtype, target_dtype, weighted, rows):
    cast = x_dtype != "float32" or target_dtype is not None
    step = replace(STEP, dtype="float32", cast=cast, soft=target_dtype is not None, weighted=weighted, rows=rows)
    check(runner, step, rng, x_dtype=x_dtype, target_dtype=target_dtype, times=1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_all_rows_are_read_where_they_are(weighted, soft):
    """Only inputs with rows that do not count are copied, to have zeros there."""
    program = step_program(replace(STEP, rows=N, soft=soft, weighted=weighted))
    gathers = [operation for operation in program.operations if operation.name == "gather"]
    assert len(gathers) == weighted
    for gather in gathers:
        assert gather.arrays == ("X", "inputs0", None, None, "row_weight", None, None, None, None, "place")
    read = {name for operation in program.operations for name in operation.arrays}
    assert {"X", "targets"} <= read
    assert "order" not in read


NODES = {
    "plain": 13,
    "penalty": 14,
    "weights": 14,
    "weights and penalty": 15,
    "all rows": 12,
    "one layer": 8,
    "adamw": 13,
}


@pytest.mark.parametrize("name", NODES)
def test_how_many_launches_a_step_has(recorder, runner, rng, name):
    """Products are one launch each. ADR 17 has these numbers; a small step takes about 2 microseconds for each."""
    products = []
    matmul = recorder.module.matmul
    recorder.module.matmul = lambda *arrays, **options: (products.append(1), matmul(*arrays, **options))
    check(runner, replace(STEP, **VARIANTS[name]), rng, times=1)
    assert len(recorder.launches) + len(products) == NODES[name]


@pytest.mark.parametrize("depth", [2, 20])
def test_more_parameters_than_a_table_has_room_for(recorder, runner, rng, depth):
    check(runner, replace(STEP, sizes=(5, *[3] * depth), reg=0.1, rule=ADAMW, kept=2), rng)
    updates = [launch for launch in recorder.launches if launch.kernel == "parameter_update"]
    assert len(updates) == 3 * -(-2 * depth // table_plan.MOST_ITEMS)


def test_sums_have_parts_of_the_size_that_the_kernel_adds_up():
    assert ENTRIES_OF_A_PART == plan.TOTAL_PART


@pytest.mark.parametrize("rows", [1, 1024, 1025, 2100])
def test_sums_of_rows_are_added_once(recorder, rng, rows):
    """Also where they are sums of parts."""
    x, out = array(rng.normal(size=(rows, 3))), array(rng.normal(size=3))
    wanted = out + x.sum(axis=0)
    operation = recorder.modules["steps"].bound("sums_of_rows", (x, out), {"added": True})
    with Array.device:
        operation()
    np.testing.assert_allclose(np.asarray(out), wanted, rtol=1e-12)


def test_updates_end_with_a_loss_that_is_not_finite(runner, rng):
    program, arrays = step_program(STEP), arrays_of(STEP, rng)
    arrays["X"][arrays["order"][ROWS + 1]] = np.inf  # in the second batch
    found = {name: array(value) for name, value in arrays.items()}
    made = runner(program, found)
    run(made)
    before = arrays["weight0"].copy()
    assert bool(arrays["finite"])
    for _ in range(2):
        with np.errstate(invalid="ignore"):  # the products here are NumPy's
            run(made)
        assert not bool(arrays["finite"])
    assert np.array_equal(arrays["weight0"], before)
    assert arrays["place"].tolist() == [0, 2, 3]  # after the last row


def test_the_streams_wait_for_each_other(recorder, runner, nvmath, rng):
    arrays = {name: array(value) for name, value in arrays_of(STEP, rng).items()}
    made = runner(step_program(STEP), arrays)
    around = [("record", 7), ("wait", 101)], [("record", 101), ("wait", 7)]
    run(made)
    assert recorder.order == [*around[0], *around[1]]
    recorder.order.clear()
    run(made)
    assert recorder.order == [*around[0], ("graph", 101), *around[1]]


def test_the_stream_of_the_caller_may_be_any(recorder, runner, nvmath, rng):
    """Many steps may be made in one order of the streams, and the caller's is the current one again afterwards."""
    arrays = {name: array(value) for name, value in arrays_of(STEP, rng).items()}
    made = runner(step_program(STEP), arrays)
    run(made)
    run(made)
    recorder.order.clear()
    recorder.stream = 9
    with made.in_order(Array.device):
        assert recorder.stream == 101
        made.run()
        made.run()
    assert recorder.stream == 9
    graphs = [("graph", 101)] * 2
    assert recorder.order == [("record", 9), ("wait", 101), *graphs, ("record", 101), ("wait", 9)]
    recorder.order.clear()
    with pytest.raises(KeyError), made.in_order(Array.device):
        raise KeyError
    assert recorder.order[-2:] == [("record", 101), ("wait", 9)]
    assert recorder.stream == 9


def test_each_thread_has_a_stream_and_a_handle_until_it_ends(recorder, runner, nvmath, rng):
    places = []

    def step():
        arrays = {name: array(value) for name, value in arrays_of(STEP, np.random.default_rng(0)).items()}
        with Array.device:
            made, again = runner(step_program(STEP), arrays), runner(step_program(STEP), arrays)
        assert made._workplace is again._workplace
        places.append(weakref.ref(made._workplace))

    for _ in range(2):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
        gc.collect()
    assert [place() for place in places] == [None, None]
    assert recorder.order.count(("destroy", 1)) == 2
    step()
    assert places[2]() is not None


def test_threads_capture_one_after_the_other(recorder, runner):
    undisturbed, entered = recorder.modules["capture"]._undisturbed, []

    def other():
        with undisturbed():
            entered.append(gc.isenabled())

    thread = threading.Thread(target=other)
    with undisturbed():
        thread.start()
        thread.join(0.2)
        assert entered == []
    thread.join()
    assert entered == [False]
    assert gc.isenabled()


def test_nothing_is_launched_beside_a_graph(recorder, runner, nvmath, rng):
    arrays = {name: array(value) for name, value in arrays_of(STEP, rng).items()}
    made = runner(step_program(STEP), arrays)
    for _ in range(2):
        run(made)
    recorder.launches.clear()
    run(made)
    assert recorder.launches == []


def test_a_step_that_allocates_is_not_captured_and_still_made(recorder, runner, nvmath, rng):
    program, wanted = step_program(STEP), arrays_of(STEP, rng)
    found = {name: array(value.copy()) for name, value in wanted.items()}
    reference, made = ReferenceRunner(program, wanted), runner(program, found)
    made._operations.insert(3, lambda: recorder.module.empty(4, "f4"))
    for number in range(3):
        run(reference)
        if number == 1:
            with pytest.warns(RuntimeWarning, match=r"^A step of training could not be captured: 16 bytes were asked"):
                run(made)
        else:
            run(made)
        np.testing.assert_allclose(np.asarray(found["weight0"]), wanted["weight0"], rtol=1e-12)
    assert ("graph", 101) not in recorder.order
    assert recorder.allocator is None
    assert gc.isenabled()


def test_an_interrupt_while_a_step_is_captured_is_raised_afterwards(recorder, runner, nvmath, rng):
    arrays = {name: array(value) for name, value in arrays_of(STEP, rng).items()}
    made = runner(step_program(STEP), arrays)
    run(made)
    done = []
    made._operations.insert(0, lambda: signal.raise_signal(signal.SIGINT))
    made._operations.append(lambda: done.append(gc.isenabled()))
    with pytest.raises(KeyboardInterrupt):
        run(made)
    assert done == [False], "the capture was not completed, or garbage was collected meanwhile"
    assert gc.isenabled()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- faults -----------------------------------------------------------------------------------------------------------


def wrong_gather(change) -> bool:
    rng = np.random.default_rng(0)
    source, order = rng.normal(size=(9, 307)).astype("f4"), rng.permutation(9)
    weights, place = np.array([1, 0, 1, 1, 0, 1, 1, 1, 1.0], "f4"), np.array([3, 9, 9])
    counting, labels = np.arange(9, dtype="f4"), rng.integers(100, size=(9, 3))
    for columns in (300, 7, 1):  # more than the lanes of a row, as many, one
        for given, soft, zero_rows in ((order, False, True), (None, True, True), (order, False, False)):
            targets = rng.normal(size=(9, 411)).astype("f8") if soft else labels
            width = 400 if soft else 1
            copies = [np.full((5, columns), -1, "f4"), np.full((5, width), -1, "f4" if soft else "i8")]
            copies += [np.full((5, 1), -1, "f4") for _ in range(2)]
            at = list(map(cpu.address, copies))
            batch = step_plan.Batch(
                plan.Matrix(cpu.address(source), 9, columns, 307, "float32"),
                at[0],
                plan.Matrix(cpu.address(targets), 9, width, targets.shape[1], str(targets.dtype)),
                at[1],
                step_plan.Copied(cpu.address(weights), at[2]),
                step_plan.Copied(cpu.address(counting), at[3]),
                zero_rows=zero_rows,
            )
            cpu.run(step_plan.gather_launch(batch, cpu.address(given), cpu.address(place), 4), change=change)
            rows = (np.arange(9) if given is None else order)[3:7]
            dead = weights[rows, None] == 0
            inputs = np.where(dead & zero_rows, 0, source[rows, :columns])
            wanted = inputs, targets[rows, :width], weights[rows, None], counting[rows, None]
            for copy, value in zip(copies, wanted, strict=True):
                if not np.array_equal(copy[:4], value.astype(copy.dtype)) or not (copy[4] == -1).all():
                    return True
    return False


def wrong_weigh(change) -> bool:
    counting = (np.arange(1300) % 5).astype("f8")
    for total in (counting.sum(), 0.0, np.inf):
        given = counting * (0 if total == 0 else 1)
        given[7] = np.inf if total == np.inf else given[7]
        weights, shares, strength = np.full(1300, 2.0), np.full(1301, 3.0), np.zeros(1)
        at = cpu.address(given), cpu.address(weights), cpu.address(shares)
        launch = step_plan.weigh_launch(*at, 1300, 0.5, cpu.address(strength), "float64")
        try:
            cpu.run(launch, change=change, memory=(given, weights, shares, strength), watch=True)
        except cpu.KernelError:
            return True
        wanted = 0.0 if total == 0 else np.nan if total == np.inf else 2.0 / total
        with np.errstate(divide="ignore"):
            right = np.array_equal(strength, [0.5 / np.float64(total)], equal_nan=True)
        if not (right and np.array_equal(shares, [wanted] * 1300 + [3.0], equal_nan=True) and (weights == 2).all()):
            return True
    return False


def wrong_weights_of_rows(change) -> bool:
    """Of 700 rows, in three blocks: the last one to finish divides by the sum of all."""
    labels, rows, classes = np.arange(700) % 5, 700, 5
    labels[::7] = -3
    samples = (1 + np.arange(700) % 4).astype("f8")
    of_classes = np.array([1.0, 2.0, 0.5, 4.0, 0.25])
    for bad, within, mean in itertools.product((False, True), (False, True), (True, False)):
        samples[699] = -1.0 if bad else 1.0
        weight = np.where(labels == -3, 0, samples)
        wanted = weight * of_classes[np.where(labels == -3, 0, labels)]
        counting, weights = np.full((2, rows + 1), 9.0)
        total, correction = np.full((2, 1), 9.0)
        found, counter = np.zeros(1, "i4"), np.zeros(1, "u4")
        launch = step_plan.weigh_rows_launch(
            tuple(map(cpu.address, (labels, samples, of_classes))),
            -3,
            tuple(map(cpu.address, (counting, weights, total, correction))),
            (rows, classes),
            "float64",
            found=cpu.address(found),
            counter=cpu.address(counter),
            within=within,
            mean=mean,
        )
        memory = labels, samples, of_classes, counting, weights, total, correction, found, counter
        try:
            cpu.run(launch, change=change, memory=memory, watch=True)
        except cpu.KernelError:
            return True
        if (int(found[0]), int(counter[0]), float(correction[0])) != (bad, 0, 0):
            return True
        divided = (weight if within else wanted) / (wanted.sum() if mean else 1)
        exact = np.array_equal(counting[:rows], wanted) and np.array_equal(weights[:rows], divided)
        if not exact or total[0] != wanted.sum() or (counting[rows], weights[rows]) != (9, 9):
            return True
    return False


def wrong_record(change) -> bool:
    cases = itertools.product(
        ((1.0, True, True), (np.nan, True, False), (1.0, False, False), (np.inf, True, False)),
        ((4, 7), (6, 0), (7, 0)),
    )
    for (first_term, finite, after), (first, begins) in cases:
        terms, losses, flag = np.arange(1300.0), np.zeros(4), np.array(finite)
        terms[0] = first_term
        place = np.array([first, 1, 2])
        at = map(cpu.address, (losses, flag, place))
        launch = step_plan.record_launch(cpu.address(terms), 1300, *at, 3, 9, "float64")
        try:
            cpu.run(launch, change=change, memory=(terms, losses, flag, place), watch=True)
        except cpu.KernelError:
            return True
        if bool(flag) != after or place.tolist() != [begins, 2, 3]:
            return True
        if not np.array_equal(losses, [0, 0, terms.sum(), 0], equal_nan=True):
            return True
    return False


def wrong_update(change) -> bool:
    """Two parameters of several blocks each, by the rule of Adam; in place and not, with and without a flag."""
    rng = np.random.default_rng(0)
    numbers = rng.uniform(0.1, 0.9, (3, 8)).astype("f4")
    which = np.array(2)
    for flag, in_place in itertools.product((None, True, False), (True, False)):
        memory, parameters, wanted = [numbers, which], [], []
        for length in (2600, 1, 1025):
            before = [np.abs(rng.normal(size=length)).astype("f4") for _ in range(3)]
            grad = rng.normal(size=length).astype("f4")
            after = before if in_place else [np.full(length, 9, "f4") for _ in range(3)]
            changed = flag is not False
            wanted.append(ADAM(*before, grad, *numbers[2, :7]) if changed else [x.copy() for x in before])
            memory += [*before, grad, *([] if in_place else after)]
            old, new = (list(map(cpu.address, arrays)) for arrays in (before, after))
            parameters.append((old, new, cpu.address(grad), length, after))
        ok = None if flag is None else np.array(flag)
        rows = cpu.address(numbers), cpu.address(which)
        given = [parameter[:4] for parameter in parameters]
        made = table_plan.update_launches("adam_rule", given, cpu.address(ok), "float32", rows_of_numbers=rows)
        try:
            for launch in made:
                cpu.run(launch, change=change, memory=[*memory, *([] if ok is None else [ok])], watch=True)
        except cpu.KernelError:
            return True
        for (*_, found), values in zip(parameters, wanted, strict=True):
            if not all(np.array_equal(a, b) for a, b in zip(found, values, strict=True)):
                return True
    return False


def wrong_sums(change) -> bool:
    """Sums that are added to what is there, and sums that are not."""
    x = np.arange(35.0).reshape(7, 5)
    for added in (False, True):
        sums = np.full(64, 100.0)  # with room for a fault that writes beyond the units
        pairs = [(plan.Matrix(cpu.address(x), 7, 5, 5, "float64"), cpu.address(sums))]
        (launch,) = table_plan.sum_of_rows_launches(pairs, added=added)
        cpu.run(launch, change=change)
        if not np.array_equal(sums, [*(x.sum(axis=0) + 100 * added), *[100] * 59]):
            return True
    return False


def wrong_clip(change) -> bool:
    """Norms of vectors of several parts, with entries whose squares overflow or underflow, and close to such."""
    rng = np.random.default_rng(0)
    for dtype, bound, far, eps in (("float32", 2.0**40, 1e30, 2e-6), ("float64", 2.0**400, 1e290, 1e-14)):
        given = rng.normal(size=plan.TOTAL_PART + 900)
        mixed = np.where(np.arange(given.size) % 2, far, 1.0)
        for size in (1.0, far, 1 / far, bound, 1 / bound, mixed, 1 / mixed, 0.0, np.inf, np.nan):
            x = (given * size).astype(dtype)
            norm = np.sqrt((x.astype(np.longdouble) ** 2).sum())
            for most in (3.0, 1e3, float(norm) / 3):
                found, sums = x.copy(), np.full((3, 3), -1, dtype)
                at = cpu.address(found), cpu.address(sums)
                launches = (
                    clip_plan.squares_launch(*at, x.size, dtype),
                    clip_plan.shorten_launch(*at, x.size, most, dtype),
                )
                for launch in launches:
                    is_there = change is not None and change[0] in texts.source(launch.kernel)
                    cpu.run(launch, change=change if is_there else None)
                short = not np.isfinite(norm) or norm <= most
                wanted = x if short else x * (most / norm).astype(dtype)
                tiny = np.finfo(dtype).tiny
                if not (sums[2] == -1).all() or not np.allclose(found, wanted, eps, tiny, equal_nan=True):
                    return True
    return False


@pytest.mark.parametrize(
    ("wrong", "change"),
    [
        (wrong_gather, ("? order[begin + i] :", "? order[i] :")),
        (wrong_gather, ("order[begin + i] : begin + i", "order[begin + i] : i")),
        (wrong_gather, ("if (i >= rows) return;", "if (i > rows) return;")),
        (wrong_gather, ("weights[r] != 0", "weights[i] != 0")),
        (wrong_gather, ("inputs[r * input_stride + j]", "inputs[r * input_columns + j]")),
        (wrong_gather, ("targets[r * target_stride + j]", "targets[r * target_columns + j]")),
        (wrong_gather, ("!zero_rows || weights[r] != 0", "weights[r] != 0")),
        (wrong_gather, ("!zero_rows || weights[r] != 0", "true")),
        (wrong_gather, ("weight_copy[i] = weights[r]", "weight_copy[i] = weights[i]")),
        (wrong_gather, ("counting_copy[i] = counting[r]", "counting_copy[i] = weights[r]")),
        (wrong_gather, ("j < input_columns; j += lanes", "j < input_columns; j += 2 * lanes")),
        (wrong_gather, ("j < target_columns; j += lanes", "j < target_columns; j += 2 * lanes")),
        (wrong_gather, ("threadIdx.x & (lanes - 1)", "0")),
        (wrong_weigh, ("shares[i] = total == 0 ? 0 : ", "shares[i] = ")),
        (wrong_weigh, ("is_finite(total) ? weights[i] / total : Limits<Scalar>::nan()", "weights[i] / total")),
        (wrong_weigh, ("*strength = reg / total", "*strength = reg")),
        (wrong_weigh, ("shares != nullptr && i < rows", "shares != nullptr && i < rows - 1")),
        (wrong_sums, ("added ? *sums +", "true ? *sums +")),
        (wrong_sums, ("added ? *sums +", "false ? *sums +")),
        (wrong_sums, ("|| j >= units", "")),
        (wrong_clip, ("size > Scales<Real>::least_large()", "false")),
        (wrong_clip, ("size < Scales<Real>::largest_small()", "false")),
        (wrong_clip, ("x < 0 ? -x : x", "x")),
        (wrong_clip, ("large + medium * large_scale * large_scale", "large + medium")),
        (wrong_clip, ("if (medium == 0) return", "if (small > 0) return")),
        (wrong_clip, ("medium + small / small_scale / small_scale", "medium + small / small_scale")),
        (wrong_clip, (" || !is_finite(norm)", "")),
        (wrong_clip, ("!(norm > most)", "norm < most")),
        (wrong_clip, ("b < parts; b += THREADS", "b < 1; b += THREADS")),
        (wrong_clip, ("(length + PART - 1) / PART", "length / PART")),
        (wrong_clip, ("x[i] = x[i] * factor", "x[i] = x[i] / factor")),
        (wrong_clip, ("medium.add(sums.medium)", "medium.add(sums.small)")),
        (wrong_weights_of_rows, ("ignores && label == ignored", "label == ignored + 1")),
        (wrong_weights_of_rows, ("is_ignored ? 0 : sample_weight", "sample_weight")),
        (wrong_weights_of_rows, ("counting[first] = weight * of_label", "counting[first] = weight")),
        (wrong_weights_of_rows, ("within ? weight : weight * of_label", "weight * of_label")),
        (wrong_weights_of_rows, ("if (first < rows) {", "if (first <= rows) {")),
        (wrong_weights_of_rows, ("!is_weight(sample_weight)", "false")),
        (wrong_weights_of_rows, ("x >= 0 && is_finite(x)", "is_finite(x)")),
        (wrong_weights_of_rows, ("if (!is_last_block(counter, gridDim.x)) return;", "")),
        (wrong_weights_of_rows, ("i < rows; i += THREADS)", "i < rows; i += 2 * THREADS)")),
        (wrong_weights_of_rows, ("(Long)blockIdx.x * THREADS + threadIdx.x", "threadIdx.x")),
        (wrong_weights_of_rows, ("mean && i < rows", "i < rows")),
        (wrong_weights_of_rows, ("::nan() : 0;\n        *counter = 0;", "::nan() : 0;")),
        (wrong_record, ("if (!is_finite(loss)) *finite = 0;", "")),
        (wrong_record, ("if (!is_finite(loss)) *finite = 0;", "*finite = is_finite(loss);")),
        (wrong_record, ("if (threadIdx.x != 0) return;", "")),
        (wrong_record, ("losses[place[2]] = loss;", "losses[place[1]] = loss;")),
        (wrong_record, ("losses[place[2]] = loss;", "losses[place[2]] = terms[0];")),
        (wrong_record, ("i < length; i += THREADS", "i < THREADS; i += THREADS")),
        (wrong_record, ("place[0] + rows < all_rows ? place[0] + rows : 0", "place[0] + rows")),
        (wrong_record, ("place[0] + rows < all_rows ?", "place[0] + rows <= all_rows ?")),
        (wrong_record, ("? place[0] + rows :", "? place[0] + 1 :")),
        (wrong_record, ("place[1] = place[2];", "")),
        (wrong_record, ("place[2] += 1;", "")),
        (wrong_update, ("if (item > 0) block -= table.items[item - 1].end;", "")),
        (wrong_update, ("(Long)blockIdx.x >= table.items[item].end", "(Long)blockIdx.x > table.items[item].end")),
        (wrong_update, ("if (!changes && of.p == of.new_p) return;", "if (!changes) return;")),
        (wrong_update, ("if (changes) rules::RULE(x[k], numbers);", "rules::RULE(x[k], numbers);")),
        (wrong_update, ("rows_of_numbers[*which * 8 + k]", "rows_of_numbers[k]")),
        (wrong_update, ("if (i >= of.length) return;", "if (i > of.length) return;")),
        (wrong_update, ("of.new_a[i] = x[k].a", "of.new_p[i] = x[k].a")),
        (wrong_update, ("of.new_b[i] = x[k].b", "of.new_a[i] = x[k].b")),
        (wrong_update, ("share.block * (THREADS * EACH)", "share.block * THREADS")),
        (wrong_update, ("share.block * (THREADS * EACH)", "(Long)blockIdx.x * (THREADS * EACH)")),
    ],
)
def test_faults_are_caught(wrong, change):
    assert not wrong(None)
    assert wrong(change)
