"""Networks on every array library: shapes, options, weights, chunks and partial sums."""

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from assertions import EPS, assert_close, assert_like, assert_within

import xpsoftmax as xs
from xpsoftmax._arguments import views

N, D, H, C = 23, 6, 8, 5  # N is prime: no chunk size divides it


@pytest.fixture
def problem(rng):
    """NumPy float64 parameters of a two-layer network, inputs and labels."""
    return xs.init_params((D, H, C), rng=rng), rng.standard_normal((N, D)), rng.integers(0, C, N)


def moved(backend, params, dtype):
    return tuple(xs.Layer(*(backend.asarray(a, dtype) for a in layer)) for layer in params)


def arrays(grads):
    return [array for layer in grads for array in layer]


def assert_grads(backend, grads, expected, *, dtype, eps):
    """Every gradient within (N + D + H + C) eps of the largest entry: what the longest sums can round to."""
    for grad, wanted in zip(arrays(grads), arrays(expected), strict=True):
        assert_like(grad, backend=backend, dtype=dtype, shape=wanted.shape)
        bound = (N + D + H + C) * eps * np.abs(wanted).max()
        assert assert_within(backend.to_numpy(grad), wanted, bound=bound) == wanted.size


# --- every library ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "logistic", "silu", "gelu"])
def test_gradients_equal_numpy_float64(activation, backend, impl, dtype, problem):
    params, X, y = problem
    params = moved(backend, params, dtype)
    rounded = tuple(xs.Layer(*(backend.to_numpy(a).astype("f8") for a in layer)) for layer in params)
    X = X.astype(dtype)
    expected_loss, expected = xs.mlp_loss_and_grad(rounded, X.astype("f8"), y, activation=activation, reg=0.1)
    options = {"activation": activation, "reg": 0.1, "impl": impl}
    loss, grads = xs.mlp_loss_and_grad(params, backend.asarray(X), backend.asarray(y), **options)
    assert_close(loss, expected_loss, backend=backend, dtype=dtype, ulps=N + D + H + C)
    assert_grads(backend, grads, expected, dtype=dtype, eps=EPS[dtype])
    assert isinstance(grads[0], xs.Layer)


def test_a_million_rows_leave_the_gradient_of_a_bias_its_digits(backend):
    """One after the other, equal float32 terms would leave two digits.

    Sums of at most 256 terms one after the other, and of their sums in parts: 256 eps of the sum of absolute values,
    which is 1/2 here, and the rounding of the terms.
    """
    rows = 1_000_000
    params = (xs.Layer(np.zeros((1, 2)), np.zeros(2)),)
    y = (np.arange(rows) % 10 == 0).astype(int)
    inputs = backend.asarray(np.ones((rows, 1), "f4")), backend.asarray(y)
    _, grads = xs.mlp_loss_and_grad(moved(backend, params, "float32"), *inputs)
    bound = (256 + 4) * EPS["float32"] * 0.5
    assert assert_within(backend.to_numpy(grads[0].bias), np.array([-0.4, 0.4]), bound=bound) == 2


def test_loss_equals_that_of_loss_and_grad(backend, problem):
    params, X, y = problem
    params, X, y = moved(backend, params, "float64"), backend.asarray(X), backend.asarray(y)
    loss, _ = xs.mlp_loss_and_grad(params, X, y, reg=0.1)
    assert_close(xs.mlp_loss(params, X, y, reg=0.1), backend.to_numpy(loss), backend=backend, dtype="float64", ulps=0)


def test_logits_and_predictions(backend, dtype, problem):
    params, X, _ = problem
    W1, b1, W2, b2 = (a.astype(dtype) for layer in params for a in layer)
    expected = np.maximum(X.astype(dtype).astype("f8") @ W1 + b1, 0.0) @ W2 + b2
    params, X = moved(backend, params, dtype), backend.asarray(X, dtype)
    logits = xs.mlp_logits(params, X)
    assert_like(logits, backend=backend, dtype=dtype, shape=(N, C))
    bound = (D + H) * EPS[dtype] * np.abs(expected).max()
    assert assert_within(backend.to_numpy(logits), expected, bound=bound) == N * C
    labels = xs.mlp_predict(params, X)
    assert tuple(labels.shape) == (N,)
    assert backend.xp.isdtype(labels.dtype, "integral")
    np.testing.assert_array_equal(backend.to_numpy(labels), backend.to_numpy(logits).argmax(axis=1))


