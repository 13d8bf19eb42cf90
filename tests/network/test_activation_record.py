"""The activation travels with the layers: through training, gradients, files, copies, pytrees, dask and the estimator.

A contradiction is an error that names both activations.
"""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import re
from functools import partial

import numpy as np
import pytest
from backends import backend_named, unusable

import xpsoftmax as xs
from xpsoftmax._network.files import PARAMS
from xpsoftmax._network.layers import HIDDEN_TYPES
from xpsoftmax._network.tensors import save_arrays
from xpsoftmax.kernels.activations import ACTIVATIONS

N, D, C = 300, 2, 2
SIZES = (D, 7, 5, C)
OPTIONS = {"optimizer": xs.adam(0.02), "batch_size": 50, "rng": 0}
OPTIMIZERS = {
    "sgd": xs.sgd(0.1),
    "momentum": xs.sgd(0.1, momentum=0.9),
    "nesterov": xs.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": xs.adam(0.1),
    "adamw": xs.adamw(0.1),
}
CARRIED = ["tanh", "tanh", None]
"""What the three layers carry in most of these tests."""


def needs(name):
    if unusable(name) is not None:
        pytest.skip(f"{name} cannot be used: {unusable(name)}")
    return backend_named(name)


def carried(layers):
    """The activations of layers, and that their types are ours and not only look like them."""
    assert type(layers) is tuple
    assert all(type(layer) in (xs.Layer, *HIDDEN_TYPES.values()) for layer in layers)
    return [layer.activation for layer in layers]


@pytest.fixture
def params(rng):
    return xs.init_params(SIZES, rng=rng, activation="tanh")


@pytest.fixture
def data(rng):
    """Whether a point lies outside a circle."""
    X = rng.standard_normal((N, D))
    return X, (np.sum(X * X, axis=1) > 1.4).astype(int)


def accuracy(labels, y):
    return float(np.mean(np.asarray(labels) == y))


def plain(layers):
    return [tuple(layer) for layer in layers]


# --- the fault: an activation that was forgotten ----------------------------------------------------------------------


@pytest.fixture
def learnt(data):
    """Parameters trained with tanh; their accuracy, and the one of the same numbers under ReLU, which is far off."""
    start = xs.init_params((D, 16, C), rng=0)
    result = xs.train(start, *data, activation="tanh", epochs=60, **OPTIONS)
    X, y = data
    right = accuracy(xs.mlp_predict(plain(result.params), X, activation="tanh"), y)
    wrong = accuracy(xs.mlp_predict(plain(result.params), X), y)
    assert right > 0.95
    assert wrong < right - 0.1
    return result, right


def test_prediction_uses_the_activation_of_training(learnt, data):
    result, right = learnt
    assert accuracy(xs.mlp_predict(result.params, data[0]), data[1]) == right


def test_and_so_it_does_from_a_file(learnt, data, tmp_path):
    pytest.importorskip("safetensors")
    result, right = learnt
    xs.save_params(tmp_path / "net", result.params)
    assert accuracy(xs.mlp_predict(xs.load_params(tmp_path / "net"), data[0]), data[1]) == right


def test_and_so_it_does_after_training_over_dask(learnt, data):
    needs("dask")
    import dask.array as da

    import xpsoftmax.dask as xd

    X, y = da.from_array(data[0], chunks=(100, D)), da.from_array(data[1], chunks=100)
    start = xs.init_params((D, 16, C), rng=0)
    result = xd.train(start, X, y, activation="tanh", epochs=60, **OPTIONS)
    assert accuracy(xs.mlp_predict(result.params, data[0]), data[1]) == pytest.approx(learnt[1], abs=0.02)
    lazy = accuracy(xd.mlp_predict(result.params, X).compute(), data[1])
    assert lazy == accuracy(xs.mlp_predict(result.params, data[0]), data[1])


def test_and_so_does_a_model_made_of_them(learnt, data):
    pytest.importorskip("sklearn")
    from xpsoftmax.sklearn import MLPClassifier

    result, right = learnt
    model = MLPClassifier.from_params(result.params)
    assert model.get_params()["activation"] == "tanh"
    assert accuracy(model.predict(data[0]), data[1]) == right


# --- what records it --------------------------------------------------------------------------------------------------


def test_every_activation_can_be_carried():
    assert HIDDEN_TYPES.keys() == ACTIVATIONS.keys()
    for name in ACTIVATIONS:
        assert carried(xs.init_params(SIZES, rng=0, activation=name)) == [name, name, None]


def test_initial_parameters_carry_none_by_default():
    assert carried(xs.init_params(SIZES, rng=0)) == [None, None, None]


def test_initial_parameters_are_the_same_numbers(rng, backend, dtype):
    options = {"rng": 5, "xp": backend.library, "device": backend.device, "dtype": getattr(backend.library, dtype)}
    with_it = xs.init_params(SIZES, activation="silu", **options)
    assert carried(with_it) == ["silu", "silu", None]
    for layer, other in zip(with_it, xs.init_params(SIZES, **options), strict=True):
        np.testing.assert_array_equal(backend.to_numpy(layer.weight), backend.to_numpy(other.weight))


