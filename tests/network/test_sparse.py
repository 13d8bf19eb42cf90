"""Sparse inputs: the numbers of dense ones, without ever being dense, in every function of networks and training."""

import subprocess
import sys

import numpy as np
import pytest
from assertions import assert_within

import xpsoftmax as xs

sparse = pytest.importorskip("scipy.sparse")

N, D, H, C = 37, 50, 7, 4
FORMATS = ("csr", "csc", "coo", "lil", "dok", "bsr", "dia")
KINDS = {"array": sparse.csr_array, "matrix": sparse.csr_matrix}


@pytest.fixture
def problem(rng, dtype):
    """Parameters, inputs of which a tenth is not zero (some rows and columns are empty), labels."""
    X = rng.standard_normal((N, D)) * (rng.random((N, D)) < 0.1)
    X[3], X[:, 5] = 0.0, 0.0
    params = xs.init_params((D, H, C), rng=rng, dtype=dtype)
    return params, X.astype(dtype), rng.integers(0, C, N)


def flat(layers):
    return np.concatenate([array.ravel() for layer in layers for array in layer])


def assert_same_sums(found, desired, dtype):
    """Of products of the same numbers, added up in another order: 100 of them, of order 1."""
    eps = np.finfo(dtype).eps
    for array, values in zip(found, desired, strict=True):
        assert array.dtype == dtype
        assert_within(np.asarray(array), np.asarray(values), bound=200 * eps * np.maximum(1.0, np.abs(values)))


# --- functions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_loss_and_gradients_of_every_format(problem, dtype, kind, name):
    params, X, y = problem
    S = KINDS[kind](X).asformat(name)
    loss, grads = xs.mlp_loss_and_grad(params, S, y, reg=0.1)
    expected, slopes = xs.mlp_loss_and_grad(params, X, y, reg=0.1)
    assert_same_sums([loss, flat(grads)], [expected, flat(slopes)], dtype)
    assert type(grads[0].weight) is np.ndarray
    assert grads[0].weight.flags.c_contiguous
    np.testing.assert_array_equal(S.toarray(), X)
    assert S.format == name


def test_every_function(problem, dtype):
    params, X, y = problem
    S = sparse.csr_array(X)
    assert_same_sums([xs.mlp_logits(params, S)], [xs.mlp_logits(params, X)], dtype)
    assert_same_sums([xs.mlp_loss(params, S, y)], [xs.mlp_loss(params, X, y)], dtype)
    np.testing.assert_array_equal(xs.mlp_predict(params, S), xs.mlp_predict(params, X))
    parts = [xs.mlp_partial_sums(params, S[rows], y[rows]) for rows in (slice(0, 10), slice(10, N))]
    loss, grads = sum(parts).finish(params)
    expected, slopes = xs.mlp_loss_and_grad(params, X, y)
    assert_same_sums([loss, flat(grads)], [expected, flat(slopes)], dtype)


@pytest.mark.parametrize("impl", ["auto", "generic"])
@pytest.mark.parametrize("sizes", [(D, C), (D, H, C), (D, H, H, C)])
def test_every_depth_and_both_paths(rng, impl, sizes):
    X = rng.standard_normal((N, D)) * (rng.random((N, D)) < 0.1)
    params, y = xs.init_params(sizes, rng=rng), rng.integers(0, C, N)
    loss, grads = xs.mlp_loss_and_grad(params, sparse.csr_array(X), y, activation="tanh", impl=impl)
    expected, slopes = xs.mlp_loss_and_grad(params, X, y, activation="tanh", impl=impl)
    assert_same_sums([loss, flat(grads)], [expected, flat(slopes)], "float64")


