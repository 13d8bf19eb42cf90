"""Arrays stay in the caller's library and on its device; nothing is imported for him; select() and its table."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from assertions import assert_close, assert_like

import xpsoftmax as xs
from xpsoftmax import kernels
from xpsoftmax.kernels import generic

ROWS, CLASSES = 3, 5
Y = np.array([0, 4, 2])

# --- results stay where the logits are --------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "softmax_jvp", "softmax_jacobian"])
def test_results_of_softmax_stay(backend, dtype, rng, name, axis):
    logits = backend.asarray(rng.normal(size=(ROWS, CLASSES)), dtype)
    result = getattr(xs, name)(*([logits, logits] if name == "softmax_jvp" else [logits]), axis=axis)
    classes, rows = (ROWS, CLASSES) if axis == 0 else (CLASSES, ROWS)
    shape = {"logsumexp": (rows,), "softmax_jacobian": (rows, classes, classes)}.get(name, (ROWS, CLASSES))
    assert_like(result, backend=backend, dtype=dtype, shape=shape)


OPTIONS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.1},
    "ignored": {"ignore_index": 4},
    "weighted": {"class_weight": np.arange(1.0, 6.0), "sample_weight": np.arange(3.0)},
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_losses_and_gradients_stay(backend, impl, dtype, rng, reduction, options):
    logits = backend.asarray(rng.normal(size=(ROWS, CLASSES)), dtype)
    options = {name: backend.asarray(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}
    loss, dlogits = xs.softmax_loss_and_grad(logits, backend.asarray(Y), reduction=reduction, impl=impl, **options)
    assert_like(loss, backend=backend, dtype=dtype, shape=(ROWS,) if reduction == "none" else ())
    assert_like(dlogits, backend=backend, dtype=dtype, shape=(ROWS, CLASSES))


@pytest.mark.backends("numpy", "torch", "jax", "dask", "cupy")
@pytest.mark.parametrize("narrow", ["float16", "bfloat16"])
def test_losses_of_16_bit_logits_are_float32(backend, impl, rng, narrow):
    if narrow == "bfloat16" and backend.name in ("numpy", "dask", "cupy"):
        pytest.skip("the library has no bfloat16")
    logits = backend.asarray(rng.normal(size=(ROWS, CLASSES)), narrow)
    loss, dlogits = xs.softmax_loss_and_grad(logits, backend.asarray(Y), impl=impl)
    assert_like(loss, backend=backend, dtype="float32", shape=())
    assert_like(dlogits, backend=backend, dtype=narrow, shape=(ROWS, CLASSES))


@pytest.mark.parametrize("sizes", [(4, 3), (4, 6, 3)])
def test_a_network_stays(backend, dtype, rng, sizes):
    xp = backend.xp
    params = xs.init_params(sizes, rng=0, xp=backend.library, dtype=getattr(xp, dtype), device=backend.device)
    inputs, labels = backend.asarray(rng.normal(size=(7, 4)), dtype), backend.asarray(np.arange(7) % 3)
    assert_like(xs.mlp_logits(params, inputs), backend=backend, dtype=dtype, shape=(7, 3))
    sums = xs.mlp_partial_sums(params, inputs, labels)
    for loss, grads in (
        xs.mlp_loss_and_grad(params, inputs, labels, reg=0.1),
        (sums + sums).finish(params, reg=0.1),
    ):
        assert_like(loss, backend=backend, dtype=dtype, shape=())
        for layer, grad in zip(params, grads, strict=True):
            assert_like(grad.weight, backend=backend, dtype=dtype, shape=layer.weight.shape)
            assert_like(grad.bias, backend=backend, dtype=dtype, shape=layer.bias.shape)


def test_predictions_stay(backend):
    params = (xs.Layer(backend.asarray(np.eye(3)), backend.asarray(np.zeros(3))),)
    labels = xs.mlp_predict(params, backend.asarray(np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 3.0]])))
    np.testing.assert_array_equal(backend.to_numpy(labels), [1, 0])
    assert_like(labels, backend=backend, dtype="int64", shape=(2,))


@pytest.mark.parametrize("directions", [None, 2])
def test_numerical_gradients_stay(backend, directions):
    x = backend.asarray(np.array([1.0, 2.0]))
    result = xs.numerical_grad(lambda x: backend.xp.sum(x * x), x, directions=directions, rng=0)
    derivatives, vectors = (result, x) if directions is None else result
    assert_like(derivatives, backend=backend, dtype="float64", shape=(2,))
    assert_like(vectors, backend=backend, dtype="float64", shape=(2,) if directions is None else (2, 2))


@pytest.mark.backends("torch")
def test_the_loss_of_tensors_that_require_grad_is_detached(backend, rng):
    values = rng.normal(size=(ROWS, CLASSES)), np.full((ROWS, CLASSES), 0.2)
    arrays = [backend.asarray(x).requires_grad_() for x in values]
    weight = backend.asarray(np.ones(ROWS)).requires_grad_()
    loss, dlogits = xs.softmax_loss_and_grad(*arrays, sample_weight=weight)
    assert (loss.requires_grad, dlogits.requires_grad) == (False, False)


@pytest.mark.backends("torch")
def test_the_gradients_of_parameters_that_require_grad_are_detached(backend, rng):
    params = tuple(
        xs.Layer(weight.requires_grad_(), bias.requires_grad_())
        for weight, bias in xs.init_params((4, 6, 3), rng=0, xp=backend.library, dtype=backend.xp.float64)
    )
    inputs, labels = backend.asarray(rng.normal(size=(5, 4))), backend.asarray(np.arange(5) % 3)
    loss, grads = xs.mlp_loss_and_grad(params, inputs, labels)
    assert not any(array.requires_grad for array in (loss, *grads[0], *grads[1]))


# --- nothing is mixed -------------------------------------------------------------------------------------------------

COMPANIONS = {
    "targets": lambda array: {"targets": array(Y)},
    "soft targets": lambda array: {"targets": array(np.full((ROWS, CLASSES), 0.2))},
    "sample_weight": lambda array: {"sample_weight": array(np.ones(ROWS))},
    "class_weight": lambda array: {"class_weight": array(np.ones(CLASSES))},
}


@pytest.mark.parametrize(("name", "make"), COMPANIONS.items(), ids=COMPANIONS)
def test_arrays_of_two_libraries(backend, name, make):
    foreign = pytest.importorskip("array_api_strict").asarray if backend.name == "numpy" else np.asarray
    given = {"targets": backend.asarray(Y), **make(foreign)}
    rule = r"must be an array of the same library as logits \([\w.]+\), got one of [\w.]+\.$"
    with pytest.raises(TypeError, match=f"^{name.removeprefix('soft ')} {rule}"):
        xs.softmax_loss(backend.asarray(np.zeros((ROWS, CLASSES))), given.pop("targets"), **given)


@pytest.mark.backends("array_api_strict:device1")
@pytest.mark.parametrize(("name", "make"), COMPANIONS.items(), ids=COMPANIONS)
def test_arrays_on_two_devices(backend, name, make):
    given = {"targets": backend.asarray(Y), **make(backend.library.asarray)}
    message = rf"^{name.removeprefix('soft ')} must be on the device of logits \(.*device1.*\), got .*CPU_DEVICE.*\.$"
    with pytest.raises(ValueError, match=message):
        xs.softmax_loss(backend.asarray(np.zeros((ROWS, CLASSES))), given.pop("targets"), **given)


@pytest.mark.backends("torch")
def test_tensors_on_two_devices(backend):
    labels = backend.library.zeros(ROWS, dtype=backend.library.int64, device="meta")
    with pytest.raises(ValueError, match=r"^targets must be on the device of logits \(cpu\), got meta\.$"):
        xs.softmax_loss(backend.asarray(np.zeros((ROWS, CLASSES))), labels)


@pytest.mark.backends("torch")
def test_tensors_without_values_cannot_be_validated(backend):
    torch = backend.library
    logits = torch.zeros(ROWS, CLASSES, device="meta")
    labels = torch.zeros(ROWS, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match=r"^validate must be False on the meta device, got True: "):
        xs.softmax_loss(logits, labels)
    assert xs.softmax_loss_and_grad(logits, labels, validate=False)[1].shape == (ROWS, CLASSES)


# --- nothing is imported ----------------------------------------------------------------------------------------------

OTHERS = ("array_api_strict", "cupy", "dask", "jax", "sklearn", "torch")
CALLS_ON_NUMPY = """
z, y = np.zeros((3, 4)), np.array([0, 1, 2])
xs.softmax(z), xs.softmax_loss_and_grad(z, y, class_weight=np.ones(4)), xs.softmax_jvp(z, z, axis=0)
xs.softmax(z, out=z)
params = xs.init_params((4, 3), rng=0)
xs.mlp_loss_and_grad(params, z, y), xs.check_grad(lambda z: z.sum(), np.ones((3, 4)), z)
for bad in (z.tolist(), z > 0):
    try:
        xs.softmax(bad)
    except TypeError:
        pass
