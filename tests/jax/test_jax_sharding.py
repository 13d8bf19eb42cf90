"""JAX arrays that are spread over several devices: four that share the processor, in a process of its own."""

import os
import subprocess
import sys

import pytest
from paths import SUPPORT

pytest.importorskip("jax")
pytestmark = pytest.mark.backends("jax")

START = """
import sys
sys.path.insert(0, {support!r})
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import oracle as exact
from assertions import assert_within
import xpsoftmax as xs

devices = jax.devices()
assert len(devices) == 4
MESHES = {{"automatic": Mesh(np.array(devices), ("x",)), "make_mesh": jax.make_mesh((4,), ("x",))}}
rng = np.random.default_rng(0)
R, C = 8, 12  # 12 classes on 4 devices: 3 on each, which cannot be halved
z = (10 * rng.normal(size=(R, C))).astype("f4")
y = rng.integers(C, size=R)
weight, per_class = rng.random(R).astype("f4"), rng.random(C).astype("f4")
mesh = MESHES[{mesh!r}]

def put(array, *spec):
    return jax.device_put(array, NamedSharding(mesh, P(*spec)))

def holds(actual, exactly, like=None):
    assert actual.sharding.device_set == set(devices), actual.sharding
    assert assert_within(np.asarray(actual), exactly.value, bound=exactly.bound, where=exactly.where) > 0
    if like is not None:
        assert actual.sharding.is_equivalent_to(like.sharding, actual.ndim), (actual.sharding, like.sharding)
"""