def test_initial_activations_are_checked():
    with pytest.raises(ValueError, match=r"^activation must be one of .*, got 'swish'\.$"):
        xs.init_params(SIZES, rng=0, activation="swish")


@pytest.mark.parametrize("explicit", [None, "relu", "gelu"])
@pytest.mark.parametrize("given", [xs.Layer, tuple, list], ids=lambda given: given.__name__)
def test_training_records_the_activation_of_plain_pairs(given, explicit, data):
    start = [given(layer) if given is not xs.Layer else layer for layer in xs.init_params(SIZES, rng=0)]
    result = xs.train(start, *data, activation=explicit, epochs=1, **OPTIONS)
    assert carried(result.params) == [explicit or "relu", explicit or "relu", None]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_of_a_training_carries_it(name, params, data):
    seen = []
    result = xs.train(
        params, *data, **(OPTIONS | {"optimizer": OPTIMIZERS[name]}), epochs=2, validation=data, patience=2,
        callback=lambda step: seen.append(carried(step.params)),
    )  # fmt: skip
    assert seen == [CARRIED] * len(seen)
    assert len(seen) == 12
    state = result.state
    for layers in (result.params, state.params, *state.optimizer[1:], state.best[2]):
        assert carried(layers) == CARRIED


def test_training_on_every_library(backend, dtype, params, data):
    if backend.name == "dask":
        pytest.skip("refused")
    start = xs.to_namespace(params, backend.library, backend.device)
    start = tuple(layer._replace(weight=backend.xp.astype(layer.weight, getattr(backend.xp, dtype)),
                                 bias=backend.xp.astype(layer.bias, getattr(backend.xp, dtype)))
                  for layer in start)  # fmt: skip
    X, y = backend.asarray(data[0][:40], dtype), backend.asarray(data[1][:40])
    result = xs.train(start, X, y, **(OPTIONS | {"batch_size": 20}), epochs=1, validation=(X, y), patience=1)
    for layers in (result.params, result.state.params, *result.state.optimizer[1:], result.state.best[2]):
        assert carried(layers) == CARRIED


def test_training_in_16_bits(params, data):
    start = tuple(layer._replace(weight=layer.weight.astype("f2"), bias=layer.bias.astype("f2")) for layer in params)
    X = data[0].astype("f2")
    result = xs.train(start, X, data[1], epochs=1, **OPTIONS)
    assert carried(result.params) == carried(result.state.params) == CARRIED
    assert result.params[0].weight.dtype == "f2"
    _, grads = xs.mlp_loss_and_grad(start, X, data[1], reg=0.1)
    assert carried(grads) == CARRIED
    optimizer = xs.adam(0.1)
    updated, state = optimizer.update(start, grads, optimizer.init(start))
    assert carried(updated) == carried(state[1]) == CARRIED


def test_a_divergence_carries_it(data):
    params = xs.init_params(SIZES, rng=0, activation="silu")
    with pytest.raises(xs.DivergenceError) as caught:
        xs.train(params, *data, **(OPTIONS | {"optimizer": xs.sgd(1e200)}), epochs=3)
    assert carried(caught.value.result.params) == ["silu", "silu", None]
    assert carried(pickle.loads(pickle.dumps(caught.value)).result.params) == ["silu", "silu", None]


# --- what computes with it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_function_uses_it(name, data, rng):
    X, y = data
    params = xs.init_params(SIZES, rng=rng, activation=name)
    pairs, explicit = plain(params), {"activation": name}
    np.testing.assert_array_equal(xs.mlp_logits(params, X), xs.mlp_logits(pairs, X, **explicit))
    np.testing.assert_array_equal(xs.mlp_predict(params, X), xs.mlp_predict(pairs, X, **explicit))
    assert xs.mlp_loss(params, X, y) == xs.mlp_loss(pairs, X, y, **explicit)
    (loss, grads), (other, others) = xs.mlp_loss_and_grad(params, X, y), xs.mlp_loss_and_grad(pairs, X, y, **explicit)
    sums, alike = xs.mlp_partial_sums(params, X, y), xs.mlp_partial_sums(pairs, X, y, **explicit)
    assert (loss, sums.loss) == (other, alike.loss)
    for layers, desired in ((grads, others), (sums.grads, alike.grads)):
        for layer, expected in zip(layers, desired, strict=True):
            np.testing.assert_array_equal(layer.weight, expected.weight)
            np.testing.assert_array_equal(layer.bias, expected.bias)
    np.testing.assert_array_equal(xs.mlp_logits(params, X, **explicit), xs.mlp_logits(params, X))


def test_the_default_of_plain_pairs_is_relu(data):
    pairs = plain(xs.init_params(SIZES, rng=0))
    np.testing.assert_array_equal(xs.mlp_logits(pairs, data[0]), xs.mlp_logits(pairs, data[0], activation="relu"))