"""


def run_python(code, **environment):
    """What a fresh interpreter, with warnings as errors, prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("more", ["", CALLS_ON_NUMPY], ids=["import", "calls"])
def test_other_libraries_are_not_imported(more):
    code = f"import sys\nimport numpy as np\nimport xpsoftmax as xs\n{more}"
    imported = run_python(f"{code}\nprint(*sorted(set({OTHERS!r}) & set(sys.modules)))")
    assert imported == ""


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="cupy is not installed")
@pytest.mark.skipif(hasattr(sys.modules.get("cupy"), "stands_in"), reason="a stand-in is found by this process alone")
def test_works_where_cupy_is_imported_but_finds_no_gpu():
    """An empty list of visible devices is what CuPy sees on a machine without any."""
    code = (
        f"import cupy\nimport numpy as np\nimport xpsoftmax as xs\n{CALLS_ON_NUMPY}\nprint(xs.softmax_loss(z, y) > 0)"
    )
    assert run_python(code, CUDA_VISIBLE_DEVICES="") == "True"


# --- select() ---------------------------------------------------------------------------------------------------------


class FakeError(Exception):
    """What only the fake kernel raises."""


def fake_softmax_rows(logits, out=None):
    assert out is None
    return np.full(logits.shape, 42.0)


@pytest.fixture
def fake(monkeypatch):
    """Put a kernel module for NumPy's float64 into the table; count how often it is loaded."""
    module = SimpleNamespace(softmax_rows=fake_softmax_rows, loads=0)

    def load():
        module.loads += 1
        return module

    def takes(array):
        return isinstance(array, np.ndarray) and array.dtype == np.float64

    monkeypatch.setattr(kernels, "BACKENDS", (kernels.Backend("fake", takes, load),))
    return module


