"""Rows that come through a ring in shared memory (kernels/cuda/ring.cuh), on a CPU, where copies arrive late.

With --kernels only (nox -s kernels). The contract is tested for these rows as for all others (test_kernels_cuda.py).
Here are the rows that a ring alone can get wrong, and faults. A fault counts as caught only if the kernel compiles, and
then a number is wrong or the run ends with a violation. Each fault says which.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import cuda_on_cpu as cpu
import numpy as np
import oracle as oracle
import pytest
from test_cuda_harness import NO_ORDER, SCHEDULES, WRONG
from test_kernels_cuda import within

from xpsoftmax.kernels.cuda import plan, sizes

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(cpu.unusable() is not None, reason=f"CUDA cannot be run on this CPU: {cpu.unusable()}"),
]

RINGS = {
    "cluster": sizes.SizeClass(64, 4, 2, 1, slots=4, group=2),
    "three rows": sizes.SizeClass(64, 3, 2, 1, slots=9, group=1),
    "one row": sizes.SizeClass(64, 4, 2, 1, slots=2, group=2),
    "one slot": sizes.SizeClass(96, 3, 4, 1, slots=1, group=3),
    "block": sizes.SizeClass(96, 4, 1, 1, slots=4, group=2),
}
every_ring = pytest.mark.parametrize("name", RINGS)
ROWS = 11  # a cluster of two has five or six of them: slots are filled again and again


def classes_of(kind: sizes.SizeClass, part: float) -> int:
    return int(kind.capacity * 4 * part) + 3


def loss_is_right(
    kind: sizes.SizeClass,
    classes: int,
    *,
    schedule: int,
    watch: bool = False,
    offset: int = 1,
    in_place: bool = False,
    change: tuple[str, str] | None = None,
) -> bool:
    """Whether loss and gradient keep their bounds, and nothing else is written. Rows of weight 0 are not given."""
    rng = np.random.default_rng(classes)
    z = (rng.normal(size=(ROWS, classes)) * 10).astype("f4")
    y = rng.integers(classes, size=ROWS)
    weights = rng.uniform(0.5, 2, ROWS).astype("f4")
    weights[[2, 3, 8]] = 0
    x = cpu.Placed(z, "float32", offset=offset, gap=offset)
    out = x if in_place else cpu.Placed(np.zeros_like(z), "float32", offset=offset, gap=2)
    losses = np.full(ROWS, -7, "f4")
    at = (cpu.address(y), "int64"), cpu.address(weights), cpu.address(losses)
    launch = plan.loss_launch(x.matrix, *at, out.matrix, 90, kind)
    memory = [out, y, weights, losses, *(row for row, weight in zip(x.rows, weights, strict=True) if weight)]
    cpu.run(launch, schedule=schedule, watch=watch, memory=memory, change=change)
    exact = oracle.softmax_loss(z, y, sample_weight=weights, reduction="none")
    try:
        out.assert_only_rows_changed()
        within(losses, exact.loss, ROWS - 3, [])
        within(out.rows, exact.grad, 1, [])
    except AssertionError:
        return False
    return bool((out.rows[weights == 0] == 0).all())


@every_ring
@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 1.0])
def test_every_schedule(name, part):
    """Also rows that leave slots without vectors."""
    kind = RINGS[name]
    for schedule in SCHEDULES:
        offset = schedule % 4
        assert loss_is_right(kind, classes_of(kind, part), schedule=schedule, offset=offset, in_place=schedule % 2 == 1)


@every_ring
@pytest.mark.parametrize("part", [0.3, 1.0])
def test_accesses_are_in_order(name, part):
    for schedule in range(8):
        right = loss_is_right(
            RINGS[name], classes_of(RINGS[name], part), schedule=schedule, watch=True, in_place=schedule % 2 == 0
        )
        assert right


@every_ring
def test_every_length(name):
    """Around each place where a slot, a thread or a block begins to have vectors."""
    kind = RINGS[name]
    begins = {g * kind.group * kind.lanes * b for g in range(kind.vectors + 1) for b in range(kind.blocks + 1)}
    for number, vectors in enumerate(sorted({v for v in begins if v <= kind.capacity})):
        for more in (-1, 0, 1):
            classes = min(max(4 * (vectors + more) + number % 4, 1), 4 * kind.capacity + 3)
            assert loss_is_right(kind, classes, schedule=number, offset=number % 4), f"{classes} classes"


@pytest.mark.parametrize("kind", [kind for kind in sizes.classes_on("softmax_loss", "float32", 90) if kind.slots])
def test_the_rings_that_are_used(kind):
    """Each cluster has six rows, more than the ring holds."""
    for schedule in range(4):
        assert loss_is_right(kind, classes_of(kind, 0.93), schedule=schedule, offset=schedule)


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_fewer_rows_than_slots(rows):
    """All of weight 0, or one of them."""
    kind = RINGS["three rows"]
    z = np.random.default_rng(rows).normal(size=(rows, 500)).astype("f4")
    for weight in (0, 1):
        weights, losses, y = np.zeros(rows, "f4"), np.full(rows, -7, "f4"), np.zeros(rows, "i8")
        weights[rows // 2 : rows // 2 + 1] = weight
        x, out = cpu.Placed(z, "float32"), cpu.Placed(np.full_like(z, 7), "float32")
        at = (cpu.address(y), "int64"), cpu.address(weights), cpu.address(losses)
        for schedule in range(8):
            cpu.run(plan.loss_launch(x.matrix, *at, out.matrix, 90, kind), schedule=schedule)
            exact = oracle.softmax_loss(z, y, sample_weight=weights, reduction="none")
            within(losses, exact.loss, 0, [])
            within(out.rows, exact.grad, 0, [])


def test_the_bits_of_a_row_do_not_depend_on_the_schedule():
    kind, rng = RINGS["cluster"], np.random.default_rng(3)
    z = rng.normal(size=(ROWS, 1003))
    found = set()
    for schedule in SCHEDULES:
        x, out = cpu.Placed(z, "float64"), cpu.Placed(np.zeros_like(z), "float64")
        cpu.run(plan.rows_launch("softmax", x.matrix, out.matrix, 90, kind), schedule=schedule)
        found.add(out.rows.tobytes())
    assert len(found) == 1


class Fault(NamedTuple):
    """Text of a kernel, what stands in its place, and what must be seen: a violation's message, or a wrong number."""

    text: str
    instead: str
    seen: str
    ring: str = "cluster"
    watch: bool = False


