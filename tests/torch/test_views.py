"""Tensors in host memory are read as NumPy arrays: the same bits as for NumPy, tensors as results, and no copy."""

import pickle
import re

import numpy as np
import pytest
from network_cases import CASES, D, N, Problem, leaves, trained

import xpsoftmax as xs
from xpsoftmax._arguments import views
from xpsoftmax._network import network

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from xpsoftmax.torch import cross_entropy  # noqa: E402

every_case = pytest.mark.parametrize("case", CASES)


def assert_same_bits(actual, desired):
    """The same tree, with tensors in the place of NumPy's arrays; random states keep theirs."""
    actual, desired = leaves(actual), leaves(desired)
    assert len(actual) == len(desired)
    tensors = 0
    for one, other in zip(actual, desired, strict=True):
        if isinstance(one, torch.Tensor):
            tensors += 1
            assert not one.requires_grad
            other = np.asarray(other)
            assert (one.dtype, tuple(one.shape)) == (torch.from_numpy(other.copy()).dtype, other.shape)
            one = one.numpy()
        else:
            assert type(one) is type(other)
        np.testing.assert_array_equal(one, other)
    assert tensors > 0


@pytest.fixture
def only_arrays(monkeypatch):
    """Give no operations to a network that is not of NumPy's arrays: it cannot compute."""
    operations = network.operations
    monkeypatch.setattr(
        network, "operations", lambda array, impl: operations(array, impl) if type(array) is np.ndarray else None
    )


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_results_have_the_bits_of_numpy(dtype, case, only_arrays):
    assert_same_bits(CASES[case](Problem(dtype, torch.from_numpy)), CASES[case](Problem(dtype)))


def strided(array):
    """Every second number, backwards along no axis: NumPy reads it in place, and no kernel takes it as it is."""
    wide = np.zeros([2 * size for size in array.shape], array.dtype)
    wide[(slice(None, None, 2),) * array.ndim] = array
    return torch.from_numpy(wide)[(slice(None, None, 2),) * array.ndim]


def parameter(array):
    return torch.nn.Parameter(torch.from_numpy(array)) if array.dtype.kind == "f" else torch.from_numpy(array)


@pytest.mark.parametrize("case", ["loss and grad", "predict", "adam", "train", "weights"])
@pytest.mark.parametrize("convert", [strided, parameter])
def test_kinds_of_tensors(convert, case, only_arrays):
    assert_same_bits(CASES[case](Problem(convert=convert)), CASES[case](Problem()))


@every_case
def test_inference_mode(case, only_arrays):
    with torch.inference_mode():
        assert_same_bits(
            CASES[case](Problem(convert=lambda array: torch.from_numpy(array).clone())), CASES[case](Problem())
        )


@pytest.mark.parametrize("function", [xs.mlp_logits, xs.mlp_loss])
def test_without_grad_mode_parameters_that_require_grad_are_read(function, only_arrays):
    p, q = Problem(convert=parameter), Problem()
    with torch.no_grad():
        arguments = [(x.params, x.X) if function is xs.mlp_logits else (x.params, x.X, x.y) for x in (p, q)]
        assert_same_bits(function(*arguments[0]), function(*arguments[1]))


def test_expanded_and_empty_tensors(only_arrays):
    p, q = Problem(convert=torch.from_numpy), Problem()
    rows = p.X[:1].expand(N, D)
    assert rows.stride() == (0, 1)
    assert_same_bits(
        xs.mlp_loss_and_grad(p.params, rows, p.y), xs.mlp_loss_and_grad(q.params, np.broadcast_to(q.X[:1], (N, D)), q.y)
    )
    loss, grads = xs.mlp_loss_and_grad(p.params, p.X[:0], p.y[:0])
    assert torch.isnan(loss)
    assert not any(array.any() for layer in grads for array in layer)
    assert tuple(xs.mlp_predict(p.params, p.X[:0]).shape) == (0,)