@pytest.mark.parametrize(("impl", "value"), [("auto", 42.0), ("kernel", 42.0), ("generic", 0.2)])
def test_a_kernel_is_used_unless_the_generic_text_is_asked_for(fake, impl, value):
    np.testing.assert_allclose(xs.softmax(np.zeros((ROWS, CLASSES)), impl=impl), value, rtol=1e-15)


def test_the_generic_text_does_not_load_a_kernel(fake):
    xs.softmax(np.zeros((ROWS, CLASSES)), impl="generic")
    assert fake.loads == 0


def test_arrays_that_no_kernel_takes_do_not_load_one(fake):
    xs.softmax(np.zeros((ROWS, CLASSES), dtype="f4"))
    assert fake.loads == 0


def test_what_a_kernel_module_lacks_is_generic(fake):
    assert kernels.select("log_softmax_rows", np.zeros((1, 1)), "auto") is generic.log_softmax_rows


@pytest.mark.parametrize("impl", ["auto", "kernel"])
def test_a_kernel_that_raises_is_an_error(fake, impl):
    def broken(logits, out=None):
        raise FakeError("the kernel is broken")

    fake.softmax_rows = broken
    with pytest.raises(FakeError, match="the kernel is broken"):
        xs.softmax(np.zeros((ROWS, CLASSES)), impl=impl)


