"""Tensors in host memory: the functions read them as NumPy arrays, and convert those of 16 bits tile by tile."""

import subprocess
import sys

import numpy as np
import pytest
from grid import KINDS, logits

import xpsoftmax as xs

torch = pytest.importorskip("torch")

from xpsoftmax.kernels.torch import computing  # noqa: E402
from xpsoftmax.torch import cross_entropy, linear_cross_entropy, log_softmax, softmax  # noqa: E402

FUNCTIONS = {
    "softmax": lambda z, y, w, **out: xs.softmax(z, **out),
    "log_softmax": lambda z, y, w, **out: xs.log_softmax(z, **out),
    "softmax of columns": lambda z, y, w, **out: xs.softmax(z, axis=0, **out),
    "loss and gradient": lambda z, y, w, **out: xs.softmax_loss_and_grad(z, y, **out)[1],
    "with weights": lambda z, y, w, **out: xs.softmax_loss_and_grad(z, y, class_weight=w, label_smoothing=0.1, **out)[
        1
    ],
    "soft targets": lambda z, y, w, **out: xs.softmax_loss_and_grad(z, abs(z), **out)[1],
}
SUMS = {
    "logsumexp": lambda z, y, w: xs.logsumexp(z),
    "kept": lambda z, y, w: xs.logsumexp(z, keepdims=True),
    "loss": lambda z, y, w: xs.softmax_loss(z, y),
    "losses": lambda z, y, w: xs.softmax_loss(z, y, reduction="none", z_loss=0.1),
    "aux": lambda z, y, w: xs.softmax_loss_and_grad(z, y, sample_weight=w[y], aux=True)[2],
}


def arguments(rng, dtype="float32", rows=7):
    z = rng.normal(size=(rows, 5)).astype(dtype)
    return z, rng.integers(0, 5, rows), rng.random(5).astype(dtype) + np.asarray(0.5, dtype)


def tensors(*arrays):
    return tuple(torch.from_numpy(array.copy()) for array in arrays)


# --- 32 and 64 bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", [*FUNCTIONS, *SUMS])
def test_tensors_have_the_bits_of_numpy(rng, case, dtype):
    given = arguments(rng, dtype)
    call = {**FUNCTIONS, **SUMS}[case]
    result = call(*tensors(*given))
    desired = call(*given)
    assert type(result) is torch.Tensor
    assert np.array_equal(result.numpy(), desired)
    assert result.numpy().dtype == desired.dtype


@pytest.mark.parametrize("case", [name for name in FUNCTIONS if name != "soft targets"])
@pytest.mark.parametrize("own", [False, True], ids=["logits", "another"])
def test_out_is_returned_and_autograd_knows(rng, case, own):
    given = arguments(rng)
    z, *more = tensors(*given)
    out = torch.empty_like(z) if own else z
    squares = out.clone().requires_grad_() * out  # holds `out`
    version = out._version
    assert FUNCTIONS[case](z, *more, out=out) is out
    assert np.array_equal(out.numpy(), FUNCTIONS[case](*given))
    assert out._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.sum().backward()


def test_out_in_inference_mode(rng):
    """Its tensors count no versions."""
    z, y, _ = tensors(*arguments(rng))
    desired = xs.softmax_loss_and_grad(z, y)[1]
    with torch.inference_mode():
        logits = z.clone()
        assert xs.softmax_loss_and_grad(logits, y, out=logits)[1] is logits
    assert torch.equal(logits, desired)


def test_no_copy_of_the_logits_is_made(rng, monkeypatch):
    """The kernel gets the memory of the tensors, and its result is the tensor that comes back."""
    from xpsoftmax.kernels.numpy import softmax as kernels

    seen = []
    compute = kernels._softmax
    monkeypatch.setattr(kernels, "_softmax", lambda z, e: (seen.append((z, e)), compute(z, e)))
    (z,) = tensors(arguments(rng)[0])
    result = xs.softmax(z)
    ((of_logits, of_result),) = seen
    assert np.shares_memory(of_logits, z.numpy())
    assert np.shares_memory(of_result, result.numpy())


