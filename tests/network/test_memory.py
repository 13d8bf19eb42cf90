"""Memory limits, each under a real limit on the address space of its own process."""

import os
import subprocess
import sys
import textwrap
import tracemalloc

import numpy as np
import pytest

import xpsoftmax as xs
from xpsoftmax._typing import LossSpec
from xpsoftmax.kernels import generic

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS as on Linux")

# Everything that allocates lazily (BLAS buffers, thread stacks) does so in a first small call; then the limit is set to
# what the process has, plus the outputs, plus the allowed temporaries, plus SLACK for the rounding of the allocator.
PRELUDE = """
import os, resource, sys
import numpy as np
import xpsoftmax as xs

MIB = 2**20
SLACK = 8 * MIB

def problem(n, d, hidden, c):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=np.float32)
    y = rng.integers(0, c, n)
    return xs.init_params((d, *hidden, c), rng=0, dtype=np.float32), X, y

def limit(extra):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + extra + SLACK,) * 2)

def size(params):
    return sum(array.nbytes for layer in params for array in layer)

small = problem(64, 128, (64,), 2000)
xs.mlp_loss_and_grad(*small, reg=1e-3, max_memory=2 * MIB)
xs.softmax(np.zeros((4096, 1024), np.float32))
"""


def run(code):
    # glibc would reserve 64 MiB of address space, not memory, for each thread that allocates.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    process = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    return process.stdout


# C = 8192, and the weights are 8 MiB. The logits of all rows in float32 are four times the budget. More rows would take
# long with the small budget: chunks are small then, and each of them is added to the gradient of the weights.
ROWS = {8: 1024, 32: 4096}
CASES = {
    "labels": "options = {}",
    "smoothing": "options = {'label_smoothing': 0.1}",
    "z-loss": "options = {'z_loss': 0.01}",
    "weights": "options = {'sample_weight': np.ones(len(y), np.float32), 'ignore_index': 3}",
    "tanh": "options = {'activation': 'tanh'}",
    "soft targets of another dtype": "options, y = {}, np.full((len(y), 8192), 2.0**-13)",
}


