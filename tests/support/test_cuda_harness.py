"""What runs CUDA on a CPU, with mbarriers, asynchronous stores and copies, and counters: right kernels, and faults.

With --kernels only (nox -s kernels). The kernels are those of cuda_on_cpu/kernels, a small one for each kind of
instruction. A fault counts as caught only if the kernel compiles, and then a number is wrong or the run ends with a
violation: each fault says which.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import cuda_on_cpu as cpu
import numpy as np
import pytest

from xpsoftmax.kernels.cuda import plan, sizes, texts

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(cpu.unusable() is not None, reason=f"CUDA cannot be run on this CPU: {cpu.unusable()}"),
]

SCHEDULES = range(24)
"""The first four are chosen (cuda_on_cpu/threads.h), the others are random."""
WRONG = "a number is wrong"


class Case(NamedTuple):
    """A kernel and how it is launched."""

    kernel: str
    grid: int = 1
    block: int = 64
    rows: int = 7
    length: int = 1000
    defines: tuple[tuple[str, str], ...] = ()
    shared_bytes: int = 0


def cluster_case(message: str, blocks: int = 4) -> Case:
    defines = (("BLOCKS", str(blocks)), ("THREADS", "64"), ("MESSAGE", message))
    return Case("cluster_sum", grid=2 * blocks, defines=defines)


def ring_case(slots: int) -> Case:
    defines = (("THREADS", "64"), ("SLOTS", str(slots)), ("SLOT_BYTES", "512"))
    return Case("ring_sum", grid=2, block=96, defines=defines, shared_bytes=512 * slots)


CLUSTER = {message: cluster_case(message) for message in ("unsigned", "Word", "Vector")}
RING = {slots: ring_case(slots) for slots in (1, 2, 3)}
LAST = Case("last_block", grid=9, rows=1, length=9 * 64 - 5, defines=(("THREADS", "64"),))
FLAGS = Case("flags", block=256, rows=1, length=8, defines=(("THREADS", "256"),))


def numbers(case: Case) -> np.ndarray:
    """Rows (R, C) of numbers at a multiple of 16 bytes."""
    size = case.rows * case.length
    memory = np.zeros(size + 8, "u4")
    start = -memory.ctypes.data % 16 // 4
    x = memory[start : start + size].reshape(case.rows, case.length)
    x[:] = np.random.default_rng(case.length).integers(0, 2**16, x.shape)
    return x


def on_cpu(case: Case, *arguments: Any, **options: Any) -> None:
    """Run a kernel on arrays and NumPy scalars; it may use no other memory than these arrays."""
    made = tuple(np.uint64(cpu.address(a)) if isinstance(a, np.ndarray) else a for a in arguments)
    cluster = int(dict(case.defines).get("BLOCKS", "1"))
    sizes = case.grid, case.block
    launch = plan.Launch(case.kernel, case.defines, *sizes, made, cluster, shared_bytes=case.shared_bytes)
    memory = [a for a in arguments if isinstance(a, np.ndarray)]
    cpu.run(launch, memory=memory, **options)


def is_right(case: Case, run: Any = on_cpu, **options: Any) -> bool:
    """Run the kernel, the one of the last block twice, and compare its results with NumPy's."""
    x, sizes = numbers(case), (np.int32(case.rows), np.int32(case.length))
    sums = x.sum(1, dtype="u4")
    if case.kernel == "cluster_sum":
        blocks = int(dict(case.defines)["BLOCKS"])
        result = np.zeros((case.rows, blocks), "u4")
        run(case, x, result, *sizes, **options)
        return bool((result == sums[:, None]).all())
    if case.kernel == "ring_sum":
        result = np.zeros(case.rows, "u4")
        run(case, x, result, *sizes, **options)
        return bool((result == sums).all())
    if case.kernel == "flags":
        flag, result = np.zeros(1, "u4"), np.zeros(case.length, "u4")
        run(case, flag, result, **options)
        return bool((result == np.arange(1, case.length + 1)).all())
    published, counter, total = np.zeros(case.grid, "u4"), np.zeros(1, "u4"), np.zeros(1, "u4")
    right = True
    for _ in range(2):  # the counter must be as it was
        total[:] = published[:] = 0
        run(case, x, published, counter, total, np.int32(x.size), **options)
        right &= bool(total[0] == sums[0])
    return right


