"""What JAX differentiates: gradients, products, Hessians of all functions, at ties and for sure rows too.

The references are the oracle in extended precision, and difference quotients of the plain formulas at 80 digits.
"""

import itertools
from functools import partial

import numpy as np
import oracle as exact
import pytest
from assertions import EPS, assert_same_bits, assert_within
from grid import far_apart, labels, logits
from mpmath import mp

import xpsoftmax as xs
from xpsoftmax import kernels

jax = pytest.importorskip("jax")
pytestmark = pytest.mark.backends("jax")

KINDS = ("scale-1", "scale-30", "equal", "ties", "minus-inf")


def quotient(function, arrays, name):
    """The derivative of function(**arrays) by every entry of one array, by central differences at 80 digits."""
    with mp.workdps(80):
        step = mp.mpf(10) ** -26
        result = np.empty(arrays[name].shape, object)
        for at in np.ndindex(result.shape):
            values = []
            for sign in (1, -1):
                moved = arrays[name].copy()
                moved[at] += sign * step
                values.append(function(**{**arrays, name: moved}))
            result[at] = (values[0] - values[1]) / (2 * step)
        return result


def exactly(arrays):
    """The same numbers for mpmath; integers as they are."""
    return {
        name: x if x.dtype.kind == "i" else np.vectorize(mp.mpf, otypes=[object])(x.astype(float))
        for name, x in arrays.items()
    }


def log_sum(z):
    return mp.log(sum(mp.exp(x) for x in z))


def plain_sums(
    logits, targets, sample_weight=None, class_weight=None, *, ignore_index=None, label_smoothing=0.0, z_loss=0.0
):
    """Sum of the weighted losses, and of the counting weights, as they are in the textbook."""
    classes = logits.shape[1]
    smoothing, z_loss = mp.mpf(label_smoothing), mp.mpf(z_loss)
    loss = count = mp.mpf(0)
    for i, z in enumerate(logits):
        hard = targets.ndim == 1
        if hard and targets[i] == ignore_index:
            continue
        weight = mp.mpf(1) if sample_weight is None else sample_weight[i]
        per_class = [mp.mpf(1)] * classes if class_weight is None else class_weight
        of_label = per_class[targets[i]] if hard else 1
        lse = log_sum(z)
        for j in range(classes):
            target = (mp.mpf(int(j == targets[i]))) if hard else targets[i, j]
            share = (1 - smoothing) * target + smoothing / classes
            if share != 0:
                loss += weight * per_class[j] * share * (lse - z[j])
        loss += weight * of_label * z_loss * lse**2
        count += weight * of_label
    return loss, count


def plain_loss(reduction, **given):
    loss, count = plain_sums(**given)
    return loss / count if reduction == "mean" else loss


def as_longdouble(x):
    return np.vectorize(lambda value: np.longdouble(mp.nstr(value, 25)), otypes=[np.longdouble])(x)


def device_arrays(backend, arrays, dtype):
    return {name: backend.asarray(x, None if x.dtype.kind == "i" else dtype) for name, x in arrays.items()}


# --- with respect to the logits ---------------------------------------------------------------------------------------

OPTIONS = {
    "labels": {},
    "smoothed": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.01},
    "class weights": {"class_weight": np.array([0.0, 1, 2, 1, 1, 0.5, 1, 3, 1, 1]), "label_smoothing": 0.2},
    "weights": {"sample_weight": np.arange(32.0) % 3, "class_weight": np.arange(1.0, 11), "ignore_index": 2},
}