def test_a_row_has_the_same_bits_in_every_company(problem):
    (layer, _), X, _ = problem  # dense products of other layers are those of BLAS
    params, S = (layer,), sparse.csr_array(X)
    whole = xs.mlp_logits(params, S)
    for rows in (slice(0, 1), slice(3, 4), slice(5, 30)):
        np.testing.assert_array_equal(xs.mlp_logits(params, S[rows]), whole[rows])


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_products_by_several_threads_have_the_bits_of_one(rng, dtype, kind, threads):
    """Large enough for several; the last part of the rows is shorter."""
    X = KINDS[kind](sparse.random(1003, 300, 0.1, format="csr", random_state=0, dtype=dtype))
    weight = rng.standard_normal((300, 150)).astype(dtype)
    assert X.nnz * weight.shape[1] > 4 * 2**20
    with xs.threads(threads):
        logits = xs.mlp_logits((xs.Layer(weight, np.zeros(150, dtype)),), X)
    np.testing.assert_array_equal(logits, X @ weight)


def test_chunks_add_up(problem, dtype):
    params, X, y = problem
    least = 4000 if dtype == "float32" else 8000
    S = sparse.csr_array(X)
    for weight in (None, np.linspace(0.0, 1.0, N).astype(dtype)):
        loss, grads = xs.mlp_loss_and_grad(params, S, y, sample_weight=weight, max_memory=least)
        expected, slopes = xs.mlp_loss_and_grad(params, X, y, sample_weight=weight)
        assert_same_sums([loss, flat(grads)], [expected, flat(slopes)], dtype)
    with pytest.raises(ValueError, match=r"^max_memory must be at least \d+ bytes"):
        xs.mlp_loss_and_grad(params, S, y, max_memory=100)


def test_options_of_the_loss(problem, dtype):
    params, X, y = problem
    y = y.copy()
    y[::5] = -100
    options = {"class_weight": np.arange(1.0, C + 1).astype(dtype), "ignore_index": -100, "label_smoothing": 0.1}
    loss, grads = xs.mlp_loss_and_grad(params, sparse.csr_array(X), y, **options)
    expected, slopes = xs.mlp_loss_and_grad(params, X, y, **options)
    assert_same_sums([loss, flat(grads)], [expected, flat(slopes)], dtype)


def test_rows_that_do_not_count_may_hold_anything(problem, dtype):
    params, X, y = problem
    weight = np.ones(N, dtype)
    weight[4] = 0.0
    expected, slopes = xs.mlp_loss_and_grad(params, X, y, sample_weight=weight)
    X = X.copy()
    X[4, :3] = np.nan, np.inf, -np.inf
    loss, grads = xs.mlp_loss_and_grad(params, sparse.csr_array(X), y, sample_weight=weight)
    assert_same_sums([loss, flat(grads)], [expected, flat(slopes)], dtype)
    spoilt = xs.mlp_loss(params, sparse.csr_array(X), y)
    assert np.isnan(spoilt)


def test_entries_that_are_stored_twice_add_up(problem):
    """SciPy's matrices may hold an entry in parts."""
    params, X, y = problem
    S = sparse.csr_array(X)
    doubled = sparse.csr_array((np.repeat(S.data / 2, 2), np.repeat(S.indices, 2), 2 * S.indptr), shape=S.shape)
    assert doubled.nnz == 2 * S.nnz
    loss, grads = xs.mlp_loss_and_grad(params, doubled, y)
    expected, slopes = xs.mlp_loss_and_grad(params, X, y)
    assert_same_sums([loss, flat(grads)], [expected, flat(slopes)], X.dtype)


def test_no_rows_and_no_entries(problem):
    params, X, y = problem
    loss, grads = xs.mlp_loss_and_grad(params, sparse.csr_array((0, D), dtype=X.dtype), y[:0])
    assert np.isnan(loss)
    assert not flat(grads).any()
    loss, grads = xs.mlp_loss_and_grad(params, sparse.csr_array((N, D), dtype=X.dtype), y)
    expected, slopes = xs.mlp_loss_and_grad(params, np.zeros_like(X), y)
    assert_same_sums([loss, flat(grads)], [expected, flat(slopes)], X.dtype)


