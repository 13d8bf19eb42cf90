"""JAX arrays in host memory are read as NumPy arrays: equal bits, no copies, and results that are JAX's own."""

import gc
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from assertions import assert_same_bits
from grid import labels, logits

import xpsoftmax as xs
from xpsoftmax import kernels
from xpsoftmax.kernels import memory

jax = pytest.importorskip("jax")
jnp = jax.numpy
pytestmark = pytest.mark.backends("jax")

from xpsoftmax.kernels.jax import views  # noqa: E402 - imports JAX

LARGE = (40, 1000)  # 160 kB in float32: more than what JAX is left to copy


@pytest.fixture
def counted(monkeypatch):
    """Calls of the generic loss and softmax on JAX arrays."""
    calls = []
    module = kernels.WITH_RULES[0].load()

    def counting(name, function):
        return lambda *arguments, **options: calls.append(name) or function(*arguments, **options)

    for name in ("softmax_rows", "log_softmax_rows", "logsumexp_rows", "softmax_loss_rows"):
        monkeypatch.setattr(module, name, counting(name, getattr(module, name)))
    return calls


@pytest.fixture
def config(request):
    """Set an option of JAX; it is put back after the test."""

    def change(name, value):
        request.addfinalizer(partial(jax.config.update, name, getattr(jax.config, name)))
        jax.config.update(name, value)

    return change


# --- equal bits -------------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "softmax": lambda z, y, **o: xs.softmax(z, **o),
    "log_softmax": lambda z, y, **o: xs.log_softmax(z, **o),
    "logsumexp": lambda z, y, **o: xs.logsumexp(z, **o),
    "softmax, axis 0": lambda z, y, **o: xs.softmax(z, axis=0, **o),
    "softmax, all axes": lambda z, y, **o: xs.softmax(z, axis=None, **o),
    "log_softmax, where": lambda z, y, **o: xs.log_softmax(z, where=z > 0, **o),
    "logsumexp, keepdims": lambda z, y, **o: xs.logsumexp(z, axis=0, keepdims=True, **o),
    "loss": lambda z, y, **o: xs.softmax_loss(z, y, **o),
    "loss and gradient": lambda z, y, **o: xs.softmax_loss_and_grad(z, y, **o),
    "loss, gradient, logsumexp": lambda z, y, **o: xs.softmax_loss_and_grad(z, y, aux=True, reduction="none", **o),
    "loss and gradient, axis 0": lambda z, y, **o: xs.softmax_loss_and_grad(z.T, y, axis=0, **o),
    "sum, smoothed": lambda z, y, **o: xs.softmax_loss_and_grad(z, y, reduction="sum", label_smoothing=0.1, **o),
    "three dimensions": lambda z, y, **o: xs.softmax_loss_and_grad(z.reshape(4, -1, z.shape[1]), y.reshape(4, -1), **o),
    "z-loss, ignored": lambda z, y, **o: xs.softmax_loss_and_grad(z, y, z_loss=0.01, ignore_index=3, **o),
}