@pytest.mark.parametrize("impl", ["auto", "kernel"])
def test_a_kernel_that_cannot_be_loaded_is_an_error(fake, monkeypatch, impl):
    def load():
        raise FakeError("no compiler")

    monkeypatch.setattr(kernels, "BACKENDS", (kernels.BACKENDS[0]._replace(load=load),))
    with pytest.raises(FakeError, match="no compiler"):
        xs.softmax(np.zeros((ROWS, CLASSES)), impl=impl)


def test_the_first_kernel_that_takes_the_arrays_wins(fake, monkeypatch):
    other = SimpleNamespace(softmax_rows=lambda logits, out=None: np.zeros(logits.shape))
    second = kernels.Backend("second", lambda array: True, lambda: other)
    monkeypatch.setattr(kernels, "BACKENDS", (*kernels.BACKENDS, second))
    values = [xs.softmax(np.zeros((1, 2), dtype=dtype))[0, 0] for dtype in ("f8", "f4")]
    assert values == [42.0, 0.0]


def test_bad_labels_never_reach_a_kernel(fake):
    def broken(*arguments, **options):
        raise FakeError("called")

    fake.softmax_loss_rows = broken
    with pytest.raises(ValueError, match=r"^targets must be labels from 0 to 4"):
        xs.softmax_loss(np.zeros((ROWS, CLASSES)), Y + 1)


@pytest.mark.parametrize("operation", kernels.OPERATIONS)
def test_every_operation_has_a_generic_text(operation):
    assert kernels.select(operation, np.zeros((1, 1)), "generic") is getattr(generic, operation)


NO_KERNEL = r'^impl must be "auto" or "generic" for {}, got "kernel": no kernel offers {} for them \(kernels: {}\)\.$'


@pytest.mark.parametrize(
    ("call", "operation"),
    [
        (lambda z, y: xs.softmax(z, impl="kernel"), "softmax_rows"),
        (lambda z, y: xs.log_softmax(z, impl="kernel"), "log_softmax_rows"),
        (lambda z, y: xs.logsumexp(z, impl="kernel"), "logsumexp_rows"),
        (lambda z, y: xs.softmax_loss(z, y, impl="kernel"), "softmax_loss_rows"),
        (lambda z, y: xs.softmax_loss_and_grad(z, y, impl="kernel"), "softmax_loss_rows"),
        (lambda z, y: xs.mlp_loss((xs.Layer(z.T, z[:, 0]),), z, y, impl="kernel"), "bias_activation"),
    ],
)
def test_no_kernel_says_so(backend, monkeypatch, call, operation):
    monkeypatch.setattr(kernels, "BACKENDS", ())
    with pytest.raises(NotImplementedError, match=NO_KERNEL.format(r"\w+ arrays of [\w.]+", operation, "none")):
        call(backend.asarray(np.zeros((ROWS, ROWS))), backend.asarray(np.array([0, 1, 2])))


def test_no_kernel_names_those_there_are(fake):
    with pytest.raises(NotImplementedError, match=NO_KERNEL.format("numpy arrays of float32", "softmax_rows", "fake")):
        xs.softmax(np.zeros((ROWS, CLASSES), dtype="f4"), impl="kernel")