def run(code, mesh="automatic", **environment):
    """Run code in an interpreter where the processor is four devices."""
    start = START.format(support=str(SUPPORT), mesh=mesh)
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        **environment,
    }
    command = [sys.executable, "-W", "error", "-c", start + code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


every_mesh = pytest.mark.parametrize("mesh", ["automatic", "make_mesh"])


@every_mesh
def test_functions_of_rows_in_parts(backend, mesh):
    """Rows in parts, classes in parts, and a copy on every device; targets and weights likewise, or anywhere."""
    run(
        """
for spec in (("x", None), (None, "x"), ()):
    logits = put(z, *spec)
    holds(xs.softmax(logits), exact.softmax(z), logits)
    holds(xs.log_softmax(logits), exact.log_softmax(z), logits)
    holds(xs.logsumexp(logits), exact.logsumexp(z))
    holds(xs.softmax_jvp(logits, logits), exact.softmax_jvp(z, z), logits)
    holds(xs.softmax_jacobian(logits), exact.softmax_jacobian(z))
    holds(xs.softmax(logits.T, axis=0).T, exact.softmax(z), logits)
    for labels in (put(y, *spec[:1]), jnp.asarray(y)):
        desired = exact.softmax_loss(z, y)
        loss, dlogits = xs.softmax_loss_and_grad(logits, labels)
        holds(loss, desired.loss), holds(dlogits, desired.grad, logits)
        holds(xs.softmax_loss(logits, labels), desired.loss)
    given = {"class_weight": per_class, "sample_weight": weight}
    there = {"class_weight": put(per_class), "sample_weight": put(weight, *spec[:1])}
    more = {"label_smoothing": 0.1, "z_loss": 0.01, "ignore_index": int(y[0])}
    desired = exact.softmax_loss(z, y, **given, **more, reduction="none")
    for options in (there, {name: jnp.asarray(x) for name, x in given.items()}):
        loss, dlogits = xs.softmax_loss_and_grad(logits, put(y, *spec[:1]), **options, **more, reduction="none")
        holds(loss, desired.loss), holds(dlogits, desired.grad, logits)
    soft = rng.dirichlet(np.ones(C), size=R).astype("f4")
    holds(xs.softmax_loss_and_grad(logits, put(soft, *spec))[1], exact.softmax_loss(z, soft).grad, logits)
""",
        mesh,
    )


@every_mesh
def test_three_dimensions_in_parts(backend, mesh):
    run(
        """
cube = z.reshape(4, 2, 12).transpose(1, 0, 2)  # (2, 4, 12)
labels = y.reshape(4, 2).T
for spec in ((None, "x", None), (None, None, "x")):
    logits = put(cube, *spec)
    for axis in (1, 2):
        rows = np.moveaxis(cube, axis, -1).reshape(-1, cube.shape[axis])
        back = lambda x: np.moveaxis(np.asarray(x), axis, -1).reshape(rows.shape)
        holds(put(back(xs.softmax(logits, axis=axis))), exact.softmax(rows))
        holds(put(np.asarray(xs.logsumexp(logits, axis=axis)).reshape(-1)), exact.logsumexp(rows))
    loss, dlogits = xs.softmax_loss_and_grad(logits, put(labels, *spec[:2]))
    desired = exact.softmax_loss(cube.reshape(8, 12), labels.reshape(-1))
    holds(loss, desired.loss), holds(put(np.asarray(dlogits).reshape(8, 12)), desired.grad)
""",
        mesh,
    )


@every_mesh
def test_networks_in_parts(backend, mesh):
    """As on one device, to rounding; gradients lie as the parameters do, on a mesh with explicit axes at least."""
    run(
        """
X = rng.normal(size=(R, 4)).astype("f4")
params = xs.init_params((4, 20, C), rng=0, xp=jnp)
calls = {
    "logits": lambda p, X, y, w: xs.mlp_logits(p, X),
    "predict": lambda p, X, y, w: xs.mlp_predict(p, X),
    "grad": lambda p, X, y, w: xs.mlp_loss_and_grad(p, X, y, reg=0.1),
    "weights": lambda p, X, y, w: xs.mlp_loss_and_grad(p, X, y, sample_weight=w, ignore_index=2, activation="tanh"),
    "chunks": lambda p, X, y, w: xs.mlp_loss_and_grad(p, X, y, max_memory=4000),
    "sums": lambda p, X, y, w: tuple(xs.mlp_partial_sums(p, X, y)),
}
for rows, columns in (("x", None), (None, None), (None, "x")):
    there = tuple(xs.Layer(put(W, None, columns), put(b, columns)) for W, b in params)
    for name, call in calls.items():
        actual = jax.tree.leaves(call(there, put(X, rows), put(y, rows), put(weight, rows)))
        desired = jax.tree.leaves(call(params, jnp.asarray(X), jnp.asarray(y), jnp.asarray(weight)))
        for a, d in zip(actual, desired, strict=True):
            assert a.sharding.device_set == set(devices), (name, a.sharding)
            np.testing.assert_allclose(a, d, rtol=1e-5, atol=1e-6, err_msg=name)
    if "explicit" in str(mesh.axis_types).lower():
        _, grads = calls["grad"](there, put(X, rows), put(y, rows), None)
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, there, grads)  # an error if they lay elsewhere
        assert [type(layer) for layer in moved] == [xs.Layer, xs.Layer]
""",
        mesh,
    )


def test_derivatives_of_rows_in_parts(backend):
    run(
        """
for spec in (("x", None), (None, "x"), ()):
    logits = put(z, *spec)
    for transform in (lambda f: f, jax.jit):
        gradient = transform(jax.grad(lambda z: xs.softmax_loss(z, put(y), validate=False)))(logits)
        holds(gradient, exact.softmax_loss(z, y).grad, logits)
"""
    )


def test_nothing_is_bound_to_a_device(backend):
    """JAX may move what the caller has not put anywhere, and so it may what we return."""
    run(
        """
logits, labels, wide = jnp.asarray(z), jnp.asarray(y), jnp.asarray(y.astype("u4"))
params = xs.init_params((C, 5, C), rng=0, xp=jnp)
some = {"sample_weight": jnp.asarray(weight), "class_weight": jnp.asarray(per_class), "ignore_index": 1}
results = [
    xs.softmax(logits), xs.log_softmax(logits), xs.logsumexp(logits), xs.softmax_jvp(logits, logits),
    xs.softmax_jacobian(logits), xs.softmax_loss_and_grad(logits, wide),
    xs.softmax_loss_and_grad(logits, labels, **some),
    xs.softmax_loss_and_grad(logits, labels, label_smoothing=0.1, z_loss=0.1), xs.mlp_logits(params, logits),
    xs.mlp_loss_and_grad(params, logits, labels, **some), tuple(xs.mlp_partial_sums(params, logits, labels)),
    xs.numerical_grad(jnp.sum, logits[0]),
    xs.train(params, logits, labels, optimizer=xs.sgd(0.1), epochs=1, batch_size=3, rng=0).params,
]
for i, result in enumerate(results):
    assert not any(x.committed for x in jax.tree.leaves(result)), i
# So it goes with what is somewhere.
for place in (devices[2], NamedSharding(mesh, P("x"))):
    there = jax.device_put(z, place)
    moved = jax.device_put(y, place)
    for result in (xs.softmax_loss_and_grad(there, labels, **some), xs.softmax_loss_and_grad(logits, moved)):
        assert all(x.sharding.device_set == there.sharding.device_set for x in jax.tree.leaves(result))
"""
    )


def test_arrays_on_different_devices_are_refused(backend):
    run(
        """
import re
logits = jax.device_put(z, devices[1])
parts = put(z, "x")
second, first = (jax.device_put(y, devices[i]) for i in (2, 0))
for array, elsewhere in ((logits, second), (logits, put(y, "x")), (parts, first)):
    try:
        xs.softmax_loss(array, elsewhere)
    except ValueError as error:
        assert re.match(r"targets must be on the device of logits \\(.+\\), got .+\\.$", str(error)), error
    else:
        raise AssertionError("no error")
"""
    )
