"""PyTorch's derivatives of the package's functions: of every order, in every mode, and never zero without a word.

The functions that return gradients are constants for PyTorch: tensors under a transform are an error there.
"""

import re

import numpy as np
import oracle
import pytest
from assertions import EPS, assert_within
from grid import KINDS, SOME, labels, logits

import xpsoftmax as xs
from xpsoftmax.kernels.activations import ACTIVATIONS

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402

# PyTorch's forward-mode AD scripts its decompositions, and warns of it: by another kind of warning from 2.14 on.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:`torch.jit.script:{kind}") for kind in ("DeprecationWarning", "FutureWarning")
]

F = torch.func
ROWS, CLASSES = 3, 4
Y = torch.tensor([0, 3, 1])


def some(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(0.1, 1.0, shape))


Z, Q, WEIGHT, CLASS_WEIGHT = some(ROWS, CLASSES), some(ROWS, CLASSES, seed=1), some(ROWS), some(CLASSES)
HIDDEN, OUTPUT = xs.Layer(some(CLASSES, 5), some(5)), xs.Layer(some(5, CLASSES), some(CLASSES))


def network(function, *, X=Z, targets=Y, hidden=HIDDEN, output=OUTPUT, **options):
    arguments = (X,) if function in (xs.mlp_logits, xs.mlp_predict) else (X, targets)
    return function((hidden, output), *arguments, **options)


# name of the argument and what is called with it; the result would be differentiated
RESULTS = {
    "softmax": ("logits", Z, xs.softmax),
    "softmax axis 0": ("logits", Z, lambda x: xs.softmax(x, axis=0)),
    "log_softmax": ("logits", Z, xs.log_softmax),
    "logsumexp": ("logits", Z, xs.logsumexp),
    "softmax_jvp": ("logits", Z, lambda x: xs.softmax_jvp(x, Z)),
    "softmax_jvp tangent": ("tangent", Z, lambda x: xs.softmax_jvp(Z, x)),
    "softmax_jacobian": ("logits", Z, xs.softmax_jacobian),
    "softmax_loss": ("logits", Z, lambda x: xs.softmax_loss(x, Y)),
    "softmax_loss none": ("logits", Z, lambda x: xs.softmax_loss(x, Y, reduction="none", validate=False)),
    "softmax_loss soft": ("targets", Q, lambda x: xs.softmax_loss(Z, x)),
    "softmax_loss sample": ("sample_weight", WEIGHT, lambda x: xs.softmax_loss(Z, Y, sample_weight=x)),
    "softmax_loss class": ("class_weight", CLASS_WEIGHT, lambda x: xs.softmax_loss(Z, Y, class_weight=x)),
    "mlp_logits": ("X", Z, lambda x: network(xs.mlp_logits, X=x)),
    "mlp_logits weight": (
        "params[0].weight",
        HIDDEN.weight,
        lambda x: network(xs.mlp_logits, hidden=xs.Layer(x, HIDDEN.bias)),
    ),
    "mlp_loss": ("X", Z, lambda x: network(xs.mlp_loss, X=x)),
    "mlp_loss bias": ("params[1].bias", OUTPUT.bias, lambda x: network(xs.mlp_loss, output=(OUTPUT.weight, x))),
    "mlp_loss soft": ("targets", Q, lambda x: network(xs.mlp_loss, targets=x)),
    "mlp_loss sample": ("sample_weight", WEIGHT, lambda x: network(xs.mlp_loss, sample_weight=x)),
    "mlp_loss class": ("class_weight", CLASS_WEIGHT, lambda x: network(xs.mlp_loss, class_weight=x)),
}
# These give detached tensors, but not under a transform.
DETACHED = {
    "softmax_loss_and_grad": ("logits", Z, lambda x: xs.softmax_loss_and_grad(x, Y)[0]),
    "softmax_loss_and_grad soft": ("targets", Q, lambda x: xs.softmax_loss_and_grad(Z, x)[1]),
    "mlp_loss_and_grad": ("X", Z, lambda x: network(xs.mlp_loss_and_grad, X=x)[0]),
    "mlp_loss_and_grad weight": (
        "params[0].weight",
        HIDDEN.weight,
        lambda x: network(xs.mlp_loss_and_grad, hidden=xs.Layer(x, HIDDEN.bias), reg=0.1)[0],
    ),
    "mlp_partial_sums": ("X", Z, lambda x: network(xs.mlp_partial_sums, X=x).loss),
    "mlp_predict": ("X", Z, lambda x: network(xs.mlp_predict, X=x).double()),
    "train": (
        "params[0].weight",
        HIDDEN.weight,
        lambda x: (
            xs.train((xs.Layer(x, HIDDEN.bias), OUTPUT), Z, Y, optimizer=xs.sgd(0.1), epochs=1, batch_size=3, rng=0)
            .params[0]
            .weight
        ),
    ),
    "numerical_grad": ("x", Z, lambda x: xs.numerical_grad(lambda x: (x * x).sum(), x)),
}
every_result = pytest.mark.parametrize("case", RESULTS)
every_constant = pytest.mark.parametrize("case", DETACHED)

