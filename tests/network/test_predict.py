"""mlp_predict: chunks of rows, rows that have no class, and what waits for a device."""

import contextlib

import numpy as np
import pytest
from array_api_compat import device
from assertions import assert_like

import xpsoftmax as xs
from xpsoftmax._arguments.finite import first_not_finite
from xpsoftmax._arguments.home import quiet
from xpsoftmax._network import predict
from xpsoftmax._network.predict import labels_of

D, H, C = 5, 7, 4
ACTIVATIONS = ("identity", "relu", "tanh", "logistic", "silu", "gelu")


def moved(backend, params, dtype="float64"):
    return tuple(xs.Layer(*(backend.asarray(array, dtype) for array in layer)) for layer in params)


def lazy(backend, array, chunks=3):
    """The array of a backend; of dask in several blocks."""
    if backend.name != "dask":
        return backend.asarray(array)
    return backend.library.from_array(np.asarray(array), chunks=(chunks, *array.shape[1:]))


# --- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(), (H,), (H, 3)], ids=["one layer", "two layers", "three layers"])
@pytest.mark.parametrize("rows", [0, 1, 2, 47])
def test_chunks_give_the_labels_of_all_rows_at_once(rows, hidden, backend, impl, rng):
    params, X = xs.init_params((D, *hidden, C), rng=rng), rng.standard_normal((rows, D))
    held, inputs = moved(backend, params), lazy(backend, X)
    whole = backend.to_numpy(xs.mlp_predict(held, inputs, impl=impl))
    np.testing.assert_array_equal(whole, backend.to_numpy(xs.mlp_logits(held, inputs, impl=impl)).argmax(axis=1))
    for max_memory in (1000, 2000, 10**6):  # from a row at a time to all at once
        labels = xs.mlp_predict(held, inputs, max_memory=max_memory, impl=impl)
        assert_like(labels, backend=backend, dtype="int64", shape=(rows,))
        np.testing.assert_array_equal(backend.to_numpy(labels), whole)


def chunks(monkeypatch, params, X, **options):
    """How many rows each chunk has."""
    seen, forward = [], predict.forward
    monkeypatch.setattr(predict, "forward", lambda net, X, **more: seen.append(len(X)) or forward(net, X, **more))
    xs.mlp_predict(params, X, **options)
    return seen


@pytest.mark.parametrize("impl", ["kernel", "generic"])
def test_the_least_budget_takes_a_row_at_a_time(impl, rng, monkeypatch):
    params, X = xs.init_params((D, H, C), rng=rng), rng.standard_normal((9, D))
    with pytest.raises(
        ValueError, match=r"^max_memory must be at least (\d+) bytes, what one row needs, got 10\."
    ) as e:
        xs.mlp_predict(params, X, max_memory=10, impl=impl)
    least = int(str(e.value).split()[5])
    with pytest.raises(ValueError, match=rf"^max_memory must be at least {least} bytes, .*, got {least - 1}\."):
        xs.mlp_predict(params, X, max_memory=least - 1, impl=impl)
    assert chunks(monkeypatch, params, X, max_memory=least, impl=impl) == [1] * 9


def test_without_max_memory_a_row_may_need_more_than_the_default(monkeypatch):
    params = (xs.Layer(np.ones((1, 300)), np.arange(300.0)),)
    monkeypatch.setattr(predict, "DEFAULT_MAX_MEMORY", 100)
    assert chunks(monkeypatch, params, np.ones((3, 1))) == [1, 1, 1]


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_memory_map_is_read_in_chunks(order, rng, tmp_path):
    params, X = xs.init_params((D, H, C), rng=rng), rng.standard_normal((200, D))
    file = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", X.dtype, X.shape, fortran_order=order == "F")
    file[:] = X
    file.flush()
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    np.testing.assert_array_equal(xs.mlp_predict(params, mapped, max_memory=2000), xs.mlp_predict(params, X))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_memory": "all"}, TypeError, r"^max_memory must be an integer, got 'all'\."),
        ({"max_memory": True}, TypeError, r"^max_memory must be an integer, got True\."),
        ({"validate": 1}, TypeError, r"^validate must be True or False, got 1\."),
    ],
)
def test_options(options, error, message):
    with pytest.raises(error, match=message):
        xs.mlp_predict(xs.init_params((D, C), rng=0), np.ones((2, D)), **options)