@pytest.mark.parametrize("options", [{}, {"reg": 0.1}, {"max_memory": 4000}, {"impl": "generic"}], ids=str)
def test_gradients_have_the_types_of_the_parameters(backend, params, data, options):
    there = xs.to_namespace(params, backend.library, backend.device)
    X, y = backend.asarray(data[0]), backend.asarray(data[1])
    if backend.name == "dask":
        options = options | {"validate": False}
    assert carried(xs.mlp_loss_and_grad(there, X, y, **options)[1]) == CARRIED
    mixed = (there[0], tuple(there[1]), there[2])
    assert carried(xs.mlp_loss_and_grad(mixed, X, y, **options)[1]) == ["tanh", None, None]
    unrecorded = xs.mlp_loss_and_grad(plain(there), X, y, activation="tanh", **options)[1]
    assert carried(unrecorded) == [None, None, None]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_keep_the_types_of_the_parameters(backend, name, params):
    optimizer, there = OPTIMIZERS[name], xs.to_namespace(params, backend.library, backend.device)
    state = optimizer.init(there)
    for _ in range(2):
        there, state = optimizer.update(there, there, state)
        assert [carried(layers) for layers in (there, *state[1:])] == [CARRIED] * (1 + optimizer.kept)


def test_optimizers_take_plain_gradients_and_plain_states(params):
    optimizer = xs.adam(0.1)
    updated, state = optimizer.update(params, plain(params), optimizer.init(plain(params)))
    assert [carried(layers) for layers in (updated, *state[1:])] == [CARRIED] * 3


def test_sums_keep_it(backend, params, data):
    there = xs.to_namespace(params, backend.library, backend.device)
    X, y = backend.asarray(data[0]), backend.asarray(data[1])
    options = {"validate": backend.name != "dask"}
    one, two = (xs.mlp_partial_sums(there, X[part, :], y[part], **options) for part in (slice(0, 100), slice(100, N)))
    assert carried(one.grads) == carried((one + two).grads) == carried(sum([one, two]).grads) == CARRIED
    assert carried((one + two).finish(there, reg=0.1)[1]) == CARRIED


def test_sums_with_and_without_it_add_up_to_sums_with_it(params, data):
    X, y = data
    one = xs.mlp_partial_sums(params, X[:100], y[:100])
    two = xs.mlp_partial_sums(plain(params), X[100:], y[100:], activation="tanh")
    assert carried((one + two).grads) == carried((two + one).grads) == CARRIED
    assert carried((one + two).finish(plain(params))[1]) == [None, None, None]
    assert carried((two + two).finish(params)[1]) == CARRIED


# --- what copies it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles(name, protocol):
    params = xs.init_params(SIZES, rng=0, activation=name)
    found = pickle.loads(pickle.dumps(params, protocol))
    assert carried(found) == [name, name, None]
    np.testing.assert_array_equal(found[0].weight, params[0].weight)


def test_cloudpickle(params):
    cloudpickle = pytest.importorskip("cloudpickle")
    assert carried(cloudpickle.loads(cloudpickle.dumps(params))) == CARRIED


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "each copied": lambda params: tuple(copy.copy(layer) for layer in params),
    "replaced": lambda params: tuple(layer._replace(bias=layer.bias + 1.0) for layer in params),
    "made": lambda params: tuple(type(layer)._make(layer) for layer in params),
    "sliced and added": lambda params: params[:1] + params[1:],
    "reversed twice": lambda params: params[::-1][::-1],
    "repeated": lambda params: (params * 2)[:3],
    "unpacked": lambda params: (*params,),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies(name, params):
    assert carried(COPIES[name](params)) == CARRIED


def test_a_slice_with_a_new_last_layer(params, data):
    """As in fine-tuning; a network that ends with what was a hidden layer has no activation there."""
    head = xs.Layer(np.ones((5, 3)), np.zeros(3))
    X = data[0]
    desired = xs.mlp_logits([*plain(params[:2]), head], X, activation="tanh")
    np.testing.assert_array_equal(xs.mlp_logits((*params[:2], head), X), desired)
    np.testing.assert_array_equal(xs.mlp_logits(params[:1], X), X @ params[0].weight + params[0].bias)


def test_a_layer_is_still_a_pair(params):
    layer = params[0]
    weight, bias = layer
    assert weight is layer.weight
    assert bias is layer.bias
    assert isinstance(layer, xs.Layer)
    assert layer._fields == ("weight", "bias")
    assert len(layer) == 2
    one = xs.Layer(1.0, 2.0)
    assert HIDDEN_TYPES["tanh"](1.0, 2.0) == one == (1.0, 2.0)
    assert repr(HIDDEN_TYPES["tanh"](1.0, 2.0)) == "TanhLayer(weight=1.0, bias=2.0)"
    assert repr(one) == "Layer(weight=1.0, bias=2.0)"