def test_a_backend_that_refuses_says_why(fake):
    fake.refusal = lambda logits: "it is too late in the day"
    z = np.zeros((ROWS, CLASSES))
    np.testing.assert_allclose(xs.softmax(z), 0.2, rtol=1e-15)  # impl="auto": the generic code serves
    with pytest.raises(NotImplementedError, match=r'got "kernel": the fake backend refuses them: it is too late in'):
        xs.softmax(z, impl="kernel")
    fake.refusal = lambda logits: None
    np.testing.assert_allclose(xs.softmax(z, impl="kernel"), 42.0, rtol=0)


NOT_OF_ROWS = [name for name in kernels.OPERATIONS if name not in kernels.ROW_OPERATIONS]


@pytest.mark.parametrize("operation", NOT_OF_ROWS)
def test_forced_kernels_leave_to_the_generic_text_what_only_it_has(fake, operation):
    assert kernels.select(operation, np.zeros((1, 1)), "kernel") is getattr(generic, operation)


@pytest.mark.parametrize("operation", NOT_OF_ROWS)
def test_a_backend_that_refuses_forces_nothing(fake, operation):
    fake.refusal = lambda logits: "it is too late in the day"
    with pytest.raises(NotImplementedError, match=r'got "kernel": the fake backend refuses them: it is too late in'):
        kernels.select(operation, np.zeros((1, 1)), "kernel")


def test_a_row_operation_that_is_forced_must_be_there(fake):
    message = NO_KERNEL.format("numpy arrays of float64", "log_softmax_rows", "fake")
    with pytest.raises(NotImplementedError, match=message):
        xs.log_softmax(np.zeros((ROWS, CLASSES)), impl="kernel")


@pytest.mark.parametrize("operation", kernels.OPERATIONS)
@pytest.mark.backends("numpy", "cupy")
def test_every_operation_can_be_forced_where_there_are_kernels(backend, operation):
    assert callable(kernels.select(operation, backend.asarray(np.zeros((1, 1))), "kernel"))


@pytest.mark.backends("numpy", "cupy")
def test_a_network_is_trained_by_forced_kernels(backend, rng):
    """The penalty, the update and the sums of losses are no row operations."""
    params = xs.init_params((4, 6, 3), rng=0, xp=backend.library)
    X, y = backend.asarray(rng.normal(size=(20, 4))), backend.asarray(np.arange(20) % 3)
    options = {"optimizer": xs.adam(0.01), "epochs": 2, "batch_size": 5, "reg": 0.1, "validation": (X, y)}
    results = [xs.train(params, X, y, rng=0, impl=impl, **options) for impl in ("auto", "kernel")]
    assert results[0].history == results[1].history
    with backend.here:
        loss = xs.mlp_partial_sums(params, X, y, impl="kernel").finish(params, reg=0.1)[0]
    desired = backend.to_numpy(xs.mlp_loss(params, X, y, reg=0.1))
    assert_close(loss, desired, backend=backend, dtype="float64", ulps=20)


@pytest.mark.backends("numpy", "array_api_strict")
def test_kernels_write_into_the_callers_out(backend, monkeypatch):
    """A matrix with its classes last is passed on; anything else is copied by the package."""
    seen = []

    def rows(logits, out=None):
        seen.append(out)
        return generic.softmax_rows(logits, out=out)

    module = SimpleNamespace(softmax_rows=rows)
    monkeypatch.setattr(kernels, "BACKENDS", (kernels.Backend("fake", lambda array: True, lambda: module),))
    logits = backend.asarray(np.zeros((ROWS, CLASSES)))
    for axis, passed in ((1, True), (0, False)):
        out = backend.asarray(np.ones((ROWS, CLASSES)))
        xs.softmax(logits, axis=axis, out=out)
        assert (seen.pop() is out) == passed
        share = 1 / np.longdouble(logits.shape[axis])
        assert_close(out, np.full((ROWS, CLASSES), share), backend=backend, dtype="float64", ulps=1)