# --- rows that have no class ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_memory", [None, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_of_nan_has_no_class(dtype, max_memory, backend, impl, rng):
    params, X = xs.init_params((D, H, C), rng=rng), rng.standard_normal((11, D))
    desired = xs.mlp_predict(params, X)
    X[[4, 9], [0, D - 1]] = np.nan
    held, inputs = moved(backend, params, dtype), lazy(backend, X.astype(dtype))
    labels = xs.mlp_predict(held, inputs, validate=False, max_memory=max_memory, impl=impl)
    desired[[4, 9]] = -1
    assert_like(labels, backend=backend, dtype="int64", shape=(11,))
    np.testing.assert_array_equal(backend.to_numpy(labels), desired)
    row = "[49]" if backend.name == "dask" else "4"  # of dask's blocks it is the first to be computed that says it
    message = (
        rf"^X must have logits without nan in every row, got nan at row {row}\. "
        r"With validate=False such rows get the label -1\.$"
    )
    with pytest.raises(ValueError, match=message):
        backend.to_numpy(xs.mlp_predict(held, inputs, max_memory=max_memory, impl=impl))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_goes_through_every_activation(activation, backend, impl, rng):
    params, X = xs.init_params((D, H, H, C), rng=rng), rng.standard_normal((3, D))
    X[1, 2] = np.nan
    options = {"activation": activation, "validate": False, "impl": impl}
    labels = backend.to_numpy(xs.mlp_predict(moved(backend, params), lazy(backend, X), **options))
    assert labels[1] == -1
    assert min(labels[0], labels[2]) >= 0


def test_one_class(backend):
    params = moved(backend, (xs.Layer(np.ones((1, 1)), np.zeros(1)),))
    X = lazy(backend, np.array([[1.0], [np.nan], [-np.inf]]))
    np.testing.assert_array_equal(backend.to_numpy(xs.mlp_predict(params, X, validate=False)), [0, -1, 0])


def test_infinite_logits_are_compared(backend, impl):
    """Only nan has no class: of equal ones, infinite or not, it is the first."""
    inf = np.inf
    logits = np.array([[-inf, inf, inf], [-inf, -inf, -inf], [-inf, 0.0, -inf], [0.0, 2.0, 2.0], [inf, np.nan, inf]])
    weight = np.eye(1, 3) * 0.0
    for row, label in zip(logits, [1, 0, 1, 1, -1], strict=True):
        params = moved(backend, (xs.Layer(weight, row),))
        found = xs.mlp_predict(params, lazy(backend, np.ones((2, 1))), validate=False, impl=impl)
        np.testing.assert_array_equal(backend.to_numpy(found), [label, label])


def test_rows_of_infinities_of_both_signs(backend):
    """Their sum is nan, and no row is: it is the quick look of NumPy arrays."""
    if backend.name == "dask":
        pytest.skip("block by block")
    inf = np.inf
    rows = np.array([[0.0, inf], [-inf, -inf], [inf, inf], [1.0, 2.0], [-inf, 0.0]])
    with quiet(backend.xp, device(backend.asarray(rows))):
        found = labels_of(backend.xp, backend.asarray(rows))
        np.testing.assert_array_equal(backend.to_numpy(found), [1, 0, 0, 1, 1])
        rows[[1, 3], [1, 0]] = np.nan
        found = labels_of(backend.xp, backend.asarray(rows))
        np.testing.assert_array_equal(backend.to_numpy(found), [1, -1, 0, -1, 1])


def test_params_are_named_where_the_row_is_finite():
    params = (xs.Layer(np.array([[1e308, -1e308]]), np.array([np.inf, 0.0])),)
    with pytest.raises(ValueError, match=r"got nan at row 1\. The row is finite, so that params hold nan or numbers"):
        xs.mlp_predict(params, np.array([[1.0], [-10.0]]))