TRANSFORMED = r"^{} must not be differentiated by torch\.func or forward-mode AD, got a tensor that is: .* detach\(\)"


def case_of(name):
    return RESULTS.get(name) or DETACHED[name]


def assert_same(actual, desired):
    """The same to rounding: under a transform another text computes it than a kernel."""
    torch.testing.assert_close(actual, desired, rtol=20 * 2.0**-52, atol=2.0**-51, equal_nan=True)


def in_scale(function):
    """One number from a result, with a derivative that depends on every entry."""

    def scaled(x):
        result = function(x)
        return (result * torch.arange(1.0, 1.0 + result.numel(), dtype=result.dtype).reshape(result.shape)).sum()

    return scaled


@pytest.mark.filterwarnings("ignore:The input has been resized")
@every_result
def test_derivatives_are_those_of_the_function(case):
    """First and second ones, by numerical differences, backward and forward."""
    _, value, function = RESULTS[case]
    x = value.clone().requires_grad_()
    if case in ("softmax_loss soft", "softmax_loss sample", "softmax_loss class") or case.startswith("mlp_loss "):
        function = unvalidated(function)
    assert torch.autograd.gradcheck(function, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, x)


def unvalidated(function):
    """Numerical differences take weights below 0, where there is no loss to speak of; these stay above."""
    return lambda x: function(x)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "softmax_jvp", "softmax_jacobian"])
@pytest.mark.parametrize("row", [[np.inf, 1.0], [-np.inf, 1.0], [-np.inf, -np.inf], [np.nan, 1.0], [np.inf], [-np.inf]])
def test_rows_that_are_not_finite_are_under_transforms_as_everywhere(name, row):
    function = getattr(xs, name)
    z = np.array([row, np.ones_like(row)])
    more = (np.ones_like(z),) if name == "softmax_jvp" else ()
    wanted = torch.from_numpy(function(z, *more))
    tensors = [torch.from_numpy(x) for x in (z, *more)]
    assert_same(F.vmap(function)(*(x[None] for x in tensors))[0], wanted)
    assert_same(function(tensors[0].clone().requires_grad_(), *tensors[1:]).detach(), wanted)