WAIT_EMPTY = "mbarrier_wait(&empty()[i], phase_of(turn) ^ 1);"
WAIT_FULL = "mbarrier_wait(&full()[i], phase_of(turn));"
GIVE_BACK = "        if (lane % 32 == 0) mbarrier_arrive(&empty()[i]);\n"
READ = "            if (n < number) held[n] = mine[n * LANES_OF_ROW];\n        __syncwarp();  // all lanes have read\n"
EXPECT = "mbarrier_arrive_expect(&full()[i], number * sizeof(Vector));"
BEGIN = "            mbarrier_fence_init();\n        }\n        __syncthreads();\n    }\n\n    // By one thread: fill"
FAULTS = {
    "a slot filled before it is empty": Fault(WAIT_EMPTY, "", "still under way|nobody has waited|more threads"),
    "the producer's wrong phase": Fault(WAIT_EMPTY, WAIT_EMPTY.replace(" ^ 1", ""), "threads wait forever"),
    "the producer waits for the first phase again": Fault(
        WAIT_EMPTY, "mbarrier_wait(&empty()[i], 1);", "still under way|nobody has waited|threads wait forever"
    ),
    "a slot read before it is full": Fault(WAIT_FULL, "", "nobody has waited"),
    "the readers' wrong phase": Fault(WAIT_FULL, WAIT_FULL.replace("(turn)", "(turn) ^ 1"), "nobody has waited"),
    "a phase for each row": Fault("return turn / DEPTH % 2;", "return turn % 2;", "nobody has waited|wait forever"),
    "another slot read than filled": Fault(
        "const Vector* const mine = slot(i)", "const Vector* const mine = slot(0)", WRONG
    ),
    "a slot given back before it is read": Fault(
        f"#pragma unroll\n        for (int n = 0; n < VECTORS_OF_SLOT; ++n)\n{READ}{GIVE_BACK}",
        f"{GIVE_BACK}        for (int n = 0; n < VECTORS_OF_SLOT; ++n)\n{READ}",
        f"{WRONG}|{NO_ORDER}",
        watch=True,
    ),
    "a slot given back before the other lanes have read it": Fault(
        "        __syncwarp();  // all lanes have read\n", "", NO_ORDER, watch=True
    ),
    "a slot that one warp does not give back": Fault(
        "if (lane % 32 == 0) mbarrier_arrive", "if (lane == 0) mbarrier_arrive", "threads wait forever"
    ),
    "a slot that every lane gives back": Fault(
        "if (lane % 32 == 0) mbarrier_arrive", "mbarrier_arrive", "more threads arrive|nobody has waited"
    ),
    "a copy that nobody announces": Fault(EXPECT, "mbarrier_arrive(&full()[i]);", "threads wait forever"),
    "too few bytes announced": Fault(
        EXPECT, EXPECT.replace("number * ", "(number - 1) * "), "threads wait forever|without being announced"
    ),
    "too many bytes announced": Fault(EXPECT, EXPECT.replace("number * ", "(number + 1) * "), "threads wait forever"),
    "fewer bytes copied than announced": Fault(
        "parts.vector(first), number * sizeof(Vector)", "parts.vector(first), number * 8", "wait forever|multiple of 16"
    ),
    "a slot without vectors that nobody fills": Fault(
        "            } else {\n                mbarrier_arrive(&full()[i]);\n", "", "threads wait forever"
    ),
    "whole slots copied, beyond the row": Fault(
        "number = left < PER_SLOT ? left : PER_SLOT;", "number = PER_SLOT;", "memory that it was not given"
    ),
    "rows of weight 0 copied": Fault(
        "counts(seat.row) ? parts.vectors() : 0", "parts.vectors()", "memory that it was not given"
    ),
    "the part of another block copied": Fault(
        "first = (group * BLOCKS_OF_ROW + block) * PER_SLOT;", "first = (group * BLOCKS_OF_ROW) * PER_SLOT;", WRONG
    ),
    "copies off a boundary": Fault(
        "copy_bulk(slot(i), parts.vector(first)", "copy_bulk(slot(i), parts.row + first * 4", "multiple of 16"
    ),
    "a producer that stays behind by a row": Fault(
        "RowRing::fill(parts, counts(seat.row) ? parts.vectors() : 0, seat.block, turn);",
        "RowRing::fill(parts, counts(seat.row) ? parts.vectors() : 0, seat.block, turn > 0 ? turn - 1 : turn);",
        "threads wait forever|nobody has waited|still under way",
    ),
    "no producer": Fault("if (threadIdx.x == LANES) bring_rows(given, counts);", "", "threads wait forever"),
    "a producer in every lane": Fault(
        "if (threadIdx.x == LANES) bring_rows", "bring_rows", "nobody has waited|still under way|more threads"
    ),
    "a producer that computes as well": Fault(
        "            __syncwarp();\n            return;\n",
        "            __syncwarp();\n",
        "forever|more threads|beyond an array|without",
    ),
    "a producer at the barrier of the others": Fault(
        "if constexpr (OTHERS) barrier_of(1, ROW_LANES);", "if constexpr (OTHERS) __syncthreads();", f"forever|{WRONG}"
    ),
    "no barrier after the values of the warps": Fault(
        "if constexpr (OTHERS) barrier_of(1, ROW_LANES);\n        else",
        "if constexpr (!OTHERS)",
        f"{WRONG}|{NO_ORDER}",
        watch=True,
    ),
    "barriers that others use before they are made": Fault(
        BEGIN, BEGIN.replace("        __syncthreads();\n", ""), "not initialised"
    ),
    "a barrier that expects every thread": Fault(
        "mbarrier_init(&empty()[i], LANES_OF_ROW / 32);",
        "mbarrier_init(&empty()[i], LANES_OF_ROW);",
        "threads wait forever",
    ),
    "a ring larger than its memory": Fault(
        "DYNAMIC_SHARED_ARRAY(Vector, slots, SLOTS_OF_RING * PER_SLOT);",
        "DYNAMIC_SHARED_ARRAY(Vector, slots, 2 * SLOTS_OF_RING * PER_SLOT);",
        "bytes of dynamic shared memory, and got",
    ),
    "vectors of a thread as if groups were of one": Fault(
        "return n / GROUP * (GROUP * STEP) + n % GROUP * LANES;",
        "return n * STEP;",
        f"{WRONG}|memory that it was not given",
    ),
    "a vector too many in the last group": Fault("- first() + LANES - 1;", "- first() + LANES;", f"{WRONG}|not given"),
    "a vector too few in the last group": Fault("- first() + LANES - 1;", "- first() + LANES - 2;", WRONG),
    "the label looked for in another group": Fault(
        "number / (GROUP * STEP) * GROUP + number / LANES % GROUP", "number / (GROUP * STEP) * GROUP", WRONG
    ),
    "the label looked for in another block": Fault(
        "(int)(number / (GROUP * LANES) % BLOCKS) != seat.block", "(int)(number / LANES % BLOCKS) != seat.block", WRONG
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_caught(name, record_property):
    fault = FAULTS[name]
    kind, seen = RINGS[fault.ring], set()
    for schedule in range(12):
        for part in (0.4, 1.0):
            options = {"schedule": schedule, "watch": fault.watch, "change": (fault.text, fault.instead)}
            try:
                if not loss_is_right(kind, classes_of(kind, part), **options):
                    seen.add(WRONG)
            except cpu.KernelError as error:
                seen.add(str(error))
        if any(re.search(fault.seen, message) for message in seen):
            break
    record_property("seen", sorted(seen))
    assert any(re.search(fault.seen, message) for message in seen), seen