@pytest.mark.parametrize("path", ["auto", "generic"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_gradient_by_the_logits(backend, path, dtype, rng, options, soft):
    options = dict(options)
    kinds = KINDS if options.get("label_smoothing", 0) == 0 else KINDS[:-1]  # a mass at a logit of -inf: a loss of inf
    if soft:
        options.pop("ignore_index", None)
    given = {k: backend.asarray(v, dtype) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    gradient = jax.jit(jax.grad(lambda z, y: xs.softmax_loss(z, y, impl=path, validate=False, **given)))
    compared = 0
    for kind in kinds:
        z = logits(rng, kind, 10, dtype)
        y = z.argmax(axis=1) if kind == "minus-inf" else labels(rng, z)
        if soft:
            y = np.where(np.isinf(z), 0, rng.dirichlet(np.ones(10), size=len(z))).astype(dtype)
        desired = exact.softmax_loss(z, y, **options).grad
        actual = gradient(backend.asarray(z), backend.asarray(y))
        compared += assert_within(backend.to_numpy(actual), desired.value, bound=desired.bound, where=desired.where)
    assert compared >= 0.9 * 320 * len(kinds)


@pytest.mark.parametrize("ahead", [False, True])
def test_gradient_of_sure_rows(backend, dtype, rng, ahead):
    """The others' probabilities are subnormal numbers, or one's own: their sum, times a weight, is not."""
    z = far_apart(rng, 1000, dtype, ahead=ahead)[0][:, :1000]
    z = np.where(z == z.max(axis=1, keepdims=True), z - 20, z).astype(dtype)
    y = z.argmax(axis=1)
    desired = exact.softmax_loss(z, y).grad
    actual = jax.grad(lambda x: xs.softmax_loss(x, backend.asarray(y)))(backend.asarray(z))
    assert assert_within(backend.to_numpy(actual), desired.value, bound=desired.bound, where=desired.where) > 1000


def test_ties_by_hand(backend):
    array = backend.asarray
    np.testing.assert_array_equal(
        jax.grad(lambda z: xs.softmax_loss(z, array(np.array(0))))(array(np.ones(2))), [-0.5, 0.5]
    )
    p = np.exp([1.0, 1, 0]) / np.exp([1.0, 1, 0]).sum()
    np.testing.assert_allclose(jax.grad(xs.logsumexp)(array(np.array([1.0, 1, 0]))), p, rtol=1e-15)
    tail = jax.grad(lambda z: xs.log_softmax(z)[0])(array(np.array([37.43, 0.0])))
    np.testing.assert_allclose(tail, np.exp(-37.43) * np.array([1, -1]), rtol=1e-14)


@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.01}], ids=["plain", "all"])
def test_16_bit_gradients_are_our_own(backend, rng, narrow, soft, options):
    """In every other row two logits are the largest, as often happens with 16 bits."""
    wide = 2 * rng.normal(size=(64, 1000))
    wide[::2, 7] = wide[::2].max(axis=1)
    z = backend.asarray(wide, narrow)
    wide = backend.to_numpy(z)
    y = backend.asarray(rng.dirichlet(np.ones(1000), size=64), narrow) if soft else backend.asarray(labels(rng, wide))
    actual = jax.grad(lambda x: xs.softmax_loss(x, y, reduction="sum", **options))(z)
    desired = xs.softmax_loss_and_grad(z, y, reduction="sum", impl="generic", **options)[1]
    assert actual.dtype == desired.dtype == z.dtype
    assert_same_bits(backend.to_numpy(actual), backend.to_numpy(desired))


# --- with respect to everything ---------------------------------------------------------------------------------------

