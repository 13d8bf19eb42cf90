"""The threads of the NumPy kernels: they change no bit, keep their number, and leave nothing behind."""

import inspect
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from assertions import assert_same_bits

import xpsoftmax as xs
from xpsoftmax._typing import LossSpec
from xpsoftmax.kernels import numpy as kernels
from xpsoftmax.kernels.numpy import softmax as softmax_kernels
from xpsoftmax.kernels.numpy import threads as _threads
from xpsoftmax.kernels.numpy import tiles

CORES = 4
TILE, SHARE = tiles.TILE, tiles.SHARE
LONG = 30  # seconds: nothing here takes that long unless it hangs


class Crew:
    """Stands in for `share`: notes which threads work, and lets none go on before `least` of them have come."""

    def __init__(self, least=1, share=tiles.share):
        self.least, self.share = least, share
        self.seen, self.busy, self.most, self.calls = set(), 0, 0, 0
        self.changed = threading.Condition()

    def __call__(self, worker, items, most):
        with self.changed:
            self.calls += 1
        self.share(lambda blocks: worker(self.watched(blocks)), items, most)

    def watched(self, blocks):
        for block in blocks:
            with self.changed:
                self.seen.add(threading.get_ident())
                self.busy += 1
                self.most = max(self.most, self.busy)
                self.changed.notify_all()
                assert self.changed.wait_for(lambda: len(self.seen) >= self.least, 30), f"only {len(self.seen)} came"
            try:
                yield block
            finally:
                with self.changed:
                    self.busy -= 1

    @property
    def helpers(self):
        return self.seen - {threading.get_ident()}


@pytest.fixture(autouse=True)
def four_cores(monkeypatch):
    """A pool of its own for every test, of as many threads as four cores have, wherever it runs.

    And work for them in small arrays: one test below has arrays of the true size.
    """
    monkeypatch.setattr(tiles, "TILE", 2**18)
    monkeypatch.setattr(tiles, "SHARE", 2**15)
    monkeypatch.setattr(_threads, "_cores", lambda: CORES)
    monkeypatch.setattr(os, "cpu_count", lambda: CORES)
    state = _threads._State()
    monkeypatch.setattr(_threads, "_state", state)
    yield
    assert state.running == 0
    assert _threads._limits == []
    if state.pool is not None:
        state.pool.shutdown()


@pytest.fixture
def hire(monkeypatch):
    """Set a crew to work in the kernels."""

    def hired(least=1):
        crew = Crew(least)
        monkeypatch.setattr(tiles, "share", crew)
        return crew

    return hired


def softmax(z, y, **options):
    return (xs.softmax(z, **options),)


def log_softmax(z, y, **options):
    return (xs.log_softmax(z, **options),)


def logsumexp(z, y):
    return (xs.logsumexp(z),)


def loss(z, y):
    return (xs.softmax_loss(z, y, reduction="none"), xs.softmax_loss(z, y))


def loss_and_grad(z, y, **options):
    return xs.softmax_loss_and_grad(z, y, reduction="none", **options)


def smoothed(z, y, **options):
    return xs.softmax_loss_and_grad(z, y, label_smoothing=0.1, z_loss=0.01, reduction="none", **options)


CALLS = (softmax, log_softmax, logsumexp, loss, loss_and_grad, smoothed)
every_call = pytest.mark.parametrize("call", CALLS)
WRITING = (softmax, log_softmax, loss_and_grad, smoothed)
# Each has work for four threads, and no number of rows is a multiple of that of a block. 1030: a remainder of a chunk.
SHAPE = (211, 333)
SHAPES = pytest.mark.parametrize("shape", [(4001, 10), SHAPE, (53, 1030)], ids=str)
LARGE = (9501, 333)