CASES = {
    **{f"cluster, {message}": case for message, case in CLUSTER.items()},
    "cluster of 2": cluster_case("Vector", 2),
    **{f"ring of {slots}": case for slots, case in RING.items()},
    "last block": LAST,
    "flags": FLAGS,
}


@pytest.mark.parametrize("watch", [False, True], ids=["", "watched"])
@pytest.mark.parametrize("name", CASES)
def test_right_kernels_are_right_under_every_schedule(name, watch):
    for schedule in SCHEDULES:
        assert is_right(CASES[name], schedule=schedule, watch=watch), f"schedule {schedule}"


class Fault(NamedTuple):
    """Text of a kernel, what stands in its place, and what must be seen: a violation's message, or a wrong number."""

    case: Case
    text: str
    instead: str
    seen: str
    watch: bool = False


NO_ORDER = "no order between threads"
PUBLISH = "    if (threadIdx.x == 0) published[blockIdx.x] = sum;\n"
COUNT = "    if (threadIdx.x == 0) before[0] = fetch_add(counter, 1);\n"
OF_WARPS = "if (lane == 0) of_warp[warp] = sum;\n        "
READ = "            for (int i = threadIdx.x; i < number; i += THREADS) sum += ring[turn.slot * PER_SLOT + i];\n"
GIVE_BACK = "            if (lane == 0) mbarrier_arrive(&empty[turn.slot]);\n"
V = CLUSTER["Vector"]
R = RING[2]
PER_BLOCK = "BLOCKS * sizeof(MESSAGE)"
FAULTS = {
    # a cluster that sends with store_async
    "bytes that nobody announces": Fault(
        V,
        f"mbarrier_arrive_expect(&arrived[half], {PER_BLOCK});",
        "mbarrier_arrive(&arrived[half]);",
        "threads wait forever",
    ),
    "too few bytes announced": Fault(V, PER_BLOCK, "(BLOCKS - 1) * sizeof(MESSAGE)", "without being announced"),
    "too many bytes announced": Fault(V, PER_BLOCK, "(BLOCKS + 1) * sizeof(MESSAGE)", "threads wait forever"),
    "nobody arrives": Fault(
        V, f"if (threadIdx.x == 0) mbarrier_arrive_expect(&arrived[half], {PER_BLOCK});", "", "threads wait forever"
    ),
    "every thread arrives": Fault(
        V,
        "if (threadIdx.x == 0) mbarrier_arrive_expect",
        "mbarrier_arrive_expect",
        "more threads arrive|nobody has waited",
    ),
    "no waiting for what others send": Fault(
        V, "mbarrier_wait_cluster(&arrived[half], parity);", "", "nobody has waited|still under way"
    ),
    "the wrong phase": Fault(
        V,
        "mbarrier_wait_cluster(&arrived[half], parity);",
        "mbarrier_wait_cluster(&arrived[half], parity ^ 1);",
        "threads wait forever",
    ),
    "a phase never changed": Fault(V, "parity = turn / 2 % 2;", "parity = 0;", "threads wait forever"),
    "a phase changed every time": Fault(V, "parity = turn / 2 % 2;", "parity = turn % 2;", "threads wait forever"),
    "one half for all rows": Fault(V, "half = turn % 2, parity = turn / 2 % 2;", "half = 0, parity = turn % 2;", WRONG),
    "to the wrong block": Fault(
        V, "const int to = threadIdx.x;", "const int to = 0;", "threads wait forever|without being announced"
    ),
    "the barrier of another block": Fault(
        V, "remote_place(&arrived[half], to));", "remote_place(&arrived[half], 0));", "with the mbarrier of another"
    ),
    "to a place that is taken": Fault(
        V,
        "remote_place(&parts[half * BLOCKS + rank], to)",
        "remote_place(&parts[half * BLOCKS], to)",
        "still under way|" + WRONG,
    ),
    "barriers without a fence": Fault(V, "        mbarrier_fence_init();\n", "", "without mbarrier_fence_init"),
    "no waiting for the barriers": Fault(
        V, "    cluster_arrive_relaxed();\n    cluster_wait();\n", "", "not initialised|has not begun"
    ),
    "no barrier after the values of the warps": Fault(
        V, "        __syncthreads();\n        if (threadIdx.x == 0) mb", "        if (threadIdx.x == 0) mb", WRONG
    ),
    "a wait that does not see other blocks": Fault(
        V, "mbarrier_wait_cluster(&", "mbarrier_wait(&", "must be waited for with mbarrier_wait_cluster"
    ),
    # a ring of copies
    "a copy that nobody announces": Fault(
        R,
        "mbarrier_arrive_expect(&full[turn.slot], number * 4);",
        "mbarrier_arrive(&full[turn.slot]);",
        "threads wait forever",
    ),
    "fewer bytes announced than copied": Fault(
        R,
        "mbarrier_arrive_expect(&full[turn.slot], number * 4);",
        "mbarrier_arrive_expect(&full[turn.slot], number * 4 - 16);",
        "threads wait forever",
    ),
    "fewer bytes copied than announced": Fault(
        R, "first, number * 4, &full", "first, number * 4 - 16, &full", "threads wait forever"
    ),
    "a slot filled before it is empty": Fault(
        R, "mbarrier_wait(&empty[turn.slot], turn.parity ^ 1);", "", "still under way|nobody has waited|more threads"
    ),
    "the producer's wrong phase": Fault(
        R,
        "mbarrier_wait(&empty[turn.slot], turn.parity ^ 1);",
        "mbarrier_wait(&empty[turn.slot], turn.parity);",
        "threads wait forever",
    ),
    "a slot read before it is full": Fault(R, "mbarrier_wait(&full[turn.slot], turn.parity);", "", "nobody has waited"),
    "the consumers' wrong phase": Fault(
        R,
        "mbarrier_wait(&full[turn.slot], turn.parity);",
        "mbarrier_wait(&full[turn.slot], turn.parity ^ 1);",
        "nobody has waited",
    ),
    "a slot given back before it is read": Fault(
        R,
        READ + "            __syncwarp();\n" + GIVE_BACK,
        GIVE_BACK + READ,
        WRONG,
    ),
    "a slot given back before the other lanes have read it": Fault(R, "            __syncwarp();\n", "", WRONG),
    "a slot that one warp does not give back": Fault(
        R,
        "if (lane == 0) mbarrier_arrive(&empty",
        "if (lane == 0 && warp == 0) mbarrier_arrive(&empty",
        "threads wait forever",
    ),
    "a slot that every lane gives back": Fault(
        R,
        "if (lane == 0) mbarrier_arrive(&empty",
        "mbarrier_arrive(&empty",
        "more threads arrive|nobody has waited|" + WRONG,
    ),
    "the next slot before this one is read": Fault(
        R,
        "if (lane == 0) mbarrier_arrive(&empty[turn.slot]);",
        "if (lane == 0) mbarrier_arrive(&empty[1 - turn.slot]);",
        "nobody has waited",
    ),
    "phases that never change": Fault(R, "        parity ^= 1;\n", "", "nobody has waited"),
    "copies off a 16-byte boundary": Fault(
        R, "length + first, number", "length + first + 1, number", "no multiple of 16"
    ),
    "a ring that is not aligned": Fault(
        R, "DYNAMIC_SHARED_ARRAY(unsigned, ring", "SHARED_ARRAY(unsigned, ring", "no multiple of 16"
    ),
    "a ring larger than its memory": Fault(
        R, "SLOTS * PER_SLOT);", "2 * SLOTS * PER_SLOT);", "bytes of dynamic shared memory, and got"
    ),
    "a ring filled before the copies, without a fence": Fault(
        R,
        "    __syncthreads();\n    if",
        "    ring[threadIdx.x] = 0;\n    __syncthreads();\n    if",
        "without fence_before_copies",
        watch=True,
    ),
    "copies of other sizes": Fault(R, "number * 4, &full", "number * 4 - 4, &full", "no multiple of 16"),
    "a copy beyond the row": Fault(
        R,
        "const int number = length - first < PER_SLOT ? length - first : PER_SLOT;\n            mbarrier_wait(&empty",
        "const int number = PER_SLOT;\n            mbarrier_wait(&empty",
        "that it was not given",
    ),
    "no waiting for barriers of the block": Fault(R, "    __syncthreads();\n    if", "    if", "not initialised"),
    "a barrier that the producer does not reach": Fault(
        R,
        OF_WARPS + "barrier_of(1, THREADS);",
        OF_WARPS + "barrier_of(1, THREADS + 32);",
        "threads wait forever",
    ),
    # the last block
    "counted before it is published": Fault(
        LAST,
        PUBLISH + COUNT,
        COUNT + PUBLISH,
        WRONG,
    ),
    "a counter that is not set back": Fault(LAST, "        counter[0] = 0;\n", "", WRONG),
    "a counter that is set back by every block": Fault(
        LAST,
        "    if (before[0] + 1 != gridDim.x) return;\n",
        "    if (threadIdx.x == 0) counter[0] = 0;\n    if (before[0] + 1 != gridDim.x) return;\n",
        WRONG,
    ),
    "the last block taken for the one before": Fault(
        LAST, "before[0] + 1 != gridDim.x", "before[0] + 2 != gridDim.x", WRONG
    ),
    "the block of the highest number taken for the last": Fault(
        LAST, "if (before[0] + 1 != gridDim.x)", "if (blockIdx.x + 1 != gridDim.x)", WRONG
    ),
    "published by a thread that does not count": Fault(
        LAST,
        "if (threadIdx.x == 0) published[blockIdx.x]",
        "if (threadIdx.x == 32) published[blockIdx.x]",
        NO_ORDER,
        watch=True,
    ),
    "a plain sum instead of a counter": Fault(
        LAST, "before[0] = fetch_add(counter, 1);", "before[0] = counter[0]++;", NO_ORDER, watch=True
    ),
    # flags
    "a plain store instead of one that releases": Fault(
        FLAGS, "store_release(flag, mine + 1);", "flag[0] = mine + 1;", NO_ORDER, watch=True
    ),
    "released before it is written": Fault(
        FLAGS,
        "    numbers[mine] = mine == 0 ? 1 : numbers[mine - 1] + 1;\n    store_release(flag, mine + 1);\n",
        "    store_release(flag, mine + 1);\n    numbers[mine] = mine == 0 ? 1 : numbers[mine - 1] + 1;\n",
        WRONG,
    ),
    "released too early by one": Fault(FLAGS, "load_acquire(flag) != mine", "load_acquire(flag) + 1 < mine", WRONG),
}


