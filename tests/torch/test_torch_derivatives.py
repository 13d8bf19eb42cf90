"""PyTorch: a derivative that would be lost without a word is an error; torch.func.vmap runs everything."""

import re

import numpy as np
import pytest

import xpsoftmax as xs

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
everything = pytest.mark.parametrize("case", [*RESULTS, *DETACHED])

RECORDED = (
    r"^{} must not require grad while PyTorch records gradients, got a tensor that does: .* Call detach\(\) on it"
)
TRANSFORMED = r"^{} must not be differentiated by torch\.func or forward-mode AD, got a tensor that is: .* detach\(\)"


def case_of(name):
    return RESULTS.get(name) or DETACHED[name]


@every_result
def test_a_result_that_autograd_would_take_for_a_constant(case):
    argument, value, function = RESULTS[case]
    with pytest.raises(ValueError, match=RECORDED.format(re.escape(argument))):
        function(value.clone().requires_grad_())
    with pytest.raises(ValueError, match=RECORDED.format(re.escape(argument))):
        function(2.0 * value.clone().requires_grad_())  # not a leaf


@every_result
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_where_nothing_is_recorded_all_tensors_are_taken(mode, case):
    _, value, function = RESULTS[case]
    with mode():
        result = function(value.clone().requires_grad_())
    assert torch.equal(result, function(value))


def test_a_loss_beside_a_penalty_is_not_lost():
    weight = Z.clone().requires_grad_()
    with pytest.raises(ValueError, match=RECORDED.format("logits")):
        (xs.softmax_loss(weight, Y) + 0.1 * (weight * weight).sum()).backward()


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


@everything
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func_gives_no_zeros(transform, case):
    argument, value, function = case_of(case)
    message = f"({RECORDED}|{TRANSFORMED})".replace("{}", re.escape(argument))
    with pytest.raises(ValueError, match=message):
        TRANSFORMS[transform](function, value)


@everything
def test_forward_mode_gives_no_zeros(case):
    argument, value, function = case_of(case)
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
        assert torch.equal(function(forward_ad.make_dual(value.clone(), value).detach()), held)


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
        assert torch.equal(F.vmap(function, in_dims=dim)(z), desired)
        assert torch.equal(F.vmap(F.vmap(function, in_dims=dim))(torch.stack([z, z]))[1], desired)


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
        torch.testing.assert_close(actual, desired, rtol=20 * 2.0**-52, atol=0.0, equal_nan=True)
    loss = F.vmap(lambda *a: xs.softmax_loss(*a[:2], axis=axis, **a[2], **more), in_dims=in_dims)(*given)
    torch.testing.assert_close(loss, mapped[0], rtol=20 * 2.0**-52, atol=0.0, equal_nan=True)


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
    with pytest.raises(ValueError, match=RECORDED.format("logits")):
        F.vmap(xs.softmax)(Z.clone().requires_grad_())


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled():
    def compile_(function, **options):
        torch.compiler.reset()
        return torch.compile(function, backend="eager", **options)

    return compile_


def trusting(function):
    return lambda z: function(z, Y, validate=False)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled_code_gives_no_zeros(fullgraph, compiled):
    function = compiled(trusting(xs.softmax_loss), fullgraph=fullgraph)
    with pytest.raises(Exception, match=r"(?s)must not require grad|Observed exception"):
        function(Z.clone().requires_grad_())
    assert torch.equal(function(Z), xs.softmax_loss(Z, Y))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("function", [xs.softmax_loss, lambda *a, **k: xs.softmax_loss_and_grad(*a, **k)[0]])
@pytest.mark.parametrize("transform", ["grad", "jvp"])
def test_compiled_transforms_give_no_zeros(transform, function, compiled):
    transformed = compiled(lambda z: TRANSFORMS[transform](trusting(function), z))
    with pytest.raises(Exception, match=r"(?s)must not (require grad|be differentiated)"):
        transformed(Z)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_gradients_come_back_detached(compiled):
    loss, dlogits = compiled(trusting(xs.softmax_loss_and_grad))(Z.clone().requires_grad_())
    assert (loss.requires_grad, dlogits.requires_grad) == (False, False)
    assert torch.equal(dlogits, xs.softmax_loss_and_grad(Z, Y)[1])