@pytest.mark.parametrize("layer", [xs.Layer(1.0, 2.0), HIDDEN_TYPES["tanh"](1.0, 2.0)], ids=["plain", "tanh"])
def test_the_activation_of_a_layer_cannot_be_set(layer):
    with pytest.raises(AttributeError):
        layer.activation = "relu"


def test_a_layer_of_a_subclass_counts_as_what_it_carries(data):
    class Named(HIDDEN_TYPES["tanh"]):
        __slots__ = ()

    params = xs.init_params((D, 4, C), rng=0)
    params = (Named(*params[0]), params[1])
    np.testing.assert_array_equal(
        xs.mlp_logits(params, data[0]), xs.mlp_logits(plain(params), data[0], activation="tanh")
    )
    assert carried(xs.mlp_loss_and_grad(params, *data)[1]) == ["tanh", None]


# --- other libraries --------------------------------------------------------------------------------------------------


def test_pytrees_of_jax(params, data):
    backend = needs("jax")
    import jax

    there, X, y = xs.to_namespace(params, backend.library), backend.asarray(data[0]), backend.asarray(data[1])
    assert carried(jax.tree_util.tree_map(lambda array: 2.0 * array, there)) == CARRIED
    assert carried(jax.jit(lambda params: params)(there)) == CARRIED
    loss_of = partial(xs.mlp_loss, validate=False)
    loss, grads = jax.jit(jax.value_and_grad(lambda params: loss_of(params, X, y)))(there)
    assert carried(grads) == CARRIED
    np.testing.assert_allclose(float(loss), float(loss_of(plain(there), X, y, activation="tanh")), rtol=1e-12)
    with pytest.raises(ValueError, match=r"params carry, 'tanh', got 'relu'"):
        jax.jit(lambda params: loss_of(params, X, y, activation="relu"))(there)


def test_states_of_optax_on_jax(params):
    optax = pytest.importorskip("optax")
    there = xs.to_namespace(params, needs("jax").library)
    optimizer = optax.adam(0.1)
    updates, state = optimizer.update(there, optimizer.init(there), there)
    assert carried(state[0].mu) == carried(updates) == carried(optax.apply_updates(there, updates)) == CARRIED


def test_pytrees_of_pytorch(params):
    backend = needs("torch")
    import torch
    from torch.utils import _pytree as pytree

    there = xs.to_namespace(params, backend.library)
    assert carried(pytree.tree_map(lambda array: 2.0 * array, there)) == CARRIED
    assert carried(torch.func.grad(lambda params: sum(a.sum() for pair in params for a in pair))(there)) == CARRIED


# array-api-compat looks types up in a cache, which torch.compile traces through with a warning.
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
def test_compiled_by_pytorch(params, data):
    backend = needs("torch")
    torch = backend.library
    torch.compiler.reset()
    there, X, y = xs.to_namespace(params, torch), backend.asarray(data[0]), backend.asarray(data[1])
    function = partial(xs.mlp_loss_and_grad, validate=False)
    loss, grads = torch.compile(function, backend="eager", fullgraph=True)(there, X, y)
    assert carried(grads) == CARRIED
    np.testing.assert_allclose(float(loss), float(xs.mlp_loss(params, *data)), rtol=1e-12)


@pytest.mark.parametrize("function", ["compute", "persist", "optimize"])
def test_collections_of_dask(function, params):
    backend = needs("dask")
    import dask

    lazy = xs.to_namespace(params, backend.library)
    (found,) = getattr(dask, function)(lazy)
    assert carried(found) == CARRIED
    assert carried(dask.delayed(params).compute()) == CARRIED


def test_parameters_move_to_every_library_and_back(backend, dtype, rng):
    params = xs.init_params(SIZES, rng=rng, activation="gelu", dtype=getattr(np, dtype))
    there = xs.to_namespace(params, backend.library, backend.device)
    assert carried(there) == ["gelu", "gelu", None]
    again = xs.to_namespace(xs.to_namespace(there, backend.library, device=backend.device), np)
    assert carried(again) == ["gelu", "gelu", None]
    for layer, original in zip(again, params, strict=True):
        for array, desired in zip(layer, original, strict=True):
            assert type(array) is np.ndarray
            assert array.dtype == dtype
            np.testing.assert_array_equal(array, desired)
    for array in (array for layer in there for array in layer):
        assert backend.device is None or array.device == backend.device


def test_parameters_move_between_devices(params):
    backend = needs("array_api_strict:device1")
    strict, there, here = backend.library, backend.device, backend.library.Device("CPU_DEVICE")
    on_cpu = xs.to_namespace(params, strict)
    moved = xs.to_namespace(on_cpu, strict, there)
    for layers, device in ((on_cpu, here), (moved, there), (xs.to_namespace(moved, strict), there),
                           (xs.to_namespace(moved, strict, here), here)):  # fmt: skip
        assert carried(layers) == CARRIED
        assert {array.device for layer in layers for array in layer} == {device}
        for layer, original in zip(xs.to_namespace(layers, np), params, strict=True):
            np.testing.assert_array_equal(layer.weight, original.weight)