@pytest.mark.backends("dask")
def test_dask_rows_of_unknown_number(backend, rng):
    """The row is named in its block: of how many rows there are before, nothing is known."""
    params, X = xs.init_params((D, H, C), rng=rng), rng.standard_normal((11, D))
    X[7, 0] = np.nan
    kept = lazy(backend, X)[lazy(backend, np.arange(11) != 6)]
    labels = xs.mlp_predict(moved(backend, params), kept, validate=False)
    assert np.flatnonzero(labels.compute() == -1).tolist() == [6]
    with pytest.raises(ValueError, match=r"got nan at block 2, row 0\."):
        xs.mlp_predict(moved(backend, params), kept).compute()


@pytest.mark.backends("dask")
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "logistic", "silu", "gelu"])
def test_dask_blocks_do_not_warn(activation, value, scheduler, backend, rng):
    """Whatever thread computes a block: warnings are errors here."""
    import dask

    params = xs.init_params((4, 6, 3), rng=1, activation=activation, dtype="float32")
    X = rng.standard_normal((20, 4)).astype(np.float32)
    X[5, 1], X[6], X[13, :2] = value, value, (value, -value)
    lazy = tuple(type(layer)(*map(backend.asarray, layer)) for layer in params)
    rows = backend.xp.asarray(X, chunks=((7, 0, 13), (3, 1)))
    rows = rows[backend.xp.asarray(np.ones(20, bool), chunks=(rows.chunks[0],))]  # of unknown number
    labels, logits = xs.mlp_predict(lazy, rows, validate=False), xs.mlp_logits(lazy, rows)
    with dask.config.set(scheduler=scheduler):
        labels, logits = dask.compute(labels, logits)
    expected = xs.mlp_logits(params, X)
    np.testing.assert_array_equal(np.isnan(logits), np.isnan(expected))
    sure = ~np.isnan(expected).any(axis=1)
    np.testing.assert_array_equal(labels[~sure], -1)
    np.testing.assert_array_equal(labels[sure], np.argmax(logits[sure], axis=1))


@pytest.mark.backends("dask")
def test_dask_with_classes_in_chunks_and_blocks_without_rows(backend, rng):
    da = backend.library
    params, X = xs.init_params((D, C), rng=rng), rng.standard_normal((6, D))
    X[5, 0] = np.nan
    held = (xs.Layer(da.from_array(params[0].weight, chunks=2), da.from_array(params[0].bias, chunks=2)),)
    inputs = da.from_array(X, chunks=((0, 2, 0, 1, 3, 0), 3))
    np.testing.assert_array_equal(
        xs.mlp_predict(held, inputs, validate=False).compute(), xs.mlp_predict(params, X, validate=False)
    )
    with pytest.raises(ValueError, match=r"got nan at row 5\."):
        xs.mlp_predict(held, inputs).compute()


# --- tracing, and waiting ---------------------------------------------------------------------------------------------


@pytest.mark.backends("jax")
@pytest.mark.parametrize("max_memory", [None, 1000])
def test_jit(backend, rng, max_memory):
    import jax

    params, X = xs.init_params((D, H, C), rng=rng), rng.standard_normal((11, D))
    X[3, 3] = np.nan
    held, inputs = moved(backend, params), backend.asarray(X)
    labels = jax.jit(lambda p, X: xs.mlp_predict(p, X, validate=False, max_memory=max_memory))(held, inputs)
    np.testing.assert_array_equal(labels, xs.mlp_predict(params, X, validate=False))
    message = (
        r"^validate must be False inside jax\.jit and jax\.vmap, got True: "
        r"while a function is traced its logits have no values\."
    )
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda X: xs.mlp_predict(held, X))(inputs)