@pytest.mark.parametrize("options", [{}, {"order": 2}, {"directions": 3, "rng": 0}])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numerical_gradients(dtype, options, monkeypatch):
    """The function is called with tensors; the steps are computed by NumPy."""

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(torch, "where", fail)
    p, q = Problem(dtype, torch.from_numpy), Problem(dtype)
    seen = []

    def loss(x):
        seen.append(type(x))
        return xs.softmax_loss(x, p.y[:3] if type(x) is torch.Tensor else q.y[:3])

    x = p.soft[:3].clone().requires_grad_()
    assert_same_bits(xs.numerical_grad(loss, x, **options), xs.numerical_grad(loss, q.soft[:3], **options))
    assert set(seen) == {torch.Tensor, np.ndarray}
    assert (
        xs.check_grad(loss, xs.softmax_loss_and_grad(x, p.y[:3])[1], x, **options)
        < {"float32": 0.1, "float64": 1e-5}[dtype]
    )


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor", [torch.zeros(3, 4), torch.zeros(4, 3).T, torch.zeros(1, 3).expand(2, 3), torch.zeros(())]
)
def test_views_share_memory(tensor):
    (view,) = views.enter(tensor).arguments
    assert (view.ctypes.data, view.shape) == (tensor.data_ptr(), tuple(tensor.shape))
    assert view.strides == tuple(4 * step for step in tensor.stride())