@every_result
@pytest.mark.parametrize("transform", ["grad", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "vmap of grad", "twice"])
def test_transforms_agree_with_backward(transform, case):
    _, value, function = RESULTS[case]
    number = in_scale(function)
    x = value.clone().requires_grad_()
    (first,) = torch.autograd.grad(number(x), x, create_graph=True)
    if transform in ("hessian", "twice"):
        actual = F.hessian(number)(value) if transform == "hessian" else F.jacrev(F.jacrev(number))(value)
        again = torch.zeros(value.numel(), *value.shape, dtype=value.dtype)
        if first.requires_grad:  # it does not depend on x if the function is linear
            again = torch.stack([torch.autograd.grad(entry, x, retain_graph=True)[0] for entry in first.reshape(-1)])
        torch.testing.assert_close(actual.reshape(again.shape), again, rtol=1e-12, atol=1e-14)
        return
    first = first.detach()
    if transform == "jvp":
        actual, first = F.jvp(number, (value,), (value,))[1], (first * value).sum()
    elif transform == "vjp":
        actual = F.vjp(number, value)[1](torch.ones((), dtype=value.dtype))[0]
    elif transform == "vmap of grad":
        actual = F.vmap(F.grad(number))(torch.stack([value, value]))[1]
    else:
        actual = getattr(F, transform)(number)(value)
    torch.testing.assert_close(actual, first, rtol=1e-12, atol=1e-14)


@every_result
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_nothing_is_recorded_all_tensors_are_taken(mode, case):
    _, value, function = RESULTS[case]
    with mode():
        result = function(value.clone().requires_grad_())
    assert torch.equal(result, function(value))


@pytest.mark.parametrize("function", [xs.softmax, xs.log_softmax])
def test_out_where_gradients_are_recorded(function):
    message = r"^out must be None where PyTorch differentiates the result, got a tensor\. Call detach\(\) first\.$"
    out = torch.empty_like(Z)
    with pytest.raises(ValueError, match=message):
        function(Z.clone().requires_grad_(), out=out)
    with pytest.raises(ValueError, match=message):
        F.grad(lambda z: function(z, out=out).sum())(Z)
    assert function(Z, out=out) is out
    with torch.no_grad():
        assert torch.equal(function(Z.clone().requires_grad_(), out=out), function(Z))


def test_a_loss_beside_a_penalty():
    weight = Z.clone().requires_grad_()
    (xs.softmax_loss(weight, Y) + 0.1 * (weight * weight).sum()).backward()
    torch.testing.assert_close(weight.grad, xs.softmax_loss_and_grad(Z, Y)[1] + 0.2 * Z, rtol=1e-15, atol=1e-16)


@pytest.mark.parametrize("case", DETACHED)
def test_gradients_come_back_detached(case):
    _, value, function = DETACHED[case]
    result = function(value.clone().requires_grad_())
    assert not result.requires_grad
    assert torch.equal(result, function(value))


TRANSFORMS = {
    "grad": lambda f, x: F.grad(lambda x: f(x).sum())(x),
    "vjp": lambda f, x: F.vjp(f, x),
    "jvp": lambda f, x: F.jvp(f, (x,), (x,)),
    "jacrev": lambda f, x: F.jacrev(f)(x),
    "jacfwd": lambda f, x: F.jacfwd(f)(x),
    "hessian": lambda f, x: F.hessian(lambda x: f(x).sum())(x),
    "vmap of grad": lambda f, x: F.vmap(F.grad(lambda x: f(x).sum()))(torch.stack([x, x])),
    "grad of vmap": lambda f, x: F.grad(lambda x: F.vmap(f)(torch.stack([x, x])).sum())(x),
    "jvp of vmap": lambda f, x: F.jvp(F.vmap(f), (torch.stack([x, x]),), (torch.stack([x, x]),)),
    "jvp around grad": lambda f, x: F.jvp(lambda x: F.grad(lambda w: f(x).sum() * w)(torch.ones(())), (x,), (x,)),
    "twice": lambda f, x: F.grad(lambda x: F.grad(lambda x: f(x).sum())(x).sum())(x),
}


@every_constant
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_constants_are_no_zeros_in_torch_func(transform, case):
    argument, value, function = DETACHED[case]
    message = TRANSFORMED.format(re.escape(argument))
    with pytest.raises(ValueError, match=message):
        TRANSFORMS[transform](function, value)


@every_constant
def test_constants_are_no_zeros_in_forward_mode(case):
    argument, value, function = DETACHED[case]
    with forward_ad.dual_level(), pytest.raises(ValueError, match=TRANSFORMED.format(re.escape(argument))):
        function(forward_ad.make_dual(value.clone(), value))


