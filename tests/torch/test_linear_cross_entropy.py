"""xpsoftmax.torch.linear_cross_entropy: the values of a layer and cross_entropy, and bounded memory."""

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from xpsoftmax.torch import cross_entropy, linear_cross_entropy  # noqa: E402

F, func = torch.nn.functional, torch.func
compiles = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:`torch.jit.script:{kind}") for kind in ("DeprecationWarning", "FutureWarning")
]

rng = np.random.default_rng(0)
N, D, C = 11, 4, 6
X, W, B = (torch.from_numpy(rng.normal(size=shape)) for shape in ((N, D), (C, D), (C,)))
Y = torch.from_numpy(rng.integers(0, C, N))
Q = torch.from_numpy(rng.random((N, C)))
WEIGHT = torch.from_numpy(rng.random(C)) + 0.5
ONE_ROW = C * 8  # bytes
CHUNKS = pytest.mark.parametrize("rows", [1, 3, N, 50])
OPTIONS = {
    "plain": {},
    "weighted": {"weight": WEIGHT},
    "ignored": {"ignore_index": 2},
    "smooth": {"label_smoothing": 0.2, "weight": WEIGHT},
    "signed": {"weight": WEIGHT - 1.0},
    "signed smooth": {"weight": WEIGHT - 1.0, "label_smoothing": 0.2},
    "z": {"z_loss": 0.1},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def leaves(*tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


def whole(x, w, b, target, ignore_index=None, **options):
    ignored = {} if ignore_index is None else {"ignore_index": ignore_index}
    return cross_entropy(F.linear(x, w, b), target, **options, **ignored)


@every_reduction
@every_option
@CHUNKS
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_values_and_gradients(rows, reduction, options, soft, factor):
    if soft and "ignore_index" in options:
        pytest.skip("probabilities have no label")
    target = Q if soft else Y
    ours, theirs = leaves(X, W, B), leaves(X, W, B)
    loss = linear_cross_entropy(
        *ours[:2], target, linear_bias=ours[2], reduction=reduction, max_memory=rows * ONE_ROW, **options
    )
    desired = whole(*theirs, target, reduction=reduction, **options)
    torch.testing.assert_close(loss, desired, rtol=1e-13, atol=1e-13)
    at = torch.arange(1.0, N + 1.0, dtype=loss.dtype)
    for value in (loss, desired):
        (factor * (value * at if reduction == "none" else value)).sum().backward()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="PyTorch before 2.13")
@every_reduction
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_the_values_of_pytorch(reduction, soft):
    """In every shape that it takes."""
    for x, w in (
        (X[0], W),
        (X, W),
        (X, torch.stack([W, 2.0 * W], dim=1)),
        (X, torch.stack([W] * 4, 1).reshape(C, 2, 2, D)),
    ):
        shape = (*x.shape[:-1], *w.shape[:-1])
        rows = (*x.shape[:-1], *w.shape[1:-1])
        target = torch.from_numpy(rng.random(shape)) if soft else torch.from_numpy(np.asarray(rng.integers(0, C, rows)))
        bias = torch.from_numpy(rng.normal(size=w.shape[:-1]))
        ours, theirs = leaves(x, w, bias), leaves(x, w, bias)
        named = {"weight": WEIGHT, "reduction": reduction, "label_smoothing": 0.1}
        values = [
            function(*a[:2], target, linear_bias=a[2], **named)
            for function, a in ((linear_cross_entropy, ours), (F.linear_cross_entropy, theirs))
        ]
        torch.testing.assert_close(*values, rtol=1e-11, atol=1e-12)
        for value in values:
            value.sum().backward()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.skipif(not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="PyTorch before 2.13")
def test_the_chunks_of_pytorchs_options(monkeypatch):
    from xpsoftmax.torch import linear

    seen = []
    original = linear._loss_of
    monkeypatch.setattr(linear, "_loss_of", lambda z, *a: seen.append(len(z)) or original(z, *a))
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=4)
    torch.testing.assert_close(linear_cross_entropy(X, W, Y, options=options), whole(X, W, None, Y))
    assert seen == [4, 4, 3]


@every_reduction
def test_derivatives_in_every_way(reduction):
    def loss(x, w, b):
        return linear_cross_entropy(x, w, Y, linear_bias=b, reduction=reduction, max_memory=3 * ONE_ROW)

    arguments = tuple(leaves(X, W, B))
    assert torch.autograd.gradcheck(loss, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(loss, arguments)
    number = lambda w: loss(X, w, B).sum()  # noqa: E731
    desired = torch.autograd.grad(number(arguments[1]), arguments[1])[0]
    torch.testing.assert_close(func.grad(number)(W), desired, rtol=1e-11, atol=1e-13)


@compiles
@every_reduction
def test_compiled(reduction):
    torch.compiler.reset()
    call = lambda x, w: linear_cross_entropy(x, w, Y, reduction=reduction).sum()  # noqa: E731
    ours, theirs = leaves(X, W), leaves(X, W)
    torch.compile(call, fullgraph=True, backend="aot_eager")(*ours).backward()
    call(*theirs).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-11, atol=1e-13)


def test_gradients_of_targets_and_weights():
    ours, theirs = leaves(X, W, Q, WEIGHT), leaves(X, W, Q, WEIGHT)
    linear_cross_entropy(*ours[:3], weight=ours[3]).backward()
    whole(*theirs[:2], None, theirs[2], weight=theirs[3]).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_gradients_are_added_up_in_float32(dtype):
    """Small entries of the gradient of a mean over many rows would be lost, and sums of many chunks."""
    x, w = (torch.from_numpy(rng.normal(size=shape) / 4).to(dtype) for shape in ((4096, 8), (16, 8)))
    y = torch.from_numpy(rng.integers(0, 16, 4096))
    ours, theirs = leaves(x, w), leaves(x.double(), w.double())
    linear_cross_entropy(*ours, y, max_memory=16 * 12 * 64).backward()
    whole(*theirs[:2], None, y).backward()
    eps = torch.finfo(dtype).eps
    # The logits are rounded to 16 bits, which no sum can mend: errors of eps in p, not of N * eps.
    for a, b in zip(ours, theirs, strict=True):
        scale = b.grad.abs().max()
        assert float((a.grad.double() - b.grad).abs().max() / scale) < 4 * eps
    assert (ours[0].grad != 0).double().mean() > 0.99


@every_reduction
def test_no_row(reduction):
    w = leaves(W)[0]
    loss = linear_cross_entropy(X[:0], w, Y[:0], reduction=reduction)
    torch.testing.assert_close(loss, whole(X[:0], W, None, Y[:0], reduction=reduction), equal_nan=True)
    loss.sum().backward()
    assert torch.equal(w.grad, torch.zeros_like(W))


def test_backward_twice():
    x, w = leaves(X, W)
    loss = linear_cross_entropy(x, w, Y)
    loss.backward(retain_graph=True)
    once = w.grad.clone()
    (2.0 * loss).backward()
    torch.testing.assert_close(w.grad, 3.0 * once, rtol=1e-14, atol=0.0)


def test_gradients_of_a_kept_graph_share_no_memory():
    arrays = leaves(X, W)
    loss = linear_cross_entropy(*arrays, Y)
    once = torch.autograd.grad(loss, arrays, retain_graph=True)
    wanted = [x.clone() for x in once]
    for x in once:
        x.mul_(3.0)
    for again, x in zip(torch.autograd.grad(loss, arrays), wanted, strict=True):
        assert torch.equal(again, x)


PROGRAM = """
import resource, sys, torch
from xpsoftmax.torch import cross_entropy, linear_cross_entropy
N, D, C = 4096, 32, 16384
X, W = torch.randn(N, D), torch.randn(C, D, requires_grad=True)
y = torch.randint(0, C, (N,))
linear_cross_entropy(X[:512], W, y[:512]).backward()  # starts the threads, whose memory counts, too
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
logits = N * C * 4
resource.setrlimit(resource.RLIMIT_AS, (used + logits * 3 // 4,) * 2)
try:
    if sys.argv[1] == "chunks":
        linear_cross_entropy(X, W, y, max_memory=logits // 16).backward()
    else:
        cross_entropy(X @ W.T, y).backward()
except (MemoryError, RuntimeError) as error:
    print("too much", type(error).__name__)
else:
    print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux")
@pytest.mark.parametrize(("way", "words"), [("chunks", "done"), ("whole", "too much")])
def test_memory_is_bounded(way, words):
    """The limit of the process is less than the logits, which are 256 MiB."""
    result = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=False)
    assert result.stdout.startswith(words), result.stderr[-2000:]


BAD = {
    "input": (
        lambda: linear_cross_entropy(X[None], W, Y),
        ValueError,
        r"input must have shape \(N, D\) or \(D,\), got",
    ),
    "weight": (lambda: linear_cross_entropy(X, W.T, Y), ValueError, r"linear_weight must have shape \(C, \.\.\., 4\)"),
    "kind": (
        lambda: linear_cross_entropy(X, W.numpy(), Y),
        TypeError,
        r"linear_weight must be a torch\.Tensor, got nd",
    ),
    "dtype": (lambda: linear_cross_entropy(X, W.float(), Y), TypeError, r"linear_weight must have the dtype of input"),
    "bias": (
        lambda: linear_cross_entropy(X, W, Y, linear_bias=B[:3]),
        ValueError,
        r"linear_bias must have shape \(6,\), got \(3,\)\.",
    ),
    "batch": (
        lambda: linear_cross_entropy(X[0], torch.stack([W, W], 1), Y[0]),
        ValueError,
        r"input must have shape \(N, D\) for linear_weight of shape \(6, 2, 4\), got \(4,\)\.",
    ),
    "no class": (lambda: linear_cross_entropy(X, W[:0], Y), ValueError, r"linear_weight must have at least one class"),
    "ignored": (
        lambda: linear_cross_entropy(X, W, Q, ignore_index=-100),
        ValueError,
        r"ignore_index must be None for class probabilities, got -100\.",
    ),
    "label": (
        lambda: linear_cross_entropy(X, W, Y + 1),
        ValueError,
        r"target must be labels from 0 to 5 \(6 classes, ignore_index=-100\), got 6 at row \d+\.",
    ),
    "memory": (
        lambda: linear_cross_entropy(X, W, Y, max_memory=47),
        ValueError,
        r"max_memory must be at least 48 bytes, what one row needs, got 47\.",
    ),
    "memory of no chunks": (
        lambda: linear_cross_entropy(X[0], W, Y[0], max_memory="1 GiB"),
        TypeError,
        r"max_memory must be an integer, got '1 GiB'\.",
    ),
    "options": (
        lambda: linear_cross_entropy(X, W, Y, options={"batch_chunk_size": 4}),
        TypeError,
        r"options must be None or a torch\.nn\.LinearCrossEntropyOptions, got \{'batch_chunk_size': 4\}\.",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=f"^{message}"):
        call()