@pytest.mark.parametrize("given", ["numpy", "torch"])
@pytest.mark.parametrize("wanted", ["numpy", "torch"])
def test_moved_parameters_share_no_memory(given, wanted, rng):
    given, wanted = needs(given), needs(wanted)
    params = xs.to_namespace(xs.init_params((3, 2), rng=rng), given.library)
    (moved,) = xs.to_namespace(params, wanted.library)
    before = given.to_numpy(params[0].weight).copy()
    moved.weight[...] = 7.0
    np.testing.assert_array_equal(given.to_numpy(params[0].weight), before)


def test_pytorch_parameters_that_require_grad_move(rng):
    torch = needs("torch").library
    pairs = [
        [torch.nn.Parameter(array) for array in layer]
        for layer in xs.to_namespace(xs.init_params((3, 2), rng=rng), torch)
    ]
    for library in (np, torch):
        (moved,) = xs.to_namespace(pairs, library)
        assert not getattr(moved.weight, "requires_grad", False)
        np.testing.assert_array_equal(np.asarray(moved.weight), pairs[0][0].detach().numpy())


def test_big_endian_parameters_move_to_pytorch(rng):
    torch = needs("torch").library
    params = xs.init_params((3, 2), rng=rng)
    swapped = tuple(xs.Layer(*(array.astype(">f8") for array in layer)) for layer in params)
    np.testing.assert_array_equal(xs.to_namespace(swapped, torch)[0].weight.numpy(), params[0].weight)


@pytest.mark.parametrize(("given", "wanted"), [*itertools.product(["torch", "jax"], repeat=2)])
def test_bfloat16_parameters_move(given, wanted, rng):
    given, wanted = needs(given), needs(wanted)
    params = tuple(
        HIDDEN_TYPES["tanh"](*(given.asarray(array, "bfloat16") for array in layer))
        for layer in xs.init_params(SIZES, rng=rng)
    )
    moved = xs.to_namespace(params, wanted.library)
    assert carried(moved) == ["tanh"] * 3
    for layer, original in zip(moved, params, strict=True):
        assert "bfloat16" in str(layer.weight.dtype)
        np.testing.assert_array_equal(wanted.to_numpy(layer.weight), given.to_numpy(original.weight))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda p: xs.to_namespace((), np),
            TypeError,
            r"^params must be a non-empty sequence of \(weight, bias\) pairs",
        ),
        (lambda p: xs.to_namespace(p, "numpy"), TypeError, r"^xp must be "),
        (lambda p: xs.to_namespace(p, np, "cuda"), ValueError, r"^device must "),
        (
            lambda p: xs.to_namespace((p[0], HIDDEN_TYPES["relu"](*p[1]), p[2]), np),
            ValueError,
            r"^params\[1\] must carry the activation of params\[0\], 'tanh', got 'relu'\.$",
        ),
    ],
)
def test_parameters_that_cannot_move(call, error, message, params):
    with pytest.raises(error, match=message):
        call(params)


def test_pytorch_parameters_of_a_dtype_that_a_library_lacks(rng):
    torch = needs("torch")
    pairs = [(torch.asarray(np.ones((2, 2)), "bfloat16"), torch.asarray(np.ones(2), "bfloat16"))]
    with pytest.raises(TypeError, match=r"^xp must have the dtype of params, bfloat16, got numpy\.$"):
        xs.to_namespace(pairs, np)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    pytest.importorskip("safetensors")
    return tmp_path / "net.safetensors"


def metadata_of(path):
    import safetensors

    with safetensors.safe_open(path, "np") as file:
        return json.loads(file.metadata()["xpsoftmax"])


def stored(path, params, metadata):
    names = (f"layers.{i}.{part}" for i in range(len(params)) for part in ("weight", "bias"))
    arrays = (array for layer in params for array in layer)
    save_arrays(path, dict(zip(names, arrays, strict=True)), metadata)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_files(name, backend, path):
    there = xs.to_namespace(xs.init_params(SIZES, rng=0, activation=name), backend.library, backend.device)
    xs.save_params(path, there)
    assert metadata_of(path) == PARAMS | {"activation": [name, name, None]}
    assert carried(xs.load_params(path, xp=backend.library, device=backend.device)) == [name, name, None]


@pytest.mark.parametrize("layers", [slice(1), slice(2), slice(1, 3)], ids=str)
def test_files_of_slices(layers, params, path):
    xs.save_params(path, params[layers])
    assert carried(xs.load_params(path)) == CARRIED[layers]