def what_is_seen(fault: Fault, *, watch: bool) -> set[str]:
    """What goes wrong under the schedules: messages of violations, or that a number is wrong."""
    seen = set()
    for schedule in SCHEDULES:
        try:
            if not is_right(fault.case, schedule=schedule, watch=watch, change=(fault.text, fault.instead)):
                seen.add(WRONG)
        except cpu.KernelError as error:
            seen.add(str(error))
    return seen


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_caught(name, record_property):
    fault = FAULTS[name]
    seen = what_is_seen(fault, watch=fault.watch)
    record_property("seen", sorted(seen))
    assert any(re.search(fault.seen, message) for message in seen), seen


def test_a_fence_lets_copies_follow_writes():
    change = (
        "    __syncthreads();\n    if",
        "    ring[threadIdx.x] = 0;\n    fence_before_copies();\n    __syncthreads();\n    if",
    )
    for schedule in SCHEDULES:
        assert is_right(R, schedule=schedule, watch=True, change=change)


SHORT = RING[3]._replace(length=100)  # a row in one slot: warps can be a row apart
RACES = {
    "no barrier after the values of the warps": (LAST, "    __syncthreads();\n    sum = 0;", "    sum = 0;"),
    "no barrier before the last block reads": (
        LAST,
        "    __syncthreads();\n    if (before[0]",
        "    if (before[0]",
    ),
    "a slot given back before the other lanes have read it": (R, "            __syncwarp();\n", ""),
    "lanes that only a shuffle puts in order": (
        R,
        "            __syncwarp();\n",
        "            __shfl_xor_sync(~0u, sum, 1);\n",
    ),
    "the sum of one row written while another is read": (
        SHORT,
        "            sums[r] = total;\n        }\n        barrier_of(1, THREADS);\n",
        "            sums[r] = total;\n        }\n",
    ),
}


