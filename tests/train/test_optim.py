"""Optimisers: the rules against formulas and PyTorch; states; what is refused."""

import numpy as np
import pytest
from assertions import assert_like

import xpsoftmax as xs
from xpsoftmax._network.vectors import parts_of, vector_of
from xpsoftmax.kernels import generic
from xpsoftmax.kernels.numpy import elementwise, updates

OPTIMIZERS = {
    "sgd": (xs.sgd, {}, "SGD", {}),
    "momentum": (xs.sgd, {"momentum": 0.9}, "SGD", {"momentum": 0.9}),
    "nesterov": (xs.sgd, {"momentum": 0.8, "nesterov": True}, "SGD", {"momentum": 0.8, "nesterov": True}),
    "adam": (xs.adam, {}, "Adam", {}),
    "adam, other numbers": (xs.adam, {"betas": (0.5, 0.9), "eps": 1e-3}, "Adam", {"betas": (0.5, 0.9), "eps": 1e-3}),
    "adamw": (xs.adamw, {"weight_decay": 0.1}, "AdamW", {"weight_decay": 0.1}),
}
SIZES = (3, 4, 2)
STEPS = 12


def gradients(rng, params, steps=STEPS):
    """Gradients of all sizes, from 1e-8 to 1e4, which exercises eps."""
    return [
        tuple(xs.Layer(*(10.0 ** rng.uniform(-8, 4) * rng.standard_normal(a.shape) for a in layer)) for layer in params)
        for _ in range(steps)
    ]


def moved(backend, layers, dtype="float64"):
    return tuple(xs.Layer(*(backend.asarray(a, dtype) for a in layer)) for layer in layers)


def flat(backend, layers):
    return np.concatenate([backend.to_numpy(a).ravel() for layer in layers for a in layer])


def rates(step):
    return 0.1 / (1 + step)


@pytest.mark.parametrize("rate", [0.05, rates], ids=["constant", "schedule"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_step_equals_pytorch(name, rate, backend, rng):
    torch = pytest.importorskip("torch")
    make, options, peer, peer_options = OPTIMIZERS[name]
    optimizer = make(rate, **options)
    params = xs.init_params(SIZES, rng=rng)
    tensors = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for layer in params for a in layer]
    theirs = getattr(torch.optim, peer)(tensors, lr=0.05, **peer_options)
    ours, state = moved(backend, params), optimizer.init(moved(backend, params))
    for step, grads in enumerate(gradients(rng, params)):
        ours, state = optimizer.update(ours, moved(backend, grads), state)
        for tensor, grad in zip(tensors, (a for layer in grads for a in layer), strict=True):
            tensor.grad = torch.tensor(grad)
        theirs.param_groups[0]["lr"] = rate(step) if callable(rate) else rate
        theirs.step()
        expected = np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])
        got = flat(backend, ours)
        assert np.max(np.abs(got - expected) / np.maximum(np.abs(expected), 1e-300)) <= 1e-12
    assert state[0] == STEPS