def test_files_of_plain_pairs_are_those_of_older_versions(params, path):
    xs.save_params(path, plain(params))
    assert metadata_of(path) == PARAMS
    assert carried(xs.load_params(path)) == [None, None, None]


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        ("tanh", "its activations are 'tanh', not a list of"),
        ([["tanh"], "tanh", None], r"its activations are \[\['tanh'\], 'tanh', None\], not a list of"),
        (["tanh", "swish", None], r"its activations are \['tanh', 'swish', None\], not a list of .*'gelu'"),
        (["tanh", "tanh"], "it has 3 layers, but the activations of 2"),
        (["tanh", "relu", None], r"params\[1\] must carry the activation of params\[0\], 'tanh', got 'relu'"),
    ],
    ids=str,
)
def test_files_with_other_activations(activation, message, params, path):
    stored(path, params, PARAMS | {"activation": activation})
    with pytest.raises(
        ValueError, match=f"^path must name a file that xpsoftmax wrote, got {re.escape(str(path))}: {message}"
    ):
        xs.load_params(path)


def test_any_flipped_bit_of_a_header(path):
    xs.save_params(path, xs.init_params((2, 2, 2), rng=0, activation="silu"))
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    for i, bit in itertools.product(range(size), range(8)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            xs.load_params(path)


# --- going on ---------------------------------------------------------------------------------------------------------


def same(one, two):
    return all(
        np.array_equal(a, b) for layer, other in zip(one, two, strict=True) for a, b in zip(layer, other, strict=True)
    )


@pytest.mark.parametrize("given", ["recorded", "plain", "explicit"])
def test_a_training_goes_on_with_it(given, params, data):
    whole = xs.train(params, *data, epochs=4, **OPTIONS)
    half = xs.train(params, *data, epochs=2, **OPTIONS)
    start = params if given == "recorded" else plain(params)
    explicit = {"activation": "tanh"} if given == "explicit" else {}
    rest = xs.train(start, *data, epochs=4, resume=pickle.loads(pickle.dumps(half.state)), **explicit, **OPTIONS)
    assert carried(rest.params) == carried(rest.state.params) == CARRIED
    assert same(rest.params, whole.params)


@pytest.mark.parametrize("start", ["recorded", "explicit"])
def test_a_training_does_not_go_on_with_another(start, params, data):
    state = xs.train(params, *data, epochs=1, **OPTIONS).state
    options = {"activation": "gelu"} if start == "explicit" else {}
    start = xs.init_params(SIZES, rng=0, activation=None if options else "gelu")
    with pytest.raises(ValueError, match=r"^resume\.params must carry the activation of params, 'gelu', got 'tanh'\.$"):
        xs.train(start, *data, epochs=2, resume=state, **options, **OPTIONS)


def test_a_state_of_layers_that_differ(params, data):
    state = xs.train(params, *data, epochs=1, **OPTIONS).state
    state = state._replace(params=(params[0], HIDDEN_TYPES["relu"](*params[1]), params[2]))
    with pytest.raises(ValueError, match=r"^resume\[1\] must carry the activation of resume\[0\], 'tanh', got 'relu'"):
        xs.train(plain(params), *data, epochs=2, resume=state, **OPTIONS)


def of_older_versions(state):
    """A state whose layers are plain, read from a pickle that names the module where they were."""

    def stripped(layers):
        return tuple(xs.Layer(*layer) for layer in layers)

    loss, epoch, best = state.best
    count, *kept = state.optimizer
    old = state._replace(params=stripped(state.params), best=(loss, epoch, stripped(best)),
                         optimizer=(count, *map(stripped, kept)))  # fmt: skip
    text = pickle.dumps(old, 0)
    assert b"cxpsoftmax._network.layers\nLayer\n" in text
    return pickle.loads(text.replace(b"cxpsoftmax._network.layers\n", b"cxpsoftmax._backprop\n"))


def test_states_of_older_versions_go_on(params, data):
    options = OPTIONS | {"validation": data, "patience": 50}
    whole = xs.train(params, *data, epochs=4, **options)
    half = xs.train(params, *data, epochs=2, **options)
    old = of_older_versions(half.state)
    assert carried(old.params) == [None, None, None]
    rest = xs.train(plain(params), *data, activation="tanh", epochs=4, resume=old, **options)
    assert same(rest.params, whole.params)
    for layers in (rest.params, rest.state.params, *rest.state.optimizer[1:], rest.state.best[2]):
        assert carried(layers) == CARRIED
    same_epochs = xs.train(plain(params), *data, activation="tanh", epochs=2, resume=old, **options)
    assert carried(same_epochs.params) == carried(same_epochs.state.best[2]) == CARRIED


# --- contradictions ---------------------------------------------------------------------------------------------------

CALLS = {
    "mlp_logits": lambda params, X, y, **options: xs.mlp_logits(params, X, **options),
    "mlp_predict": lambda params, X, y, **options: xs.mlp_predict(params, X, **options),
    "mlp_loss": xs.mlp_loss,
    "mlp_loss_and_grad": xs.mlp_loss_and_grad,
    "mlp_partial_sums": xs.mlp_partial_sums,
    "train": partial(xs.train, epochs=1, **OPTIONS),
}
BOTH = r"^activation must be the one that params carry, 'tanh', got 'relu'\. Leave activation out"
DIFFERENT = r"^params\[1\] must carry the activation of params\[0\], 'tanh', got 'relu'\.$"


@pytest.mark.parametrize("name", CALLS)
def test_an_explicit_activation_must_be_the_one_carried(name, backend, params, data):
    if backend.name == "dask" and name == "train":
        pytest.skip("refused")
    there = xs.to_namespace(params, backend.library, backend.device)
    with pytest.raises(ValueError, match=BOTH):
        CALLS[name](there, backend.asarray(data[0]), backend.asarray(data[1]), activation="relu")


@pytest.mark.parametrize("explicit", [{}, {"activation": "tanh"}, {"activation": "relu"}], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_layers_must_not_contradict_each_other(name, explicit, params, data):
    params = (params[0], HIDDEN_TYPES["relu"](*params[1]), params[2])
    with pytest.raises(ValueError, match=DIFFERENT):
        CALLS[name](params, *data, **explicit)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("last", [xs.Layer, HIDDEN_TYPES["tanh"]], ids=["plain", "was hidden"])
def test_a_network_without_hidden_layers_contradicts_nothing(name, last, data):
    (layer,) = xs.init_params((D, C), rng=0, activation="tanh")
    assert layer.activation is None
    for activation in (None, *ACTIVATIONS):
        CALLS[name]((last(*layer),), *data, activation=activation)


def test_what_is_not_computed_with_an_activation_refuses_contradictions_too(params, data, tmp_path):
    mixed = (params[0], HIDDEN_TYPES["relu"](*params[1]), params[2])
    optimizer, sums = xs.adam(0.1), xs.mlp_partial_sums(params, *data)
    state = optimizer.init(params)
    for call in (
        lambda: optimizer.init(mixed),
        lambda: optimizer.update(mixed, params, state),
        lambda: sums.finish(mixed),
        lambda: xs.save_params(tmp_path / "net", mixed),
    ):
        with pytest.raises(ValueError, match=DIFFERENT):
            call()


def test_gradients_states_and_sums_must_be_of_networks_with_the_activation(params, data):
    other = tuple(HIDDEN_TYPES["relu"](*layer) for layer in params)
    optimizer, sums = xs.adam(0.1), xs.mlp_partial_sums(params, *data)
    message = "must carry the activation of {}, '{}', got '{}'"
    with pytest.raises(ValueError, match="^grads " + message.format("params", "tanh", "relu")):
        optimizer.update(params, other, optimizer.init(params))
    with pytest.raises(ValueError, match="^state " + message.format("params", "tanh", "relu")):
        optimizer.update(params, params, optimizer.init(other))
    with pytest.raises(ValueError, match="^other " + message.format("the sums", "tanh", "relu")):
        sums + xs.mlp_partial_sums(other, *data)
    with pytest.raises(ValueError, match="^params " + message.format("the sums", "tanh", "relu")):
        sums.finish(other)


# --- dask -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def blocks(data):
    needs("dask")
    import dask.array as da

    return da.from_array(data[0], chunks=(70, D)), da.from_array(data[1], chunks=70)


def test_gradients_over_blocks(params, blocks, data):
    import dask

    import xpsoftmax.dask as xd

    loss, grads = xd.mlp_loss_and_grad(params, *blocks)
    assert carried(grads) == CARRIED
    loss, grads = dask.compute(loss, grads)
    assert carried(grads) == CARRIED
    np.testing.assert_allclose(loss, xs.mlp_loss(plain(params), *data, activation="tanh"), rtol=1e-12)
    np.testing.assert_allclose(xd.mlp_loss(params, *blocks).compute(), loss, rtol=1e-12)
    assert carried(xd.mlp_loss_and_grad(plain(params), *blocks, activation="tanh")[1]) == [None, None, None]


def test_labels_over_blocks(params, blocks, data):
    import xpsoftmax.dask as xd

    desired = xs.mlp_predict(plain(params), data[0], activation="tanh")
    np.testing.assert_array_equal(xd.mlp_predict(params, blocks[0]).compute(), desired)


@pytest.mark.parametrize("start", [lambda params: params, plain], ids=["recorded", "plain"])
def test_training_over_blocks(start, params, blocks):
    import xpsoftmax.dask as xd

    options = {"optimizer": xs.adam(0.02), "epochs": 2, "validation": blocks, "patience": 2, "rng": 0}
    result = xd.train(start(params), *blocks, activation="tanh", **options)
    for layers in (result.params, result.state.params, *result.state.optimizer[1:], result.state.best[2]):
        assert carried(layers) == CARRIED
    rest = xd.train(plain(params), *blocks, resume=result.state, **(options | {"epochs": 3}))
    assert carried(rest.params) == CARRIED
    with pytest.raises(ValueError, match=r"^resume\.params must carry the activation of params, 'relu', got 'tanh'\.$"):
        xd.train(plain(params), *blocks, resume=result.state, activation="relu", **(options | {"epochs": 3}))


@pytest.mark.parametrize("name", ["mlp_loss", "mlp_loss_and_grad", "mlp_predict", "train"])
def test_contradictions_over_blocks(name, params, blocks):
    import xpsoftmax.dask as xd

    arguments = blocks[:1] if name == "mlp_predict" else blocks
    function = partial(xd.train, optimizer=xs.sgd(0.1), epochs=1) if name == "train" else getattr(xd, name)
    with pytest.raises(ValueError, match=BOTH):
        function(params, *arguments, activation="relu")
    with pytest.raises(ValueError, match=DIFFERENT):
        function((params[0], HIDDEN_TYPES["relu"](*params[1]), params[2]), *arguments)


# --- the estimator ----------------------------------------------------------------------------------------------------


@pytest.fixture
def classifier():
    pytest.importorskip("sklearn")
    from xpsoftmax.sklearn import MLPClassifier

    return partial(MLPClassifier, (7, 5), activation="tanh", random_state=0, max_iter=400, tol=0.1)


@pytest.mark.parametrize(
    "options", [{}, {"solver": "sgd"}, {"solver": "lbfgs", "tol": 1.0}, {"early_stopping": True}], ids=str
)
def test_parameters_of_a_model_carry_it(options, classifier, data):
    X, y = data
    model = classifier(**options).fit(X, y)
    assert carried(model.params_) == CARRIED
    assert carried(pickle.loads(pickle.dumps(model)).params_) == CARRIED
    np.testing.assert_array_equal(
        xs.mlp_logits(model.params_, X), xs.mlp_logits(plain(model.params_), X, activation="tanh")
    )
    np.testing.assert_array_equal(model.predict(X), xs.mlp_predict(model.params_, X))


def test_a_model_moves_to_pytorch_with_it(classifier, data):
    backend = needs("torch")
    model = classifier(early_stopping=True).fit(*data)
    moved = model.to(backend.library)
    assert carried(moved.params_) == carried(moved._best) == carried(moved._state[1]) == CARRIED
    assert moved.predict(backend.asarray(data[0])).tolist() == model.predict(data[0]).tolist()


def test_a_model_over_blocks_carries_it(classifier, blocks, data):
    model = classifier().fit(*blocks)
    assert carried(model.params_) == CARRIED
    np.testing.assert_array_equal(model.predict(blocks[0]).compute(), xs.mlp_predict(model.params_, data[0]))
    model.set_params(activation="relu")
    with pytest.raises(
        ValueError, match=r"^activation must be the one that the model was fitted with, 'tanh', got 'relu'"
    ):
        model.predict(blocks[0])


@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "decision_function"])
def test_a_model_does_not_predict_with_another_activation_than_that_of_its_fit(method, classifier, data):
    model = classifier().fit(*data)
    before = getattr(model, method)(data[0])
    model.set_params(activation="relu")
    assert carried(model.params_) == CARRIED
    with pytest.raises(
        ValueError, match=r"^activation must be the one that the model was fitted with, 'tanh', got 'relu'"
    ):
        getattr(model, method)(data[0])
    model.set_params(activation="tanh")
    np.testing.assert_array_equal(getattr(model, method)(data[0]), before)