def leaves(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("shape", [(8, 10), LARGE])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_equal_bits(backend, rng, counted, function, dtype, shape):
    z = (5 * rng.normal(size=shape)).astype(dtype)
    y = rng.integers(shape[1], size=shape[0]).astype("i4")
    for _ in range(2):  # the second call is remembered
        actual = leaves(function(backend.asarray(z), backend.asarray(y), impl="kernel"))
        for ours, theirs in zip(actual, leaves(function(z, y)), strict=True):
            assert type(ours) is type(backend.asarray(z))
            assert not ours.weak_type
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert_same_bits(np.asarray(ours), np.asarray(theirs))
    assert counted == []


WEIGHTS = {
    "soft": lambda array, rng: {"targets": array(rng.dirichlet(np.ones(10), size=8).astype("f4"))},
    "weights": lambda array, rng: {
        "targets": array(np.arange(8)),
        "sample_weight": array(rng.random(8)),
        "class_weight": array(rng.random(10).astype("f4")),
    },
    "all": lambda array, rng: {
        "targets": array(np.arange(8).astype("u1")),
        "sample_weight": array(np.arange(8.0) % 2),
        "class_weight": array(rng.random(10)),
        "label_smoothing": 0.2,
        "z_loss": 0.1,
        "ignore_index": 4,
    },
}


@pytest.mark.parametrize("make", WEIGHTS.values(), ids=WEIGHTS)
def test_equal_bits_of_all_options(backend, dtype, rng, counted, make):
    z = rng.normal(size=(8, 10)).astype(dtype)
    given = make(np.asarray, rng)
    there = {name: backend.asarray(x) if isinstance(x, np.ndarray) else x for name, x in given.items()}
    for _ in range(2):
        actual = xs.softmax_loss_and_grad(backend.asarray(z), there["targets"], **without_targets(there))
        for ours, theirs in zip(
            actual, xs.softmax_loss_and_grad(z, given["targets"], **without_targets(given)), strict=True
        ):
            assert_same_bits(np.asarray(ours), theirs)
    assert counted == []


def without_targets(given):
    return {name: x for name, x in given.items() if name != "targets"}


@pytest.mark.parametrize("shape", [(8, 10), LARGE])
def test_bfloat16_is_computed_in_float32_and_rounded_once(backend, rng, counted, shape):
    z = backend.asarray(5 * rng.normal(size=shape), "bfloat16")
    wide = z.astype("float32")
    y = backend.asarray(rng.integers(shape[1], size=shape[0]))
    loss, dlogits, sums = xs.softmax_loss_and_grad(z, y, sample_weight=wide[:, 0] ** 2, aux=True)
    desired = xs.softmax_loss_and_grad(wide, y, sample_weight=wide[:, 0] ** 2, aux=True)
    assert (loss.dtype, dlogits.dtype, sums.dtype) == ("float32", "bfloat16", "float32")
    assert loss == desired[0]
    assert (dlogits == desired[1].astype("bfloat16")).all()
    assert (sums == desired[2]).all()
    for function in (xs.softmax, xs.log_softmax, xs.logsumexp):
        result = function(z)
        assert result.dtype == "bfloat16"
        assert (result == function(wide).astype("bfloat16")).all()
    assert counted == []


def test_bfloat16_beside_others_is_refused_as_ever(backend):
    z = backend.asarray(np.ones((2, 3)), "bfloat16")
    with pytest.raises(TypeError, match=r"^tangent must have the dtype of logits, bfloat16, got float32\.$"):
        xs.softmax_jvp(z, z.astype("float32"))


def test_rows_of_any_kind(backend, impl, dtype, rng):
    """Also rows of which the generic code on JAX flushes numbers."""
    for kind in ("scale-80", "minus-inf", "ties", "up-1e4"):
        z = logits(rng, kind, 1000, dtype)
        y = labels(rng, z)
        actual = xs.softmax_loss_and_grad(backend.asarray(z), backend.asarray(y), impl=impl)
        desired = xs.softmax_loss_and_grad(z, y)
        if impl == "kernel":
            assert_same_bits(np.asarray(actual[1]), desired[1])
        np.testing.assert_allclose(actual[0], desired[0], rtol=1e-4)


# --- no copies --------------------------------------------------------------------------------------------------------

WAYS = {"directly": None, "publicly": views._publicly}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request, monkeypatch):
    """Both ways to make a JAX array of NumPy's memory: the part of device_put alone, and device_put."""
    if request.param is not None:
        monkeypatch.setattr(views, "_to_device", lambda: request.param)