@pytest.mark.parametrize("name", ["softmax", "softmax_loss_and_grad", "mlp_logits", "cross_entropy", "its labels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tensors_whose_storage_was_freed_are_an_error(name, dtype):
    """FSDP frees that of parameters. NumPy would read whatever is in memory of its own."""
    z, y = torch.ones(3, 4, dtype=dtype), torch.tensor([0, 1, 2])
    (y if name == "its labels" else z).untyped_storage().resize_(0)
    layer = xs.Layer(torch.ones(4, 2, dtype=dtype), torch.ones(2, dtype=dtype))
    calls = {
        "softmax": lambda: xs.softmax(z),
        "softmax_loss_and_grad": lambda: xs.softmax_loss_and_grad(z, y),
        "mlp_logits": lambda: xs.mlp_logits((layer,), z),
    }
    with pytest.raises(ValueError, match=r"^Tensors must have memory, got one whose storage has been freed\.$"):
        calls.get(name, lambda: cross_entropy(z, y))()


def test_results_share_memory_with_what_numpy_computed():
    array = np.ones((3, 4), np.float32)
    entry = views.enter(torch.zeros(2))
    back = entry.back((array, 1.0, [array]))
    assert back[0].data_ptr() == array.ctypes.data
    assert back[1:] == (1.0, [array])  # lists of results hold plain numbers
    number = entry.back(np.float32(3.0))
    assert (number.shape, number.dtype, number.item()) == ((), torch.float32, 3.0)


def test_results_may_be_written_to():
    array = np.broadcast_to(np.float32(1.0), (3,))  # read-only
    back = views.enter(torch.zeros(2)).back(array)
    back += 1.0
    assert back.tolist() == [2.0, 2.0, 2.0]
    assert array.tolist() == [1.0, 1.0, 1.0]


@every_case
def test_arguments_are_not_changed_and_results_are_new(case):
    def kept(array):
        tensor = torch.from_numpy(array)
        before.append((tensor, tensor.clone()))
        return tensor

    before = []
    p = Problem(convert=kept)
    result = CASES[case](p)
    given = {tensor.untyped_storage().data_ptr() for tensor, _ in before}
    for tensor in leaves(result):
        if isinstance(tensor, torch.Tensor):
            assert tensor.untyped_storage().data_ptr() not in given
            tensor.zero_()
    assert all(torch.equal(tensor, copy) for tensor, copy in before)


def test_tensors_of_memory_that_numpy_may_not_write(only_arrays):
    numbers = Problem()
    with pytest.warns(UserWarning, match="not writable"):
        X = torch.from_numpy(np.broadcast_to(numbers.X, numbers.X.shape))
    p = Problem(convert=torch.from_numpy)
    p.X = X
    assert_same_bits(trained(p), trained(numbers))


# --- what is not viewed -----------------------------------------------------------------------------------------------


class Tagged(torch.Tensor):
    """A subclass."""


class Watched(TorchDispatchMode):
    """A mode that sees every operation."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


REFUSED = {
    "subclass": torch.zeros(3).as_subclass(Tagged),
    "meta": torch.zeros(3, device="meta"),
    "negative bit": torch.zeros(3, dtype=torch.complex64).conj().imag,
    "bfloat16": torch.zeros(3, dtype=torch.bfloat16),
    "complex": torch.zeros(3, dtype=torch.complex64),
    "sparse": torch.zeros(3, 3).to_sparse(),
    "array": np.zeros(3),
    "scalar with a shape": np.ma.zeros(3),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_one_array_that_cannot_be_viewed_leaves_all_as_they_are(kind):
    given = torch.zeros(2), [(torch.zeros(2), REFUSED[kind])]
    entry = views.enter(*given)
    assert entry.library is None
    assert entry.arguments is entry.given
    assert all(one is other for one, other in zip(leaves(entry.arguments), leaves(given), strict=True))


def test_tuples_of_the_user_are_kept_or_left():
    class Pair(tuple):
        __slots__ = ()

    assert views.enter(Pair([torch.zeros(2)])).library is None
    ((layer,), rest) = views.enter((xs.Layer(torch.zeros(2, 3), torch.zeros(3)),), None).arguments
    assert type(layer) is xs.Layer
    assert type(layer.bias) is np.ndarray
    assert rest is None


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_kernel_that_is_insisted_on_gives_the_bits_of_numpy(reduction):
    """In several calls, because PyTorch's sum has the same bits in some."""
    rng = np.random.default_rng(0)
    for _ in range(8):
        z, y, weight = rng.normal(size=(701, 33)), rng.integers(33, size=701), rng.random(701)
        named = {"reduction": reduction, "impl": "kernel"}
        found = xs.softmax_loss_and_grad(
            *map(torch.from_numpy, (z, y)), sample_weight=torch.from_numpy(weight), **named
        )
        assert_same_bits(found, xs.softmax_loss_and_grad(z, y, sample_weight=weight, **named))


def test_generic_is_generic(monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr(views._Torch, "view", fail)
    p = Problem(convert=torch.from_numpy)
    with pytest.raises(AssertionError):
        xs.mlp_logits(p.params, p.X)
    xs.mlp_logits(p.params, p.X, impl="generic")
    xs.mlp_loss_and_grad(p.params, p.X, p.y, impl="generic")
    trained(p, impl="generic")


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_nothing_is_viewed_where_pytorch_follows():
    found = []

    def note(x):
        found.append(views.enter(x).library)
        return x * 1.0

    x = torch.ones(3)
    torch.func.vmap(note)(x)
    torch.func.grad(lambda x: note(x).sum())(x)
    with forward_ad.dual_level():
        note(x)
    with Watched():
        note(x)
    torch.jit.trace(note, x, check_trace=False)
    torch.compile(note, backend="eager", fullgraph=True)(x)
    assert len(found) >= 6
    assert set(found) == {None}
    assert views.enter(x).library is not None


def test_what_autograd_records_is_not_viewed():
    x = torch.ones(3, requires_grad=True)
    assert views.enter(x, differentiable=True).library is None
    assert views.enter(torch.ones(3), x, differentiable=True).library is None
    assert views.enter(x).library is not None
    p = Problem(convert=parameter)
    xs.mlp_loss(p.params, p.X.detach(), p.y, reg=0.1).backward()
    assert p.params[0].weight.grad.abs().sum() > 0.0


# --- errors -----------------------------------------------------------------------------------------------------------


MIXED = {
    "X": lambda p, q: xs.mlp_loss_and_grad(p.params, q.X, p.y),
    "targets": lambda p, q: xs.mlp_loss(p.params, p.X, q.y),
    "sample_weight": lambda p, q: xs.mlp_loss_and_grad(p.params, p.X, p.y, sample_weight=q.sample_weight),
    r"params\[1\]\.weight": lambda p, q: xs.mlp_logits((p.params[0], q.params[1]), p.X),
    "grads": lambda p, q: xs.sgd(0.1).update(p.params, q.params, (0,)),
    r"validation\[0\]": lambda p, q: trained(p, validation=q.held_out),
    r"resume\.params\[0\]\.weight": lambda p, q: trained(p, resume=trained(q).state),
}


@pytest.mark.parametrize("name", MIXED)
def test_arrays_of_two_libraries_are_refused(name):
    p, q = Problem(convert=torch.from_numpy), Problem()
    with pytest.raises(
        TypeError, match=rf"^{name} must be an array of the same library as .* \(torch\), got one of numpy"
    ):
        MIXED[name](p, q)
    with pytest.raises(
        TypeError, match=rf"^{name} must be an array of the same library as .* \(numpy\), got one of torch"
    ):
        MIXED[name](q, p)


def test_errors_name_the_tensors_that_were_given():
    p = Problem(convert=torch.from_numpy)
    with pytest.raises(
        TypeError, match=r"^X must have the dtype of the parameters, torch\.float32, got torch\.float64"
    ):
        xs.mlp_loss_and_grad(p.params, p.X.double(), p.y)
    with pytest.raises(
        TypeError, match=r"^validation\[0\] must have the dtype of the parameters, torch\.float32, got torch\.float64"
    ):
        trained(Problem(convert=torch.from_numpy), validation=(p.X.double(), p.y))
    with pytest.raises(TypeError, match=r"^params\[0\] must be a pair \(weight, bias\), got tensor\("):
        xs.mlp_predict((torch.zeros(3),), p.X)
    with pytest.raises(ValueError, match=r"^targets must be labels from 0 to 4 .* got 5 at row 2"):
        xs.mlp_loss(p.params, p.X, torch.tensor([0, 1, 5] + [0] * (N - 3)))
    state = (0, p.params)
    with pytest.raises(
        TypeError, match=r"^state must be what init or update of .* returned, got \(0, \(.*tensor|Layer"
    ):
        xs.adam().update(p.params, p.params, state)


def test_an_error_of_the_views_alone_is_raised():
    """The second call, for the words, may find nothing wrong: then the first error stands."""

    def function(x):
        if type(x) is np.ndarray:
            raise ValueError("x must be a tensor.")
        return x

    with pytest.raises(ValueError, match=r"^x must be a tensor\.$"):
        views.enter(torch.zeros(2)).run(function)


def test_a_callback_that_fails_is_called_once():
    calls = []

    def callback(step):
        calls.append(step.step)
        raise ValueError("enough")

    with pytest.raises(ValueError, match=r"^enough$"):
        trained(Problem(convert=torch.from_numpy), callback=callback)
    assert calls == [0]


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_callback_sees_tensors_while_it_runs():
    steps, losses = [], []

    def callback(step):
        assert isinstance(step.loss, torch.Tensor)
        assert (step.loss.dtype, step.loss.ndim) == (torch.float32, 0)
        assert all(isinstance(array, torch.Tensor) for layer in step.params for array in layer)
        losses.append(step.loss)
        steps.append(step)
        return len(steps) == 2

    result = trained(Problem(convert=torch.from_numpy), callback=callback)
    assert [loss.item() for loss in losses] == result.history["loss"]
    assert [(step.epoch, step.step) for step in steps] == [(0, 0), (0, 1)]
    for name in ("params", "state"):
        with pytest.raises(RuntimeError, match=f"^{name} must be asked for while the callback runs"):
            getattr(steps[0], name)


def test_a_training_that_diverges():
    def diverged(p):
        with pytest.raises(xs.DivergenceError) as caught:
            trained(p, optimizer=xs.sgd(1e38), epochs=9)
        return caught.value

    error, wanted = diverged(Problem(convert=torch.from_numpy)), diverged(Problem())
    assert (error.step, str(error)) == (wanted.step, str(wanted))
    assert_same_bits(error.result, wanted.result)
    assert_same_bits(pickle.loads(pickle.dumps(error)).result, wanted.result)


def test_states_in_pickles_and_files(tmp_path):
    pytest.importorskip("safetensors")
    p, q = Problem(convert=torch.from_numpy), Problem()
    whole = trained(q, epochs=6)
    state = trained(p).state
    assert_same_bits(trained(p, epochs=6, resume=pickle.loads(pickle.dumps(state))), whole)
    path = tmp_path / "state.safetensors"
    xs.save_state(path, state)
    assert_same_bits(trained(p, epochs=6, resume=xs.load_state(path, xp=torch)), whole)
    here = trained(q, epochs=6, resume=xs.load_state(path))  # another library goes on with the same bits
    for one, other in zip(leaves(here), leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_leaves_that_require_grad_are_trained_from_and_stay():
    p = Problem(convert=parameter)
    result = trained(p)
    assert not any(array.requires_grad for layer in result.params for array in layer)
    assert all(array.requires_grad and array.grad is None for layer in p.params for array in layer)
    assert re.match(r"TrainResult\(6-8-5, 3 epochs", repr(result))