R, C = 5, 4
Z = np.array([[1.0, 1, 0, -2], [0, 0, 0, 0], [45, 0, 0, 1], [-3, 2, 2, 1], [0.5, -1, 3, 3]])
Y = np.array([0, 3, 0, 1, 2])
ONE_HOT = np.eye(C)[Y]
SAMPLE = np.array([1.0, 0, 2, 0.5, 0])
PER_CLASS = np.array([1.0, 0, 0.5, 2])
ARGUMENTS = {
    "labels": ({"targets": Y, "sample_weight": SAMPLE}, {}),
    "class weights": ({"targets": Y, "sample_weight": SAMPLE, "class_weight": PER_CLASS}, {}),
    "smoothed": ({"targets": Y, "sample_weight": SAMPLE, "class_weight": PER_CLASS}, {"label_smoothing": 0.25}),
    "ignored": ({"targets": Y, "sample_weight": SAMPLE, "class_weight": PER_CLASS}, {"ignore_index": 3}),
    "z_loss": (
        {"targets": Y, "sample_weight": SAMPLE, "class_weight": PER_CLASS},
        {"label_smoothing": 0.25, "z_loss": 0.125},
    ),
    "z_loss, labels": ({"targets": Y, "sample_weight": SAMPLE, "class_weight": PER_CLASS}, {"z_loss": 0.125}),
    "one-hot": ({"targets": ONE_HOT, "sample_weight": SAMPLE}, {}),
    "one-hot, all": (
        {"targets": ONE_HOT, "sample_weight": SAMPLE, "class_weight": PER_CLASS},
        {"label_smoothing": 0.25, "z_loss": 0.125},
    ),
}
every_argument = pytest.mark.parametrize(("arrays", "options"), ARGUMENTS.values(), ids=ARGUMENTS)


def loss_of(names, options, reduction, **more):
    """Our loss as a function of arrays in the order of their names."""

    def function(*arrays):
        given = dict(zip(names, arrays, strict=True))
        return xs.softmax_loss(
            given.pop("logits"), given.pop("targets"), reduction=reduction, **given, **options, **more
        )

    return function


@every_argument
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_derivatives_by_every_argument(backend, dtype, arrays, options, reduction, compiled):
    """Also by weights and targets that are 0: what the loss would become if they were not."""
    arrays = {"logits": Z, **arrays}
    names = [name for name, x in arrays.items() if x.dtype.kind == "f" and name != "logits"]
    function = loss_of(list(arrays), options, reduction, validate=not compiled)
    gradient = jax.grad(function, argnums=tuple(list(arrays).index(name) for name in names))
    given = device_arrays(backend, arrays, dtype).values()
    actual = (jax.jit(gradient) if compiled else gradient)(*given)
    numbers = exactly(arrays)
    loss, count = plain_sums(**numbers, **options)
    B = exact.bound(Z.astype(dtype))
    for name, result in zip(names, actual, strict=True):
        value = quotient(partial(plain_loss, reduction, **options), numbers, name)
        # The terms: derivatives of the sum, of one sign, and of what it is divided by.
        terms = quotient(lambda **x: plain_sums(**x, **options)[0], numbers, name)
        if reduction == "mean":
            of_count = quotient(lambda **x: plain_sums(**x, **options)[1], numbers, name)
            terms = (terms + of_count * loss / count) / count
        bound = {"targets": B, "sample_weight": B[:, 0], "class_weight": B.max()}[name] * as_longdouble(terms)
        assert assert_within(backend.to_numpy(result), as_longdouble(value), bound=bound) == value.size


@every_argument
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_forward_and_reverse_mode_agree(backend, rng, arrays, options, reduction):
    arrays = {"logits": Z, **arrays}
    given = list(device_arrays(backend, arrays, "float64").values())
    floating = [i for i, x in enumerate(given) if arrays[list(arrays)[i]].dtype.kind == "f"]
    function = loss_of(list(arrays), options, reduction)

    def of_floating(*some):
        every = list(given)
        for i, x in zip(floating, some, strict=True):
            every[i] = x
        return function(*every)

    point = [given[i] for i in floating]
    direction = [backend.asarray(rng.normal(size=x.shape)) for x in point]
    _, forward = jax.jvp(of_floating, point, direction)
    gradients = jax.grad(of_floating, argnums=tuple(range(len(point))))(*point)
    products = [backend.to_numpy(g * v) for g, v in zip(gradients, direction, strict=True)]
    bound = exact.bound(Z).max() * sum(np.abs(x).sum() for x in products)
    assert assert_within(backend.to_numpy(forward), sum(x.sum() for x in products), bound=bound) == 1