@pytest.mark.parametrize(
    ("dtype", "names"), [("float16", ("numpy", "torch", "jax", "cupy")), ("bfloat16", ("torch", "jax", "cupy"))]
)
def test_sixteen_bit_parameters_are_computed_in_float32(dtype, names, backend, problem, monkeypatch):
    if backend.name not in names:
        pytest.skip(f"{backend.name} has no {dtype}")
    params, X, y = problem
    params, X, y = moved(backend, params, dtype), backend.asarray(X, dtype), backend.asarray(y)
    if dtype == "bfloat16":  # NumPy cannot read it: the float32 tensors must go the same way
        monkeypatch.setattr(views, "library_of", lambda array: None)
    wide = tuple(xs.Layer(*(backend.asarray(backend.to_numpy(a), "float32") for a in layer)) for layer in params)
    expected_loss, expected = xs.mlp_loss_and_grad(wide, backend.asarray(backend.to_numpy(X), "float32"), y)
    loss, grads = xs.mlp_loss_and_grad(params, X, y)
    assert_close(loss, backend.to_numpy(expected_loss), backend=backend, dtype="float32", ulps=0)
    for grad, wanted in zip(arrays(grads), arrays(expected), strict=True):
        assert_like(grad, backend=backend, dtype=dtype, shape=tuple(wanted.shape))
        rounded = backend.to_numpy(backend.asarray(backend.to_numpy(wanted), dtype))
        np.testing.assert_array_equal(backend.to_numpy(grad), rounded)


@pytest.mark.parametrize(
    ("dtype", "names"), [("float16", ("numpy", "torch", "jax", "cupy")), ("bfloat16", ("torch", "jax", "cupy"))]
)
def test_predictions_of_sixteen_bit_parameters_are_not_rounded(dtype, names, backend):
    """The second logit is larger, by less than 16 bits can tell near 256; those of the next row are beyond float16."""
    if backend.name not in names:
        pytest.skip(f"{backend.name} has no {dtype}")
    params = (xs.Layer(backend.asarray([[256.0, 256.0], [0.0, 0.0625]], dtype), backend.asarray([0.0, 0.0], dtype)),)
    X = backend.asarray([[1.0, 1.0], [1024.0, 1024.0]], dtype)
    np.testing.assert_array_equal(backend.to_numpy(xs.mlp_predict(params, X)), [1, 1])


def test_no_argument_is_modified(backend, problem):
    params, X, y = problem
    held = moved(backend, params, "float64"), backend.asarray(X), backend.asarray(y)
    xs.mlp_loss_and_grad(*held, reg=0.1, max_memory=3000)
    for array, original in zip([*arrays(held[0]), *held[1:]], [*arrays(params), X, y], strict=True):
        np.testing.assert_array_equal(backend.to_numpy(array), original)


@pytest.mark.backends("array_api_strict")
@pytest.mark.parametrize("function", [xs.mlp_logits, xs.mlp_predict, xs.mlp_loss, xs.mlp_loss_and_grad])
def test_kernels_are_not_promised_where_there_are_none(function, backend, problem):
    params, X, y = problem
    arguments = [backend.asarray(X), backend.asarray(y)][: 2 if "loss" in function.__name__ else 1]
    message = r'impl must be "auto" or "generic" for array_api_strict arrays .* got "kernel"'
    with pytest.raises(NotImplementedError, match=message):
        function(moved(backend, params, "float64"), *arguments, impl="kernel")


# --- regularisation and reductions ------------------------------------------------------------------------------------


def test_regularisation_leaves_biases_free(problem):
    params, X, y = problem
    params = tuple(xs.Layer(weight, bias + 1.0) for weight, bias in params)
    loss, grads = xs.mlp_loss_and_grad(params, X, y)
    loss_reg, grads_reg = xs.mlp_loss_and_grad(params, X, y, reg=0.5)
    squares = sum((weight**2).sum() for weight, _ in params)
    np.testing.assert_allclose(loss_reg - loss, 0.25 * squares, rtol=1e-13)
    for before, after, layer in zip(grads, grads_reg, params, strict=True):
        np.testing.assert_allclose(after.weight - before.weight, 0.5 * layer.weight, rtol=1e-12)
        np.testing.assert_array_equal(after.bias, before.bias)


def test_sum_is_the_mean_times_the_weight(problem, rng):
    params, X, y = problem
    weight = rng.uniform(size=N)
    mean, grads = xs.mlp_loss_and_grad(params, X, y, sample_weight=weight)
    total, grads_sum = xs.mlp_loss_and_grad(params, X, y, sample_weight=weight, reduction="sum")
    np.testing.assert_allclose(total, mean * weight.sum(), rtol=1e-13)
    for a, b in zip(arrays(grads), arrays(grads_sum), strict=True):
        np.testing.assert_allclose(b, a * weight.sum(), rtol=1e-11)