def test_a_row_without_a_class_is_named(problem):
    params, X, _ = problem
    X = X.copy()
    X[8, 2] = np.nan
    with pytest.raises(ValueError, match=r"^X must have logits without nan in every row, got nan at row 8"):
        xs.mlp_predict(params, sparse.csr_array(X))
    assert xs.mlp_predict(params, sparse.csr_array(X), validate=False)[8] == -1
    with pytest.raises(ValueError, match=r"The row is finite, so that params hold nan"):
        xs.mlp_predict((params[0]._replace(weight=params[0].weight * np.nan), params[1]), sparse.csr_array(X)[:8])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda S: S.astype(np.float32),
            TypeError,
            r"^X must have the dtype of the parameters, float64, got float32\.",
        ),
        (lambda S: S.astype(np.int64), TypeError, r"^X must have the dtype of the parameters, float64, got int64\."),
        (lambda S: S[:, 1:], ValueError, rf"^X must have shape \(N, {D}\) to fit params\[0\]\.weight, got \({N}, "),
        (lambda S: sparse.coo_array(S[0]), ValueError, rf"^X must have shape \(N, {D}\) .*, got \({D},\)\.$"),
    ],
)
def test_what_does_not_fit(rng, change, error, message):
    S = sparse.csr_array(rng.standard_normal((N, D)) * (rng.random((N, D)) < 0.1))
    params, y = xs.init_params((D, C), rng=0), np.zeros(N, int)
    for call in (xs.mlp_loss_and_grad, xs.mlp_loss):
        with pytest.raises(error, match=message):
            call(params, change(S), y)


@pytest.mark.parametrize("kind", ["csr", "csc", "bsr"])
@pytest.mark.parametrize("damage", ["past the end", "negative", "starts", "first start", "falling starts"])
def test_entries_outside_the_matrix(rng, kind, damage):
    """SciPy makes such matrices without a word; its products read memory that is not the matrix's."""
    S = sparse.csr_array(rng.standard_normal((D, D))).asformat(kind)
    params, y = xs.init_params((D, C), rng=0), np.zeros(D, int)
    xs.mlp_loss(params, S, y)
    if damage in ("past the end", "negative"):
        S.indices[-1] = -1 if damage == "negative" else D
    else:
        place, value = {"starts": (-1, S.indices.size + 1), "first start": (0, 1), "falling starts": (1, -1)}[damage]
        S.indptr[place] = value
    for call in (
        lambda: xs.mlp_loss(params, S, y),
        lambda: xs.mlp_predict(params, S),
        lambda: xs.train(params, S, y, optimizer=xs.sgd(0.1), epochs=1, batch_size=2, rng=0),
    ):
        with pytest.raises(ValueError, match=rf"^X must have entries within its shape, \({D}, {D}\), got an invalid"):
            call()


@pytest.mark.backends("torch", "jax", "array_api_strict")
def test_other_libraries_have_no_sparse_products(backend, rng):
    params = [[backend.asarray(array) for array in layer] for layer in xs.init_params((D, C), rng=0)]
    S = sparse.csr_array(np.eye(D))
    with pytest.raises(
        TypeError, match=r"^X must be an array of the same library as .*got a sparse matrix that is mul"
    ):
        xs.mlp_loss(params, S, backend.asarray(np.zeros(D, int)))


def test_sparse_logits_are_refused():
    with pytest.raises(TypeError, match=r"^logits must be an array of an Array API library, got scipy\.csr_array"):
        xs.softmax(sparse.csr_array(np.eye(3)))
    with pytest.raises(TypeError, match=r"^logits must be an array of an Array API library, got scipy\.csr_array"):
        xs.softmax_loss(sparse.csr_array(np.eye(3)), np.arange(3))