SECOND = {
    "forward over reverse": lambda f, n: jax.jacfwd(jax.grad(f, n), n),
    "reverse over reverse": lambda f, n: jax.jacrev(jax.grad(f, n), n),
    "forward over forward": lambda f, n: jax.jacfwd(jax.jacfwd(f, n), n),
    "reverse over forward": lambda f, n: jax.jacrev(jax.jacfwd(f, n), n),
}


@every_argument
def test_second_derivatives_by_every_argument(backend, arrays, options):
    """To rounding, in each pair of arguments: 1000 eps of the largest of the pair, far from what a kink does."""
    arrays = {"logits": Z, **arrays}
    names = [name for name, x in arrays.items() if x.dtype.kind == "f"]
    positions = tuple(list(arrays).index(name) for name in names)
    function = loss_of(list(arrays), options, "sum")
    given = device_arrays(backend, arrays, "float64").values()
    numbers = exactly(arrays)
    actual = [SECOND[mode](function, positions)(*given) for mode in SECOND]
    for (i, one), (j, other) in itertools.product(enumerate(names), enumerate(names)):
        desired = as_longdouble(second_quotient(lambda **x: plain_sums(**x, **options)[0], numbers, one, other))
        for matrices in actual:
            assert_second(backend.to_numpy(matrices[i][j]), desired)


def second_quotient(function, arrays, one, other):
    """The derivative by every entry of `one` and every entry of `other`."""
    with mp.workdps(80):
        step = mp.mpf(10) ** -26
        result = np.empty(arrays[one].shape + arrays[other].shape, object)
        for at in np.ndindex(arrays[one].shape):
            slopes = []
            for sign in (1, -1):
                moved = {**arrays, one: arrays[one].copy()}
                moved[one][at] += sign * step
                slopes.append(quotient(function, moved, other))
            result[at] = (slopes[0] - slopes[1]) / (2 * step)
        return result


def assert_second(actual, desired):
    assert actual.shape == desired.shape
    assert np.abs(actual - desired).max() <= 1000 * EPS["float64"] * max(np.abs(desired).max(), 1e-3)


# --- softmax and its relatives ----------------------------------------------------------------------------------------


def plain_softmax(z):
    lse = log_sum(z)
    return [mp.exp(x - lse) for x in z]


FUNCTIONS = {
    "softmax": (xs.softmax, lambda z: plain_softmax(z)),
    "log_softmax": (xs.log_softmax, lambda z: [x - log_sum(z) for x in z]),
    "logsumexp": (lambda z: xs.logsumexp(z, keepdims=True), lambda z: [log_sum(z)]),
    "softmax_jvp": (
        lambda z: xs.softmax_jvp(z, z + 1),
        lambda z: [
            p * sum(q * (z[k] - x) for q, x in zip(plain_softmax(z), z, strict=True))
            for k, p in enumerate(plain_softmax(z))
        ],
    ),
    "softmax_jacobian": (
        lambda z: xs.softmax_jacobian(z).reshape(-1),
        lambda z: [p * ((i == j) - q) for i, p in enumerate(plain_softmax(z)) for j, q in enumerate(plain_softmax(z))],
    ),
}
ROWS = (Z[0], Z[1], Z[3], np.array([30.0, 0, 0, 30]))