# PyTorch may not be there: the formulas of the papers, in other words than those of the package.
def by_the_paper(name, params, all_grads, rate):
    p, out = np.concatenate([a.ravel() for layer in params for a in layer]), []
    m, v = np.zeros_like(p), np.zeros_like(p)
    _, options, *_ = OPTIMIZERS[name]
    for t, grads in enumerate(all_grads, start=1):
        g = np.concatenate([a.ravel() for layer in grads for a in layer])
        if "adam" in name:
            b1, b2 = options.get("betas", (0.9, 0.999))
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            p = p - rate * options.get("weight_decay", 0.0) * p
            p = p - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + options.get("eps", 1e-8))
        else:
            m = options.get("momentum", 0.0) * m + g
            p = p - rate * (g + options["momentum"] * m if options.get("nesterov") else m)
        out.append(p)
    return out


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_step_follows_the_paper(name, backend, rng):
    make, options, *_ = OPTIMIZERS[name]
    optimizer, params = make(0.05, **options), xs.init_params(SIZES, rng=rng)
    all_grads = gradients(rng, params)
    ours, state = moved(backend, params), optimizer.init(moved(backend, params))
    for grads, expected in zip(all_grads, by_the_paper(name, params, all_grads, 0.05), strict=True):
        ours, state = optimizer.update(ours, moved(backend, grads), state)
        assert np.max(np.abs(flat(backend, ours) - expected) / np.maximum(np.abs(expected), 1e-300)) <= 1e-12


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_results_stay_and_no_argument_changes(name, backend, dtype, rng):
    make, options, *_ = OPTIMIZERS[name]
    optimizer, numbers = make(0.1, **options), xs.init_params(SIZES, rng=rng)
    params, grads = moved(backend, numbers, dtype), moved(backend, gradients(rng, numbers, 1)[0], dtype)
    _, state = optimizer.update(params, grads, optimizer.init(params))
    before = [flat(backend, layers).copy() for layers in (params, grads, *state[1:])]
    new, after = optimizer.update(params, grads, state)
    for layers, values in zip((params, grads, *state[1:]), before, strict=True):
        np.testing.assert_array_equal(flat(backend, layers), values)
    for layers in (new, *after[1:]):
        for layer, like in zip(layers, numbers, strict=True):
            assert isinstance(layer, xs.Layer)
            assert_like(layer.weight, backend=backend, dtype=dtype, shape=like.weight.shape)
            assert_like(layer.bias, backend=backend, dtype=dtype, shape=like.bias.shape)
    assert (state[0], after[0]) == (1, 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_large_arrays_in_tiles_equal_small_ones(name, rng):
    """In place, out of place and by the generic code: the same bits."""
    make, options, *_ = OPTIMIZERS[name]
    rule, numbers = make(0.1, **options).rule(0.1, 3)
    shape = (9001, 257)  # 9 MiB: several tiles, the last one shorter, and threads
    kept = make(0.1, **options).kept
    arrays = [rng.standard_normal(shape, dtype="f4") for _ in range(1 + kept)]
    arrays[-1] = abs(arrays[-1]) if kept == 2 else arrays[-1]
    grad = rng.standard_normal(shape, dtype="f4")
    expected = generic.parameter_update(rule, arrays, grad, numbers)
    copies = [a.copy() for a in arrays]
    apart = updates.parameter_update(rule, arrays, grad, numbers)
    inside = updates.parameter_update(rule, copies, grad, numbers, in_place=True)
    for a, b, c, copy, old in zip(expected, apart, inside, copies, arrays, strict=True):
        np.testing.assert_array_equal(b, a)
        np.testing.assert_array_equal(c, a)
        assert c is copy
        assert not np.shares_memory(b, old)
    assert grad.nbytes > 4 * max(elementwise.TILE, elementwise.SHARE)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_not_sound_changes_nothing(name, backend, rng):
    make, options, *_ = OPTIMIZERS[name]
    optimizer, numbers = make(0.1, **options), xs.init_params(SIZES, rng=rng)
    params, grads = moved(backend, numbers), moved(backend, gradients(rng, numbers, 1)[0])
    params, state = optimizer.update(params, grads, optimizer.init(params))
    with backend.here:
        bad = tuple(xs.Layer(*(a * float("nan") for a in layer)) for layer in grads)
    for ok in (False, True):
        with backend.here:  # `update` and `train` see to that
            new, after = optimizer.step(params, bad, state, ok=backend.asarray(np.array(ok)))
        pairs = zip((new, *after[1:]), (params, *state[1:]), strict=True)
        same = [np.array_equal(flat(backend, a), flat(backend, b)) for a, b in pairs]
        assert same == [not ok] * len(same)


@pytest.mark.backends("numpy", "array_api_strict", "torch", "cupy", "cupy:device1")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_rate_beyond_the_dtype_warns_of_nothing(name, backend, rng):
    make, options, *_ = OPTIMIZERS[name]
    optimizer, numbers = make(1e200, **options), xs.init_params(SIZES, rng=rng)
    params, grads = (moved(backend, x, "float32") for x in (numbers, gradients(rng, numbers, 1)[0]))
    with np.errstate(all="warn"):
        params, _ = optimizer.update(params, grads, optimizer.init(params))
    assert not np.isfinite(flat(backend, params)).any()


@pytest.mark.backends("numpy", "torch", "cupy", "jax")
def test_16_bit_parameters_are_updated_in_float32(backend, rng):
    optimizer = xs.adam(0.01)
    params = moved(backend, xs.init_params(SIZES, rng=rng), "float16")
    grads = moved(backend, gradients(rng, xs.init_params(SIZES, rng=0), 1)[0], "float32")
    state = optimizer.init(params)
    wide = tuple(xs.Layer(*(backend.xp.astype(a, backend.xp.float32) for a in layer)) for layer in params)
    narrow_grads = tuple(xs.Layer(*(backend.xp.astype(a, backend.xp.float16) for a in layer)) for layer in grads)
    wide_grads = tuple(xs.Layer(*(backend.xp.astype(a, backend.xp.float32) for a in layer)) for layer in narrow_grads)
    got, after = optimizer.update(params, narrow_grads, state)
    expected, _ = optimizer.update(wide, wide_grads, state)
    assert_like(got[0].weight, backend=backend, dtype="float16", shape=(3, 4))
    assert_like(after[1][0].weight, backend=backend, dtype="float32", shape=(3, 4))
    np.testing.assert_array_equal(flat(backend, got), flat(backend, expected).astype("f2"))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: xs.sgd(-0.1), ValueError, r"learning_rate must be finite and at least 0, got -0\.1\."),
        (lambda: xs.sgd("fast"), TypeError, r"learning_rate must be a real number, got 'fast'\."),
        (lambda: xs.sgd(0.1, momentum=np.nan), ValueError, r"momentum must be finite and at least 0, got nan\."),
        (lambda: xs.sgd(0.1, nesterov=True), ValueError, r"momentum must be positive for nesterov=True, got 0\.0\."),
        (lambda: xs.sgd(0.1, 0.9, nesterov=1), TypeError, r"nesterov must be True or False, got 1\."),
        (lambda: xs.adam(0.1, betas=0.9), TypeError, r"betas must be two numbers, got 0\.9\."),
        (lambda: xs.adam(0.1, betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be at least 0 and below 1, got 1\.0\."),
        (lambda: xs.adam(0.1, eps=-1), ValueError, r"eps must be finite and at least 0, got -1\.0\."),
        (lambda: xs.adamw(0.1, weight_decay="1"), TypeError, r"weight_decay must be a real number, got '1'\."),
    ],
)
def test_bad_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_arguments_of_an_update():
    params = xs.init_params((3, 2), rng=0)
    other = xs.init_params((2, 3), rng=0)
    optimizer = xs.sgd(0.1, momentum=0.9)
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"grads must have weights of the shapes of params, .* got \[\(2, 3\)\]\."):
        optimizer.update(params, other, state)
    with pytest.raises(ValueError, match=r"state must have weights of the shapes of params"):
        optimizer.update(params, params, (0, other))
    flat_bias = (xs.Layer(params[0].weight, np.zeros(1)),)
    with pytest.raises(
        ValueError, match=r"state must have biases of the shapes of params, \[\(2,\)\], got \[\(1,\)\]\."
    ):
        optimizer.update(params, params, (0, flat_bias))
    with pytest.raises(TypeError, match=r"state must be what init or update of Sgd\(.*\) returned, got \(0,\)\."):
        optimizer.update(params, params, (0,))
    for wrong in ((-1, params), (0, None), (0, (None,))):
        with pytest.raises(TypeError, match=r"state must be what init or update of Sgd\(.*\) returned"):
            optimizer.update(params, params, wrong)
    with pytest.raises(TypeError, match=r"grads must be a non-empty sequence of \(weight, bias\) pairs, got None\."):
        optimizer.update(params, None, state)
    single = tuple(xs.Layer(*(a.astype("f4") for a in layer)) for layer in params)
    with pytest.raises(TypeError, match=r"grads must have the dtype of params, float64, got float32\."):
        optimizer.update(params, single, state)
    holes = (xs.Layer(None, None),) * len(params)
    with pytest.raises(TypeError, match=r"^state must be an array of an Array API library, got NoneType\.$"):
        optimizer.update(params, params, (0, holes))
    with pytest.raises(TypeError, match=r"state must be of float64, as params are computed, got float32\."):
        optimizer.update(params, params, (0, single))
    schedule = xs.sgd(lambda step: -1.0 if step == 3 else 0.1)
    with pytest.raises(ValueError, match=r"learning_rate\(3\) must be finite and at least 0, got -1\.0\."):
        schedule.update(params, params, (3,))