def test_this_version_of_jax_makes_arrays_directly():
    assert views._to_device() is not views._publicly


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_neither_logits_nor_gradients_are_copied(backend, rng, monkeypatch, way, dtype):
    read, made = [], []
    as_numpy, aligned = views.as_numpy, memory.aligned
    monkeypatch.setattr(views, "as_numpy", lambda x: read.append(as_numpy(x)) or read[-1])
    for module in (views, memory):
        monkeypatch.setattr(module, "aligned", lambda *given: made.append(aligned(*given)) or made[-1])
    z, y = backend.asarray(rng.normal(size=LARGE), dtype), backend.asarray(np.arange(LARGE[0]))
    xs.softmax(z)
    if dtype != "bfloat16":
        assert read[0].__array_interface__["data"][0] == z.unsafe_buffer_pointer()
        assert not read[0].flags.writeable
    for call in (xs.softmax, xs.log_softmax, lambda z: xs.softmax_loss_and_grad(z, y)[1]):
        for shape in (LARGE, (2, LARGE[0] // 2, LARGE[1])) if call is xs.softmax else (LARGE,):
            result = call(z.reshape(shape))
            address = made[-1].__array_interface__["data"][0]
            assert address % 64 == 0
            assert result.unsafe_buffer_pointer() == address


def test_a_small_result_is_made_without_alignment(backend, rng, monkeypatch):
    monkeypatch.setattr(memory, "aligned", None)
    xs.softmax(backend.asarray(rng.normal(size=(8, 10))))
    with pytest.raises(TypeError):
        xs.softmax(backend.asarray(rng.normal(size=LARGE)))


def test_results_are_nobody_elses(backend, rng, way):
    """Their memory is not scratch that a later call writes to, nor that of the logits."""
    arrays = [rng.normal(size=LARGE).astype("f4") for _ in range(4)]
    y = rng.integers(LARGE[1], size=LARGE[0])
    results = [xs.softmax_loss_and_grad(backend.asarray(z), backend.asarray(y)) for z in arrays]
    gc.collect()
    for z, (loss, dlogits) in zip(arrays, results, strict=True):
        desired = xs.softmax_loss_and_grad(z, y)
        assert_same_bits(np.asarray(loss), desired[0])
        assert_same_bits(np.asarray(dlogits), desired[1])
    pointers = {dlogits.unsafe_buffer_pointer() for _, dlogits in results}
    assert len(pointers) == len(results)


def test_memory_lives_as_long_as_it_is_read(backend, rng):
    values = rng.normal(size=LARGE)
    array = backend.asarray(values) + 0.0
    view = views.as_numpy(array)
    del array
    gc.collect()
    refill = [backend.asarray(rng.normal(size=LARGE)) for _ in range(8)]  # would take memory that was given back
    assert_same_bits(view, values)
    result = xs.softmax(backend.asarray(values))
    result.block_until_ready()
    gc.collect()
    assert len(refill) == 8
    assert_same_bits(np.asarray(result), xs.softmax(values))


def test_logits_that_jax_has_yet_to_compute(backend, rng):
    factor = backend.asarray(rng.normal(size=(1000, 1000)))
    unready = jax.jit(lambda x: x @ x @ x @ x)(factor)
    result = xs.softmax(unready)
    assert_same_bits(np.asarray(result), xs.softmax(np.asarray(unready)))


def test_deleted_logits_are_jax_s_error(backend):
    z = backend.asarray(np.ones((2, 3))) + 0.0
    xs.softmax(z)
    z.delete()
    with pytest.raises(RuntimeError, match="Array has been deleted"):
        xs.softmax(z)


# --- where results are ------------------------------------------------------------------------------------------------


def test_only_what_the_caller_has_bound_is_bound(backend, rng, way):
    values, classes = rng.normal(size=(4, 5)), np.arange(4)
    device = jax.devices()[0]
    for bound_logits in (False, True):
        for bound_labels in (False, True):
            z = jax.device_put(values, device if bound_logits else None)
            y = jax.device_put(classes, device if bound_labels else None)
            for result in xs.softmax_loss_and_grad(z, y):
                assert result.committed == (bound_logits or bound_labels)
            assert xs.softmax(z).committed == bound_logits


def test_results_are_never_of_a_weak_type(backend):
    weak = jnp.broadcast_to(1.0, (3, 4))
    assert weak.weak_type
    assert not xs.softmax(weak).weak_type
    assert not any(x.weak_type for x in xs.softmax_loss_and_grad(weak, backend.asarray(np.arange(3))))


def test_results_are_arrays_like_others(backend, rng, way):
    """They go through jit, grad and donation as those that JAX has made."""
    z = backend.asarray(rng.normal(size=LARGE).astype("f4"))
    p = xs.softmax(z)
    assert p.aval == z.aval
    assert p.sharding == z.sharding
    np.testing.assert_allclose(jax.jit(lambda x: x.sum(axis=1))(p), np.ones(LARGE[0]), rtol=1e-5)
    kept = np.array(p)
    doubled = jax.jit(lambda x: 2 * x, donate_argnums=0)(p)
    np.testing.assert_array_equal(doubled, 2 * kept)


# --- settings of JAX --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["allow", "disallow", "disallow_explicit"])
def test_guards_against_transfers(backend, rng, way, level):
    """Nothing is moved between host and device."""
    z, y = backend.asarray(rng.normal(size=LARGE)), backend.asarray(np.arange(LARGE[0]))
    with jax.transfer_guard(level):
        dlogits = xs.softmax_loss_and_grad(z, y)[1]
    assert_same_bits(np.asarray(dlogits), xs.softmax_loss_and_grad(np.asarray(z), np.asarray(y))[1])


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_numpy_dtype_promotion", "strict"), ("jax_numpy_rank_promotion", "raise"), ("jax_disable_jit", True)],
)
def test_settings_that_change_nothing(backend, rng, config, counted, name, value):
    config(name, value)
    z, y = rng.normal(size=(6, 5)).astype("f4"), np.arange(6) % 5
    actual = xs.softmax_loss_and_grad(jnp.asarray(z), jnp.asarray(y), label_smoothing=0.1)
    assert_same_bits(np.asarray(actual[1]), xs.softmax_loss_and_grad(z, y, label_smoothing=0.1)[1])
    assert counted == []


@pytest.mark.parametrize("name", ["jax_debug_nans", "jax_debug_infs"])
def test_where_jax_looks_for_nan_it_computes(backend, config, counted, name):
    z = backend.asarray(np.array([[1.0, np.nan if name == "jax_debug_nans" else np.inf]]))
    xs.logsumexp(z)
    assert counted == []
    config(name, value=True)
    with pytest.raises(FloatingPointError):
        xs.logsumexp(z)
    assert counted == ["logsumexp_rows"]
    with pytest.raises(NotImplementedError, match="the jax backend refuses them: JAX is set to look for nan or inf"):
        xs.logsumexp(z, impl="kernel")


def test_float64_where_jax_is_set_to_32_bits(backend, config, counted):
    z = backend.asarray(np.ones((2, 3)))
    xs.softmax(z)
    config("jax_enable_x64", value=False)
    with pytest.raises(NotImplementedError, match="the jax backend refuses them: JAX is set to 32 bits"):
        xs.softmax(z, impl="kernel")
    assert_same_bits(np.asarray(xs.softmax(z.astype("float32"), impl="kernel")), xs.softmax(np.ones((2, 3), "f4")))
    assert counted == []


# --- while JAX traces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "function"), FUNCTIONS.items(), ids=FUNCTIONS)
def test_no_kernel_takes_what_jax_traces(backend, rng, name, function):
    z, y = backend.asarray(rng.normal(size=(8, 10))), backend.asarray(np.arange(8))
    message = (
        r'^impl must be "auto" or "generic" for jax\w* arrays of float64, got "kernel": the jax backend refuses them: '
    )
    options = {} if name.startswith(("softmax", "log")) else {"validate": False}
    with pytest.raises(NotImplementedError, match=message + r"JAX traces them\."):
        jax.jit(lambda z: function(z, y, impl="kernel", **options))(z)


def test_traced_targets_beside_logits_that_have_values(backend, rng, counted):
    z, y = backend.asarray(rng.normal(size=(8, 10))), backend.asarray(np.arange(8))
    traced = jax.jit(lambda y: xs.softmax_loss_and_grad(z, y, validate=False)[1])(y)
    np.testing.assert_allclose(traced, xs.softmax_loss_and_grad(z, y)[1], rtol=1e-12)
    assert counted == ["softmax_loss_rows"]
    with pytest.raises(NotImplementedError, match=r"not all arrays of the call can be read as NumPy arrays\."):
        jax.jit(lambda y: xs.softmax_loss(z, y, validate=False, impl="kernel"))(y)


def test_constants_in_traced_functions(backend, rng):
    """Arrays that have values have them there, too: labels are looked at, and the result is a constant."""
    z, y = backend.asarray(rng.normal(size=(8, 10))), backend.asarray(np.arange(8))
    loss, dlogits = xs.softmax_loss_and_grad(z, y)
    mapped = jax.vmap(lambda x: x * xs.softmax_loss_and_grad(z, y)[1])(jnp.ones(2))
    assert_same_bits(np.asarray(mapped[1]), np.asarray(dlogits))
    slope = jax.grad(lambda x: x * xs.softmax_loss(z, y))(1.0)
    np.testing.assert_array_equal(slope, loss)
    compiled = jax.jit(lambda x: x * xs.softmax_loss(z, y))(2.0)
    bad = y + 10
    np.testing.assert_allclose(compiled, 2 * loss, rtol=1e-15)
    with pytest.raises(ValueError, match=r"^targets must be labels from 0 to 9 .*, got 10 at row 0\."):
        jax.jit(lambda x: x * xs.softmax_loss(z, bad))(2.0)
    with jax.ensure_compile_time_eval():
        assert_same_bits(np.asarray(xs.softmax(z)), xs.softmax(np.asarray(z)))


def test_in_a_callback_from_compiled_code(backend, rng):
    z, y = backend.asarray(rng.normal(size=LARGE)), backend.asarray(np.arange(LARGE[0]))

    def gradient(z, y):
        return xs.softmax_loss_and_grad(jnp.asarray(z), jnp.asarray(y))[1]

    called = jax.jit(lambda z, y: jax.pure_callback(gradient, jax.ShapeDtypeStruct(z.shape, z.dtype), z, y))
    assert_same_bits(np.asarray(called(z, y)), np.asarray(xs.softmax_loss_and_grad(z, y)[1]))


def test_generic_stays_generic(backend, rng, counted):
    z, y = backend.asarray(rng.normal(size=(8, 10))), backend.asarray(np.arange(8))
    xs.softmax(z, impl="generic")
    xs.softmax_loss(z, y, impl="generic")
    assert counted == ["softmax_rows", "softmax_loss_rows"]


# --- several devices --------------------------------------------------------------------------------------------------


def test_each_device_of_several():
    """Four devices that share the processor. Arrays on one are read as NumPy arrays, results go there."""
    code = """
import jax, jax.numpy as jnp, numpy as np, xpsoftmax as xs
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
devices = jax.devices()
assert len(devices) == 4
values, classes = np.random.default_rng(0).normal(size=(40, 1000)).astype("f4"), np.arange(40)
loss, dlogits = xs.softmax_loss_and_grad(values, classes)
for device in devices:
    z = jax.device_put(values, device)
    for y in (jax.device_put(classes, device), jnp.asarray(classes)):
        results = xs.softmax_loss_and_grad(z, y, impl="kernel")
        assert all(x.committed and x.devices() == {device} for x in results)
        assert results[0] == loss and np.array_equal(results[1], dlogits)
        (z + results[1]).block_until_ready()
# The labels are bound to a device, the logits go there.
for result in xs.softmax_loss_and_grad(jnp.asarray(values), jax.device_put(classes, devices[2]), impl="kernel"):
    assert result.committed and result.devices() == {devices[2]}
for mesh in (Mesh(np.array(devices), ("x",)), Mesh(np.array(devices[:1]), ("x",))):
    try:
        xs.softmax(jax.device_put(values, NamedSharding(mesh, P("x"))), impl="kernel")
    except NotImplementedError as error:
        assert str(error).endswith("the jax backend refuses them: they may be distributed over several devices."), error
    else:
        raise AssertionError("no error")
"""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "0",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_another_version_of_jax_makes_arrays_publicly(monkeypatch, request):
    """The part of device_put is used only if it does what device_put does."""
    import jaxlib.xla_client

    request.addfinalizer(views._to_device.cache_clear)
    original = jaxlib.xla_client.batched_device_put

    def of_other_values(aval, sharding, xs, devices, committed):
        return original(aval, sharding, [xs[0] + 1], devices, committed)

    def always_bound(aval, sharding, xs, devices, committed):
        return original(aval, sharding, xs, devices, True)

    for other in (of_other_values, always_bound, lambda: None):
        monkeypatch.setattr(jaxlib.xla_client, "batched_device_put", other)
        views._to_device.cache_clear()
        assert views._to_device() is views._publicly
    monkeypatch.delattr(jaxlib.xla_client, "batched_device_put")
    views._to_device.cache_clear()
    assert views._to_device() is views._publicly