def test_mean_over_nothing_leaves_only_the_penalty(backend, problem):
    params, X, _ = problem
    held = moved(backend, params, "float64"), backend.asarray(X), backend.asarray(np.full(N, 3))
    loss, grads = xs.mlp_loss_and_grad(*held, ignore_index=3, reg=0.5)
    assert np.isnan(backend.to_numpy(loss))
    for (weight, bias), layer in zip(grads, params, strict=True):
        assert_close(weight, 0.5 * layer.weight, backend=backend, dtype="float64", ulps=0)
        assert_close(bias, np.zeros(layer.bias.shape), backend=backend, dtype="float64", ulps=0)


def test_empty_batch(backend, problem):
    params, X, y = problem
    held = moved(backend, params, "float64"), backend.asarray(X[:0]), backend.asarray(y[:0])
    loss, grads = xs.mlp_loss_and_grad(*held)
    assert np.isnan(backend.to_numpy(loss))
    assert all((backend.to_numpy(grad) == 0).all() for grad in arrays(grads))
    total, _ = xs.mlp_loss_and_grad(*held, reduction="sum")
    assert backend.to_numpy(total) == 0


@pytest.mark.parametrize("way", ["sample_weight", "ignore_index", "class_weight"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_row_of_weight_zero_may_hold_anything(way, poison, backend, problem):
    params, X, y = problem
    y = np.where(y == 4, 3, y)
    y[7] = 4
    keep = np.arange(N) != 7
    options = {
        "sample_weight": {"sample_weight": backend.asarray(keep.astype("f8"))},
        "ignore_index": {"ignore_index": 4},
        "class_weight": {"class_weight": backend.asarray(np.array([1.0, 1.0, 1.0, 1.0, 0.0]))},
    }[way]
    expected_loss, expected = xs.mlp_loss_and_grad(params, X[keep], y[keep])
    X[7] = poison
    held = moved(backend, params, "float64"), backend.asarray(X), backend.asarray(y)
    loss, grads = xs.mlp_loss_and_grad(*held, **options)
    assert_close(loss, expected_loss, backend=backend, dtype="float64", ulps=N)
    assert_grads(backend, grads, expected, dtype="float64", eps=EPS["float64"])


def test_every_loss_option_reaches_the_loss(problem, rng):
    params, X, y = problem
    options = {
        "class_weight": rng.uniform(size=C),
        "sample_weight": rng.uniform(size=N),
        "ignore_index": 2,
        "label_smoothing": 0.1,
        "z_loss": 0.01,
    }
    logits = xs.mlp_logits(params, X)
    plain = xs.softmax_loss(logits, y)
    for name, value in options.items():
        expected = xs.softmax_loss(logits, y, **{name: value})
        np.testing.assert_allclose(xs.mlp_loss(params, X, y, **{name: value}), expected, rtol=1e-14)
        assert abs(expected - plain) > 1e-6
    expected, dlogits = xs.softmax_loss_and_grad(logits, y, **options)
    loss, grads = xs.mlp_loss_and_grad(params, X, y, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    np.testing.assert_allclose(grads[-1].bias, dlogits.sum(axis=0), rtol=1e-11, atol=0)


def test_soft_targets_equal_labels(problem):
    params, X, y = problem
    loss, grads = xs.mlp_loss_and_grad(params, X, y)
    soft_loss, soft_grads = xs.mlp_loss_and_grad(params, X, np.eye(C)[y])
    np.testing.assert_allclose(soft_loss, loss, rtol=1e-14)
    for a, b in zip(arrays(soft_grads), arrays(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


# --- chunks and partial sums ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("budget", ["least", "half"])
def test_chunks_add_up(budget, reduction, soft, backend, problem, rng):
    params, X, y = problem
    targets = rng.uniform(size=(N, C)) if soft else y
    weight = rng.uniform(size=N)
    expected_loss, expected = xs.mlp_loss_and_grad(
        params, X, targets, sample_weight=weight, reduction=reduction, reg=0.1
    )
    held = moved(backend, params, "float64"), backend.asarray(X), backend.asarray(targets)
    options = {"sample_weight": backend.asarray(weight), "reduction": reduction, "reg": 0.1}
    # Dask arrays are not chunked, and the generic path holds more for a row.
    of_numpy = backend.name == "dask"
    least = least_memory(
        *((params, X, targets) if of_numpy else held), **({"sample_weight": weight} if of_numpy else options)
    )
    max_memory = least if budget == "least" else least * N // 2
    loss, grads = xs.mlp_loss_and_grad(*held, **options, max_memory=max_memory)
    assert_close(loss, expected_loss, backend=backend, dtype="float64", ulps=N + D + H + C)
    assert_grads(backend, grads, expected, dtype="float64", eps=EPS["float64"])


def least_memory(params, X, targets, **options):
    """What the error says that one row needs."""
    with pytest.raises(
        ValueError, match=r"max_memory must be at least \d+ bytes, what one row needs, got 1\."
    ) as error:
        xs.mlp_loss(params, X, targets, max_memory=1, **options)
    return int(str(error.value).split("least ")[1].split()[0])


@pytest.mark.parametrize("batches", [[12, 0, 11], [1, 1, 21]], ids=str)
def test_partial_sums_over_batches_equal_the_whole(batches, backend, problem, rng):
    params, X, y = problem
    weight = rng.uniform(size=N)
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "ignore_index": 2}
    expected_loss, expected = xs.mlp_loss_and_grad(params, X, y, sample_weight=weight, reg=0.1, **options)
    held = moved(backend, params, "float64")
    edges = np.cumsum([0, *batches])
    parts = [
        xs.mlp_partial_sums(
            held,
            backend.asarray(X[a:b]),
            backend.asarray(y[a:b]),
            sample_weight=backend.asarray(weight[a:b]),
            **options,
        )
        for a, b in pairwise(edges)
    ]
    loss, grads = reduce(lambda a, b: a + b, parts).finish(held, reg=0.1)
    assert_close(loss, expected_loss, backend=backend, dtype="float64", ulps=N + D + H + C)
    assert_grads(backend, grads, expected, dtype="float64", eps=EPS["float64"])


def test_sum_adds_partial_sums(problem):
    params, X, y = problem
    parts = [xs.mlp_partial_sums(params, X[i : i + 5], y[i : i + 5]) for i in range(0, N, 5)]
    expected, _ = xs.mlp_loss_and_grad(params, X, y)
    loss, _ = sum(parts).finish(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    with pytest.raises(TypeError):
        sum(parts, 1)


def test_partial_sums_of_nothing_finish_as_a_mean_over_nothing(backend, problem):
    params, X, y = problem
    held = moved(backend, params, "float64")
    loss, grads = xs.mlp_partial_sums(held, backend.asarray(X[:0]), backend.asarray(y[:0])).finish(held, reg=0.5)
    assert np.isnan(backend.to_numpy(loss))
    assert_close(grads[0].weight, 0.5 * params[0].weight, backend=backend, dtype="float64", ulps=0)


def test_partial_sums_keep_float32_for_sixteen_bit_parameters(problem):
    params, X, y = problem
    half = tuple(xs.Layer(*(a.astype("f2") for a in layer)) for layer in params)
    sums = xs.mlp_partial_sums(half, X.astype("f2"), y)
    assert {grad.dtype.name for grad in arrays(sums.grads)} == {"float32"}
    _, grads = sums.finish(half)
    assert {grad.dtype.name for grad in arrays(grads)} == {"float16"}


# --- initial parameters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "variance"), [("he", 2 / 300), ("glorot", 2 / 500), ("lecun", 1 / 300)])
def test_scheme_sets_the_variance(scheme, variance):
    (layer,) = xs.init_params((300, 200), rng=0, scheme=scheme)
    # 60 000 draws: the sample variance is within 3 % at five standard deviations
    assert np.var(layer.weight) == pytest.approx(variance, rel=0.03)
    assert (layer.bias == 0).all()


def test_std_takes_the_place_of_the_scheme():
    (layer,) = xs.init_params((300, 200), rng=0, std=1e-3)
    assert np.std(layer.weight) == pytest.approx(1e-3, rel=0.02)


def test_every_library_starts_from_the_same_numbers(backend, dtype):
    expected = xs.init_params((D, H, C), rng=5)
    options = {} if backend.device is None else {"device": backend.device}
    params = xs.init_params((D, H, C), rng=5, xp=backend.library, dtype=getattr(backend.library, dtype), **options)
    for got, wanted in zip(arrays(params), arrays(expected), strict=True):
        assert_close(got, wanted.astype(dtype), backend=backend, dtype=dtype, ulps=0)


def test_default_dtype_is_the_library_s(backend):
    params = xs.init_params((D, C), rng=0, xp=backend.library)
    assert params[0].weight.dtype == backend.xp.__array_namespace_info__().default_dtypes()["real floating"]


def test_rng_may_be_a_generator():
    generator = np.random.default_rng(3)
    first, second = xs.init_params((D, C), rng=generator), xs.init_params((D, C), rng=generator)
    assert (first[0].weight != second[0].weight).all()
    np.testing.assert_array_equal(first[0].weight, xs.init_params((D, C), rng=3)[0].weight)
