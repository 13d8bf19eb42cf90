"""What tests the CUDA kernels is tested itself: kernels with a fault put in must be caught.

With --kernels only (nox -s kernels). A fault counts as caught only if the kernel still compiles, and then a number is
wrong, a thread waits forever or memory is touched that must not be.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import cuda_on_cpu as cpu
import numpy as np
import pytest
import test_kernels_cuda as kernels
from grid import labels

from xpsoftmax.kernels.cuda import plan, sizes, table_plan, texts

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(cpu.unusable() is not None, reason=f"CUDA cannot be run on this CPU: {cpu.unusable()}"),
]

LANES, HELD, QUICK = sizes.SizeClass(8, 2), sizes.SizeClass(128, 4), sizes.SizeClass(128, 1)
CLUSTER, STREAMED = sizes.SizeClass(128, 2, 4, 1), sizes.STREAMED
RING = sizes.SizeClass(64, 4, 2, 1, slots=4, group=2)


class Fault(NamedTuple):
    """Text of a kernel, what stands in its place, and the size class that must not get away with it."""

    text: str
    instead: str
    kind: sizes.SizeClass
    dtype: str = "float32"
    smoothing: float = 0.0


FAULTS = {
    "no barrier after the values of the warps": Fault(
        "barrier_of(1, ROW_LANES);\n        else __syncthreads();", "barrier_of(1, ROW_LANES);", HELD
    ),
    "a barrier that half of the threads reach": Fault(
        "barrier_of(1, ROW_LANES);\n        else __syncthreads();",
        "barrier_of(1, ROW_LANES);\n        else if (warp % 2) __syncthreads();",
        HELD,
    ),
    "no waiting for the blocks of the cluster to run": Fault(
        "            cluster_arrive_relaxed();\n            cluster_wait();\n", "", CLUSTER
    ),
    "what other blocks sent is not waited for": Fault("mbarrier_wait_cluster(barrier, turn / 2 % 2);", "", CLUSTER),
    "the wrong phase waited for": Fault("(barrier, turn / 2 % 2);", "(barrier, 1 - turn / 2 % 2);", CLUSTER),
    "the phase of the first rows waited for again": Fault("(barrier, turn / 2 % 2);", "(barrier, 0);", CLUSTER),
    "fewer bytes expected than are sent": Fault(
        "ROW_BLOCKS * sizeof(Message))", "(ROW_BLOCKS - 1) * sizeof(Message))", CLUSTER
    ),
    "sent to the wrong block": Fault("const int there = threadIdx.x;", "const int there = 0;", CLUSTER),
    "the same rows for all blocks that take several": Fault(
        "row += (Long)turn * (gridDim.x / BLOCKS);", "row += (Long)turn * gridDim.x;", CLUSTER
    ),
    "a shuffle too few": Fault(
        "x += __shfl_xor_sync(ALL_LANES, x, step);", "x += step > 1 ? __shfl_xor_sync(ALL_LANES, x, step) : 0;", LANES
    ),
    "a shuffle that some lanes leave out": Fault(
        "x = larger(x, __shfl_xor_sync(ALL_LANES, x, step));",
        "x = threadIdx.x % 32 < 16 ? x : larger(x, __shfl_xor_sync(ALL_LANES, x, step));",
        HELD,
    ),
    "a vector too many": Fault(
        "(parts.vectors() - first() + STEP - 1) / STEP);", "(parts.vectors() - first() + STEP) / STEP);", HELD
    ),
    "a vector too few": Fault(
        "(parts.vectors() - first() + STEP - 1) / STEP);", "(parts.vectors() - first() + STEP - 2) / STEP);", HELD
    ),
    "rows off a boundary read as if on it": Fault("(int)((0 - (Word)row) % 16 / sizeof(T))", "0", HELD),
    "an output off a boundary written as if on it": Fault(
        "return (Word)(out + parts.head) % 16 == 0;", "return true;", HELD
    ),
    "no elements behind the last vector": Fault("return number - PER < tail() ?", "return false ?", HELD),
    "an element behind the last one": Fault("return number - PER < tail() ?", "return number - PER <= tail() ?", HELD),
    "no elements before the first vector": Fault("number < head ? number : -1;", "-1;", HELD),
    "edges in every block of a cluster": Fault("return seat.block == 0 && number", "return number", CLUSTER),
    "the label counted among the others": Fault("if (n == hot_vector) take_out", "if (false) take_out", LANES),
    "another element than the label taken out": Fault("if (n == hot_vector) take_out", "if (n == 0) take_out", HELD),
    "a label among the edges counted": Fault("if (left_out >= 0 && edge(k) == left_out)", "if (false)", HELD),
    "the label in the wrong half of a word": Fault(
        "0xffffu << (i % 2 * 16) : 0xffffffffu;", "0xffffu << 16 : 0xffffffffu;", LANES, "bfloat16"
    ),
    "the gradient at the label forgotten": Fault("if (left_out >= 0) out[left_out]", "if (false) out[left_out]", HELD),
    "the gradient of the label by every thread": Fault(
        "if (left_out >= 0) out[left_out]", "if (left_out < 0) out[0]", HELD
    ),
    "p - 1 at the label": Fault("0 - odds.rest / odds.total * share", "(odds.e_hot / odds.total - 1) * share", HELD),
    "log of the total where the label leads": Fault("log_of_one_and(odds.rest)", "logarithm(odds.total)", HELD),
    "a subnormal factor taken at once": Fault("half * sum * half;\n}", "exponential(lead.rounded) * sum;\n}", HELD),
    "warps not brought to the same reference": Fault(
        "sum_of_lanes<WIDTH>(sum * brought_to<RelativeExp>(top, highest))", "sum_of_lanes<WIDTH>(sum)", HELD
    ),
    "a warp's factor left out of the gradient": Fault("factor *= brought_to<RelativeExp>(top, row_top);", ";", HELD),
    "powers of two merged wrongly": Fault("power_of_two((int)n) : 0.f", "1.f : 0.f", QUICK, "bfloat16"),
    "the sum left at a power of two": Fault(
        "return {top, sum * RelativeExp(top).to(top)};", "return {top, sum};", QUICK, "bfloat16"
    ),
    "the gradient left at a power of two": Fault(
        "factor *= relative_exp.to(row_top);\n        else", ";\n        else", QUICK, "bfloat16"
    ),
    "the rounding of a product lost": Fault(
        "return multiply_add_saturated(e, multiply_add(p, -log_2, x), e);", "return e;", HELD
    ),
    "the stream's reference moved without its sum": Fault("if (factor != 1) sum.scale(factor);", ";", STREAMED),
    "half of the stream": Fault("number += AT_ONCE * LANES) {", "number += 2 * AT_ONCE * LANES) {", STREAMED),
    "the end of the stream": Fault(
        "number < parts.vectors(); number += LANES)", "number < 0; number += LANES)", STREAMED
    ),
    "weights left out": Fault("? weight() : Limits<Real>::nan();", "? 1 : Limits<Real>::nan();", LANES),
    "the wrong row's weight": Fault(
        "weights ? weights[r] : weight_of_all;", "weights ? weights[0] : weight_of_all;", LANES
    ),
    "halves of a word exchanged": Fault(
        "v.words[i] = pack_halves(x[2 * i], x[2 * i + 1]);",
        "v.words[i] = pack_halves(x[2 * i + 1], x[2 * i]);",
        LANES,
        "float16",
    ),
    "the label's own share left out": Fault("(kept + share) *", "kept *", LANES, smoothing=0.5),
    "what smoothing adds at the label left out": Fault("(pull - (kept", "(0 * pull - (kept", LANES, smoothing=0.5),
    "distances from another largest logit": Fault(
        "? sum : sum + count * (new_top - top);", "? sum : sum;", HELD, smoothing=0.5
    ),
    "distances of what is no class": Fault("if (n < end) below.sum", "below.sum", HELD, smoothing=0.5),
    "distances of a stream from its first largest logit": Fault(
        "if (below.count > 0) sum.add(below.count * (highest - below.top));", "", STREAMED, smoothing=0.5
    ),
    "a stream's sum left at its last reference": Fault(
        "sum.total() * reference.to_largest()}", "sum.total()}", STREAMED, smoothing=0.5
    ),
}


def failure(fault: Fault, change: tuple[str, str] | None) -> str | None:
    """What goes wrong with this change in the cases that a kernel is tested on, or None."""
    rng = np.random.default_rng(0)
    for number, setting in enumerate((*kernels.SETTINGS, kernels.Setting(offset=1, gap=1, apart=2, schedule=3))):
        classes = kernels.classes_of(fault.kind, fault.dtype, setting, number)
        for z in inputs(rng, classes, fault.kind):
            x = cpu.to_bits(z, fault.dtype)
            z = cpu.from_bits(x, fault.dtype)
            y, weights = labels(rng, z), rng.uniform(0.5, 2, len(z)).astype("f4")
            smoothing = fault.smoothing
            exact = kernels.oracle.softmax_loss(
                z, y, sample_weight=weights, label_smoothing=smoothing, reduction="none"
            )
            options = {"kind": fault.kind, "setting": setting, "smoothing": smoothing}
            try:
                losses, grad = kernels.loss(x, fault.dtype, y, weights, change=change, **options)
                kernels.within(losses, exact.loss, 0, [])
                kernels.within(grad, exact.grad, 0, [])
            except (AssertionError, cpu.KernelError) as error:
                return f"{type(error).__name__}: {error}"
    return None


def inputs(rng: np.random.Generator, classes: int, kind: sizes.SizeClass):
    """Rows that a fault may show on: any, sure ones, steadily rising ones, nearly equal ones.

    More of them where blocks take row after row: barriers in shared memory are used again from the third row on.
    """
    yield rng.normal(size=(11 if kind.persistent else 3, classes)) * 10
    for lead in (20, 92):
        sure = np.full((3, classes), -float(lead))
        sure[:, classes // 2] = 0
        yield sure
    for rise in (20, 60):
        yield np.linspace(0, rise, classes) + np.zeros((3, 1))
    yield 1e-2 * rng.uniform(size=(3, classes))


@pytest.mark.parametrize(
    "kind",
    [LANES, HELD, QUICK, CLUSTER, RING, STREAMED],
    ids=["lanes", "block", "one vector", "cluster", "ring", "streamed"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_without_a_fault_nothing_fails(kind, dtype, smoothing):
    assert failure(Fault("", "", kind, dtype, smoothing), None) is None


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_caught(name, record_property):
    fault = FAULTS[name]
    kernel = "softmax_loss_smoothed" if fault.smoothing else "softmax_loss"
    quick = fault.kind is QUICK
    defines = texts.defines(fault.kind, fault.dtype, fault.dtype, quick=quick)
    cpu.kernel(kernel, defines, (fault.text, fault.instead))  # it compiles
    reason = failure(fault, (fault.text, fault.instead))
    assert reason is not None
    record_property("caught", reason)


def wrong_total(change: tuple[str, str] | None) -> bool:
    """Whether the total of a vector amid nan is wrong."""
    memory, sums = np.full(3 * plan.TOTAL_PART, np.nan, "f4"), np.zeros(2, "f4")
    x = memory[64 : 64 + plan.TOTAL_PART + 700]
    x[:] = np.arange(x.size) % 7
    cpu.run(plan.total_launch(cpu.address(x), cpu.address(sums), x.size, "float32"), change=change)
    return sums.tolist() != [x[: plan.TOTAL_PART].sum(), x[plan.TOTAL_PART :].sum()]


def wrong_look_at_labels(change: tuple[str, str] | None) -> bool:
    """Whether a bad label is not found, or a good one is."""
    for place, value in ((0, 2), (299, 3), (5, -1), (299, -1), (256, 2**40)):
        y, found = np.ones(300, "i8"), np.zeros(1, "i4")
        y[place] = value
        cpu.run(plan.bad_labels_launch((cpu.address(y), "int64"), cpu.address(found), 300, 3), change=change)
        if found[0] != (not 0 <= value < 3):
            return True
    return False


def wrong_sum_of_rows(change: tuple[str, str] | None) -> bool:
    """Whether the sums of rows amid nan are wrong; of two matrices in one launch."""
    made, rows = [], table_plan.ROWS_OF_A_PART + 7
    for units in (40, 64, 70):
        x, sums = np.arange(rows * units).reshape(-1, units) % 7.0, np.full((3, units), np.nan, "f4")
        made.append((x, cpu.Placed(x.astype("f4"), "float32", offset=2, gap=5), sums))
    try:
        (launch,) = table_plan.sum_of_rows_launches([(placed.matrix, cpu.address(sums)) for _, placed, sums in made])
        memory = [array for _, *arrays in made for array in arrays]
        cpu.run(launch, change=change, memory=memory, watch=True)
    except cpu.KernelError:
        return True
    for x, _, sums in made:
        wanted = [x[: table_plan.ROWS_OF_A_PART].sum(axis=0), x[table_plan.ROWS_OF_A_PART :].sum(axis=0)]
        if not (np.array_equal(sums[:2], wanted) and np.isnan(sums[2]).all()):
            return True
    return False


def wrong_penalty(change: tuple[str, str] | None) -> bool:
    """Whether penalties of two weights, or their gradients, are wrong; with a number or an array for the strength."""
    weights = [(np.arange(size) % 7).astype("f4") for size in (plan.TOTAL_PART + 700, 5)]
    parts = [weights[0][: plan.TOTAL_PART], weights[0][plan.TOTAL_PART :], weights[1]]
    of_parts = [0.25 * float((part**2).sum()) for part in parts]
    for strength, loss in ((None, np.array(3.0, "f4")), (np.array(0.5, "f4"), None)):
        # What a fault writes beyond the gradient is memory of the test.
        grads = [np.ones(2 * plan.TOTAL_PART, "f4")[: weight.size] for weight in weights]
        sums = np.full(4, -1, "f4")
        reg = 0.5 if strength is None else 0.0
        listed = [(cpu.address(w), cpu.address(g), w.size) for w, g in zip(weights, grads, strict=True)]
        total, counter = np.full((), -1, "f4"), np.zeros((), "u4")
        memory = [array for array in (*weights, *grads, sums, strength, loss, total, counter) if array is not None]
        added = table_plan.LossAdded()
        if loss is not None:
            added = table_plan.LossAdded(*map(cpu.address, (loss, total, counter)))
        try:
            at = cpu.address(sums), cpu.address(strength), reg, "float32", added
            (launch,) = table_plan.penalty_launches(listed, *at)
            cpu.run(launch, change=change, memory=memory, watch=True)
        except cpu.KernelError:
            return True
        if sums.tolist() != ([3.0, *of_parts] if loss is not None else [*of_parts, -1.0]):
            return True
        if float(total) != (3.0 + sum(of_parts) if loss is not None else -1.0) or int(counter) != 0:
            return True
        if not all(np.array_equal(g, 1 + 0.5 * w) for w, g in zip(weights, grads, strict=True)):
            return True
    return False


@pytest.mark.parametrize(
    ("wrong", "change"),
    [
        (wrong_sum_of_rows, ("first + PART < rows ? first + PART : rows", "first + PART")),
        (wrong_sum_of_rows, ("const Long first = part * PART", "const Long first = 0")),
        (wrong_sum_of_rows, ("if (j < units) {", "{")),
        (wrong_sum_of_rows, ("lane != 0 || j >= units", "lane != 0")),
        (wrong_sum_of_rows, ("r += ROW_LANES", "r += ROW_LANES - 1")),
        (wrong_sum_of_rows, ("        __syncthreads();\n        if (lane < step)", "        if (lane < step)")),
        (wrong_sum_of_rows, ("x[r * stride + j]", "x[r * units + j]")),
        (wrong_sum_of_rows, ("ROW_LANES / 2; step", "ROW_LANES / 4; step")),
        (wrong_penalty, ("if (strength != nullptr) reg = *strength;", "")),
        (wrong_sum_of_rows, ("share.block / groups", "blockIdx.x / groups")),
        (wrong_sum_of_rows, ("(units + LANES - 1) / LANES", "units / LANES + 1")),
        (wrong_penalty, ("first + PART < of.length ? first + PART : of.length", "first + PART")),
        (wrong_penalty, ("*terms = *loss;", "*terms = 0;")),
        (wrong_penalty, ("(terms, count, total,", "(terms, count - 1, total,")),
        (wrong_penalty, ("*counter = 0;", "")),
        (wrong_penalty, ("    __syncthreads();\n    if (*finished_before", "    if (*finished_before")),
        (wrong_penalty, ("fetch_add(counter, 1)", "(*counter)++")),
        (wrong_penalty, ("of.sums[share.block]", "of.sums[blockIdx.x]")),
        (wrong_penalty, ("if (item > 0) block -= table.items[item - 1].end;", "")),
        (wrong_penalty, ("Scalar(0.5) * reg * all.value", "reg * all.value")),
        (wrong_penalty, ("g[i] = g[i] + reg * x", "g[i] = reg * x")),
        (wrong_penalty, ("i += THREADS) {", "i += 2 * THREADS) {")),
        (wrong_total, ("first + PART < length ? first + PART : length", "first + PART")),
        (wrong_total, ("(Long)blockIdx.x * PART", "0")),
        (wrong_total, ("first + threadIdx.x", "first + threadIdx.x + 1")),
        (wrong_total, ("sums[blockIdx.x]", "sums[0]")),
        (wrong_look_at_labels, ("label < 0 || ", "")),
        (wrong_look_at_labels, ("label >= classes", "label > classes")),
        (wrong_look_at_labels, ("r >= rows", "r >= rows - 1")),
        (wrong_look_at_labels, ("(Long)blockIdx.x * THREADS + threadIdx.x", "(Long)threadIdx.x")),
    ],
)
def test_faults_around_the_rows_are_caught(wrong, change):
    assert not wrong(None)
    assert wrong(change)


def wrong_masses(change: tuple[str, str] | None) -> bool:
    """Whether a loss or gradient of masses is wrong, of rows that threads hold and of rows that they read twice."""
    for classes in (7, 300, 8193):
        rng = np.random.default_rng(classes)
        for order, scale in itertools.product(kernels.ORDERS.values(), (10, 0.1)):  # a few classes matter, or all do
            z, q = rng.normal(size=(2, classes)) * scale, rng.dirichlet(np.ones(classes), 2)
            z, q = (kernels.ordered(x, by).astype("f4") for x, by in zip((z, q), order, strict=True))
            exact = kernels.oracle.softmax_loss(z, q, reduction="none")
            try:
                losses, grad = kernels.loss_of_masses(z, "float32", q, change=change)
                kernels.within(losses, exact.loss, 0, [])
                kernels.within(grad, exact.grad, 0, [])
            except (AssertionError, cpu.KernelError):
                return True
    return False


def test_masses_without_a_fault():
    assert not wrong_masses(None)


@pytest.mark.parametrize(
    "change",
    [
        ("if (is_top) rise_by(top, hot);", ""),
        ("        found.logit = row.logit;\n        rise_by(top, hot);\n", ""),
        ("const Real all = mass.total() + hot.value;", "const Real all = mass.total();"),
        (
            "exists(top) && top.index != found.mass.index) add_exponential(top.value);",
            "exists(top)) add_exponential(z);",
        ),
        ("if (hot.index != top.index) add_exponential(z_hot);  // else", "add_exponential(z_hot);  // else"),
        ("if (is_hot) z_hot = z;\n        else mass.add(q);", "if (is_hot) z_hot = z;\n        mass.add(q);"),
        ("if (is_hot) z_hot = z;", "if (is_hot) z_hot = 0;"),
        ("if (!is_top && !is_hot) add_exponential(z);", "add_exponential(z);"),
        ("exists(top) && top.index != row.logit.index && ", "exists(top) && "),
        ("top.index != row.logit.index && top.index != row.mass.index", "top.index != row.logit.index"),
        (
            "mass.add(hot.value);\n            if (hot.index != top.index) add_exponential(z_hot);\n        }",
            "if (hot.index != top.index) add_exponential(z_hot);\n        }",
        ),
        ("if (hot.index != top.index) add_exponential(z_hot);\n        }\n        return", "}\n        return"),
        (
            "if (hot.index != top.index) add_exponential(z_hot);\n        }\n        return",
            "add_exponential(z_hot);\n        }\n        return",
        ),
        ("others.scale(exponential(shift - z));", ""),
        ("threadIdx.x + (classes - 1) / STEP * STEP; j >= 0", "threadIdx.x + (classes - 1) / STEP * STEP; j > 0"),
        ("threadIdx.x + (classes - 1) / STEP * STEP; j >= 0", "threadIdx.x + classes / STEP * STEP - STEP; j >= 0"),
        ("j < classes; j += STEP) Classes", "j + STEP < classes; j += STEP) Classes"),
    ],
)
def test_faults_of_masses_are_caught(change):
    assert wrong_masses(change)


@pytest.mark.parametrize("carried", [True, False])
def test_what_the_additions_of_a_long_stream_lose(carried, record_property):
    """Two thousand additions in each thread, each rounded the same way."""
    change = None if carried else ("? value + lost : value;", "? value : value;")
    z = np.full((1, 2**22 + 1), -0.3, "f4")
    z[0, :8192] = 0  # the first that each thread adds: the others are shifted by it
    exact = kernels.oracle.softmax_loss(z, np.array([5]), reduction="none")
    _, grad = kernels.loss(z, "float32", np.array([5]), change=change)
    ratio = float((np.abs(grad - exact.grad.value) / exact.grad.bound).max())
    record_property("ratio", ratio)
    assert (ratio <= 1) == carried


def test_a_fault_that_does_not_compile_is_not_caught():
    fault = Fault("Mbarrier* const barrier = arrived()", "Mbarrier* const barrier = arrived(", CLUSTER)
    with pytest.raises(SyntaxError):
        failure(fault, (fault.text, fault.instead))


def test_a_change_of_text_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="once, not 0 times"):
        failure(Fault("no such text", "", LANES), ("no such text", ""))


def test_arguments_of_the_wrong_type_are_an_error():
    x = cpu.Placed(np.zeros((1, 3), "f4"), "float32")
    launch = plan.rows_launch("softmax", x.matrix, x.matrix, 90)
    wrong = launch._replace(arguments=(*launch.arguments[:-1], np.int32(3)))
    with pytest.raises(cpu.KernelError, match="parameters of"):
        cpu.run(wrong)
    with pytest.raises(cpu.KernelError, match="parameters of"):
        cpu.run(launch._replace(arguments=launch.arguments[:-1]))