def test_optimizers_show_their_options():
    assert repr(xs.sgd(0.1)) == "Sgd(learning_rate=0.1, momentum=0.0, nesterov=False)"
    assert xs.adam(0.1) == xs.adam(0.1) != xs.adam(0.2)


@pytest.mark.parametrize("shape", [(3, 5), (700, 300)])  # the second in parts, and in threads
@pytest.mark.parametrize("make", [xs.sgd, xs.adam, xs.adamw])
@pytest.mark.parametrize("in_place", [True, False])
def test_numpy_rules_in_place_have_the_bits_of_their_text(make, in_place, shape, dtype, rng):
    p, m, g = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    optimizer = make(0.01)
    arrays = [p, m, (m * m).astype(dtype)][: 1 + optimizer.kept]
    rule, values = optimizer.rule(0.01, 3)
    expected = rule(*arrays, g, *values)
    before = [array.copy() for array in (*arrays, g)]
    found = updates.parameter_update(rule, arrays, g, values, in_place=in_place)
    for new, old, wanted in zip(found, arrays, expected, strict=True):
        np.testing.assert_array_equal(new, wanted)
        assert (new is old) == in_place
    np.testing.assert_array_equal(g, before[-1])
    if not in_place:
        for array, was in zip(arrays, before, strict=False):
            np.testing.assert_array_equal(array, was)