def test_the_package_does_not_import_scipy():
    code = """
import sys, numpy as np, xpsoftmax as xs
xs.mlp_loss(xs.init_params((3, 2), rng=0), np.eye(3), np.zeros(3, int))
print(any(name.startswith('scipy') for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "False\n"


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", [xs.sgd(0.1), xs.sgd(0.1, momentum=0.9), xs.adam(0.01), xs.adamw(0.01)])
def test_training_is_that_of_dense_inputs(problem, dtype, kind, optimizer):
    params, X, y = problem
    held_out = X[:9], y[:9]
    options = {"optimizer": optimizer, "epochs": 5, "batch_size": 8, "rng": 1, "reg": 0.01, "patience": 9}
    S = KINDS[kind](X)
    found = xs.train(params, S, y, validation=(S[:9], y[:9]), **options)
    desired = xs.train(params, X, y, validation=held_out, **options)
    tolerance = 1e-3 if dtype == "float32" else 1e-10
    np.testing.assert_allclose(flat(found.params), flat(desired.params), rtol=0, atol=tolerance)
    for name in desired.history:
        np.testing.assert_allclose(found.history[name], desired.history[name], rtol=0, atol=tolerance)


def test_training_stops_and_goes_on(problem):
    params, X, y = problem
    S = sparse.csc_array(X)
    options = {"optimizer": xs.adam(0.01), "batch_size": 8, "rng": 1}
    whole = xs.train(params, S, y, epochs=4, **options)
    half = xs.train(params, S, y, epochs=4, callback=lambda step: step.step == 7, **options)
    rest = xs.train(params, S, y, epochs=4, resume=half.state, **options)
    np.testing.assert_array_equal(flat(rest.params), flat(whole.params))


def test_training_names_inputs_that_are_not_finite(problem):
    params, X, y = problem
    X = X.copy()
    X[13, 2] = np.nan
    S, options = sparse.csr_array(X), {"optimizer": xs.sgd(0.1), "epochs": 2, "batch_size": 8, "rng": 1}
    with pytest.raises(xs.DivergenceError, match=r"^X must be finite, got nan at row 13\."):
        xs.train(params, S, y, **options)
    with pytest.raises(ValueError, match=r"^validation\[0\] must be finite, got nan at row 13\."):
        xs.train(params, sparse.csr_array(X[:10]), y[:10], validation=(S, y), **options)
    weight = np.ones(N, X.dtype)
    weight[13] = 0.0
    assert xs.train(params, S, y, sample_weight=weight, **options).state.epoch == 2


def test_inputs_are_never_dense():
    """A million columns, and as much memory as dense inputs of 200 rows of a batch would take alone."""
    code = """
import resource
import numpy as np, scipy.sparse as sparse
import xpsoftmax as xs
rows, columns = 20_000, 1_000_000
rng = np.random.default_rng(0)
data, indices = np.ones(10 * rows, np.float32), rng.integers(0, columns, 10 * rows)
X = sparse.csr_array((data, indices, np.arange(0, 10 * rows + 1, 10)), shape=(rows, columns))
y = rng.integers(0, 3, rows)
params = xs.init_params((columns, 4, 3), rng=0, dtype="float32")
xs.threads(1).__enter__()
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 500 * 2**20, resource.RLIM_INFINITY))
result = xs.train(params, X, y, optimizer=xs.sgd(0.1), epochs=1, batch_size=2000, rng=0, validation=(X, y))
loss, _ = xs.mlp_loss_and_grad(result.params, X, y, sample_weight=np.ones(rows, np.float32))
labels = xs.mlp_predict(result.params, X)
print(len(result.history["loss"]), bool(loss < 1.2), labels.shape)
"""
    environment = {"OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stderr[-1500:]
    assert process.stdout == "10 True (20000,)\n"


def test_a_matrix_of_another_library_is_refused(problem, monkeypatch):
    """One of cupyx beside NumPy parameters."""
    from xpsoftmax.kernels import sparse as kernel

    params, X, y = problem
    S = sparse.csr_array(X)
    monkeypatch.setattr(kernel, "LIBRARIES", {"scipy.sparse": "cupy"})
    message = r"^X must be an array of the same library as params\[0\]\.weight \(numpy\), got a sparse matrix .* cupy"
    with pytest.raises(TypeError, match=message):
        xs.mlp_loss(params, S, y)