def test_a_model_that_learns_on_takes_the_activation_that_was_set(classifier, data):
    """As in scikit-learn."""
    model = classifier().partial_fit(*data, classes=[0, 1])
    model.set_params(activation="gelu").partial_fit(*data)
    assert carried(model.params_) == ["gelu", "gelu", None]
    np.testing.assert_array_equal(model.predict(data[0]), xs.mlp_predict(model.params_, data[0]))


def test_a_model_of_an_older_version_has_the_activation_of_its_parameter(classifier, data):
    model = classifier().fit(*data)
    before = model.predict(data[0])
    del model._activation
    model = pickle.loads(pickle.dumps(model))
    assert carried(model.params_) == CARRIED
    np.testing.assert_array_equal(model.predict(data[0]), before)


def test_a_model_of_parameters(params, data):
    pytest.importorskip("sklearn")
    from xpsoftmax.sklearn import MLPClassifier

    for model in (
        MLPClassifier.from_params(params),
        MLPClassifier.from_params(params, activation="tanh"),
        MLPClassifier.from_params(params, activation=None),
        MLPClassifier.from_params(plain(params), activation="tanh"),
    ):
        assert carried(model.params_) == CARRIED
        np.testing.assert_array_equal(model.predict(data[0]), xs.mlp_predict(params, data[0]))
    assert carried(MLPClassifier.from_params(plain(params)).params_) == ["relu", "relu", None]
    assert MLPClassifier.from_params(params[:1], activation="gelu").activation == "gelu"
    with pytest.raises(ValueError, match=BOTH):
        MLPClassifier.from_params(params, activation="relu")
    with pytest.raises(ValueError, match=DIFFERENT):
        MLPClassifier.from_params((params[0], HIDDEN_TYPES["relu"](*params[1]), params[2]))