@pytest.mark.parametrize("shape", [(3, 5), (1, 7), (700, 300)])
def test_the_numpy_penalty_is_the_generic_one(shape, dtype, rng):
    weight, grad = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    value, gradient = generic.weight_penalty(weight, grad, 0.3)
    found, added = updates.weight_penalty(weight, grad.copy(), 0.3)
    # Pairwise sums of parts, and a sum of those: a dozen roundings each
    assert abs(found - value) <= 24 * np.finfo(dtype).eps * value
    np.testing.assert_array_equal(added, gradient)
    assert updates.weight_penalty(weight, None, 0.3) == (found, None)


# --- all parameters at once -------------------------------------------------------------------------------------------


def as_vector(layers, dtype):
    vector = np.concatenate([a.ravel() for layer in layers for a in layer], dtype=dtype)
    return parts_of(vector, layers)


@pytest.mark.parametrize("sizes", [(3, 4, 2), (5, 1), (700, 300, 3)], ids=str)  # the last in parts, in threads
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_of_a_vector_has_the_bits_of_one_by_arrays(name, sizes, dtype, rng):
    make, options, _, _ = OPTIMIZERS[name]
    optimizer = make(rates, **options)
    plain = tuple(xs.Layer(*(a.astype(dtype) for a in layer)) for layer in xs.init_params(sizes, rng=rng))
    together, state = as_vector(plain, dtype), optimizer.init(plain)
    state_together = optimizer.init(together)
    for grads in gradients(rng, plain, 3):
        grads = tuple(xs.Layer(*(a.astype(dtype) for a in layer)) for layer in grads)
        plain, state = optimizer.update(plain, grads, state)
        together, state_together = optimizer.step(together, as_vector(grads, dtype), state_together, in_place=True)
        assert vector_of(together) is not None
    assert state_together[0] == state[0] == 3
    for found, expected in zip((together, *state_together[1:]), (plain, *state[1:]), strict=True):
        for layer, like in zip(found, expected, strict=True):
            for array, other in zip(layer, like, strict=True):
                np.testing.assert_array_equal(array, other)
                assert array.shape == other.shape


def test_the_vector_of_layers_is_that_which_they_are_parts_of():
    layers = xs.init_params((3, 4, 2), rng=0)
    vector = np.concatenate([a.ravel() for layer in layers for a in layer])
    parts = parts_of(vector, layers)
    assert vector_of(parts) is vector
    for layer, like in zip(parts, layers, strict=True):
        np.testing.assert_array_equal(layer.weight, like.weight)
        np.testing.assert_array_equal(layer.bias, like.bias)
    assert vector_of(layers) is None
    assert vector_of((parts[0], layers[1])) is None
    assert vector_of(parts[:1]) is None  # there is more in it


GRADS = {
    "dtypes": (
        lambda w: w.astype("f4"),
        TypeError,
        r"^grads\[0\]\.bias must have the dtype of grads\[0\]\.weight, float32",
    ),
    "lists": (lambda w: w.tolist(), TypeError, r"^grads\[0\]\.weight must be an array of .*, got list\."),
    "integers": (lambda w: w.astype(int), TypeError, r"^grads\[0\]\.weight must be of dtype .*, got int64\.$"),
    "masked": (np.ma.masked_array, TypeError, r"^grads\[0\]\.weight must be a plain dense array, got numpy\.Masked"),
    "one dimension": (np.ravel, ValueError, r"^grads\[0\]\.weight must have shape \(fan_in, fan_out\), got \(6,\)"),
}


@pytest.mark.parametrize("name", GRADS)
def test_errors_about_gradients_name_them(name):
    change, error, message = GRADS[name]
    params = xs.init_params((2, 3), rng=0)
    grads = [(change(layer.weight), layer.bias) for layer in params]
    optimizer = xs.adam()
    with pytest.raises(error, match=message):
        optimizer.update(params, grads, optimizer.init(params))
