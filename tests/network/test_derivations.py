"""The derivations as tests: textbook forms against each other, the package, numerical gradients and autograd."""

import numpy as np
import pytest
import textbook as textbook
from assertions import assert_within

import xpsoftmax as xs

# N = 7 rows, C = 5 classes: small enough for two loops in Python, larger than any vector lane is not needed here.
N, C = 7, 5
EPS = 2.0**-52


@pytest.fixture
def scores(rng):
    return rng.standard_normal((N, C)) * 2.0


@pytest.fixture
def labels(rng):
    return rng.integers(0, C, N)


FORMS = [
    textbook.dscores_two_loops,
    textbook.dscores_one_loop,
    textbook.dscores_vectorised,
    textbook.dscores_by_chain_rule,
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_score_gradient_equals_the_textbook_form(form, scores, labels):
    _, dlogits = xs.softmax_loss_and_grad(scores, labels)
    # The textbook subtracts 1: its error is a few eps of 1/N, whatever the entry.
    assert assert_within(form(scores, labels), dlogits, bound=8 * EPS / N) == N * C


@pytest.mark.parametrize("order", [2, 4])
def test_score_gradient_equals_the_numerical_gradient(order, scores, labels):
    _, dlogits = xs.softmax_loss_and_grad(scores, labels)
    assert xs.check_grad(lambda z: xs.softmax_loss(z, labels), dlogits, scores, order=order) < 1e-8


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"z_loss": 0.01},
        {"class_weight": np.array([0.5, 1.0, 2.0, 0.0, 3.0]), "label_smoothing": 0.2, "z_loss": 0.1},
        {"sample_weight": np.array([1.0, 0.0, 2.0, 0.5, 1.0, 3.0, 0.1])},
        {"ignore_index": 2, "reduction": "sum"},
    ],
    ids=lambda options: "+".join(options),
)
def test_score_gradient_with_options_equals_the_numerical_gradient(options, scores, labels):
    _, dlogits = xs.softmax_loss_and_grad(scores, labels, **options)
    assert xs.check_grad(lambda z: xs.softmax_loss(z, labels, **options), dlogits, scores) < 1e-8


def test_soft_target_gradient_equals_the_numerical_gradient(scores, rng):
    q = rng.uniform(size=(N, C))
    q[0] = 0.0  # a row may have no mass at all
    _, dlogits = xs.softmax_loss_and_grad(scores, q)
    assert xs.check_grad(lambda z: xs.softmax_loss(z, q), dlogits, scores) < 1e-8


def test_jacobian_equals_the_textbook_form(scores):
    jacobians = xs.softmax_jacobian(scores)
    expected = np.stack([textbook.jacobian(a) for a in textbook.probabilities(scores)])
    assert assert_within(jacobians, expected, bound=8 * EPS) == N * C * C


def test_jacobian_is_the_derivative_of_softmax(scores):
    jacobians = xs.softmax_jacobian(scores)
    for j in range(C):
        gradient = np.stack([jacobians[i, j] for i in range(N)])
        assert xs.check_grad(lambda z, j=j: xs.softmax(z)[:, j].sum(), gradient, scores) < 1e-8


def test_jacobian_vector_product_equals_the_product(scores, rng):
    v = rng.standard_normal((N, C))
    expected = np.einsum("njk,nk->nj", xs.softmax_jacobian(scores), v)
    assert assert_within(xs.softmax_jvp(scores, v), expected, bound=8 * EPS * np.abs(v).max()) == N * C


def test_jacobian_is_symmetric_and_sends_constants_to_zero(scores):
    jacobians = xs.softmax_jacobian(scores)
    np.testing.assert_array_equal(jacobians, np.swapaxes(jacobians, 1, 2))
    np.testing.assert_array_equal(xs.softmax_jvp(scores, np.full((N, C), 1e6)), np.zeros((N, C)))


def test_score_gradient_is_the_jacobian_times_the_gradient_of_the_log(scores, labels):
    d_log = np.zeros((N, C))
    d_log[np.arange(N), labels] = -1.0 / xs.softmax(scores)[np.arange(N), labels] / N
    _, dlogits = xs.softmax_loss_and_grad(scores, labels)
    assert assert_within(xs.softmax_jvp(scores, d_log), dlogits, bound=8 * EPS) == N * C


# --- the two-layer network --------------------------------------------------------------------------------------------

D, H, REG = 4, 10, 0.3
STEP = 1e-4  # of the numerical gradients here
KINK = 100 * STEP


@pytest.fixture
def network(rng):
    """Parameters and inputs whose hidden units are all at least 100 steps away from the kink of the ReLU."""
    X, params = rng.standard_normal((N, D)), xs.init_params((D, H, C), rng=rng)
    while np.abs(X @ params[0].weight).min() < KINK * (1 + np.abs(X).max()):
        X = rng.standard_normal((N, D))
    return params, X