@pytest.mark.parametrize(("ours", "plain"), FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("order", [1, 2])
def test_jacobians_of_softmax_and_its_relatives(backend, ours, plain, order):
    """Of one row, by forward and reverse mode, to rounding: 1000 eps of the largest entry."""
    modes = itertools.product((jax.jacfwd, jax.jacrev), repeat=order)
    derivatives = [jax.jit(_nested(ours, mode)) for mode in modes]
    for row in ROWS:
        arrays = exactly({"z": row})
        count = len(plain(arrays["z"]))
        desired = []
        for k in range(count):
            part = lambda z, k=k: plain(z)[k]  # noqa: E731
            desired.append(quotient(part, arrays, "z") if order == 1 else second_quotient(part, arrays, "z", "z"))
        desired = as_longdouble(np.array(desired))
        for derivative in derivatives:
            assert_second(backend.to_numpy(derivative(backend.asarray(row))), desired)


def _nested(function, mode):
    for transform in mode:
        function = transform(function)
    return function


@pytest.mark.parametrize("kind", KINDS)
def test_products_with_the_jacobians(backend, dtype, rng, kind):
    """jvp and vjp of softmax and log_softmax, of the directions too that have a large constant part."""
    z = logits(rng, kind, 10, dtype)
    v = (rng.normal(size=z.shape) + 1000 * (np.arange(len(z)) % 2)[:, None]).astype(dtype)
    point, direction = backend.asarray(z), backend.asarray(v)
    desired = exact.softmax_jvp(z, v)
    for actual in (jax.jvp(xs.softmax, (point,), (direction,))[1], jax.vjp(xs.softmax, point)[1](direction)[0]):
        assert assert_within(backend.to_numpy(actual), desired.value, bound=desired.bound, where=desired.where) > 100
    p = exact.softmax(z).value
    wide = v.astype(np.longdouble)
    steps = wide[:, :, None] - wide[:, None, :]
    B = exact.bound(z)
    along, terms = (steps * p[:, None, :]).sum(axis=2), (abs(steps) * p[:, None, :]).sum(axis=2)
    actual = jax.jvp(xs.log_softmax, (point,), (direction,))[1]
    assert assert_within(backend.to_numpy(actual), along, bound=B * terms, where=exact.normal(z, along)) > 100
    one_less = np.where(p > 0, 1 - p, 1)
    sure = p.argmax(axis=1)
    rows = np.arange(len(z))
    others = np.where(np.arange(10) == sure[:, None], 0, p)
    one_less[rows, sure] = others.sum(axis=1)
    rest_of_v = v.astype(np.longdouble).sum(axis=1, keepdims=True) - wide
    back = wide * one_less - p * rest_of_v
    bound = B * (abs(wide) * one_less + p * (abs(wide).sum(axis=1, keepdims=True) - abs(wide)))
    actual = jax.vjp(xs.log_softmax, point)[1](direction)[0]
    assert assert_within(backend.to_numpy(actual), back, bound=bound, where=exact.normal(z, back)) > 100


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_vmap_over_every_number_of_dimensions(backend, rng):
    z, y = backend.asarray(rng.normal(size=(3, 4, 2, 5))), backend.asarray(rng.integers(5, size=(3, 4, 2)))
    loss = partial(xs.softmax_loss, validate=False)
    of_rows = jax.vmap(jax.vmap(jax.vmap(loss)))(z, y)
    np.testing.assert_allclose(of_rows, xs.softmax_loss(z, y, reduction="none"), rtol=1e-15)
    for function, axis in ((xs.softmax, 0), (xs.log_softmax, 2), (xs.logsumexp, 1), (xs.softmax_jacobian, 0)):
        actual = jax.vmap(partial(function, axis=axis))(z)
        desired = np.stack([backend.to_numpy(function(part, axis=axis)) for part in z])
        np.testing.assert_allclose(actual, desired, rtol=1e-14)
    gradients = jax.vmap(jax.grad(loss))(z, y)
    desired = np.stack([backend.to_numpy(xs.softmax_loss_and_grad(*part)[1]) for part in zip(z, y, strict=True)])
    np.testing.assert_allclose(gradients, desired, rtol=1e-14)


# --- rows without a weight --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_rows_that_do_not_count_reach_no_derivative(backend, lost):
    """They hold anything, are labelled with anything, and every derivative, in both modes, is finite."""
    z = Z.copy()
    z[1], z[4, 2] = lost, -np.inf  # row 4 is at its label what cannot be
    labels = np.array([0, -100, 0, 1, 2])
    arrays = {"logits": z, "targets": labels, "sample_weight": np.array([1.0, 1, 2, 1, 0]), "class_weight": PER_CLASS}
    for reduction in ("mean", "sum"):
        function = loss_of(list(arrays), {"ignore_index": -100}, reduction)
        given = list(device_arrays(backend, arrays, "float64").values())
        gradients = jax.grad(function, argnums=(0, 2, 3))(*given)
        assert all(np.isfinite(backend.to_numpy(x)).all() for x in gradients)
        assert not backend.to_numpy(gradients[0])[[1, 4]].any()
        for position in (0, 2, 3):
            directions = [
                np.zeros(x.shape, x.dtype if x.dtype.kind == "f" else jax.dtypes.float0) for x in arrays.values()
            ]
            directions[position] = np.ones(directions[position].shape)
            directions = [x if x.dtype == jax.dtypes.float0 else backend.asarray(x) for x in directions]
            assert np.isfinite(jax.jvp(function, given, directions)[1])


def test_a_mass_where_there_can_be_none(backend):
    """One-hot targets and a logit of -inf: the loss grows without bound with its mass, and by the others as it does."""
    z, q = backend.asarray(np.array([[0.0, 0, -np.inf]])), backend.asarray(np.array([[1.0, 0, 0]]))
    loss = partial(xs.softmax_loss, reduction="sum")
    for mode in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(mode(loss, argnums=1)(z, q), [[np.log(2), np.log(2), np.inf]], rtol=1e-15)
        np.testing.assert_allclose(mode(loss, argnums=0)(z, q), [[-0.5, 0.5, 0]], rtol=1e-15)


# --- networks ---------------------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": lambda z: z if z > 0 else z * 0,
    "tanh": mp.tanh,
    "logistic": lambda z: 1 / (1 + mp.exp(-z)),
    "silu": lambda z: z / (1 + mp.exp(-z)),
    "gelu": lambda z: z / (1 + mp.exp(-2 * mp.sqrt(2 / mp.pi) * (z + mp.mpf("0.044715") * z**3))),
}
X = np.array([[0.0, 0], [1, -1], [-2, 0.5], [0.5, 3]])  # the first row meets every activation at 0
LABELS = np.array([0, 2, 1, 2])
WEIGHTS = np.array([1.0, 0, 2, 0.5])