@pytest.mark.backends("torch")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_compile_in_one_graph(backend, rng):
    params, X = xs.init_params((D, H, C), rng=rng), rng.standard_normal((11, D))
    X[3, 3] = np.nan
    held, torch = moved(backend, params), backend.library
    torch.compiler.reset()
    compiled = torch.compile(
        lambda p, X: xs.mlp_predict(p, X, validate=False, max_memory=1000), backend="eager", fullgraph=True
    )
    np.testing.assert_array_equal(compiled(held, backend.asarray(X)).numpy(), xs.mlp_predict(params, X, validate=False))


@pytest.mark.backends("torch")
def test_tensors_without_values(backend):
    params = moved(backend, xs.init_params((D, H, C), rng=0))
    X, torch = backend.asarray(np.ones((3, D))), backend.library
    there = tuple(xs.Layer(*(array.to("meta") for array in layer)) for layer in params)
    with pytest.raises(ValueError, match=r"^validate must be False on the meta device, got True: its tensors have no"):
        xs.mlp_predict(there, X.to("meta"))
    assert tuple(xs.mlp_predict(there, X.to("meta"), validate=False).shape) == (3,)

    def one(x, **options):
        return xs.mlp_predict(params, x[None, :], **options)[0]

    assert torch.func.vmap(lambda x: one(x, validate=False))(X).shape == (3,)
    with pytest.raises(
        ValueError, match=r"^validate must be False inside torch\.func\.vmap, got True: there logits have"
    ):
        torch.func.vmap(one)(X)


@pytest.mark.backends("torch", "cupy")
@pytest.mark.parametrize("max_memory", [None, 1000])
def test_it_waits_once_with_validate_and_never_without(max_memory, backend, rng, monkeypatch):
    params, X = xs.init_params((D, H, C), rng=rng), rng.standard_normal((20, D))
    held, inputs = moved(backend, params), backend.asarray(X)
    # Without views, which are on the host: tensors of a device go the same way.
    options = {"max_memory": max_memory, "impl": "generic" if backend.name == "torch" else "auto"}
    with counted_waits(backend, monkeypatch) as waits:
        xs.mlp_predict(held, inputs, validate=False, **options)
        assert waits == []
        float(inputs[0, 0])
        assert len(waits) == 1  # the net has no hole where it matters
        xs.mlp_predict(held, inputs, **options)
    assert len(waits) == 2


@contextlib.contextmanager
def counted_waits(backend, monkeypatch):
    """What brings a number to the host, by name; one that calls another is one wait."""
    waits, within = [], []
    kind = backend.xp.Tensor if backend.name == "torch" else backend.library.ndarray

    def counting(name):
        original = getattr(kind, name)

        def counted(self, *args, **kwargs):
            if not within:
                waits.append(name)
            within.append(name)
            try:
                return original(self, *args, **kwargs)
            finally:
                within.pop()

        return counted

    with monkeypatch.context() as patch:
        for name in ("__bool__", "__float__", "__int__", "__index__", "item", "tolist", "numpy", "cpu", "get"):
            if hasattr(kind, name):
                patch.setattr(kind, name, counting(name))
        yield waits


# --- the first row that is not finite ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("budget", [1, 120, 10**6])
def test_the_first_row_that_is_not_finite(budget, value, backend, rng):
    if backend.name == "dask":
        pytest.skip("block by block: test_dask.py")
    X, weight = rng.standard_normal((23, D)), np.ones(23)
    X[[3, 17, 20], [4, 0, 1]] = value
    weight[3] = 0.0  # a row that does not count may hold anything
    held = backend.asarray(X), backend.asarray(weight)
    with quiet(backend.xp, device(held[0])):
        bad = first_not_finite(backend.xp, "X", *held, budget)
    assert (bad.name, bad.position) == ("X", (17,))
    np.testing.assert_equal(bad.value, value)
    weight[[17, 20]] = 0.0
    with quiet(backend.xp, device(held[0])):
        assert first_not_finite(backend.xp, "X", held[0], backend.asarray(weight), budget) is None


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_large_numbers_are_finite(dtype):
    """Their sum is not: it is the quick look of NumPy arrays."""
    X = np.full((40, D), np.finfo(dtype).max, dtype)
    assert first_not_finite(np, "X", X, np.ones(40), 10**6) is None