@pytest.mark.parametrize("case", [name for name in (*RESULTS, *DETACHED) if name not in ("train", "numerical_grad")])
def test_what_is_detached_or_constant_is_taken_under_transforms(case):
    _, value, function = case_of(case)
    held = function(value)
    seen = []

    def detached(x):
        seen.append(function(x.detach()))
        seen.append(function(value))
        return (x * x).sum()

    assert torch.equal(F.grad(detached)(value), 2.0 * value)
    assert torch.equal(F.jvp(detached, (value,), (value,))[1], 2.0 * (value * value).sum())
    assert len(seen) == 4
    with forward_ad.dual_level():
        assert_same(function(forward_ad.make_dual(value.clone(), value).detach()), held)


# --- vmap -------------------------------------------------------------------------------------------------------------

SHAPES = [((5,), 0), ((3, 5), -1), ((5, 3), 0), ((2, 5, 3), 1), ((5, 2, 3), -3)]
every_shape = pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)


@every_shape
@pytest.mark.parametrize("case", ["softmax", "log_softmax", "logsumexp", "keepdims", "softmax_jvp", "softmax_jacobian"])
def test_vmap_along_any_axis(case, shape, axis):
    function = {
        "keepdims": lambda z: xs.logsumexp(z, axis=axis, keepdims=True),
        "softmax_jvp": lambda z: xs.softmax_jvp(z, z * z, axis=axis),
    }.get(case, lambda z: getattr(xs, case)(z, axis=axis))
    for dim in range(len(shape) + 1):
        z = some(*shape[:dim], 4, *shape[dim:])
        desired = torch.stack([function(part) for part in z.unbind(dim)])
        assert_same(F.vmap(function, in_dims=dim)(z), desired)
        assert_same(F.vmap(F.vmap(function, in_dims=dim))(torch.stack([z, z]))[1], desired)


OPTIONS = {
    "plain": ((), {}),
    "ignored": ((), {"ignore_index": 1}),
    "weighted": (("sample_weight", "class_weight"), {"label_smoothing": 0.1, "z_loss": 0.01}),
    "sum": (("class_weight",), {"reduction": "sum"}),
    "none": (("sample_weight",), {"reduction": "none"}),
}


@every_shape
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, 0), (None, 0, None), (None, None, 0)], ids=str)
def test_vmap_of_losses(in_dims, soft, options, shape, axis):
    """Over logits, targets and weights, some of them the same for all."""
    names, more = OPTIONS[options]
    if (soft and options == "ignored") or (in_dims == (None, None, 0) and not names):
        pytest.skip("nothing to map over")
    rows = list(shape)
    del rows[axis]
    sizes = {"sample_weight": rows, "class_weight": [5]}
    labels = torch.from_numpy(np.random.default_rng(2).integers(0, 5, (4, *rows)))
    arrays = [
        some(4, *shape),
        some(4, *shape, seed=1) if soft else labels,
        {name: some(4, *sizes[name]) for name in names},
    ]

    def both(z, targets, weights):
        return xs.softmax_loss_and_grad(z, targets, axis=axis, **weights, **more)

    def part(array, dim, i):
        if isinstance(array, dict):
            return {name: part(value, dim, i) for name, value in array.items()}
        return array[i] if dim == 0 else array

    given = [part(array, None if dim == 0 else 0, 0) for array, dim in zip(arrays, in_dims, strict=True)]
    mapped = F.vmap(both, in_dims=in_dims)(*given)
    alone = [both(*(part(a, dim, i) for a, dim in zip(given, in_dims, strict=True))) for i in range(4)]
    for actual, desired in zip(mapped, map(torch.stack, zip(*alone, strict=True)), strict=True):
        # Sums of a batch may be added up in another order.
        torch.testing.assert_close(actual, desired, rtol=20 * 2.0**-52, atol=2.0**-51, equal_nan=True)
    loss = F.vmap(lambda *a: xs.softmax_loss(*a[:2], axis=axis, **a[2], **more), in_dims=in_dims)(*given)
    torch.testing.assert_close(loss, mapped[0], rtol=20 * 2.0**-52, atol=2.0**-51, equal_nan=True)