@pytest.mark.parametrize("hidden", [(), (96,)], ids=["one layer", "two layers"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("budget", [8, 32])
def test_max_memory_holds(case, hidden, budget):
    out = run(
        f"""
        params, X, y = problem({ROWS[budget]}, 256, {hidden}, 8192)
        {CASES[case]}
        limit(size(params) + {budget} * MIB)
        loss, grads = xs.mlp_loss_and_grad(params, X, y, max_memory={budget} * MIB, **options)
        print(float(loss))
        """
    )
    assert float(out) > 1.0


@pytest.mark.parametrize("budget", ROWS)
def test_the_limit_is_felt_without_max_memory(budget):
    """The same call with room for all rows at once needs more: the limit of the tests above is a real one."""
    out = run(
        f"""
        params, X, y = problem({ROWS[budget]}, 256, (), 8192)
        limit(size(params) + {budget} * MIB)
        try:
            xs.mlp_loss_and_grad(params, X, y, max_memory=4096 * MIB)
        except MemoryError:
            print("refused")
        """
    )
    assert out == "refused\n"


def test_a_default_bound_is_there():
    """N x C is 1.2 GiB; the call stays within 256 MiB beside the outputs."""
    out = run(
        """
        params, X, y = problem(16384, 64, (), 20000)
        limit(size(params) + 256 * MIB)
        loss, grads = xs.mlp_loss_and_grad(params, X, y)
        print(float(loss))
        """
    )
    assert float(out) > 1.0


PREDICTIONS = {
    "one layer": "params, X, y = problem(8192, 64, (), 10000); options = {}",
    "two layers": "params, X, y = problem(8192, 64, (96,), 10000); options = {'activation': 'gelu'}",
    "wide hidden layers": "params, X, y = problem(8192, 16, (2048, 512), 10); options = {'activation': 'gelu'}",
    "float16": "params, X, y = problem(8192, 64, (), 10000); X = X.astype('f2'); options = {};"
    "params = tuple(xs.Layer(w.astype('f2'), b.astype('f2')) for w, b in params); size = lambda _: 64 * 10000 * 4",
}


@pytest.mark.parametrize("impl", ["auto", "generic"])
@pytest.mark.parametrize("case", PREDICTIONS)
@pytest.mark.parametrize("budget", [8, 32])
def test_max_memory_of_predictions_holds(case, budget, impl):
    """The logits, or the hidden activations, of all rows are 64 MiB and more; 16-bit parameters are cast to float32."""
    out = run(
        f"""
        {PREDICTIONS[case]}
        options |= {{"impl": {impl!r}, "max_memory": {budget} * MIB}}
        xs.mlp_predict(params, X[:8], **options)
        limit((size(params) if X.dtype == np.float16 else 0) + {budget} * MIB)
        labels = xs.mlp_predict(params, X, **options)
        some = xs.mlp_predict(params, X[-50:], **options)
        print(len(labels), int((labels[-50:] == some).sum()), len(set(labels.tolist())) > 1)
        try:
            held = np.empty((8192, 2048), np.float32)
        except MemoryError:
            print("refused")
        """
    )
    assert out.split() == ["8192", "50", "True", "refused"]


def peak_beside(function, outputs):
    """Bytes that a call holds at most, beside its outputs."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1] - outputs
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("impl", ["auto", "generic"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize(
    ("sizes", "dtype"), [((3, 2000, 3), "f8"), ((3000, 4, 3), "f2"), ((5, 300, 300, 900), "f4")], ids=str
)
@pytest.mark.parametrize("budget", [2 * 10**6, 8 * 10**6])
def test_budgets_of_activations_and_of_inputs_that_are_cast(sizes, dtype, activation, impl, budget):
    """The temporaries of an activation may be most of what is held; of inputs cast to float32 one chunk is."""
    params = xs.init_params(sizes, rng=0, dtype=dtype, activation=activation)
    X, y = np.ones((3000, sizes[0]), dtype), np.zeros(3000, np.int64)
    cast = sum(4 * array.size for layer in params for array in layer) if dtype == "f2" else 0
    options = {"max_memory": budget, "impl": impl}
    xs.mlp_predict(params, X[:8], **options)
    labels = X.shape[0] * np.dtype(np.intp).itemsize
    assert peak_beside(lambda: xs.mlp_predict(params, X, **options), labels + cast) <= budget
    if budget > 2 * 10**6:
        xs.mlp_loss_and_grad(params, X[:8], y[:8], **options)
        width = 8 if dtype == "f8" else 4
        grads = sum(width * array.size for layer in params for array in layer)
        rows = X.shape[0] * (width + 4)  # the weight of each row, and a mask
        assert peak_beside(lambda: xs.mlp_loss_and_grad(params, X, y, **options), grads + 2 * cast + rows) <= budget


@pytest.mark.parametrize("budget", [16, 48])
def test_training_holds_parameters_four_times_and_max_memory(budget):
    """A batch of N x C is 128 MiB; the parameters, 3 MiB, are copied, have gradients, and are copied for the result.

    Validation, in chunks that are larger, takes no more.
    """
    out = run(
        f"""
        params, X, y = problem(16384, 64, (96,), 8192)
        options = {{"optimizer": xs.sgd(0.1), "batch_size": 4096, "rng": 0}}
        xs.train(small[0], *small[1:], **(options | {{"epochs": 1}}), max_memory=2 * MIB)
        batch = 4096 * 64 * 4
        limit(4 * size(params) + batch + {budget} * MIB)
        result = xs.train(params, X, y, epochs=2, validation=(X, y), max_memory={budget} * MIB, **options)
        print(result.history["loss"][-1])
        try:
            xs.train(params, X, y, epochs=1, max_memory=4096 * MIB, **options)
        except MemoryError:
            print("refused")
        """
    )
    loss, refused = out.split()
    assert float(loss) > 1.0
    assert refused == "refused"


def test_a_linear_layer_with_many_classes_in_little_memory():
    """N=4096, D=512, C=32000: with 64 MiB for the chunks, at most 100 MiB beside inputs and gradients."""
    out = run(
        """
        params, X, y = problem(4096, 512, (), 32000)
        limit(size(params) + 100 * MIB - SLACK)
        loss, grads = xs.mlp_loss_and_grad(params, X, y, max_memory=64 * MIB)
        print(float(loss))
        """
    )
    assert float(out) > 1.0


def test_partial_sums_read_a_file_larger_than_the_limit(tmp_path):
    """A memory map of 1 GiB, of which only one batch at a time is mapped into the address space."""
    run(
        f"""
        import functools
        n, d, c, batches = 2**20, 256, 10, 64
        path = {str(tmp_path / "X.f4")!r}
        rng = np.random.default_rng(0)
        block = rng.standard_normal((n // batches, d), dtype=np.float32)
        with open(path, "wb") as file:
            for i in range(batches):
                file.write((block + np.float32(i)).tobytes())
        y = rng.integers(0, c, n // batches)
        params = xs.init_params((d, c), rng=0, dtype=np.float32)
        limit(64 * MIB)
        try:
            np.memmap(path, dtype=np.float32, mode="r", shape=(n, d))
        except OSError:
            pass
        else:
            sys.exit("the file fits into the limit: the test shows nothing")

        def part(i):
            rows = np.memmap(path, np.float32, "r", offset=i * block.nbytes, shape=block.shape)
            return xs.mlp_partial_sums(params, rows, y, max_memory=8 * MIB)

        loss, grads = functools.reduce(lambda a, b: a + b, map(part, range(batches))).finish(params, reg=1e-3)
        losses = [float(xs.mlp_loss(params, block + np.float32(i), y, max_memory=8 * MIB)) for i in range(batches)]
        penalty = 0.5e-3 * float((params[0].weight.astype("f8") ** 2).sum())
        assert abs(float(loss) - np.mean(losses) - penalty) < 1e-4 * float(loss), (loss, np.mean(losses))
        """
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_scratch_arrays_is_what_the_row_operation_holds(soft, z_loss, dtype, rng):
    """Measured, logits included; one array more would be a budget that wastes memory, one less one that breaks."""
    logits = rng.standard_normal((64, 8192)).astype(dtype)
    targets = rng.uniform(size=logits.shape).astype(dtype) if soft else np.arange(64)
    spec = LossSpec(np.ones(8192, dtype), 0.1, z_loss) if soft else LossSpec(z_loss=z_loss)
    weight = np.ones(64, dtype)
    generic.softmax_loss_rows(logits[:1], targets[:1], weight[:1], spec, grad=True)  # what is allocated only once
    tracemalloc.start()
    generic.softmax_loss_rows(logits, targets, weight, spec, grad=True)
    held = tracemalloc.get_traced_memory()[1] / logits.nbytes + 1
    tracemalloc.stop()
    wanted = generic.scratch_arrays(soft=soft, z_loss=z_loss > 0.0)
    assert wanted - 2 < held <= wanted