def network(rng):
    return {
        "w1": rng.normal(size=(2, 3)), "b1": np.zeros(3), "w2": rng.normal(size=(3, 3)), "b2": rng.normal(size=3),
        "X": X, "sample_weight": WEIGHTS,
    }  # fmt: skip


def our_network(function, activation, y):
    def loss(w1, b1, w2, b2, X, sample_weight, **more):
        params = (xs.Layer(w1, b1), xs.Layer(w2, b2))
        return function(params, X, y, activation=activation, sample_weight=sample_weight, **more)

    return loss


def plain_network(activation, w1, b1, w2, b2, X, sample_weight):
    f = ACTIVATIONS[activation]
    hidden = np.vectorize(f, otypes=[object])(X @ w1 + b1)
    return plain_loss("mean", logits=hidden @ w2 + b2, targets=LABELS, sample_weight=sample_weight)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "relu"])
def test_derivatives_of_networks(backend, rng, activation):
    """First ones by every argument, and second ones by the first weights; to rounding."""
    arrays = network(rng)
    given = [backend.asarray(x) for x in arrays.values()]
    loss = our_network(partial(xs.mlp_loss, validate=False), activation, backend.asarray(LABELS))
    gradients = jax.jit(jax.grad(loss, argnums=tuple(range(6))))(*given)
    numbers, plain = exactly(arrays), partial(plain_network, activation)
    for name, actual in zip(arrays, gradients, strict=True):
        assert_second(backend.to_numpy(actual), as_longdouble(quotient(plain, numbers, name)))
    for argument, name in enumerate(("w1", "b1")):
        desired = as_longdouble(second_quotient(plain, numbers, name, name))
        for mode in ("forward over reverse", "reverse over reverse"):
            assert_second(backend.to_numpy(jax.jit(SECOND[mode](loss, argument))(*given)), desired)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_networks_are_our_own(backend, dtype, rng, activation):
    """Where the first row is at the kink of ReLU, and the last layer is zero."""
    arrays = {**network(rng), "w2": np.zeros((3, 3)), "b2": np.zeros(3)}
    given = [backend.asarray(x, dtype) for x in arrays.values()]
    y = backend.asarray(LABELS)
    actual = jax.grad(our_network(xs.mlp_loss, activation, y), argnums=(0, 1, 2, 3))(*given)
    _, desired = our_network(xs.mlp_loss_and_grad, activation, y)(*given)
    scale = max(np.abs(backend.to_numpy(x)).max() for layer in desired for x in layer)
    assert backend.to_numpy(actual[2]).any()  # identically 0 if ties were kinks
    for a, d in zip(actual, itertools.chain(*desired), strict=True):
        np.testing.assert_allclose(a, backend.to_numpy(d), rtol=8 * EPS[dtype], atol=8 * EPS[dtype] * float(scale))