def problem(rng, shape, dtype="float32", *, plain=False):
    """Logits and labels; unless plain, rows that need a shift lie between the others, a few have no result."""
    z = rng.standard_normal(shape, dtype=dtype)
    if not plain:
        kind = rng.integers(40, size=shape[0])
        z[kind < 6] *= 60
        z[kind == 6] += 300
        z[kind == 7] -= 900
        z[kind == 8, 0] = np.nan
        z[kind == 9] = -np.inf
        z[kind == 10, 1] = np.inf
    return z, rng.integers(shape[1], size=shape[0])


def assert_all_same(results, desired):
    for result, wanted in zip(results, desired, strict=True):
        assert_same_bits(result, wanted)


# --- bits -------------------------------------------------------------------------------------------------------------


@every_call
@SHAPES
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "shifts"])
def test_many_threads_give_the_bits_of_one(rng, hire, call, shape, dtype, plain):
    z, y = problem(rng, shape, dtype, plain=plain)
    with xs.threads(1):
        desired = call(z, y)
    crew = hire(least=CORES)
    assert_all_same(call(z, y), desired)
    assert len(crew.seen) == CORES


@every_call
def test_many_threads_give_the_bits_of_one_where_the_work_pays(rng, hire, monkeypatch, call, dtype):
    """With blocks and shares as they are, and a few more than four shares."""
    monkeypatch.setattr(tiles, "TILE", TILE)
    monkeypatch.setattr(tiles, "SHARE", SHARE)
    z, y = problem(rng, LARGE, dtype)
    with xs.threads(1):
        desired = call(z, y)
    crew = hire(least=CORES)
    assert_all_same(call(z, y), desired)
    assert len(crew.seen) == CORES


@pytest.mark.parametrize("call", WRITING)
def test_many_threads_give_the_bits_of_one_in_place(rng, hire, call, dtype):
    z, y = problem(rng, SHAPE, dtype)
    with xs.threads(1):
        desired = call(z.copy(), y)
    crew = hire(least=CORES)
    assert_all_same(call(z, y, out=z), desired)
    assert len(crew.seen) == CORES


@every_call
@pytest.mark.parametrize("n", [2, 3, 5])
def test_any_number_of_threads_gives_the_bits_of_one(rng, hire, call, n):
    z, y = problem(rng, SHAPE)
    with xs.threads(1):
        desired = call(z, y)
    crew = hire(least=min(n, CORES))
    with xs.threads(n):
        assert_all_same(call(z, y), desired)
    assert len(crew.seen) == min(n, CORES)


