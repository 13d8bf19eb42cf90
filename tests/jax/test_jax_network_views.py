"""Networks of JAX arrays in host memory are computed on NumPy arrays: the same bits, and JAX arrays as results."""

import functools

import numpy as np
import pytest
from assertions import assert_same_bits as assert_equal_bits
from network_cases import CASES, C, H, N, Problem, leaves, trained

import xpsoftmax as xs
from xpsoftmax._arguments import views
from xpsoftmax._network import network

jax = pytest.importorskip("jax")
jnp = jax.numpy
pytestmark = pytest.mark.usefixtures("wide")


@pytest.fixture
def wide():
    """JAX with float64."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def only_arrays(monkeypatch):
    """Give no operations to a network that is not of NumPy's arrays: it cannot compute."""
    operations = network.operations
    monkeypatch.setattr(
        network, "operations", lambda array, impl: operations(array, impl) if type(array) is np.ndarray else None
    )


def assert_same_bits(actual, desired):
    """The same tree, with JAX arrays in the place of NumPy's; random states keep theirs."""
    actual, desired = leaves(actual), leaves(desired)
    assert len(actual) == len(desired)
    arrays = 0
    for one, other in zip(actual, desired, strict=True):
        if isinstance(one, jax.Array):
            arrays += 1
            other = np.asarray(other)
            assert (one.dtype, one.shape, one.weak_type) == (other.dtype, other.shape, False)
            assert_equal_bits(np.asarray(one), other)
        else:
            assert type(one) is type(other)
            np.testing.assert_array_equal(one, other)
    assert arrays > 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_results_have_the_bits_of_numpy(dtype, case, only_arrays):
    assert_same_bits(CASES[case](Problem(dtype, jnp.asarray)), CASES[case](Problem(dtype)))


@pytest.mark.parametrize("case", CASES)
def test_arguments_are_not_changed_and_results_are_new(case):
    def kept(array):
        before.append((jnp.asarray(array), array.copy()))
        return before[-1][0]

    before = []
    result = CASES[case](Problem(convert=kept))
    given = {array.unsafe_buffer_pointer() for array, _ in before}
    assert not any(x.unsafe_buffer_pointer() in given for x in leaves(result) if isinstance(x, jax.Array))
    for array, copy in before:
        assert_equal_bits(np.asarray(array), copy)


def test_what_a_callback_sees_stays_as_it_is():
    """JAX arrays never change; the training goes on in memory of its own."""
    seen = []

    def callback(step):
        seen.append((step.params, [np.array(x) for x in leaves(step.params)], step.loss))

    result = trained(Problem(convert=jnp.asarray), callback=callback)
    assert len(seen) == len(result.history["loss"]) == 9
    for (params, then, loss), recorded in zip(seen, result.history["loss"], strict=True):
        assert float(loss) == recorded
        for now, before in zip(leaves(params), then, strict=True):
            assert_equal_bits(np.asarray(now), before)
    assert not np.array_equal(seen[0][1][0], seen[-1][1][0])


def test_large_gradients_are_not_copied(monkeypatch):
    made = []
    aligned = views.views_of_jax().aligned
    monkeypatch.setattr("xpsoftmax.kernels.memory.aligned", lambda *given: made.append(aligned(*given)) or made[-1])
    params = xs.init_params((200, 100, C), rng=0, xp=jnp, dtype=jnp.float32)
    _, grads = xs.mlp_loss_and_grad(params, jnp.ones((N, 200), "float32"), jnp.arange(N) % C)
    assert grads[0].weight.unsafe_buffer_pointer() in {x.__array_interface__["data"][0] for x in made}


def test_results_are_where_the_caller_s_arrays_are():
    device = jax.devices()[0]
    free, bound = (Problem(convert=lambda x, to=to: jax.device_put(x, to)) for to in (None, device))
    for p, committed in ((free, False), (bound, True)):
        for result in (*leaves(xs.mlp_loss_and_grad(p.params, p.X, p.y)), *leaves(trained(p).params)):
            assert (result.committed, result.devices()) == (committed, {device})
    assert xs.mlp_logits(free.params, bound.X).committed


def test_labels_where_jax_has_32_bits():
    jax.config.update("jax_enable_x64", False)
    p = Problem(convert=jnp.asarray)
    assert xs.mlp_predict(p.params, p.X).dtype == "int32"
    assert xs.mlp_predict(p.params, p.X, impl="generic").dtype == "int32"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_the_classifier(solver, only_arrays):
    MLPClassifier = pytest.importorskip("xpsoftmax.sklearn", exc_type=ImportError).MLPClassifier
    fits = []
    for convert in (jnp.asarray, lambda array: array):
        p = Problem(convert=convert)
        model = MLPClassifier((H,), solver=solver, max_iter=4, random_state=0, batch_size=10, early_stopping=True)
        model.fit(p.X, p.y, sample_weight=p.sample_weight)
        fits.append((model.params_, model.predict_proba(p.X), model.decision_function(p.X), tuple(model.loss_curve_)))
    assert_same_bits(*fits)