def test_networks_where_dimensions_must_be_written_out(backend, rng):
    """JAX can refuse to add a matrix and a vector."""
    params = xs.init_params((3, 4, 2), rng=0, xp=backend.library, activation="gelu")
    X, y = backend.asarray(rng.normal(size=(5, 3))), backend.asarray(np.arange(5) % 2)
    desired = jax.grad(xs.mlp_loss)(params, X, y)
    with jax.numpy_rank_promotion("raise"):
        for grads in (jax.grad(xs.mlp_loss)(params, X, y), xs.mlp_loss_and_grad(params, X, y)[1]):
            for layer, like in zip(grads, desired, strict=True):
                np.testing.assert_allclose(layer.weight, like.weight, rtol=1e-13, atol=1e-15)
        xs.train(params, X, y, optimizer=xs.adam(0.1), epochs=1, batch_size=2, rng=0, class_weight=X[0, :2] ** 2)


def test_relu_at_zero_has_slope_zero(backend):
    params = (
        xs.Layer(backend.asarray(np.ones((1, 2))), backend.asarray(np.zeros(2))),
        xs.Layer(backend.asarray(np.eye(2)), backend.asarray(np.array([1.0, 0]))),
    )
    y = backend.asarray(np.array([0]))
    gradient = jax.grad(lambda x: xs.mlp_loss(params, x, y))
    np.testing.assert_array_equal(gradient(backend.asarray(np.zeros((1, 1)))), [[0.0]])
    hidden = jax.grad(lambda p: xs.mlp_logits(p, backend.asarray(np.zeros((1, 1))))[0, 0])(params)
    np.testing.assert_array_equal(hidden[0].bias, [0.0, 0.0])


def test_products_with_the_hessian_of_a_network(backend, rng):
    """Differentiating `mlp_loss_and_grad` and `mlp_partial_sums` along a direction: the Hessian of `mlp_loss`."""
    arrays = network(rng)
    given = [backend.asarray(x) for x in arrays.values()]
    y = backend.asarray(LABELS)
    directions = [backend.asarray(rng.normal(size=x.shape)) for x in given]
    for activation in ACTIVATIONS:
        loss = our_network(xs.mlp_loss, activation, y)
        _, desired = jax.jvp(jax.grad(loss, argnums=(0, 1, 2, 3)), given, directions)
        summed = lambda *args, **options: xs.mlp_partial_sums(*args, **options).finish(args[0])  # noqa: E731
        for function in (xs.mlp_loss_and_grad, summed):
            _, (_, actual) = jax.jvp(our_network(function, activation, y), given, directions)
            for a, d in zip(itertools.chain(*actual), desired, strict=True):
                np.testing.assert_allclose(a, d, rtol=1e-12, atol=1e-13)