def test_less_than_two_shares_use_no_other_thread(rng, hire, monkeypatch):
    monkeypatch.setattr(tiles, "SHARE", SHARE)
    z, y = problem(rng, (2 * SHARE // (333 * 4 + tiles.ROW) - 1, 333))
    crew = hire()
    for call in CALLS:
        call(z, y)
    assert crew.calls == 0
    assert _threads._state.pool is None


# --- the limit --------------------------------------------------------------------------------------------------------


@every_call
def test_a_limit_of_one_leaves_all_to_the_caller(rng, hire, call):
    crew = hire()
    z, y = problem(rng, SHAPE)
    with xs.threads(1):
        call(z, y)
    assert not crew.helpers
    assert _threads._state.pool is None


def test_a_limit_is_not_exceeded(rng, hire):
    z, y = problem(rng, SHAPE)
    crew = hire(least=3)
    with xs.threads(3):
        for _ in range(5):
            softmax(z, y)
    assert crew.most <= 3


def test_a_limit_beyond_the_cores_adds_no_thread():
    with xs.threads(CORES + 1):
        assert _threads.allowed() == CORES


def test_of_nested_limits_the_lowest_counts():
    with xs.threads(3):
        with xs.threads(2):
            with xs.threads(9):
                assert _threads.allowed() == 2
            assert _threads.allowed() == 2
        assert _threads.allowed() == 3
    assert _threads.allowed() == CORES


def test_equal_limits_end_one_by_one():
    with xs.threads(2):
        with xs.threads(2):
            pass
        assert _threads.allowed() == 2
    assert _threads.allowed() == CORES


def test_limits_need_not_end_in_the_order_they_began():
    first, second = xs.threads(2), xs.threads(3)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _threads.allowed() == 3
    second.__exit__(None, None, None)
    assert _threads.allowed() == CORES


def test_a_limit_ends_with_an_exception():
    with pytest.raises(ZeroDivisionError), xs.threads(2), xs.threads(1):
        raise ZeroDivisionError
    assert _threads.allowed() == CORES


def test_a_limit_may_be_a_decorator():
    @xs.threads(2)
    def inside():
        return _threads.allowed()

    assert [inside(), inside(), _threads.allowed()] == [2, 2, CORES]


def test_a_limit_may_be_a_numpy_integer():
    with xs.threads(np.int64(2)):
        assert _threads.allowed() == 2


def test_a_limit_holds_for_other_threads(rng, hire):
    z, y = problem(rng, SHAPE)
    crew = hire(least=2)
    with xs.threads(2), ThreadPoolExecutor(1) as executor:
        for _ in range(3):
            executor.submit(softmax, z, y).result()
    assert crew.most == 2


def test_a_limit_set_in_another_thread_holds_here():
    entered, leave = threading.Event(), threading.Event()

    def limited():
        with xs.threads(2):
            entered.set()
            leave.wait(LONG)

    thread = threading.Thread(target=limited)
    thread.start()
    assert entered.wait(LONG)
    assert _threads.allowed() == 2
    leave.set()
    thread.join()
    assert _threads.allowed() == CORES


@pytest.mark.parametrize("n", [True, False, np.True_, 1.5, 2.0, "2", None])
def test_a_limit_must_be_an_integer(n):
    with pytest.raises(TypeError, match=r"^n must be an integer, got .*\.$"), xs.threads(n):
        pass
    assert _threads.allowed() == CORES


@pytest.mark.parametrize("n", [0, -1])
def test_a_limit_must_be_at_least_one(n):
    with pytest.raises(ValueError, match=rf"^n must be at least 1, got {n}\.$"), xs.threads(n):
        pass
    assert _threads.allowed() == CORES


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_the_cores_are_those_of_the_process():
    """Not those of the machine: in a container or under taskset it may have fewer."""
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "import xpsoftmax.kernels.numpy.threads; print(xpsoftmax.kernels.numpy.threads.allowed())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG, check=True).stdout
    assert out == "1\n"


def test_importing_makes_no_pool():
    """Nor imports what makes one: most programs need none."""
    module = "concurrent.futures.thread"
    code = f"import sys, numpy, array_api_compat; before = {module!r} in sys.modules; "
    code += (
        f"import xpsoftmax; print(xpsoftmax.kernels.numpy.threads._state.pool, ({module!r} in sys.modules) == before)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG, check=True).stdout
    assert out == "None True\n"


# --- several callers --------------------------------------------------------------------------------------------------


def test_callers_at_once_get_the_right_bits(rng):
    problems = [problem(np.random.default_rng(seed), (211 + seed, 333)) for seed in range(8)]
    jobs = [(call, *problems[i % 8]) for i, call in enumerate(CALLS * 4)]
    with xs.threads(1):
        desired = [call(z, y) for call, z, y in jobs]
    with ThreadPoolExecutor(8) as executor:
        results = list(executor.map(lambda job: job[0](*job[1:]), jobs))
    for result, wanted in zip(results, desired, strict=True):
        assert_all_same(result, wanted)


def test_callers_at_once_have_no_more_helpers_than_one(rng, monkeypatch):
    """The cores are never asked for twice: what all callers have beside themselves is what one may have."""
    lock, counts, helping, worst = threading.Lock(), {"helpers": 0}, threading.local(), []

    def counted(worker):
        def counting(blocks):
            mine = not getattr(helping, "calls", False)  # whoever has not called is a helper
            with lock:
                counts["helpers"] += mine
                worst.append(counts["helpers"])
            try:
                worker(blocks)
            finally:
                with lock:
                    counts["helpers"] -= mine

        return counting

    def call(job):
        helping.calls = True
        return softmax(*job)[0]

    z, y = problem(rng, SHAPE, plain=True)
    desired = xs.softmax(z)
    share = _threads.share
    monkeypatch.setattr(tiles, "share", lambda worker, items, most: share(counted(worker), items, most))
    with ThreadPoolExecutor(8) as executor:
        for result in executor.map(call, [(z, y)] * 48):
            assert_same_bits(result, desired)
    assert len(worst) >= 48
    assert max(worst) <= CORES - 1


def occupied(callers):
    """Callers that run, without helpers, until the function that is returned is called."""
    begun, end = threading.Barrier(callers + 1), threading.Event()

    def worker(items):
        for _ in items:
            begun.wait(LONG)
            end.wait(LONG)

    threads = [threading.Thread(target=_threads.share, args=(worker, [0], 1)) for _ in range(callers)]
    for thread in threads:
        thread.start()
    begun.wait(LONG)

    def finish():
        end.set()
        for thread in threads:
            thread.join(LONG)

    return finish


@pytest.mark.parametrize("callers", range(6))
def test_a_caller_beside_others_takes_only_the_cores_that_are_left(callers):
    finish = occupied(callers) if callers else lambda: None
    try:
        wanted = max(1, CORES - callers)
        crew = Crew(least=wanted)
        crew(lambda items: [time.sleep(0.001) for _ in items], range(50), CORES)
        assert len(crew.seen) == wanted
        assert _threads._state.running == callers
    finally:
        finish()


def test_no_more_helpers_than_items():
    crew = Crew(least=2)
    crew(lambda items: [None for _ in items], range(2), CORES)
    assert len(crew.seen) == 2
    assert len(_threads._state.pool._threads) == 1


def test_every_item_goes_to_one_thread_once():
    crew, done = Crew(least=CORES), []
    crew(lambda items: done.extend(items), range(10_000), CORES)
    assert sorted(done) == list(range(10_000))


def test_a_caller_does_not_wait_for_helpers_that_find_no_thread(monkeypatch):
    """The pool is busy: with one thread of it held up, the caller does all that is there."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    Crew(least=2)(lambda items: [None for _ in items], range(2), 2)
    leave = threading.Event()
    _threads._state.pool.submit(leave.wait, LONG)
    done = []
    _threads.share(lambda items: done.extend((threading.get_ident(), i) for i in items), range(20), CORES)
    leave.set()
    assert done == [(threading.get_ident(), i) for i in range(20)]


# --- errors -----------------------------------------------------------------------------------------------------------


class BrokenError(Exception):
    pass


def failing(helper):
    """A worker of which the helpers, or the caller, fail; and what happened, as a list."""
    caller, events = threading.get_ident(), []
    begun = threading.Event()

    def worker(items):
        for item in items:
            if (threading.get_ident() != caller) == helper:
                begun.set()
                events.append("fails")
                raise BrokenError(f"item {item}")
            assert begun.wait(LONG)
            time.sleep(0.5)
            events.append("done")

    return worker, events


def test_an_error_in_a_helper_reaches_the_caller():
    worker, _ = failing(helper=True)
    with pytest.raises(BrokenError, match="item"):
        _threads.share(worker, range(40), 2)


def test_after_an_error_in_a_helper_nobody_goes_on():
    worker, events = failing(helper=True)
    with pytest.raises(BrokenError):
        _threads.share(worker, range(40), 2)
    assert events.count("done") <= 1


def test_an_error_in_the_caller_waits_for_the_helpers():
    caller, ended = threading.get_ident(), []
    begun = threading.Event()

    def worker(items):
        for _ in items:
            if threading.get_ident() == caller:
                assert begun.wait(LONG)
                raise BrokenError
            begun.set()
            time.sleep(0.2)
            ended.append(True)

    with pytest.raises(BrokenError):
        _threads.share(worker, range(40), 2)
    assert ended == [True]


@pytest.mark.parametrize("helper", [True, False], ids=["helper", "caller"])
def test_after_an_error_all_threads_are_there_again(helper):
    for _ in range(2 * CORES):
        worker, _ = failing(helper)
        with pytest.raises(BrokenError):
            _threads.share(worker, range(40), CORES)
        assert _threads._state.running == 0
    crew = Crew(least=CORES)
    crew(lambda items: [None for _ in items], range(100), CORES)
    assert len(crew.seen) == CORES


@pytest.mark.parametrize("error", [BrokenError, MemoryError, KeyboardInterrupt, SystemExit])
def test_an_error_in_a_kernel_reaches_the_caller(rng, hire, monkeypatch, error):
    """Whatever it is: an interrupt in a helper must not end the pool's thread silently either."""
    z, y = problem(rng, SHAPE)
    desired = softmax(z, y)
    caller, working = threading.get_ident(), softmax_kernels.working

    def fails(z, e):
        if threading.get_ident() != caller:
            raise error("in a helper")
        return working(z, e)

    hire(least=2)
    with monkeypatch.context() as context:
        context.setattr(softmax_kernels, "working", fails)
        with pytest.raises(error, match=r"^in a helper$"):
            softmax(z, y)
    assert _threads._state.running == 0
    crew = hire(least=CORES)
    assert_all_same(softmax(z, y), desired)
    assert len(crew.seen) == CORES


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs pthread_kill")
def test_an_interrupt_while_waiting_for_the_helpers():
    """Ctrl-C most often meets a caller that waits: the helpers must have ended when it is raised, and be free again."""
    caller, ended = threading.get_ident(), []
    begun = threading.Event()

    def worker(items):
        for _ in items:
            if threading.get_ident() == caller:
                assert begun.wait(LONG)
            else:
                begun.set()
                time.sleep(0.3)  # now the caller waits
                signal.pthread_kill(caller, signal.SIGINT)
                time.sleep(0.3)
                ended.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            _threads.share(worker, range(2), 2)
        found = list(ended), _threads._state.running
    finally:
        _threads._state.pool.shutdown()
        _threads._state.running = 0
    assert found == ([True], 0)


def test_where_no_thread_can_be_started_the_caller_does_all(rng, monkeypatch):
    z, y = problem(rng, SHAPE)
    with xs.threads(1):
        desired = softmax(z, y)

    def refuses(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuses)
        assert_all_same(softmax(z, y), desired)
    assert _threads._state.running == 0


def test_where_no_more_threads_can_be_started_nothing_is_left_undone(monkeypatch):
    """The pool's only thread works for another caller, and takes up what it could not start a thread for."""
    begun, free = threading.Event(), threading.Event()

    def other(items):
        for _ in items:
            if threading.current_thread() is not thread:
                begun.set()
                free.wait(LONG)
            else:
                assert begun.wait(LONG)

    thread = threading.Thread(target=_threads.share, args=(other, range(2), 2))
    thread.start()
    assert begun.wait(LONG)
    caller, done = threading.get_ident(), []

    def worker(items):
        for item in items:
            if threading.get_ident() == caller:
                free.set()
                time.sleep(0.1)
            else:
                time.sleep(0.5)
            done.append(item)

    def refuses(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuses)
        _threads.share(worker, range(3), 2)
    found = sorted(done)
    thread.join()
    _threads._state.pool.shutdown()
    assert found == [0, 1, 2]


# --- warnings and NumPy's settings ------------------------------------------------------------------------------------

# On both sides of where the kernels set the buffer size.
SETTINGS = pytest.mark.parametrize("shape", [(4001, 10), (401, 127), (401, 128), SHAPE, (9, 8191), (9, 8192)], ids=str)


def extremes(rng, shape):
    """Logits that underflow, overflow and have no result."""
    z, y = problem(rng, shape)
    z[::3] *= 100
    z[1::7] = -200
    return z, y


@SETTINGS
def test_no_thread_warns_or_raises(rng, hire, shape):
    crew = hire(least=CORES)
    z, y = extremes(rng, shape)
    narrow = np.clip(z, -65504, 65504).astype(np.float16)
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in CALLS:
            call(z, y)
            call(narrow, y)
    assert len(crew.seen) >= CORES


@SETTINGS
@every_call
def test_settings_are_left_as_they_were(rng, hire, shape, call):
    hire(least=CORES)
    z, y = extremes(rng, shape)
    with np.errstate(over="raise", under="print", divide="call", invalid="warn"):
        np.setbufsize(4096)
        before = np.geterr(), np.getbufsize()
        call(z, y)
        assert (np.geterr(), np.getbufsize()) == before


def test_settings_of_the_helpers_are_left_as_they_were(rng, hire):
    """They are for all calls to come."""
    desired = np.geterr(), np.getbufsize()
    z, y = extremes(rng, SHAPE)
    crew = hire(least=CORES)
    for call in CALLS:
        call(z, y)
    assert len(crew.seen) >= CORES
    gate = threading.Barrier(CORES)  # so that each thread of the pool answers, and none twice

    def settings():
        gate.wait(LONG)
        return np.geterr(), np.getbufsize()

    futures = [_threads._state.pool.submit(settings) for _ in range(CORES - 1)]
    gate.wait(LONG)
    assert [future.result(LONG) for future in futures] == [desired] * (CORES - 1)


@pytest.mark.parametrize("limit", [1, CORES])
def test_settings_are_left_as_they_were_after_an_error(rng, monkeypatch, limit):
    """Where the kernel has set the buffer size."""
    sizes = []

    def fails(*args, **kwargs):
        sizes.append(np.getbufsize())
        raise BrokenError

    z, y = problem(rng, SHAPE)
    before = np.geterr(), np.getbufsize()
    monkeypatch.setattr(softmax_kernels, "np", types.SimpleNamespace(**vars(np) | {"multiply": fails}))
    with pytest.raises(BrokenError), xs.threads(limit):
        softmax(z, y)
    assert sizes
    assert before[1] not in sizes
    assert (np.geterr(), np.getbufsize()) == before


@pytest.mark.parametrize("limit", [1, CORES])
def test_a_kernel_resets_the_buffer_size_by_itself(rng, limit):
    """Not only with all that surrounds it: what follows in the same call has NumPy's own."""
    z, y = problem(rng, SHAPE)
    with np.errstate(all="ignore"), xs.threads(limit):
        before = np.geterr(), np.getbufsize()
        kernels.softmax_rows(z)
        kernels.log_softmax_rows(z)
        kernels.softmax_loss_rows(z, y, np.ones(len(z), z.dtype), LossSpec(), grad=True)
        assert (np.geterr(), np.getbufsize()) == before


@every_call
@pytest.mark.parametrize("size", [16, 160, 100_000])
def test_bits_do_not_depend_on_the_buffer_size_of_the_caller(rng, call, size):
    z, y = problem(rng, SHAPE)
    desired = call(z, y)
    with np.errstate():
        np.setbufsize(size)
        results = call(z, y)
    assert_all_same(results, desired)


# --- processes --------------------------------------------------------------------------------------------------------

PRELUDE = f"""
import atexit, os, sys, threading, time
import numpy as np
import xpsoftmax as xs
from xpsoftmax.kernels.numpy import softmax as softmax_kernels
from xpsoftmax.kernels.numpy import threads as _threads
from xpsoftmax.kernels.numpy import tiles

_threads._cores = os.cpu_count = lambda: {CORES}
tiles.TILE, tiles.SHARE = 2**18, 2**15

{inspect.getsource(Crew)}

z = np.random.default_rng(0).standard_normal((1301, 333), dtype="f4")
z[::5] *= 60
with xs.threads(1):
    desired = xs.softmax(z)

def is_right():
    return bool((xs.softmax(z) == desired).all())

def is_right_with_threads():
    tiles.share = Crew(least={CORES}, share=_threads.share)
    return is_right() and len(tiles.share.seen) == {CORES}

def status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def run(code, *, status=0):
    """Run a program; it must end in time, with this status, and write no error."""
    # Python 3.12 and later warn of every fork beside threads: that it works is what is tested here.
    options = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")
    process = subprocess.run(
        [sys.executable, *options, "-c", PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=2 * LONG,
        check=False,
    )
    assert (process.returncode, process.stderr) == (status, "")
    return process.stdout


@needs_fork
@pytest.mark.parametrize("ending", ["os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_has_threads_of_its_own(ending):
    out = run(
        f"""
        assert is_right_with_threads()
        pid = os.fork()
        if pid == 0:
            assert _threads._state.pool is None
            print("child", is_right_with_threads(), flush=True)
            {ending}
        print("parent", status_of(pid), is_right_with_threads())
        """
    )
    assert out == "child True\nparent 0 True\n"


@needs_fork
def test_a_child_of_a_child_has_threads_of_its_own():
    out = run(
        """
        assert is_right_with_threads()
        pid = os.fork()
        if pid == 0:
            assert is_right_with_threads()
            pid = os.fork()
            if pid == 0:
                sys.exit(0 if is_right_with_threads() else 7)
            sys.exit(status_of(pid))
        print(status_of(pid))
        """
    )
    assert out == "0\n"


@needs_fork
def test_a_child_forked_while_others_compute_is_right():
    """Locks that are held and threads that are counted there are no hindrance here."""
    out = run(
        """
        import concurrent.futures.thread  # a child forked in the middle of this has no threads: see below
        stop = threading.Event()
        def compute():
            while not stop.is_set():
                xs.softmax(z)
        callers = [threading.Thread(target=compute) for _ in range(2)]
        for caller in callers:
            caller.start()
        states = []
        for _ in range(5):
            time.sleep(0.01)
            with _threads._state.lock:
                pid = os.fork()
            if pid == 0:
                os._exit(0 if _threads._state.running == 0 and is_right_with_threads() else 7)
            states.append(status_of(pid))
        stop.set()
        for caller in callers:
            caller.join()
        print(states, is_right_with_threads())
        """
    )
    assert out == "[0, 0, 0, 0, 0] True\n"


@needs_fork
def test_a_child_forked_while_another_thread_imports_is_right():
    """It would wait for ever for an import that nobody ends: so it makes no pool."""
    out = run(
        """
        import importlib.machinery
        begun, forked = threading.Event(), threading.Event()
        class Loader(importlib.machinery.SourceFileLoader):
            def exec_module(self, module):
                begun.set()
                forked.wait(60)
                super().exec_module(module)
        class Finder(importlib.machinery.PathFinder):
            @classmethod
            def find_spec(cls, name, path=None, target=None):
                if name == "concurrent.futures.thread":
                    spec = super().find_spec(name, path, target)
                    spec.loader = Loader(name, spec.origin)
                    return spec
        sys.meta_path.insert(0, Finder)
        other = threading.Thread(target=lambda: xs.softmax(z))
        other.start()
        print(begun.wait(60))
        pid = os.fork()
        if pid == 0:
            os._exit(0 if is_right() and _threads._state.pool is None else 7)
        print(status_of(pid))
        forked.set()
        other.join()
        print(is_right_with_threads())
        """
    )
    assert out == "True\n0\nTrue\n"


@needs_fork
def test_a_child_keeps_the_limit_it_was_forked_in():
    out = run(
        """
        with xs.threads(2):
            pid = os.fork()
            if pid == 0:
                print(_threads.allowed(), flush=True)
        if pid == 0:
            print(_threads.allowed(), flush=True)
            sys.exit(0)
        print(status_of(pid))
        """
    )
    assert out == f"2\n{CORES}\n0\n"


@needs_fork
def test_a_child_has_no_limit_of_a_thread_that_it_lacks():
    out = run(
        """
        entered, leave = threading.Event(), threading.Event()
        def limited():
            with xs.threads(1):
                entered.set()
                leave.wait(30)
        thread = threading.Thread(target=limited)
        thread.start()
        entered.wait(30)
        pid = os.fork()
        if pid == 0:
            print(_threads.allowed(), flush=True)
            os._exit(0)
        leave.set()
        thread.join()
        print(status_of(pid))
        """
    )
    assert out == f"{CORES}\n0\n"


PROGRAM = """
import multiprocessing, os, sys, hashlib
import numpy as np
import xpsoftmax as xs
from xpsoftmax.kernels.numpy import threads as _threads
from xpsoftmax.kernels.numpy import tiles

_threads._cores = os.cpu_count = lambda: 4
tiles.SHARE = 2**18

def work(seed):
    z = np.random.default_rng(seed).standard_normal((1301, 333), dtype="f4")
    z[::5] *= 60
    loss, grad = xs.softmax_loss_and_grad(z, np.arange(1301) % 333, reduction="none")
    assert _threads._state.pool is not None
    return hashlib.sha256(loss.tobytes() + grad.tobytes()).hexdigest()

if __name__ == "__main__":
    own = [work(seed) for seed in range(4)]
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        print(pool.map(work, range(4), chunksize=1) == own)
        pool.close()
        pool.join()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_processes_of_multiprocessing_are_right(method, tmp_path):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"needs {method}")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.run(
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", program, method],
        capture_output=True,
        text=True,
        timeout=2 * LONG,
        check=False,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "True\n", "")


def test_a_process_ends_promptly_after_using_threads():
    out = run(
        """
        def ended():  # when the threads of the pool have been joined
            print(time.perf_counter() - start < 5.0)
        atexit.register(ended)
        assert is_right_with_threads()
        start = time.perf_counter()
        """
    )
    assert out == "True\n"


def test_a_process_ends_after_an_error_in_a_kernel():
    run(
        """
        def fails(z, e):
            raise ValueError("in a kernel")
        working, softmax_kernels.working = softmax_kernels.working, fails
        try:
            xs.softmax(z)
        except ValueError as error:
            assert str(error) == "in a kernel"
        softmax_kernels.working = working
        assert is_right_with_threads()
        sys.exit(3)
        """,
        status=3,
    )


def test_a_process_may_compute_at_its_exit():
    out = run(
        """
        atexit.register(lambda: print(is_right()))
        assert is_right_with_threads()
        tiles.share = _threads.share
        """
    )
    assert out == "True\n"


def test_a_process_may_compute_for_the_first_time_at_its_exit():
    """The pool cannot be made any more."""
    assert run("atexit.register(lambda: print(is_right()))") == "True\n"


@pytest.mark.parametrize("used", [True, False], ids=["pool", "no pool"])
def test_a_thread_that_outlives_the_main_thread_may_compute(used):
    out = run(
        f"""
        if {used}:
            assert is_right_with_threads()
            tiles.share = _threads.share
        main = threading.main_thread()
        def later():
            main.join()
            time.sleep(0.2)
            print([is_right() for _ in range(3)])
        threading.Thread(target=later).start()
        """
    )
    assert out == "[True, True, True]\n"


# --- dask -------------------------------------------------------------------------------------------------------------


def test_the_threads_of_dask_give_the_right_bits(rng, hire):
    dask = pytest.importorskip("dask")
    da = pytest.importorskip("dask.array")
    z, y = problem(rng, (5009, 333))
    with xs.threads(1):
        desired = [*softmax(z, y), *log_softmax(z, y), *logsumexp(z, y), *loss_and_grad(z, y)]
    crew = hire(least=2)
    lazy, labels = da.from_array(z, chunks=(1301, 100)), da.from_array(y, chunks=1301)
    results = [*softmax(lazy, labels), *log_softmax(lazy, labels), *logsumexp(lazy, labels)]
    results += loss_and_grad(lazy, labels, validate=False)
    assert_all_same(dask.compute(*results, scheduler="threads", num_workers=4), desired)
    assert crew.calls >= 16