@pytest.mark.parametrize(
    "change",
    [
        lambda z: torch._neg_view(z),
        lambda z: z.as_subclass(type("Own", (torch.Tensor,), {})),
        lambda z: torch.nn.Parameter(z),
        lambda z: z.T.contiguous().T,
        lambda z: z[:, :1].expand(-1, 5),
    ],
    ids=["negative", "subclass", "parameter", "columns", "repeated"],
)
def test_tensors_of_all_kinds(rng, change):
    z, y, _ = arguments(rng)
    tensor = change(torch.from_numpy(z))
    desired = xs.softmax_loss_and_grad(tensor.detach().clone().numpy(), y)
    for result, wanted in zip(xs.softmax_loss_and_grad(tensor, torch.from_numpy(y)), desired, strict=True):
        np.testing.assert_allclose(result.detach().numpy(), wanted, rtol=1e-6)


def test_errors_are_in_the_words_of_pytorch(rng):
    z, y, w = tensors(*arguments(rng))
    with pytest.raises(TypeError, match=r"^logits must be of .* got torch\.int64\.$"):
        xs.softmax_loss(z.long(), y, class_weight=w)
    with pytest.raises(ValueError, match=r"^targets must be labels from 0 to 4 .* got 9 at row 0\.$"):
        xs.softmax_loss(z, torch.full_like(y, 9))
    with pytest.raises(TypeError, match=r"^targets must be an array of the same library as logits \(torch\), got"):
        xs.softmax_loss(z, y.numpy())


# --- 16 bits ----------------------------------------------------------------------------------------------------------

SIXTEEN = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def in_float32(call, z, y, w, dtype):
    """What a copy in float32 gives, rounded once."""
    result = call(z.float(), y, w.float())
    return result if result.shape == z.shape[:1] or result.ndim == 0 else result.to(dtype)


@SIXTEEN
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["softmax", "log_softmax", "loss and gradient", "losses"])
def test_16_bits_are_those_of_float32_rounded_once(rng, case, kind, dtype):
    z = torch.from_numpy(logits(rng, kind, 1000, "float32")).to(dtype)
    y = torch.from_numpy(rng.integers(0, z.shape[1], z.shape[0]))
    call = {**FUNCTIONS, **SUMS}[case]
    w = torch.ones(z.shape[1], dtype=dtype)
    assert torch.equal(call(z, y, w).nan_to_num(7.0), in_float32(call, z, y, w, dtype).nan_to_num(7.0))


@SIXTEEN
@pytest.mark.parametrize("case", FUNCTIONS)
@pytest.mark.parametrize("out", ["none", "logits", "float32", "every second column"])
def test_16_bits_in_tiles_and_threads(rng, case, out, dtype, monkeypatch):
    """Any tiles, shared by any threads, give the bits of one tile."""
    z, y, w = (x.to(dtype) if x.is_floating_point() else x for x in tensors(*arguments(rng, rows=301)))
    desired = FUNCTIONS[case](z, y, w)
    monkeypatch.setattr(computing, "TILE", 64)
    monkeypatch.setattr(computing, "SHARE", 100)
    monkeypatch.setattr("xpsoftmax.kernels.torch.tensors.CHUNK", 3)
    if out == "none":
        assert torch.equal(FUNCTIONS[case](z, y, w), desired)
        return
    if out == "logits":
        if case == "soft targets":
            pytest.skip("the targets are made of the logits")
        target = z
    else:
        wide = torch.zeros(301, 10, dtype=torch.float32 if out == "float32" else dtype)
        target = wide[:, ::2]
    assert FUNCTIONS[case](z, y, w, out=target) is target
    assert torch.equal(target.to(dtype), desired)


@pytest.mark.parametrize("most", [1, 2])
def test_16_bits_use_as_many_threads_as_may_run(rng, most, monkeypatch):
    if most > computing.allowed():
        pytest.skip("one core")
    monkeypatch.setattr(computing, "SHARE", 1000)
    asked = []
    share = computing.share
    monkeypatch.setattr(computing, "share", lambda worker, tiles, n: (asked.append(n), share(worker, tiles, n)))
    (z,) = tensors(arguments(rng, rows=301)[0])
    with xs.threads(most):
        xs.softmax(z.bfloat16())
    assert asked == ([] if most == 1 else [2])


@SIXTEEN
def test_16_bits_where_threads_do_not_inherit_the_mode(rng, dtype, monkeypatch):
    monkeypatch.setattr(computing, "SHARE", 100)
    z, y, _ = tensors(*arguments(rng, rows=301))
    z = z.to(dtype)
    desired = xs.softmax(z)
    with torch.inference_mode():
        for tensor in (z, z.clone()):
            result = xs.softmax(tensor)
            assert result.is_inference()
            assert torch.equal(result, desired)
            assert cross_entropy(tensor, y) == cross_entropy(z, y)
    with torch.no_grad():
        assert torch.equal(xs.softmax(z.clone().requires_grad_()), desired)