def test_an_output_layer_of_zeros_trains(backend, rng):
    """Every row is a tie of all classes at first."""
    inputs = rng.normal(size=(60, 2))
    y = backend.asarray((inputs[:, 0] > 0).astype(int) + (inputs[:, 1] > 0))
    inputs = backend.asarray(inputs, "float32")
    params = list(xs.init_params((2, 16, 3), rng=0, xp=backend.library, dtype=backend.xp.float32))
    params[-1] = xs.Layer(params[-1].weight * 0, params[-1].bias)
    step = jax.jit(jax.value_and_grad(lambda params: xs.mlp_loss(params, inputs, y, validate=False)))
    for _ in range(60):
        loss, grads = step(params)
        params = [xs.Layer(*(x - g for x, g in zip(*pair, strict=True))) for pair in zip(params, grads, strict=True)]
    assert loss < 0.4  # log(3) = 1.1 at first


@pytest.mark.parametrize("lost", [np.nan, np.inf, 1e300])
def test_rows_of_a_network_that_do_not_count(backend, rng, lost):
    """Whatever they hold, derivatives are finite; and that by their weight is their loss where they have one."""
    arrays = network(rng)
    arrays["X"] = np.vstack([X, np.full((1, 2), lost)])
    arrays["sample_weight"] = np.append(WEIGHTS, 0.0)
    arrays["w1"] *= 1e10  # what is 1e300 overflows
    y = backend.asarray(np.append(LABELS, 1))
    given = [backend.asarray(x) for x in arrays.values()]
    for activation in ("tanh", "relu"):
        loss = our_network(xs.mlp_loss, activation, y)
        gradients = jax.grad(partial(loss, reduction="sum"), argnums=tuple(range(6)))(*given)
        assert all(np.isfinite(backend.to_numpy(x)).all() for x in gradients)
        logits = xs.mlp_logits((xs.Layer(*given[:2]), xs.Layer(*given[2:4])), given[4], activation=activation)
        rows = xs.softmax_loss(logits, y, reduction="none")
        np.testing.assert_allclose(gradients[5][:4], rows[:4], rtol=1e-12)


# --- where the rules are ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation", ["softmax_rows", "log_softmax_rows", "logsumexp_rows", "softmax_loss_rows", "bias_activation"]
)
@pytest.mark.parametrize("choice", ["auto", "generic"])
def test_jax_arrays_get_the_operations_with_rules(backend, operation, choice):
    from xpsoftmax.kernels import jax as with_rules

    array = backend.asarray(np.ones((1, 2)))
    assert kernels.select(operation, array, choice) is getattr(with_rules, operation)
    assert kernels.select(operation, np.ones((1, 2)), "generic") is getattr(kernels.generic, operation)
    with pytest.raises(NotImplementedError, match="not all arrays of the call can be read as NumPy arrays"):
        kernels.select(operation, array, "kernel")


@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp"])
def test_a_class_that_is_left_out_has_no_derivative(backend, rng, function):
    """And the others have that of the shorter row; also beside a row in which all are left out."""
    z, tangent = rng.normal(size=(2, 5)), rng.normal(size=(2, 5))
    mask = np.array([[True, False, True, True, False], [False] * 5])
    compute = getattr(xs, function)

    def total(row, weights, where=None):
        result = compute(row, where=where)
        kept = result if where is None or function == "logsumexp" else jax.numpy.where(where, result, 0.0)
        return (weights * kept).sum() if function != "logsumexp" else kept[0]

    x, v = backend.asarray(z, "float64"), backend.asarray(tangent, "float64")
    found = backend.to_numpy(jax.grad(total)(x, v, backend.asarray(mask)))
    kept = np.flatnonzero(mask[0])
    short = backend.to_numpy(jax.grad(total)(x[:1, kept], v[:1, kept]))
    assert (found[~mask] == 0.0).all()
    np.testing.assert_allclose(found[0, kept], short[0], rtol=1e-13, atol=1e-16)
