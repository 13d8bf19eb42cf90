"""xpsoftmax.torch: PyTorch's values, this package's precision, and derivatives in all of PyTorch's ways."""

import subprocess
import sys
import textwrap

import numpy as np
import oracle
import pytest
from assertions import EPS, assert_same_bits, assert_within
from grid import KINDS, SOME, labels, logits

import xpsoftmax as xs

torch = pytest.importorskip("torch")

from xpsoftmax.kernels.torch.derivatives import is_held  # noqa: E402
from xpsoftmax.torch import CrossEntropyLoss, cross_entropy, log_softmax, softmax  # noqa: E402

F, func = torch.nn.functional, torch.func
compiles = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:`torch.jit.script:{kind}") for kind in ("DeprecationWarning", "FutureWarning")
]

DIGITS = {torch.float64: {"rtol": 1e-9, "atol": 1e-11}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def both(loss, theirs, z, target, **digits):
    """Compare values and gradients; a floating target has a gradient, too."""
    ours, desired = ((leaf(z), leaf(target) if target.is_floating_point() else target) for _ in range(2))
    value, reference = loss(*ours), theirs(*desired)
    value.sum().backward()
    reference.sum().backward()
    torch.testing.assert_close(value, reference, equal_nan=True, **digits)
    for x, y in zip(ours, desired, strict=True):
        if x.requires_grad:
            torch.testing.assert_close(x.grad, y.grad, **digits)


# --- the values of PyTorch --------------------------------------------------------------------------------------------


def module_inputs(dtype):
    pytest.importorskip("expecttest", reason="PyTorch's own tests need it")
    from torch.testing._internal.common_modules import module_inputs_torch_nn_CrossEntropyLoss as inputs

    return inputs(None, "cpu", dtype, requires_grad=False, training=True)


@pytest.mark.parametrize("dtype", DIGITS, ids=str)
def test_every_module_input_of_pytorch(dtype):
    """They have class weights of either sign, with labels and with probabilities."""
    cases = module_inputs(dtype)
    for case in cases:
        options = case.constructor_input.kwargs
        both(
            CrossEntropyLoss(**options), torch.nn.CrossEntropyLoss(**options), *case.forward_input.args, **DIGITS[dtype]
        )
    assert len(cases) >= 105


def test_every_module_input_that_is_an_error_in_pytorch():
    pytest.importorskip("expecttest", reason="PyTorch's own tests need it")
    from torch.testing._internal.common_modules import module_error_inputs_torch_nn_CrossEntropyLoss as inputs

    cases = [case.module_error_input for case in inputs(None, "cpu", torch.float64, requires_grad=False, training=True)]
    for case in cases:
        with pytest.raises((TypeError, ValueError)):
            CrossEntropyLoss(**case.constructor_input.kwargs)(*case.forward_input.args)
    assert len(cases) >= 7


SHAPES = [(5,), (6, 5), (3, 5, 2), (2, 5, 3, 2)]


@pytest.mark.parametrize("seed", range(40))
def test_options_at_random(seed):
    rng = np.random.default_rng(seed)
    shape = SHAPES[rng.integers(len(SHAPES))]
    axis = min(1, len(shape) - 1)
    z = torch.from_numpy(rng.normal(size=shape) * 5)
    soft = rng.random() < 0.4
    rows = shape[:axis] + shape[axis + 1 :]
    target = torch.from_numpy(rng.random(shape)) if soft else torch.from_numpy(np.asarray(rng.integers(0, 5, rows)))
    options = {"reduction": rng.choice(["mean", "sum", "none"]), "label_smoothing": float(rng.choice([0.0, 0.3, 1.0]))}
    if rng.random() < 0.5:
        options["weight"] = torch.from_numpy(rng.normal(size=5) + rng.choice([0.0, 3.0]))
    if not soft:
        options["ignore_index"] = int(rng.choice([-100, 0, 3]))
        if bool((target == options["ignore_index"]).all()):  # PyTorch's gradient of no row is nan
            options["ignore_index"] = -100
    z_loss = float(rng.choice([0.0, 0.1]))
    weight = options.get("weight")

    def theirs(z, target):
        loss = F.cross_entropy(z, target, **options)
        if not z_loss:
            return loss
        counting = torch.ones(rows, dtype=z.dtype)
        if not soft:
            counting = counting if weight is None else weight[target]
            counting = torch.where(target == options["ignore_index"], 0.0, counting)
        more = z_loss * counting * torch.logsumexp(z, axis) ** 2
        more = more.sum() if options["reduction"] != "none" else more
        return loss + (more / counting.sum() if options["reduction"] == "mean" else more)

    both(lambda *x: cross_entropy(*x, z_loss=z_loss, **options), theirs, z, target, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype(dtype):
    z = torch.randn(4, 5, dtype=torch.float64)
    y = torch.tensor([0, 4, 2, 1])
    torch.testing.assert_close(cross_entropy(z, y.to(dtype)), F.cross_entropy(z, y))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_row(reduction):
    """PyTorch's gradient of a mean over nothing is nan; here nothing depends on the logits."""
    for z, y in (
        (torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(2, 5), torch.tensor([-100, -100])),
    ):
        x = leaf(z)
        loss = cross_entropy(x, y, reduction=reduction)
        torch.testing.assert_close(loss, F.cross_entropy(z, y, reduction=reduction), equal_nan=True)
        loss.sum().backward()
        assert torch.equal(x.grad, torch.zeros_like(z))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_row_is_recorded_too(reduction, soft, dtype):
    z, weight = leaf(torch.zeros(0, 3, dtype=dtype)), leaf(torch.ones(3, dtype=dtype))
    target = leaf(torch.zeros(0, 3, dtype=dtype)) if soft else torch.zeros(0, dtype=torch.int64)
    for loss in (
        cross_entropy(z, target, weight, reduction=reduction),
        xs.softmax_loss(z, target, class_weight=weight, reduction=reduction),
    ):
        loss.backward()
        assert torch.equal(weight.grad, torch.zeros_like(weight))
    xs.softmax_loss(z, target, reduction=reduction).backward()
    assert z.grad.shape == (0, 3)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_weights_whose_signs_nobody_looks_at(monkeypatch, reduction, soft, z_loss):
    """On a GPU that would wait for the device: kernels compute positive and negative weights apart."""
    from xpsoftmax.kernels.torch import smooth
    from xpsoftmax.torch import checks

    rng = np.random.default_rng(7)
    target = torch.from_numpy(rng.random((4, 5))) if soft else torch.tensor([0, 4, 1, 2])
    z = torch.from_numpy(rng.normal(size=(4, 5)))
    z[:, 3] = -np.inf
    weight = torch.from_numpy(np.array([1.5, -0.5, 0.0, 0.0, 2.0]))
    options = {"reduction": reduction, "label_smoothing": 0.3, "z_loss": z_loss}
    desired = leaf(z)
    expected = cross_entropy(desired, target, weight, **options)
    expected.sum().backward()

    monkeypatch.setattr(checks, "_is_signed", lambda weight, looked: None)
    monkeypatch.setattr(smooth, "softmax_loss_rows", None)
    x = leaf(z)
    loss = cross_entropy(x, target, weight, **options)
    loss.sum().backward()
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(x.grad, desired.grad, rtol=1e-13, atol=1e-14)


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["eager", "torch.func", "compiled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
@compiles
def test_loss_and_gradient_keep_the_contract(rng, kind, dtype, way):
    z = logits(rng, kind, SOME, dtype)
    y = labels(rng, z)
    exact = oracle.softmax_loss(z, y)
    x, target = torch.from_numpy(z), torch.from_numpy(y)
    if way == "torch.func":
        grad, loss = func.grad_and_value(cross_entropy)(x, target)
    else:
        function = torch.compile(cross_entropy, backend="aot_eager") if way == "compiled" else cross_entropy
        x.requires_grad_()
        loss = function(x, target)
        loss.backward()
        grad = x.grad
    assert_within(loss.detach().numpy(), exact.loss.value, bound=exact.loss.bound, where=exact.loss.where)
    compared = assert_within(grad.numpy(), exact.grad.value, bound=exact.grad.bound, where=exact.grad.where)
    assert compared > z.size / 4  # others are subnormal numbers


def test_eager_gradients_have_the_bits_of_numpy(rng):
    z = logits(rng, "scale-30", 1000, "float32")
    y = labels(rng, z)
    x = torch.from_numpy(z).requires_grad_()
    loss = cross_entropy(x, torch.from_numpy(y))
    loss.backward()
    desired = xs.softmax_loss_and_grad(z, y)
    assert_same_bits(loss.detach().numpy(), desired[0])
    assert_same_bits(x.grad.numpy(), desired[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_16_bit_gradients_are_rounded_once(rng, dtype, scale):
    """After they have been multiplied, as by a GradScaler: before, the small ones would be lost."""
    z = torch.from_numpy(logits(rng, "scale-1", 1000, "float32")).to(getattr(torch, dtype))
    y = torch.from_numpy(labels(rng, z.float().numpy()))
    x = leaf(z)
    loss = cross_entropy(x, y)
    assert loss.dtype == torch.float32
    (scale * loss).backward()
    wide = scale * xs.softmax_loss_and_grad(z.float(), y)[1]
    assert x.grad.dtype == z.dtype
    unit = torch.clamp(wide.abs() * EPS[dtype], min=2.0**-24 if dtype == "float16" else 0.0)
    assert ((x.grad.float() - wide).abs() / unit).max() <= 0.5 + 2**-8
    if scale > 1.0:
        assert (x.grad != 0).all()


# --- derivatives ------------------------------------------------------------------------------------------------------

Z = torch.from_numpy(np.random.default_rng(3).normal(size=(4, 5)))
Y = torch.tensor([0, 4, -100, 2])
Q = torch.from_numpy(np.random.default_rng(4).random((4, 5)))
WEIGHT = torch.from_numpy(np.random.default_rng(5).random(5)) + 0.5
CASES = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "everything": {"label_smoothing": 0.2, "z_loss": 0.1},
}
every_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES)
every_target = pytest.mark.parametrize("target", [Y, Q], ids=["labels", "soft"])


@every_case
@every_target
def test_gradients_of_every_argument(target, options):
    """First and second, with respect to the logits, to probabilities and to class weights."""
    loss = lambda z, t, w: cross_entropy(z, t, w, validate=False, **options)  # noqa: E731
    arguments = leaf(Z), leaf(target) if target is Q else target, leaf(WEIGHT)
    assert torch.autograd.gradcheck(loss, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(loss, arguments, check_batched_grad=True)


@every_case
@every_target
@pytest.mark.parametrize("transform", ["grad", "jacrev", "jacfwd", "hessian", "vmap of grad", "rows"])
def test_torch_func(transform, target, options):
    def number(loss):
        return lambda z: (loss(z, target, WEIGHT, **options) * torch.arange(1.0, 5.0, dtype=z.dtype)).sum()

    def theirs(z, target, weight, *, z_loss=0.0, **more):
        loss = F.cross_entropy(z, target, weight, **more)
        if not z_loss:
            return loss
        counting = (
            torch.ones(4, dtype=z.dtype) if target is Q else torch.where(target < 0, 0.0, weight[target.clamp(min=0)])
        )
        return loss + z_loss * (counting * torch.logsumexp(z, 1) ** 2).sum() / counting.sum()

    def apply(function):
        if transform == "vmap of grad":
            return func.vmap(func.grad(function))(torch.stack([Z, 2.0 * Z]))
        return getattr(func, transform)(function)(Z)

    if transform == "rows":  # one row each, as for gradients by sample
        if "label_smoothing" in options:
            pytest.skip("z-loss is not PyTorch's")
        single = [
            func.vmap(func.grad(lambda z, t, f=f: f(z, t, **options)), in_dims=(0, 0))(Z, target.clamp(min=0))
            for f in (cross_entropy, F.cross_entropy)
        ]
        torch.testing.assert_close(*single, rtol=1e-9, atol=1e-12)
        return
    torch.testing.assert_close(apply(number(cross_entropy)), apply(number(theirs)), rtol=1e-9, atol=1e-12)


@every_case
@every_target
@compiles
def test_compiled(target, options):
    torch.compiler.reset()
    call = lambda z: (cross_entropy(2.0 * z, target, WEIGHT, **options) ** 2).sum()  # noqa: E731
    x, again = leaf(Z), leaf(Z)
    loss = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
    loss.backward()
    desired = call(again)
    desired.backward()
    torch.testing.assert_close(loss, desired, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-12, atol=1e-15)
    compiled = torch.compile(func.grad(call), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(Z), again.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@every_case
def test_gradients_of_a_kept_graph_share_no_memory(options, dtype):
    x = leaf(Z.to(dtype))
    loss = cross_entropy(x, Y, **options).sum()
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    wanted = first.clone()
    first.mul_(3.0)
    (third,) = torch.autograd.grad(loss, x)
    assert torch.equal(second, wanted)
    assert torch.equal(third, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@every_case
@every_target
def test_many_gradients_at_once(target, options, dtype):
    """PyTorch runs the backward pass once, with a batch in the place of the incoming gradient."""
    x = leaf(Z.to(dtype))
    target = target.to(dtype) if target is Q else target
    loss = cross_entropy(x, target, **options)
    factors = torch.tensor([1.0, -0.5, 2.0], dtype=loss.dtype).reshape(3, *(1,) * loss.ndim).expand(3, *loss.shape)
    found = torch.autograd.grad(loss, x, factors, is_grads_batched=True, retain_graph=True)[0]
    for one, factor in zip(found, factors, strict=True):
        (wanted,) = torch.autograd.grad(loss, x, factor, retain_graph=True)
        torch.testing.assert_close(one, wanted)


def test_backward_twice_and_with_factors():
    x = leaf(Z)
    loss = cross_entropy(x, Y)
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    (3.0 * loss).backward()
    torch.testing.assert_close(x.grad, 4.0 * once, rtol=1e-14, atol=0.0)
    assert torch.equal(x.grad, once + 3.0 * once)


def test_nothing_is_recorded_where_nothing_is_asked_for():
    with torch.no_grad():
        assert not cross_entropy(leaf(Z), Y).requires_grad
    with torch.inference_mode():
        assert cross_entropy(Z, Y).is_inference()
    assert cross_entropy(Z, Y).grad_fn is None


def test_softmax_and_log_softmax():
    for ours, theirs in ((softmax, torch.softmax), (log_softmax, torch.log_softmax)):
        for dim in (0, 1, -1):
            both(
                lambda z, _, f=ours, d=dim: f(z, d), lambda z, _, f=theirs, d=dim: f(z, d), Z, Y, rtol=1e-13, atol=1e-15
            )


# --- in place ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_inplace_writes_the_gradient_over_the_logits(dtype, factor, reduction):
    x, again = (leaf(Z.to(dtype)) for _ in range(2))
    z = 1.0 * x
    memory = z.data_ptr()
    z.register_hook(lambda grad: seen.append(grad.data_ptr()))
    seen = []
    loss = cross_entropy(z, Y, reduction=reduction, inplace=True)
    (factor * loss).sum().backward()
    desired = cross_entropy(again, Y, reduction=reduction)
    (factor * desired).sum().backward()
    assert torch.equal(loss, desired)
    torch.testing.assert_close(x.grad, again.grad, rtol=float(torch.finfo(dtype).eps), atol=0.0)
    assert seen == [memory]


def test_what_inplace_overwrites_is_noticed():
    x = leaf(Z)
    z = 1.0 * x
    other = z.exp()  # which holds its result, not z
    square = z * z  # which holds z
    loss = cross_entropy(z, Y, inplace=True)
    assert z._version == 1
    (loss + other.sum()).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + square.sum()).backward()


def test_inplace_is_refused():
    with pytest.raises(
        ValueError, match=r"^input must be a dense result of a computation with inplace=True, got a leaf"
    ):
        cross_entropy(leaf(Z), Y, inplace=True)
    for dtype in (torch.float64, torch.bfloat16):
        for view in (lambda z: z[:], lambda z: z.reshape(Z.shape), lambda z: z.T.T, lambda z: z.chunk(1)[0]):
            z = leaf(Z.to(dtype))
            with pytest.raises(
                ValueError, match=r"^input must be a dense result .* got a view of a leaf that requires"
            ):
                cross_entropy(view(z), Y, inplace=True)
            assert torch.equal(z, Z.to(dtype))
    with pytest.raises(ValueError, match=r"^input must be a dense result .* got strides \(5, 0\)\.$"):
        cross_entropy((1.0 * leaf(Z))[:, :1].expand(4, 5), Y, inplace=True)
    with pytest.raises(TypeError, match=r"^inplace must be True or False, got 1\.$"):
        cross_entropy(1.0 * leaf(Z), Y, inplace=1)
    x = leaf(Z)
    loss = cross_entropy(1.0 * x, Y, inplace=True)
    with pytest.raises(ValueError, match=r"^inplace must be False for these derivatives, got True: "):
        torch.autograd.grad(loss, x, create_graph=True)
    twice = cross_entropy(1.0 * x, Y, inplace=True)
    (2.0 * twice).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (2.0 * twice).backward()


MEMORY = """
import resource, sys, torch
from xpsoftmax.torch import cross_entropy
inplace = sys.argv[1] == "True"
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
size = 4096 * 8192 * 4
w = torch.zeros(1, requires_grad=True)
y = torch.zeros(4096, dtype=torch.int64)
resource.setrlimit(resource.RLIMIT_AS, (used + int(1.8 * size),) * 2)
z = torch.randn(4096, 8192).add_(w)
try:
    cross_entropy(z, y, inplace=inplace).backward()
except (MemoryError, RuntimeError) as error:
    print("too much", type(error).__name__)
else:
    print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of Linux")
@pytest.mark.parametrize(("inplace", "words"), [(True, "done"), (False, "too much")])
def test_inplace_holds_no_second_array(inplace, words):
    program = [sys.executable, "-c", textwrap.dedent(MEMORY), str(inplace)]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.stdout.startswith(words), result.stderr[-2000:]


# --- models -----------------------------------------------------------------------------------------------------------


def test_the_module_is_pytorchs():
    loss = CrossEntropyLoss(WEIGHT, ignore_index=2, reduction="sum", label_smoothing=0.1, z_loss=0.2)
    assert isinstance(loss, torch.nn.CrossEntropyLoss)
    assert list(loss.state_dict()) == ["weight"]
    assert loss.to(torch.float32).weight.dtype == torch.float32
    options = {"ignore_index": 2, "reduction": "sum", "label_smoothing": 0.1, "z_loss": 0.2}
    loss = loss.double()
    assert torch.equal(loss(Z, Q.argmax(1)), cross_entropy(Z, Q.argmax(1), loss.weight, **options))


def test_autocast_and_gradscaler():
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 5)
    X = torch.randn(16, 8)
    y = torch.arange(16) % 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = model(X)
        loss = cross_entropy(z, y)
    assert (z.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    loss.backward()
    ours = model.weight.grad.clone()
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        F.cross_entropy(model(X), y).backward()
    torch.testing.assert_close(ours, model.weight.grad, rtol=0.05, atol=1e-3)


PARALLEL = """
import os, sys, torch
import torch.distributed as dist
from xpsoftmax.torch import CrossEntropyLoss
rank = int(sys.argv[1])
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2])
dist.init_process_group("gloo", rank=rank, world_size=2)
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 3).double())
X, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
part = slice(3 * rank, 3 * rank + 3)
CrossEntropyLoss()(model(X[part]), y[part]).backward()
alone = torch.nn.Linear(4, 3).double()
alone.load_state_dict(model.module.state_dict())
torch.nn.functional.cross_entropy(alone(X), y).backward()
torch.testing.assert_close(model.module.weight.grad, alone.weight.grad, rtol=1e-12, atol=1e-15)
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
def test_distributed_data_parallel():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    programs = [
        subprocess.Popen([sys.executable, "-c", PARALLEL, str(rank), port], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for program in programs:
        _, error = program.communicate(timeout=120)
        assert program.returncode == 0, error[-2000:]


# --- bad arguments ----------------------------------------------------------------------------------------------------

BAD = {
    "input kind": (lambda: cross_entropy(Z.numpy(), Y), TypeError, r"input must be a torch\.Tensor, got ndarray\."),
    "input dtype": (lambda: cross_entropy(Z.long(), Y), TypeError, r"input must be of float16, bfloat16, float32 or"),
    "input scalar": (lambda: cross_entropy(Z[0, 0], Y), ValueError, r"input must have at least one dimension, got"),
    "no class": (lambda: cross_entropy(Z[:, :0], Y), ValueError, r"input must have at least one class along axis 1"),
    "target kind": (lambda: cross_entropy(Z, [0]), TypeError, r"target must be a torch\.Tensor, got list\."),
    "target dtype": (lambda: cross_entropy(Z, Y.bool()), TypeError, r"target must be of a real floating or integer"),
    "target shape": (lambda: cross_entropy(Z, Y[:3]), ValueError, r"target must have shape \(4,\) for labels of input"),
    "soft shape": (lambda: cross_entropy(Z, Q[0]), ValueError, r"target must have the shape of input, \(4, 5\), for"),
    "target device": (
        lambda: cross_entropy(Z, Y.to("meta")),
        ValueError,
        r"target must be on the device of input, cpu",
    ),
    "weight kind": (lambda: cross_entropy(Z, Y, [1.0] * 5), TypeError, r"weight must be a torch\.Tensor, got list\."),
    "weight shape": (lambda: cross_entropy(Z, Y, WEIGHT[:4]), ValueError, r"weight must have shape \(5,\), one weight"),
    "weight value": (
        lambda: cross_entropy(Z, Y, WEIGHT / torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])),
        ValueError,
        r"weight must be finite, got inf at class 1\.",
    ),
    "label": (
        lambda: cross_entropy(Z, torch.tensor([0, 5, 1, 1])),
        ValueError,
        r"target must be labels from 0 to 4 \(5 classes, ignore_index=-100\), got 5 at row 1\.",
    ),
    "soft value": (lambda: cross_entropy(Z, -Q), ValueError, r"target must be finite and not negative, got -0\.\d+ at"),
    "ignored soft": (
        lambda: cross_entropy(Z, Q, ignore_index=1),
        ValueError,
        r"ignore_index must be negative for class",
    ),
    "ignore_index": (
        lambda: cross_entropy(Z, Y, ignore_index=1.5),
        TypeError,
        r"ignore_index must be an integer, got 1",
    ),
    "reduction": (lambda: cross_entropy(Z, Y, reduction="all"), ValueError, r'reduction must be one of "mean", "sum"'),
    "smoothing": (lambda: cross_entropy(Z, Y, label_smoothing=2.0), ValueError, r"label_smoothing must be from 0 to 1"),
    "z_loss": (lambda: cross_entropy(Z, Y, z_loss=-1.0), ValueError, r"z_loss must be finite and at least 0, got -1"),
    "validate": (lambda: cross_entropy(Z, Y, validate=1), TypeError, r"validate must be True or False, got 1\."),
    "dim": (lambda: softmax(Z, 2), ValueError, r"dim must be from -2 to 1, got 2\."),
    "dim kind": (lambda: log_softmax(Z, 0.5), TypeError, r"dim must be an integer, got 0\.5\."),
    "softmax": (lambda: softmax([1.0]), TypeError, r"input must be a torch\.Tensor, got list\."),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_a_bad_label_that_nobody_looks_at_is_nan():
    x = leaf(Z)
    losses = cross_entropy(x, torch.tensor([0, 5, 1, -100]), reduction="none", validate=False)
    losses.sum().backward()
    assert losses.isnan().tolist() == [False, True, False, False]
    assert x.grad.isnan().any(1).tolist() == [False, True, False, False]


def test_what_is_held():
    assert is_held(Z)
    assert is_held(Z.bfloat16())
    assert not is_held(Z.half())