@pytest.mark.parametrize("name", RACES)
def test_a_watched_run_sees_missing_order_under_every_schedule(name):
    """Also where the numbers are right."""
    case, *change = RACES[name]
    for schedule in SCHEDULES:
        with pytest.raises(cpu.KernelError, match=NO_ORDER):
            is_right(case, schedule=schedule, watch=True, change=tuple(change))


@pytest.mark.parametrize(
    ("case", "text", "instead"),
    [
        (LAST, "? x[i] : 0", "? x[i] : x[length]"),
        (LAST, "published[blockIdx.x] = sum", "published[blockIdx.x + 1] = sum"),
        (V, "i < length; i +=", "i <= length; i +="),
        (LAST, "of_warp[threadIdx.x / 32] = sum", "of_warp[threadIdx.x / 32 + 1] = sum"),
    ],
)
def test_a_watched_run_stays_within_its_memory(case, text, instead):
    with pytest.raises(cpu.KernelError, match="of memory that it was not given"):
        is_right(case, watch=True, change=(text, instead))


def test_shared_memory_beyond_an_array_is_not_written():
    change = "of_warp[threadIdx.x / 32] = sum", "of_warp[threadIdx.x / 32] = of_warp[WARPS] = sum"
    with pytest.raises(cpu.KernelError, match="wrote beyond an array of shared memory"):
        is_right(LAST, change=change)