def replaced(params, i, j, value):
    layers = [list(layer) for layer in params]
    layers[i][j] = value
    return tuple(map(tuple, layers))


def test_two_layer_gradients_equal_the_textbook(network, labels):
    params, X = network
    loss, grads = xs.mlp_loss_and_grad(params, X, labels, reg=REG)
    expected_loss, expected = textbook.two_layer(*params[0], *params[1], X, labels, REG)
    assert assert_within(loss, expected_loss, bound=16 * EPS * expected_loss) == 1
    for grad, form in zip((*grads[0], *grads[1]), expected, strict=True):
        assert assert_within(grad, form, bound=32 * EPS * np.abs(form).max()) == form.size


@pytest.mark.parametrize(("i", "j"), [(0, 0), (0, 1), (1, 0), (1, 1)], ids=["W1", "b1", "W2", "b2"])
def test_two_layer_gradients_equal_the_numerical_gradient(i, j, network, labels):
    params, X = network
    _, grads = xs.mlp_loss_and_grad(params, X, labels, reg=REG)

    def loss_of(value):
        return xs.mlp_loss(replaced(params, i, j, value), X, labels, reg=REG)

    assert xs.check_grad(loss_of, grads[i][j], params[i][j], step=STEP) < 1e-8


def test_the_wrong_sign_of_a_well_known_derivation_is_seen(network, labels):
    params, X = network
    _, grads = xs.mlp_loss_and_grad(params, X, labels)
    wrong = -grads[1].weight
    assert xs.check_grad(lambda w: xs.mlp_loss(replaced(params, 1, 0, w), X, labels), wrong, params[1].weight) > 1


def test_bias_gradient_is_the_sum_over_rows(network, labels):
    params, X = network
    _, dscores = xs.softmax_loss_and_grad(xs.mlp_logits(params, X), labels)
    _, grads = xs.mlp_loss_and_grad(params, X, labels)
    expected = np.ones(N) @ dscores
    assert assert_within(grads[1].bias, expected, bound=N * EPS * np.abs(dscores).sum(axis=0)) == C


def test_weight_gradient_is_hidden_transposed_times_dscores(network, labels):
    params, X = network
    hidden = np.maximum(X @ params[0].weight + params[0].bias, 0.0)
    _, dscores = xs.softmax_loss_and_grad(xs.mlp_logits(params, X), labels)
    _, grads = xs.mlp_loss_and_grad(params, X, labels, reg=REG)
    expected = hidden.T @ dscores + REG * params[1].weight
    bound = N * EPS * (np.abs(hidden).T @ np.abs(dscores) + REG * np.abs(params[1].weight))
    assert assert_within(grads[1].weight, expected, bound=bound) == H * C


def test_linear_classifier_is_the_one_layer_network(rng, labels):
    X = rng.standard_normal((N, D))
    params = xs.init_params((D, C), rng=rng)
    loss, (grad,) = xs.mlp_loss_and_grad(params, X, labels)
    z = X @ params[0].weight + params[0].bias
    expected_loss, dscores = xs.softmax_loss_and_grad(z, labels)
    assert assert_within(loss, expected_loss, bound=4 * EPS * expected_loss) == 1
    bound = N * EPS * (np.abs(X).T @ np.abs(dscores))
    assert assert_within(grad.weight, X.T @ dscores, bound=bound) == D * C


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "logistic", "silu", "gelu"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradients_equal_autograd_of_pytorch(activation, depth, rng, labels):
    torch = pytest.importorskip("torch")
    functions = {
        "identity": lambda z: z,
        "relu": torch.relu,
        "tanh": torch.tanh,
        "logistic": torch.sigmoid,
        "silu": torch.nn.functional.silu,
        "gelu": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
    }
    X, params = rng.standard_normal((N, D)), xs.init_params((D, *[H] * (depth - 1), C), rng=rng)
    loss, grads = xs.mlp_loss_and_grad(params, X, labels, activation=activation, reg=REG)

    leaves = [[torch.tensor(np.array(a), requires_grad=True) for a in layer] for layer in params]
    h = torch.tensor(X)
    for weight, bias in leaves[:-1]:
        h = functions[activation](h @ weight + bias)
    scores = h @ leaves[-1][0] + leaves[-1][1]
    penalty = sum((weight * weight).sum() for weight, _ in leaves)
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor(labels)) + 0.5 * REG * penalty
    expected.backward()
    assert assert_within(loss, expected.item(), bound=32 * EPS * expected.item()) == 1
    for layer, leaf in zip(grads, leaves, strict=True):
        for grad, tensor in zip(layer, leaf, strict=True):
            desired = tensor.grad.numpy()
            assert assert_within(grad, desired, bound=64 * EPS * np.abs(desired).max()) == desired.size