# --- what is not viewed -----------------------------------------------------------------------------------------------


def test_nothing_is_viewed_while_jax_traces(only_arrays):
    """Neither parameters, nor inputs, nor labels, nor weights, one of which is traced at a time."""
    p = Problem(convert=jnp.asarray)
    given = {"params": p.params, "X": p.X, "targets": p.y, "sample_weight": p.sample_weight}
    for name, traced in given.items():

        def loss(array, name=name):
            params, X, targets, weight = {**given, name: array}.values()
            return xs.mlp_loss(params, X, targets, sample_weight=weight, validate=False)

        with pytest.raises(AttributeError, match="'NoneType' object has no attribute"):
            jax.jit(loss)(traced)
    assert views.enter(p.params, p.X).library is not None


@pytest.mark.parametrize(
    "array",
    [jnp.zeros(3, "bfloat16"), jnp.zeros(3, "complex64"), jax.random.key(0), np.zeros(3)],
    ids=["bfloat16", "complex", "key", "NumPy"],
)
def test_one_array_that_cannot_be_viewed_leaves_all_as_they_are(array):
    given = jnp.zeros(2), [(jnp.zeros(2), array)]
    entry = views.enter(*given)
    assert entry.library is None
    assert entry.arguments is entry.given


def test_gradients_under_jit_are_those_outside():
    p = Problem("float64", jnp.asarray)
    loss, grads = xs.mlp_loss_and_grad(p.params, p.X, p.y, reg=0.1)
    value, slopes = jax.jit(jax.value_and_grad(lambda q: xs.mlp_loss(q, p.X, p.y, reg=0.1, validate=False)))(p.params)
    np.testing.assert_allclose(value, loss, rtol=1e-12)
    for ours, theirs in zip(leaves(grads), leaves(slopes), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_no_kernel_for_networks_that_jax_traces():
    p = Problem(convert=jnp.asarray)
    with pytest.raises(NotImplementedError, match=r"the jax backend refuses them: (JAX traces them|not all arrays)"):
        jax.jit(lambda X: xs.mlp_logits(p.params, X, impl="kernel"))(p.X)


def test_where_jax_looks_for_nan_it_computes(request):
    p = Problem(convert=jnp.asarray)
    X = p.X.at[0, 0].set(jnp.nan)
    xs.mlp_logits(p.params, X)
    request.addfinalizer(functools.partial(jax.config.update, "jax_debug_nans", jax.config.jax_debug_nans))
    jax.config.update("jax_debug_nans", True)
    with pytest.raises(FloatingPointError):
        xs.mlp_logits(p.params, X)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_name_the_arrays_that_were_given():
    p, q = Problem(convert=jnp.asarray), Problem()
    with pytest.raises(
        TypeError, match=r"^X must be an array of the same library as .* \(jax\.numpy\), got one of numpy"
    ):
        xs.mlp_loss_and_grad(p.params, q.X, p.y)
    with pytest.raises(TypeError, match=r"^X must have the dtype of the parameters, float32, got float64"):
        xs.mlp_loss_and_grad(p.params, p.X.astype("float64"), p.y)
    for impl in ("auto", "kernel"):
        with pytest.raises(ValueError, match=r"^targets must be labels from 0 to 4 .* got 5 at row 2"):
            xs.mlp_loss(p.params, p.X, p.y.at[2].set(5), impl=impl)


def test_a_training_that_diverges():
    def diverged(p):
        with pytest.raises(xs.DivergenceError) as caught:
            trained(p, optimizer=xs.sgd(1e38), epochs=9)
        return caught.value

    error, wanted = diverged(Problem(convert=jnp.asarray)), diverged(Problem())
    assert (error.step, str(error)) == (wanted.step, str(wanted))
    assert_same_bits(error.result, wanted.result)


def test_states_go_from_library_to_library(tmp_path):
    pytest.importorskip("safetensors")
    p, q = Problem(convert=jnp.asarray), Problem()
    whole = trained(q, epochs=6)
    xs.save_state(tmp_path / "state", trained(p).state)
    assert_same_bits(trained(p, epochs=6, resume=xs.load_state(tmp_path / "state", xp=jnp)), whole)