def test_a_barrier_counts_whole_warps_and_has_a_number():
    for instead in ("barrier_of(0, THREADS)", "barrier_of(16, THREADS)", "barrier_of(1, THREADS - 1)"):
        change = "total;\n        }\n        barrier_of(1, THREADS)", f"total;\n        }}\n        {instead}"
        with pytest.raises(cpu.KernelError, match="numbers are 1 to 15"):
            is_right(R, change=change)


@pytest.mark.parametrize(
    ("text", "instead", "match"),
    [
        ("mbarrier_init(&full[i], 1);", "mbarrier_init(&full[0], 1);", "initialised twice"),
        ("mbarrier_init(&full[i], 1);", "mbarrier_init(&full[i], 0);", "an mbarrier for 0 arrivals"),
        ("mbarrier_init(&full[i], 1);", "Mbarrier own; mbarrier_init(&own, 1);", "not in shared memory"),
        ("mbarrier_init(&full[i], 1);", "mbarrier_init(&full[i], 1); full[i].state = 0;", "is overwritten"),
        (
            "mbarrier_init(&full[i], 1);",
            "mbarrier_init(&full[i], 1); mbarrier_invalidate(&full[i]);",
            "that is not initialised",
        ),
        ("turn.parity ^ 1);  // at", "turn.parity + 1);  // at", "has parities 0 and 1, not 2"),
        ("number * 4);", "1 << 20);", "more than 2\\^20 - 1 bytes"),
    ],
)
def test_barriers_are_used_as_the_instructions_ask(text, instead, match):
    with pytest.raises(cpu.KernelError, match=match):
        is_right(R, change=(text, instead), schedule=0)


def test_an_invalidated_barrier_can_be_made_anew():
    change = (
        "mbarrier_init(&full[i], 1);",
        "mbarrier_init(&full[i], 7); mbarrier_invalidate(&full[i]); mbarrier_init(&full[i], 1);",
    )
    assert is_right(R, change=change)