@SIXTEEN
def test_16_bits_whatever_the_default_dtype_is(rng, dtype):
    z, y, _ = tensors(*arguments(rng))
    z = z.to(dtype).requires_grad_()
    desired = xs.softmax_loss_and_grad(z, y)
    try:
        torch.set_default_dtype(torch.float64)
        loss = cross_entropy(z, y)
        (3.0 * loss).backward()
        result = xs.softmax_loss_and_grad(z, y)
        sums = xs.logsumexp(z)
    finally:
        torch.set_default_dtype(torch.float32)
    assert loss.dtype == torch.float32
    assert torch.equal(torch.stack(result[:1]), torch.stack(desired[:1]))
    assert torch.equal(result[1], desired[1])
    assert sums.dtype == dtype
    assert z.grad.dtype == dtype


MEMORY = """
import resource, sys, torch
from xpsoftmax.torch import cross_entropy
dtype, way = getattr(torch, sys.argv[1]), sys.argv[2]
z, y = torch.randn(8192, 8192).to(dtype).requires_grad_(), torch.zeros(8192, dtype=torch.int64)
warm = z.detach()[:512].clone().requires_grad_()
cross_entropy(warm, y[:512]).backward()  # starts the threads, whose memory counts, too
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
size = 2 * z.numel()
resource.setrlimit(resource.RLIMIT_AS, (used + size + 2**25,) * 2)  # the gradient, and 32 MiB
try:
    if way == "whole":
        z.detach().float()
    else:
        cross_entropy(z, y).backward()
except (MemoryError, RuntimeError) as error:
    print("too much", type(error).__name__)
else:
    print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("way", "words"), [("loss", "done"), ("whole", "too much")])
def test_16_bits_hold_no_float32_copy(way, words, dtype):
    """A copy of the logits in float32 is 256 MiB; the limit is 160 MiB, of which the gradient takes 128."""
    program = [sys.executable, "-c", MEMORY, dtype, way]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.stdout.startswith(words), result.stderr[-2000:]


# --- what autograd does with a gradient that is held ------------------------------------------------------------------

EVERY_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
WAYS = {
    "plain": lambda z, y: cross_entropy(z, y),
    "options": lambda z, y: cross_entropy(z, y, label_smoothing=0.1),
    "rows": lambda z, y: cross_entropy(z, y, reduction="none").sum(),
    "softmax_loss": lambda z, y: xs.softmax_loss(z, y),
}


def problem(rng, dtype):
    z, y, _ = tensors(*arguments(rng, "float64"))
    return z.to(dtype).requires_grad_(), y


@EVERY_DTYPE
@pytest.mark.parametrize("way", WAYS)
def test_changing_the_result_in_place_changes_the_gradient(rng, way, dtype):
    z, y = problem(rng, dtype)
    loss = WAYS[way](z, y)
    loss.mul_(3.0)
    loss.backward()
    again = z.detach().clone().requires_grad_()
    (3.0 * WAYS[way](again, y)).backward()
    assert torch.equal(z.grad, again.grad)


@EVERY_DTYPE
@pytest.mark.parametrize("way", WAYS)
def test_a_graph_that_is_kept_does_not_share_its_gradient(rng, way, dtype):
    """`grad` may be changed in place between two backward passes, as optimisers do."""
    z, y = problem(rng, dtype)
    loss = WAYS[way](z, y)
    loss.backward(retain_graph=True)
    once = z.grad.clone()
    z.grad.zero_()
    loss.backward(retain_graph=True)
    assert torch.equal(z.grad, once)
    z.grad = None
    (2.0 * loss).backward()
    torch.testing.assert_close(z.grad, 2.0 * once, rtol=float(torch.finfo(dtype).eps), atol=0.0)


@EVERY_DTYPE
@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_changed_in_place_is_never_used_again(rng, way, dtype):
    """It is either made anew or noticed."""
    z, y = problem(rng, dtype)
    loss = WAYS[way](z, y)
    (grad,) = torch.autograd.grad(loss, z, retain_graph=True)
    once = grad.clone()
    grad.mul_(7.0)
    try:
        (again,) = torch.autograd.grad(loss, z)
    except RuntimeError as error:
        right = "modified by an inplace operation" in str(error)
    else:
        right = torch.equal(again, once)
    assert right


@EVERY_DTYPE
@pytest.mark.parametrize("way", WAYS)
def test_logits_changed_before_the_backward_pass_are_noticed(rng, way, dtype):
    z, y = problem(rng, dtype)
    hidden = 1.0 * z
    loss = WAYS[way](hidden, y)
    hidden.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_held_gradient_becomes_grad_without_a_copy(rng, dtype, monkeypatch):
    from xpsoftmax.torch import recorded

    z, y = problem(rng, dtype)
    made = []
    compute = recorded.mean_loss
    monkeypatch.setattr(recorded, "mean_loss", lambda *a, **k: made.append(compute(*a, **k)) or made[-1])
    loss = cross_entropy(z, y)
    address = made.pop()[1].data_ptr()
    loss.backward()
    assert z.grad.data_ptr() == address


# --- kinds of tensors that are refused --------------------------------------------------------------------------------

REFUSED = {
    "one of the layout torch.sparse_coo": lambda: torch.eye(3).to_sparse(),
    "one of the layout torch.sparse_csr": lambda: torch.eye(3).to_sparse_csr(),
    "a nested tensor": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", REFUSED)
def test_sparse_and_nested_tensors_are_refused(kind):
    tensor, z, y = REFUSED[kind](), torch.eye(3), torch.arange(3)
    for name, call in {
        "input": lambda: cross_entropy(tensor, y),
        "target": lambda: cross_entropy(z, tensor),
        "weight": lambda: cross_entropy(z, y, tensor),
        "input ": lambda: softmax(tensor),
        "input  ": lambda: linear_cross_entropy(tensor, z, y),
        "linear_weight": lambda: linear_cross_entropy(z, tensor, y),
    }.items():
        with pytest.raises(TypeError, match=rf"^{name.strip()} must be a dense tensor, got {kind}\.$"):
            call()
    for name, call in {
        "logits": lambda: xs.softmax(tensor),
        "logits ": lambda: xs.softmax_loss_and_grad(tensor, y),
        "targets": lambda: xs.softmax_loss(z, tensor),
        "class_weight": lambda: xs.softmax_loss(z, y, class_weight=tensor),
        "out": lambda: xs.softmax(z, out=tensor),
    }.items():
        with pytest.raises(TypeError, match=rf"^{name.strip()} must be a plain dense array, got {kind}\. Convert it"):
            call()


@pytest.mark.parametrize("dim", [0, -1])
def test_a_number_is_a_row_of_one_class(dim):
    z = torch.tensor(2.0, requires_grad=True)
    for ours, theirs in ((softmax, torch.softmax), (log_softmax, torch.log_softmax)):
        result = ours(z, dim)
        assert torch.equal(result, theirs(z, dim))
        (grad,) = torch.autograd.grad(result, z)
        assert grad == 0.0
        with pytest.raises(ValueError, match=r"^dim must be from -1 to 0, got 1\.$"):
            ours(z, 1)


# --- programs that are recorded ---------------------------------------------------------------------------------------

TRACED = {
    "softmax": lambda z, y: xs.softmax(z),
    "logsumexp": lambda z, y: xs.logsumexp(z),
    "softmax_loss": lambda z, y: xs.softmax_loss(z, y, validate=False),
    "loss and gradient": lambda z, y: xs.softmax_loss_and_grad(z, y, validate=False)[1],
    "cross_entropy": lambda z, y: cross_entropy(z, y),
    "with weights": lambda z, y: cross_entropy(z, y, z[0].abs(), label_smoothing=0.1),
    "linear": lambda z, y: linear_cross_entropy(z, z, y),
}


def traced(way, function, *arguments):
    if way == "jit":
        return torch.jit.trace(function, arguments, check_trace=False)
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(function, tracing_mode=way)(*arguments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", TRACED)
@pytest.mark.parametrize("way", ["jit", "real", "symbolic"])
def test_a_recorded_program_computes_with_its_own_arguments(rng, way, case, dtype):
    """What NumPy computes, PyTorch would record as a constant."""
    z, y, _ = tensors(*arguments(rng, rows=5))
    z, other = z.to(dtype), (2.0 * z).to(dtype)
    program = traced(way, TRACED[case], z, y)
    torch.testing.assert_close(
        program(other, y), TRACED[case](other, y), rtol=2e-5 if dtype == torch.float32 else 2e-2, atol=1e-6
    )