def test_vmap_of_networks():
    X = some(4, ROWS, CLASSES)
    for function in (
        lambda X: network(xs.mlp_logits, X=X),
        lambda X: network(xs.mlp_predict, X=X, validate=False),
        lambda X: network(xs.mlp_loss, X=X, reg=0.1, class_weight=CLASS_WEIGHT),
        lambda X: network(xs.mlp_loss_and_grad, X=X, sample_weight=WEIGHT)[1][0].weight,
        lambda X: network(xs.mlp_loss_and_grad, X=X, max_memory=1000)[1][1].bias,
        lambda X: network(xs.mlp_partial_sums, X=X).weight,
    ):
        desired = torch.stack([function(x) for x in X])
        torch.testing.assert_close(F.vmap(function)(X), desired, rtol=1e-13, atol=0.0)


def test_vmap_over_layers_is_an_ensemble():
    layers = tuple(xs.Layer(some(4, *w.shape), some(4, *b.shape)) for w, b in (HIDDEN, OUTPUT))
    losses = F.vmap(lambda layers: xs.mlp_loss(layers, Z, Y))(layers)
    alone = [xs.mlp_loss(tuple(xs.Layer(w[i], b[i]) for w, b in layers), Z, Y) for i in range(4)]
    torch.testing.assert_close(losses, torch.stack(alone), rtol=1e-13, atol=0.0)


def test_a_bad_label_under_vmap_is_named_with_all_its_positions():
    labels = torch.stack([Y, Y, Y])
    labels[2, 1] = 7
    message = r"^targets must be labels from 0 to 3 \(4 classes, ignore_index=None\), got 7 at row \(2, 1\)\.$"
    for dim in (0, 1):
        with pytest.raises(ValueError, match=message):
            F.vmap(lambda y: xs.softmax_loss(Z, y), in_dims=dim)(labels.movedim(0, dim))
    weight = torch.ones(3, ROWS, dtype=torch.float64)
    weight[1, 2] = -1.0
    with pytest.raises(
        ValueError, match=r"^sample_weight must be finite and not negative, got -1\.0 at row \(1, 2\)\.$"
    ):
        F.vmap(lambda w: xs.softmax_loss(Z, Y, sample_weight=w))(weight)


@pytest.mark.parametrize("mapped", ["logits and out", "logits", "out"])
def test_out_under_vmap(mapped):
    batch = torch.stack([Z, Z])
    message = r"^out must be None inside torch\.func\.vmap, got a tensor\.$"
    for function in (xs.softmax, xs.log_softmax, lambda z, out: xs.softmax_loss_and_grad(z, Y, out=out)[1]):
        call, args = {
            "logits and out": (lambda z, f=function: f(z, out=torch.empty_like(z)), batch),
            "logits": (lambda z, f=function: f(z, out=torch.empty_like(Z)), batch),
            "out": (lambda out, f=function: f(Z, out=out), batch.clone()),
        }[mapped]
        with pytest.raises(ValueError, match=message):
            F.vmap(call)(args)


def test_training_under_vmap():
    message = (
        r"^X must be an array that has values, got one inside torch\.func\.vmap\. Call this function outside of it\.$"
    )
    options = {"optimizer": xs.sgd(0.1), "epochs": 1, "batch_size": 2, "rng": 0}
    with pytest.raises(ValueError, match=message):
        F.vmap(lambda X: network(xs.train, X=X, **options).params[0].weight)(torch.stack([Z, Z]))