def elementary(a: np.ndarray, b: np.ndarray, run: Any = on_cpu, **options: Any) -> dict[str, np.ndarray]:
    """Results of the elementary functions, by name."""
    case = Case("elementary", grid=-(-a.size // 64), defines=(("THREADS", "64"),))
    types = {"powers": "f4", "larger": "f4", "halves": "u4", "bfloats": "u4"}
    types |= {"larger_halves": "u4", "larger_bfloats": "u4", "pairs": "u8"}
    results = {name: np.zeros(a.size, dtype) for name, dtype in types.items()}
    run(case, a, b, *results.values(), np.int32(a.size), **options)
    return results


def some_floats() -> tuple[np.ndarray, np.ndarray]:
    """Floats of all kinds, twice, in all pairs."""
    special = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1e-40,
        -1e-40,
        2.0**-126,
        1.0,
        -1.0,
        65519.0,
        65520.0,
        1e30,
        3e38,
        2.0**-24,
    ]
    rng = np.random.default_rng(0)
    x = np.array([*special, *rng.normal(size=40) * 20, *rng.normal(size=40) * 1e-3], "f4")
    return np.repeat(x, x.size), np.tile(x, x.size)


@pytest.mark.parametrize("schedule", range(6))
def test_exp2_approx_is_off_by_at_most_two_ulp(schedule):
    a, b = some_floats()
    powers = elementary(a, b, schedule=schedule)["powers"]
    with np.errstate(over="ignore", under="ignore"):
        exact = np.exp2(a.astype("f8")).astype("f4")
    normal = (np.abs(a) >= 2.0**-126) & np.isfinite(exact) & (exact >= 2.0**-126 * (1 + 2.0**-20))
    off = (powers.view("i4") - exact.view("i4"))[normal]
    assert normal.sum() > 5000
    assert set(np.unique(off)) == {0: {0}, 1: {2}, 2: {-2}}.get(schedule, {-2, -1, 0, 1, 2})
    again = elementary(a, b, schedule=schedule)["powers"]
    np.testing.assert_array_equal(powers, again)
    np.testing.assert_array_equal(powers[np.isnan(a)], np.nan)
    assert (powers[np.abs(a) < 2.0**-126] == 1).all()
    assert (powers[a == -np.inf] == 0).all()
    assert (powers[a == np.inf] == np.inf).all()
    assert (powers[exact < 2.0**-126] == 0).all()


def test_larger_of_two_is_nan_for_nan():
    a, b = some_floats()
    larger = elementary(a, b)["larger"]
    np.testing.assert_array_equal(larger, np.maximum(a, b))
    assert np.isnan(larger).sum() == (np.isnan(a) | np.isnan(b)).sum() > 100
    zeros = (a == 0) & (b == 0)
    np.testing.assert_array_equal(np.signbit(larger[zeros]), np.signbit(a[zeros]) & np.signbit(b[zeros]))


def half_bits(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.where(np.isnan(x), 0x7FFF, x.astype("f2").view("u2")).astype("u4")


def bfloat_bits(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), 0x7FFF, cpu.to_bits(x, "bfloat16")).astype("u4")


@pytest.mark.parametrize(("name", "bits"), [("halves", half_bits), ("bfloats", bfloat_bits)])
def test_pairs_of_16_bit_numbers(name, bits):
    a, b = some_floats()
    found = elementary(a, b)
    pair = bits(a) | bits(b) << 16
    np.testing.assert_array_equal(found[name], pair)
    np.testing.assert_array_equal((found["pairs"] >> (32 if name == "halves" else 0)).astype("u4"), pair)
    larger = found[f"larger_{name}"]
    np.testing.assert_array_equal(larger & 0xFFFF, larger >> 16)
    zero = (a == 0) & (b == 0)
    smaller_zero = np.signbit(a) & np.signbit(b)
    of_zeros = np.where(smaller_zero, 0x8000, 0)
    expected = np.where(zero, of_zeros, bits(np.maximum(a, b)))
    underflow = (np.abs(a) < 1e-8) | (np.abs(b) < 1e-8)  # what becomes 0 has the sign of the number
    np.testing.assert_array_equal((larger & 0xFFFF)[~underflow | zero], expected[~underflow | zero])


def declared(text: str, opening: str) -> set[str]:
    """Names of the functions that a header defines outside of a namespace."""
    text = re.sub(r"namespace on_cpu \{.*?\n\}  // namespace on_cpu", "", text, flags=re.DOTALL)
    return set(re.findall(rf"^{opening} [\w ]*?\b(\w+)\(", text, flags=re.MULTILINE))


def test_both_headers_have_the_same_functions():
    gpu = declared((cpu.KERNELS / "ptx.cuh").read_text("utf-8"), "DEVICE")
    of_language = {"shared_address"}  # how a GPU addresses shared memory
    assert gpu - of_language == declared(cpu.read("ptx.cuh"), "inline") & gpu
    assert len(gpu) >= 30
    below_90 = set(
        re.findall(r"^__device__ \w+ (\w+)\(", (cpu.KERNELS / "ptx.cuh").read_text("utf-8"), flags=re.MULTILINE)
    )
    assert below_90 <= gpu


def source(case: Case) -> str:
    """Text of a kernel for a GPU: with the package's own headers."""

    def text(name: str) -> str:
        return (cpu.KERNELS / name).read_text("utf-8") if name == "ptx.cuh" else cpu.read(name)

    return texts.with_headers(f"{case.kernel}.cu", text)


def compile_for(case: Case, arch: int) -> str:
    """Log of NVRTC and ptxas; raises if the kernel does not compile."""
    nvrtc = getattr(pytest.importorskip("cupy", reason="CuPy brings NVRTC").cuda, "nvrtc", None)
    if nvrtc is None:
        pytest.skip("a stand-in for CuPy has no NVRTC")
    program = nvrtc.createProgram(source(case), f"{case.kernel}.cu", (), ())
    options = (*texts.options(case.defines), "-ftz=true", "--device-as-default-execution-space")
    try:
        nvrtc.compileProgram(program, (*options, f"--gpu-architecture=sm_{arch}", "--ptxas-options=-v"))
    except nvrtc.NVRTCError:
        raise SyntaxError(nvrtc.getProgramLog(program)) from None
    finally:
        log = nvrtc.getProgramLog(program)
        nvrtc.destroyProgram(program)
    return log


@pytest.mark.parametrize("arch", [75, 80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("name", [*CASES, "elementary"])
def test_the_kernels_compile_for_gpus(name, arch):
    """ptxas knows the instructions; below 9.0 those of clusters are missing."""
    case = CASES.get(name, Case("elementary", defines=(("THREADS", "64"),)))
    if name.startswith(("cluster", "ring")) and arch < sizes.CLUSTERS_FROM:
        with pytest.raises(SyntaxError, match="Unresolved extern function"):
            compile_for(case, arch)
        return
    log = compile_for(case, arch)
    assert "warning" not in log, log
    assert re.search(r"\b0 bytes spill stores|Used \d+ registers", log)


ROWS = 5  # a persistent block or cluster has more than two of them
WATCHED = {
    "lanes": sizes.SizeClass(8, 2),
    "block": sizes.SizeClass(128, 4),
    "block that fills a multiprocessor": sizes.SizeClass(128, 4, resident=1),
    "cluster": sizes.SizeClass(128, 2, 4, resident=1),
    "ring": sizes.SizeClass(64, 4, 2, resident=1, slots=4, group=2),
    "streamed": sizes.STREAMED,
}


def row_launches(kind: sizes.SizeClass, dtype: str, *, in_place: bool) -> Any:
    """Launches of the operations on rows, each with the memory that it may use. No row lies on a 16-byte boundary."""
    vectors = kind.lanes * kind.vectors * kind.blocks
    classes = vectors * sizes.VECTOR // sizes.ITEMSIZES[dtype] - 16 if vectors else 9001
    z = np.random.default_rng(classes).normal(size=(ROWS, classes)) * 5
    real = cpu.working(dtype)
    y = np.array([0, classes - 1, classes // 2, 1, 2])
    weights, losses = np.ones(ROWS, real), np.zeros(ROWS, real)
    for operation in ("softmax_loss", "softmax_loss_smoothed", "softmax", "log_softmax", "logsumexp"):
        x = cpu.Placed(cpu.to_bits(z, dtype), dtype, offset=1, gap=3)
        out = x if in_place else cpu.Placed(np.zeros_like(x.rows), dtype, offset=1, gap=3)
        if operation.startswith("softmax_loss"):
            at = (cpu.address(y), "int64"), cpu.address(weights), cpu.address(losses)
            smoothing = 0.1 * (operation == "softmax_loss_smoothed")
            made = plan.loss_launch(x.matrix, *at, out.matrix, 90, kind, label_smoothing=smoothing)
        else:
            result = cpu.address(losses) if operation == "logsumexp" else out.matrix
            made = plan.rows_launch(operation, x.matrix, result, 90, kind)
        assert made.kernel == operation
        yield made, (x, out, y, weights, losses)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", WATCHED)
def test_the_kernels_of_rows_stay_within_their_memory_and_in_order(kind, dtype):
    for schedule, in_place in ((1, True), (3, False)):
        for made, memory in row_launches(WATCHED[kind], dtype, in_place=in_place):
            cpu.run(made, memory=memory, watch=True, schedule=schedule)


def loss_and_total(kind: sizes.SizeClass, *, schedule: int, change: tuple[str, str] | None = None) -> bool:
    """Whether a launch that adds up its losses, watched, gives their sum, twice with the same counter."""
    classes = kind.lanes * kind.vectors * kind.blocks * 4 - 8
    z = np.random.default_rng(classes).normal(size=(ROWS, classes)).astype("f4")
    x = cpu.Placed(z, "float32", offset=1, gap=3)
    y, losses = np.arange(ROWS), np.zeros(ROWS, "f4")
    total, counter = np.zeros(1, "f4"), np.zeros(1, "u4")
    right = True
    for _ in range(2):
        losses[:] = total[:] = 0
        made = plan.loss_launch(
            x.matrix,
            (cpu.address(y), "int64"),
            0,
            cpu.address(losses),
            None,
            90,
            kind,
            weight_of_all=1.0,
            total=cpu.address(total),
            counter=cpu.address(counter),
        )
        cpu.run(made, memory=(x, y, losses, total, counter), watch=True, schedule=schedule, change=change)
        shifted = z.astype("f8")
        exact = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(ROWS), y]
        right &= bool(abs(total[0] - exact.sum()) < 1e-5 * exact.sum())
    return right


FOUR_ROWS = sizes.SizeClass(32, 2)  # in a block; each has its own threads, and losses of its own
TOTALS = [FOUR_ROWS, *(kind for name, kind in WATCHED.items() if name != "streamed")]


@pytest.mark.parametrize("kind", TOTALS, ids=str)
def test_the_sum_of_the_losses_is_in_order(kind):
    for schedule in range(6):
        assert loss_and_total(kind, schedule=schedule)


@pytest.mark.parametrize(
    ("text", "instead", "seen"),
    [
        ("__syncthreads();  // this block's part of x is written", "", NO_ORDER),
        (
            "    __syncthreads();\n    if (*finished_before != blocks - 1) return false;",
            "    if (*finished_before != blocks - 1) return false;",
            NO_ORDER,
        ),
        ("*finished_before = fetch_add(counter, 1);", "*finished_before = counter[0]++;", NO_ORDER),
        ("        *counter = 0;\n", "", WRONG),
        ("!= blocks - 1) return false;", "!= 0) return false;", NO_ORDER),
    ],
)
def test_faults_of_the_last_block_are_caught(text, instead, seen):
    found = set()
    for schedule in range(6):
        try:
            if not loss_and_total(FOUR_ROWS, schedule=schedule, change=(text, instead)):
                found.add(WRONG)
        except cpu.KernelError as error:
            found.add(str(error))
    assert any(seen in message for message in found), found


@pytest.mark.parametrize("classes", [7, 1003])
@pytest.mark.parametrize("of_masses", [True, False])
def test_the_loss_of_masses_stays_within_its_memory_and_in_order(classes, of_masses):
    rng = np.random.default_rng(classes)
    for schedule, in_place in ((1, True), (3, False)):
        x = cpu.Placed(rng.normal(size=(ROWS, classes)).astype("f4"), "float32", offset=1, gap=3)
        q = cpu.Placed(rng.dirichlet(np.ones(classes), ROWS).astype("f4"), "float32", offset=2, gap=1)
        y, of_classes = rng.integers(0, classes, ROWS), np.ones(classes, "f4")
        weights, losses = np.ones(ROWS, "f4"), np.zeros(ROWS, "f4")
        out = x if in_place else cpu.Placed(np.zeros_like(x.rows), "float32", offset=3, gap=2)
        targets = q.matrix if of_masses else (cpu.address(y), "int64")
        made = plan.masses_launch(
            x.matrix,
            targets,
            cpu.address(weights),
            cpu.address(losses),
            out.matrix,
            class_weights=0 if of_masses else cpu.address(of_classes),
            label_smoothing=0.1,
            z_loss=1e-3,
        )
        cpu.run(made, memory=(x, q, y, of_classes, weights, losses, out), watch=True, schedule=schedule)
        assert np.isfinite(losses).all()
