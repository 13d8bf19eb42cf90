"""Under jax.jit and torch.compile, on dask's lazy arrays, and on JAX without 64-bit numbers."""

import os
import re
import subprocess
import sys
import threading

import numpy as np
import oracle as exact
import pytest
from assertions import assert_like, assert_same_bits, assert_within

import xpsoftmax as xs

ROWS, CLASSES = 7, 5
OPTIONS = {
    "plain": {},
    "weighted": {"class_weight": np.arange(1.0, 6.0), "sample_weight": np.arange(7.0)},
    "all": {
        "class_weight": np.arange(1.0, 6.0),
        "sample_weight": np.arange(7.0),
        "ignore_index": 2,
        "label_smoothing": 0.1,
        "z_loss": 0.01,
    },
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture
def problem(rng):
    return rng.normal(scale=3.0, size=(ROWS, CLASSES)), np.arange(ROWS) % CLASSES


def on(backend, options):
    return {name: backend.asarray(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}


def assert_exact(actual, desired, *, backend):
    """Loss and gradient keep the contract, in every row."""
    for array, value in zip(actual, desired, strict=True):
        assert_like(array, backend=backend, dtype="float64", shape=value.value.shape)
        compared = assert_within(backend.to_numpy(array), value.value, bound=value.bound, where=value.where)
        assert compared == value.value.size


# --- jax.jit ----------------------------------------------------------------------------------------------------------


@pytest.mark.backends("jax")
@every_option
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_jit_keeps_the_contract(backend, problem, options, reduction):
    import jax

    def both(logits, labels, arrays):
        more = {**options, **arrays}
        return xs.softmax_loss_and_grad(logits, labels, reduction=reduction, validate=False, **more)

    arrays = {name: v for name, v in on(backend, options).items() if isinstance(options[name], np.ndarray)}
    actual = jax.jit(both)(*map(backend.asarray, problem), arrays)
    assert_exact(actual, exact.softmax_loss(*problem, reduction=reduction, **options), backend=backend)


@pytest.mark.backends("jax")
def test_jit_of_a_bad_label_is_nan(backend, problem):
    import jax

    labels = problem[1]
    labels[1] = CLASSES
    losses = jax.jit(lambda z, y: xs.softmax_loss(z, y, reduction="none", validate=False))(
        *map(backend.asarray, problem)
    )
    np.testing.assert_array_equal(np.isnan(backend.to_numpy(losses)), labels == CLASSES)


@pytest.mark.backends("jax")
@pytest.mark.parametrize("function", [xs.softmax_loss, xs.softmax_loss_and_grad])
@pytest.mark.parametrize("traced", ["labels", "soft targets", "weights"])
def test_validation_under_jit(backend, problem, function, traced):
    import jax

    logits, labels = map(backend.asarray, problem)
    argument, call = {
        "labels": (labels, lambda traced: function(logits, traced)),
        "soft targets": (xs.softmax(logits), lambda traced: function(logits, traced)),
        "weights": (logits[:, 0] ** 2, lambda traced: function(logits, labels, sample_weight=traced)),
    }[traced]
    message = (
        r"^validate must be False inside jax\.jit and jax\.vmap, got True: "
        r"while a function is traced its labels have no values\."
    )
    with pytest.raises(ValueError, match=message):
        jax.jit(call)(argument)


@pytest.mark.backends("jax")
@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("traced", ["params[0].weight", "X", "targets", "sample_weight", "class_weight"])
def test_training_needs_values(backend, rng, traced, validate):
    import jax

    given = {
        "params[0].weight": backend.asarray(rng.normal(size=(4, CLASSES))),
        "X": backend.asarray(rng.normal(size=(ROWS, 4))),
        "targets": backend.asarray(rng.random((ROWS, CLASSES))),
        "sample_weight": backend.asarray(rng.random(ROWS)),
        "class_weight": backend.asarray(rng.random(CLASSES)),
    }

    bias = backend.asarray(rng.normal(size=CLASSES))

    def trained(array):
        weight, X, targets, *weights = {**given, traced: array}.values()
        named = dict(zip(("sample_weight", "class_weight"), weights, strict=True), validate=validate)
        options = {"optimizer": xs.sgd(0.1), "epochs": 1, "batch_size": 2, "rng": 0, **named}
        return xs.train([(weight, bias)], X, targets, **options).params[0].weight.sum()

    message = rf"^{re.escape(traced)} must be an array that has values, got one that JAX traces\. Call this function"
    for transform in (jax.jit, jax.grad):
        with pytest.raises(ValueError, match=message):
            transform(trained)(given[traced])


@pytest.mark.backends("jax")
def test_a_training_step_under_jit(backend, rng):
    import jax

    params = xs.init_params((4, 6, CLASSES), rng=0, xp=backend.library)
    inputs, labels = backend.asarray(rng.normal(size=(ROWS, 4))), backend.asarray(np.arange(ROWS) % CLASSES)
    _, compiled = jax.jit(lambda *arrays: xs.mlp_loss_and_grad(*arrays, reg=0.1, validate=False))(
        params, inputs, labels
    )
    _, eager = xs.mlp_loss_and_grad(params, inputs, labels, reg=0.1)
    assert [type(layer) for layer in compiled] == [xs.Layer, xs.Layer]
    for a, b in zip(compiled, eager, strict=True):
        np.testing.assert_allclose(a.weight, b.weight, rtol=1e-12, atol=1e-14)


@pytest.mark.backends("jax")
def test_autograd_of_the_loss_is_our_gradient(backend, problem):
    import jax

    logits, labels = map(backend.asarray, problem)
    theirs = jax.grad(lambda z: xs.softmax_loss(z, labels))(logits)
    np.testing.assert_allclose(theirs, xs.softmax_loss_and_grad(logits, labels)[1], rtol=1e-10)


NARROW = """
import jax.numpy as jnp
import re

import numpy as np
import xpsoftmax as xs

z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), dtype=jnp.float32)
assert jnp.arange(2).dtype == jnp.int32, "64-bit numbers are on"
"""


def run_narrow(code):
    """Run code in a fresh interpreter, where JAX has 32-bit integers and warnings are errors."""
    pytest.importorskip("jax")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0"}
    command = [sys.executable, "-W", "error", "-c", NARROW + code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr


def test_narrow_jax_gives_the_same_for_every_integer_dtype():
    run_narrow("""
desired = xs.softmax_loss_and_grad(z, jnp.asarray([0, 4, 2], dtype=jnp.int32))
for dtype in (jnp.int8, jnp.int16, jnp.uint8, jnp.uint16, jnp.uint32):
    actual = xs.softmax_loss_and_grad(z, jnp.asarray([0, 4, 2], dtype=dtype), ignore_index=-100)
    assert actual[0] == desired[0] and (actual[1] == desired[1]).all(), dtype
assert actual[0].dtype == actual[1].dtype == jnp.float32
""")


def test_narrow_jax_sees_labels_beyond_its_index_dtype():
    """Cast to int32, all but the first are negative, and 2**32 - 100 is the ignored -100."""
    run_narrow("""
for value in (5, 2**31, 2**32 - 100, 2**32 - 1):
    labels = jnp.asarray(np.array([0, value, 2], dtype=np.uint32))
    try:
        xs.softmax_loss(z, labels, ignore_index=-100)
    except ValueError as error:
        assert str(error).endswith(f"ignore_index=-100), got {value} at row 1."), error
    else:
        raise AssertionError(f"no error for {value}")
    losses = xs.softmax_loss(z, labels, ignore_index=-100, validate=False, reduction="none")
    assert jnp.isnan(losses).tolist() == [False, True, False], value
""")


def test_narrow_jax_network():
    run_narrow("""
params = xs.init_params((5, 4, 3), rng=0, xp=jnp)
loss, grads = xs.mlp_loss_and_grad(params, z, jnp.asarray([0, 1, 2]), reg=0.1)
assert loss.dtype == grads[0].weight.dtype == jnp.float32
assert xs.mlp_predict(params, z).dtype == jnp.int32
""")


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.backends("torch")
# array-api-compat looks types up in a cache, which torch.compile traces through with a warning.
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@every_option
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compile_in_one_graph_keeps_the_contract(backend, problem, options, compiler):
    torch = backend.library
    torch.compiler.reset()
    options_there = on(backend, options)
    compiled = torch.compile(
        lambda logits, labels: xs.softmax_loss_and_grad(logits, labels, validate=False, **options_there),
        backend=compiler,
        fullgraph=True,
    )
    actual = compiled(*map(backend.asarray, problem))
    assert_exact(actual, exact.softmax_loss(*problem, **options), backend=backend)


# --- dask -------------------------------------------------------------------------------------------------------------

CHUNKS = [((3, 5), 3), ((3, 2), 4), ((7, 5), 2), ((2, 3), 7)]  # of the logits, of the labels


def blocks(backend, array, chunks):
    return backend.library.from_array(array, chunks=chunks)


def of_unknown_length(backend, array, keep):
    """The rows that are kept, as dask knows them: not how many."""
    chunks = (3, *array.shape[1:])
    return blocks(backend, array, chunks)[blocks(backend, keep, 3)]


class Counted:
    """A dask array that counts how often its blocks are computed."""

    def __init__(self, backend, array):
        self.count, self._lock = 0, threading.Lock()
        chunks = (3, *array.shape[1:])
        self.blocks = -(-array.shape[0] // 3)
        self.array = blocks(backend, array, chunks).map_blocks(self._seen, dtype=array.dtype, meta=array[:0])

    def _seen(self, block):
        with self._lock:
            self.count += 1
        return block


@pytest.mark.backends("dask")
@pytest.mark.parametrize(("chunks", "label_chunks"), CHUNKS)
@every_option
def test_dask_in_any_chunks(backend, problem, options, chunks, label_chunks):
    logits, labels = problem
    arrays = blocks(backend, logits, chunks), blocks(backend, labels, label_chunks)
    more = {name: blocks(backend, v, 2) if isinstance(v, np.ndarray) else v for name, v in options.items()}
    actual = xs.softmax_loss_and_grad(*arrays, **more)
    assert_exact(actual, exact.softmax_loss(*problem, **options), backend=backend)


@pytest.mark.backends("dask")
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "softmax_loss", "mlp_loss"])
def test_dask_stays_lazy(backend, problem, name):
    logits, labels = Counted(backend, problem[0]), Counted(backend, problem[1])
    params = xs.init_params((CLASSES, CLASSES), rng=0, xp=backend.library)
    arrays = {"softmax_loss": (logits.array, labels.array), "mlp_loss": (params, logits.array, labels.array)}
    options = {"validate": False} if "loss" in name else {}
    result = getattr(xs, name)(*arrays.get(name, (logits.array,)), **options)
    assert (logits.count, labels.count) == (0, 0)
    result.compute()
    assert logits.count == logits.blocks


@pytest.mark.backends("dask")
@pytest.mark.parametrize("soft", [False, True])
def test_validation_computes_targets_and_weights_once_and_no_logits(backend, problem, soft):
    logits = Counted(backend, problem[0])
    targets = Counted(backend, np.full((ROWS, CLASSES), 0.2) if soft else problem[1])
    weight = Counted(backend, np.ones(ROWS))
    xs.softmax_loss_and_grad(logits.array, targets.array, sample_weight=weight.array)
    assert (logits.count, targets.count, weight.count) == (0, targets.blocks, weight.blocks)


KEEP = np.array([True, True, False, True, True, True, False])
# A sum by halving has something left over for 5 classes, and not for 4.
UNKNOWN = [4, 5]


@pytest.mark.backends("dask")
@pytest.mark.parametrize("classes", UNKNOWN)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dask_with_an_unknown_number_of_rows(backend, rng, classes, smoothing):
    logits, labels, weight = rng.normal(size=(ROWS, classes)), np.arange(ROWS) % classes, rng.random(ROWS)
    arrays = [of_unknown_length(backend, array, KEEP) for array in (logits, labels, weight)]
    loss, dlogits = xs.softmax_loss_and_grad(*arrays[:2], sample_weight=arrays[2], label_smoothing=smoothing)
    desired = exact.softmax_loss(logits[KEEP], labels[KEEP], sample_weight=weight[KEEP], label_smoothing=smoothing)
    for actual, value in ((loss, desired.loss), (dlogits, desired.grad)):
        compared = assert_within(actual.compute(), value.value, bound=value.bound, where=value.where)
        assert compared == value.value.size


@pytest.mark.backends("dask")
@pytest.mark.parametrize("classes", UNKNOWN)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_softmax_of_an_unknown_number_of_rows(backend, rng, classes, axis, name):
    logits = rng.normal(size=(ROWS, classes))
    lazy = of_unknown_length(backend, logits, KEEP)
    actual = getattr(xs, name)(lazy if axis == 1 else lazy.T, axis=axis).compute()
    assert_same_bits(actual if axis == 1 else actual.T, getattr(xs, name)(logits[KEEP]))


@pytest.mark.backends("dask")
def test_a_bad_label_in_rows_of_unknown_number(backend, rng):
    labels = np.array([0, 1, 9, 9, 2, 0, 9])
    arrays = [of_unknown_length(backend, array, KEEP) for array in (rng.normal(size=(ROWS, 4)), labels)]
    with pytest.raises(ValueError, match=r"^targets must be labels from 0 to 3 .* got 9 at row 2\.$"):
        xs.softmax_loss(*arrays)


@pytest.mark.backends("dask")
def test_dask_blocks_without_rows(backend, rng):
    logits, labels = rng.normal(size=(ROWS, 4)), np.arange(ROWS) % 4
    keep = np.arange(ROWS) > 3  # nothing of the first block
    arrays = [of_unknown_length(backend, array, keep) for array in (logits, labels)]
    loss = xs.softmax_loss(*arrays).compute()
    desired = exact.softmax_loss(logits[keep], labels[keep]).loss
    assert assert_within(loss, desired.value, bound=desired.bound) == 1


@pytest.mark.backends("dask")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_warning_in_the_threads_of_dask(backend, dtype):
    """NumPy's errstate is the thread's own: ours does not reach the threads that compute."""
    rows = np.array([[1e4, -1e4, -np.inf], [np.nan, 0, 0], [np.inf, 0, 0], [-np.inf] * 3] * 4, dtype=dtype)
    arrays = blocks(backend, rows, (2, 3)), blocks(backend, np.zeros(16, dtype=int), 3)
    with np.errstate(all="raise"):
        results = xs.softmax_loss_and_grad(*arrays, reduction="none", label_smoothing=0.1, z_loss=0.1)
    for array in (*results, xs.softmax(arrays[0]), xs.log_softmax(arrays[0]), xs.logsumexp(arrays[0])):
        values = array.compute(scheduler="threads")  # a warning in a thread is an error here
        assert np.isnan(values).any(), "the rows that could warn were not computed"