def test_vmap_over_what_autograd_records():
    z = torch.stack([Z, 2.0 * Z]).requires_grad_()
    F.vmap(lambda z: xs.softmax_loss(z, Y))(z).sum().backward()
    desired = torch.stack([xs.softmax_loss_and_grad(part, Y)[1] for part in z.detach()])
    torch.testing.assert_close(z.grad, desired, rtol=1e-14, atol=0.0)


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled():
    def compile_(function, **options):
        torch.compiler.reset()
        return torch.compile(function, backend="eager", **options)

    return compile_


def trusting(function):
    return lambda z: function(z, Y, validate=False)


COMPILED = {
    "softmax": xs.softmax,
    "log_softmax": xs.log_softmax,
    "logsumexp": xs.logsumexp,
    "softmax_loss": trusting(xs.softmax_loss),
    "none": lambda z: xs.softmax_loss(z, Y, reduction="none", label_smoothing=0.1, validate=False),
    "mlp_loss": lambda X: network(xs.mlp_loss, X=X, activation="gelu", validate=False),
}
every_compiled = pytest.mark.parametrize("case", COMPILED)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@every_compiled
def test_compiled_code_has_the_same_gradients(case, compiled):
    function = in_scale(COMPILED[case])
    x, again = (Z.clone().requires_grad_() for _ in range(2))
    loss = compiled(lambda x: function(2.0 * x), fullgraph=True)(x)
    loss.backward()
    desired = function(2.0 * again)
    desired.backward()
    torch.testing.assert_close(loss, desired, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-13, atol=1e-16)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@every_compiled
@pytest.mark.parametrize("transform", ["grad", "hessian", "jvp", "vmap of grad"])
def test_compiled_transforms(transform, case, compiled):
    function = in_scale(COMPILED[case])
    call = {
        "grad": F.grad(function),
        "hessian": F.hessian(function),
        "jvp": lambda z: F.jvp(function, (z,), (z,))[1],
        "vmap of grad": lambda z: F.vmap(F.grad(function))(torch.stack([z, 2.0 * z])),
    }[transform]
    torch.testing.assert_close(compiled(call, fullgraph=True)(Z), call(Z), rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_second_derivatives_of_compiled_code_are_an_error_not_zero():
    torch.compiler.reset()
    x = Z.clone().requires_grad_()
    loss = torch.compile(trusting(xs.softmax_loss), backend="aot_eager")(x)
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        first.sum().backward()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("transform", ["grad", "jvp"])
def test_compiled_transforms_of_constants_give_no_zeros(transform, compiled):
    function = trusting(lambda *a, **k: xs.softmax_loss_and_grad(*a, **k)[0])
    transformed = compiled(lambda z: TRANSFORMS[transform](function, z))
    with pytest.raises(Exception, match=r"(?s)must not be differentiated"):
        transformed(Z)


def test_operators_keep_the_rules_of_pytorch():
    names = {"softmax_rows", "log_softmax_rows", "logsumexp_rows"}
    for name in names:
        torch.library.opcheck(getattr(torch.ops.xpsoftmax, name).default, (Z,))
    for grad in (True, False):
        for targets, weight in ((Y, None), (Q, CLASS_WEIGHT)):
            arguments = (Z, targets, WEIGHT, weight, 0.1, 0.01, grad)
            torch.library.opcheck(torch.ops.xpsoftmax.softmax_loss_rows.default, arguments)


def test_a_program_for_export():
    class Model(torch.nn.Module):
        def forward(self, z, y):
            return xs.softmax_loss(z, y, validate=False)

    program = torch.export.export(Model(), (Z, Y)).module()
    torch.testing.assert_close(program(2.0 * Z, Y), xs.softmax_loss(2.0 * Z, Y), rtol=1e-15, atol=0.0)


# --- where it matters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["kernel", "generic"])
@pytest.mark.parametrize("way", ["backward", "torch.func"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}], ids=["plain", "smooth", "z"])
def test_gradients_keep_the_contract(rng, kind, dtype, way, impl, options):
    z = logits(rng, kind, SOME, dtype)
    y = labels(rng, z)
    if kind == "minus-inf" and options.get("label_smoothing"):
        pytest.skip("the loss is infinite")
    exact = oracle.softmax_loss(z, y, **options)

    def loss(z):
        return xs.softmax_loss(z, torch.from_numpy(y), impl=impl, **options)

    if way == "torch.func":
        grad, value = F.grad_and_value(loss)(torch.from_numpy(z))
    else:
        x = torch.from_numpy(z).requires_grad_()
        value = loss(x)
        value.backward()
        grad = x.grad
    compared = assert_within(grad.numpy(), exact.grad.value, bound=exact.grad.bound, where=exact.grad.where)
    compared += assert_within(value.detach().numpy(), exact.loss.value, bound=exact.loss.bound, where=exact.loss.where)
    assert compared > z.size / 4


@pytest.mark.parametrize("equal", [0.0, 7.0])
def test_derivatives_at_ties(equal):
    """Where all logits are equal every class is the largest one."""
    z = torch.full((2, 4), equal, dtype=torch.float64)
    y = torch.tensor([0, 3])
    p = torch.full((4,), 0.25, dtype=torch.float64)
    desired = (torch.diag(p) - torch.outer(p, p)) / 2
    for hessian in (
        F.hessian,
        lambda f: F.jacrev(F.jacrev(f)),
        lambda f: lambda z: torch.autograd.functional.hessian(f, z),
    ):
        H = hessian(lambda z: xs.softmax_loss(z, y))(z)
        for i in range(2):
            torch.testing.assert_close(H[i, :, i], desired, rtol=1e-14, atol=1e-16)
        assert torch.equal(H[0, :, 1], torch.zeros(4, 4, dtype=torch.float64))


def test_the_hessian_of_a_sure_row_is_not_zero():
    z = torch.tensor([[50.0, 0.0]], dtype=torch.float64)
    small = float(np.exp(-50.0))
    H = F.hessian(lambda z: xs.softmax_loss(z, torch.tensor([0])))(z)[0, :, 0]
    torch.testing.assert_close(
        H, torch.tensor([[small, -small], [-small, small]], dtype=torch.float64), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "silu", "gelu"])
@pytest.mark.parametrize("at", [0.0, 30.0, -30.0])
def test_activations_at_zero_and_far_from_it(activation, at):
    """A saturated unit has a small slope, not none."""
    layers = xs.Layer(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    X = torch.tensor([[at]], dtype=torch.float64)
    actual = F.grad(lambda X: xs.mlp_logits((layers, layers), X, activation=activation).sum())(X)
    *_, slope = ACTIVATIONS[activation].with_slope(np, X.numpy())
    desired = (slope > 0.0).astype("f8") if activation == "relu" else slope
    np.testing.assert_allclose(actual.numpy(), desired, rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_gradients_are_rounded_once(rng, dtype):
    """Also those that the backward pass multiplies: a rounded gradient would have lost its small entries."""
    kind = getattr(torch, dtype)
    z = torch.from_numpy(logits(rng, "scale-1", 1000, "float32")).to(kind)
    y = torch.from_numpy(labels(rng, z.float().numpy()))
    x = z.clone().requires_grad_()
    (65536.0 * xs.softmax_loss(x, y)).backward()
    wide = 65536.0 * xs.softmax_loss_and_grad(z.float(), y)[1]
    assert x.grad.dtype == kind
    ulps = (x.grad.float() - wide).abs() / (wide.abs() * EPS[dtype])
    assert ulps.max() <= 0.5 * (1 + 2**-8)  # of what float32 rounds to
    assert (x.grad != 0).all()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_compiled_gradients_come_back_detached(compiled):
    loss, dlogits = compiled(trusting(xs.softmax_loss_and_grad))(Z.clone().requires_grad_())
    assert (loss.requires_grad, dlogits.requires_grad) == (False, False)
    assert torch.equal(dlogits, xs.softmax_loss_and_grad(Z, Y)[1])
