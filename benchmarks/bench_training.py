"""Time training steps, and a linear layer with many classes, beside PyTorch, JAX and scikit-learn, in one process.

    python benchmarks/bench_training.py
    python benchmarks/bench_training.py --case 5x4x10x3 --competitor torch --competitor "xpsoftmax train"

A step is the loss, all gradients and an update by gradient descent, of a two-layer network with ReLU: sizes are
N x D x H x C (rows, features, hidden units, classes). NxDxC is a linear layer, of which loss and gradients are wanted
with little memory: `MEMORY` bytes where that can be said, and then the peak of each competitor is measured, too, in a
process of its own.

For every case each competitor is first verified (its gradients, and its loss, are compared with plain NumPy in float64)
and then timed as `bench.py` does it: in turn, each after a pause and calls that are not counted; reported are medians,
quartiles and the ratio to PyTorch's eager autograd.

- "xpsoftmax train" is a step as `train` makes it; "xpsoftmax functions" is what a user calls, with every check:
  `mlp_loss_and_grad` and the `update` of `sgd`.
- "products" are the bare matrix products, into arrays that are there: a floor. For the linear layer two, Z = X W and
  X^T Z; "three products" adds Z W^T, the gradient of the inputs, which the competitors do not form.

Steps on a GPU: python scripts/gpu_check.py OUT --part steps. Needs rich; competitors that are not installed are listed.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from competitors import network
from harness import (
    Call,
    Made,
    Parser,
    Timing,
    described,
    difference,
    json_text,
    output_of,
    parser_of,
    run_record,
    simd,
    sizes,
    timings,
    verified,
)
from rich.console import Console
from rich.table import Table

import xpsoftmax as xs
from xpsoftmax._arguments.problem import LossOptions
from xpsoftmax._network.network import as_network
from xpsoftmax._train.data import as_data
from xpsoftmax._train.loop import Loop
from xpsoftmax._train.steps import RowBatch, RowSteps

CASES = ("5x4x10x3", "200x3072x50x10", "128x784x256x10", "1024x512x2048x1000", "256x512x512x32000", "4096x512x32000")
REFERENCE = "torch"
FLOORS = ("products", "three products")
RATE = 1e-3
MEMORY = 64 * 2**20
ALLOWED = 1e-3
"""Largest difference over the largest entry of a gradient: what tells a wrong formula from float32."""
PACKAGES = ("numpy", "array-api-compat", "torch", "jax", "scikit-learn")


@dataclass(frozen=True)
class Case:
    """Sizes of a network: rows, features, hidden units if any, classes."""

    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return "x".join(map(str, self.sizes))

    @property
    def linear(self) -> bool:
        """Whether it has no hidden layer."""
        return len(self.sizes) == 3

    @functools.cached_property
    def params(self) -> tuple[xs.Layer, ...]:
        """First parameters."""
        return xs.init_params(self.sizes[1:], rng=0, dtype=np.float32)

    @functools.cached_property
    def X(self) -> Any:  # noqa: N802
        """Inputs (N, D)."""
        return np.random.default_rng(1).standard_normal(self.sizes[:2], np.float32)

    @functools.cached_property
    def y(self) -> Any:
        """Labels (N,)."""
        return np.random.default_rng(2).integers(0, self.sizes[-1], self.sizes[0])


@dataclass
class Finding:
    """What was found for a case."""

    case: str
    timings: dict[str, Timing] = field(default_factory=dict)
    extra_mib: dict[str, float] = field(default_factory=dict)  # peak beyond inputs and outputs
    problems: list[str] = field(default_factory=list)

    def ratio(self, name: str, reference: str = REFERENCE) -> float | None:
        """Time relative to another one's."""
        if name not in self.timings or reference not in self.timings:
            return None
        return self.timings[name].median / self.timings[reference].median


# --- the competitors: from a case to a step, and to a call that returns loss and gradients, for verification ----------


def by_hand(case: Case) -> tuple[float, list[np.ndarray]]:
    """Plain NumPy in float64, by the formulas of every textbook."""
    weights = [array.astype("f8") for layer in case.params for array in layer]
    loss, grads = network(weights, case.X.astype("f8"), case.y)
    return float(loss), grads


def package_train(case: Case) -> tuple[Call, Call]:
    """A step as `train` makes it: checked once before all, arrays used again."""
    options = {"max_memory": MEMORY} if case.linear else {"max_memory": None}
    net = as_network(case.params, "relu")
    data = as_data(net, case.X, case.y, LossOptions())
    stepper = RowSteps(net, data, 0.0, "mean", **options)
    loop, batch = Loop(stepper, xs.sgd(RATE)), RowBatch(len(case.y), counts=True)

    def step() -> Any:  # in surroundings that `train` enters once
        return stepper.loss_and_grads(loop.params, None) if case.linear else loop.step(batch)

    def verify() -> Any:
        loss, grads = stepper.loss_and_grads(net.layers, None)
        return loss, [array for layer in grads for array in layer]

    return step, verify


def package_functions(case: Case) -> tuple[Call, Call]:
    """What a user calls."""
    optimizer = xs.sgd(RATE)
    params, state = case.params, optimizer.init(case.params)
    options = {"max_memory": MEMORY} if case.linear else {}

    def step() -> Any:
        nonlocal params, state
        loss, grads = xs.mlp_loss_and_grad(params, case.X, case.y, **options)
        if case.linear:
            return loss, grads
        params, state = optimizer.update(params, grads, state)
        return loss

    def verify() -> Any:
        loss, grads = xs.mlp_loss_and_grad(case.params, case.X, case.y, **options)
        return loss, [array for layer in grads for array in layer]

    return step, verify


def plain_numpy(case: Case) -> tuple[Call, Call]:
    """What people write."""
    weights = [array.copy() for layer in case.params for array in layer]

    def loss_and_grads() -> Any:
        return network(weights, case.X, case.y)

    def step() -> Any:
        loss, grads = loss_and_grads()
        if case.linear:
            return loss, grads
        for weight, grad in zip(weights, grads, strict=True):
            weight -= RATE * grad
        return loss

    return step, loss_and_grads


def products(case: Case, *, inputs_too: bool = False) -> tuple[Call, None]:
    """The matrix products alone, into arrays that are there."""
    jobs = []
    left = case.X
    for i, layer in enumerate(case.params):
        z = np.ones((len(left), layer.weight.shape[1]), np.float32)
        jobs.append((left, layer.weight, z))
        jobs.append((left.T, z, np.empty_like(layer.weight)))
        if i > 0 or inputs_too:
            jobs.append((z, layer.weight.T, np.empty_like(left)))
        left = z

    def call() -> None:
        for a, b, out in jobs:
            np.matmul(a, b, out=out)

    return call, None


def _torch_parts(case: Case) -> tuple[Any, Any, Any, Any]:
    import torch

    layers: list[Any] = []
    for weight, bias in case.params:
        linear = torch.nn.Linear(*weight.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight.T.copy()))
            linear.bias.copy_(torch.from_numpy(bias))
        layers += [linear, torch.nn.ReLU()]
    return torch, torch.nn.Sequential(*layers[:-1]), *map(torch.from_numpy, (case.X, case.y))


def _grads_of(model: Any) -> list[np.ndarray]:
    return [_as_ours(p.grad) for p in model.parameters()]


def _as_ours(grad: Any) -> np.ndarray:
    return np.asarray(grad).T  # a no-op for biases


def torch_eager(case: Case) -> tuple[Call, Call]:
    """As every tutorial has it: autograd and torch.optim.SGD."""
    torch, model, X, y = _torch_parts(case)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def loss_and_grads() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(X), y)
        loss.backward()
        return loss.detach()

    def step() -> Any:
        loss = loss_and_grads()
        if not case.linear:
            optimizer.step()
        return loss

    return step, lambda: (loss_and_grads().item(), _grads_of(model))


def torch_compiled(case: Case) -> tuple[Call, Call]:
    """Loss, gradients and update in one graph, compiled for the sizes."""
    torch, model, X, y = _torch_parts(case)
    torch._dynamo.reset()
    names, tensors = zip(*((name, p.detach()) for name, p in model.named_parameters()), strict=True)

    def loss_of(tensors: Any, X: Any, y: Any) -> Any:
        z = torch.func.functional_call(model, dict(zip(names, tensors, strict=True)), (X,))
        return torch.nn.functional.cross_entropy(z, y)

    with_grads = torch.func.grad_and_value(loss_of)

    def whole(tensors: Any, X: Any, y: Any) -> Any:
        grads, loss = with_grads(tensors, X, y)
        if case.linear:
            return loss, grads
        for tensor, grad in zip(tensors, grads, strict=True):
            tensor.sub_(grad, alpha=RATE)
        return loss

    compiled = torch.compile(whole, dynamic=False)

    def verify() -> Any:
        grads, loss = torch.compile(with_grads, dynamic=False)(tensors, X, y)
        return loss.item(), [_as_ours(grad) for grad in grads]

    return lambda: compiled(tensors, X, y), verify


def torch_chunked(case: Case) -> tuple[Call, Call] | None:
    """torch.nn.functional.linear_cross_entropy in chunks, with PyTorch's own choice of them."""
    torch, model, X, y = _torch_parts(case)
    if not case.linear:
        return None
    function = torch.nn.functional.linear_cross_entropy
    (linear,) = model
    options = torch.nn.LinearCrossEntropyOptions()

    def step() -> Any:
        model.zero_grad()
        loss = function(X, linear.weight, y, linear_bias=linear.bias, options=options)
        loss.backward()
        return loss.detach()

    return step, lambda: (step().item(), _grads_of(model))


def jax_jit(case: Case) -> tuple[Call, Call]:
    """Loss, gradients and update, compiled; the parameters are donated."""
    import jax

    jnp = jax.numpy
    X, y = jnp.asarray(case.X), jnp.asarray(case.y)

    def loss_of(params: Any, X: Any, y: Any) -> Any:
        for weight, bias in params[:-1]:
            X = jax.nn.relu(X @ weight + bias)
        log_p = jax.nn.log_softmax(X @ params[-1][0] + params[-1][1], axis=1)
        return -jnp.take_along_axis(log_p, y[:, None], axis=1).mean()

    with_grads = jax.jit(jax.value_and_grad(loss_of))

    @functools.partial(jax.jit, donate_argnums=0)
    def whole(params: Any, X: Any, y: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, X, y)
        return loss, jax.tree.map(lambda p, g: p - RATE * g, params, grads)

    params = jax.tree.map(jnp.array, [tuple(layer) for layer in case.params])

    def step() -> Any:
        nonlocal params
        if case.linear:
            return jax.block_until_ready(with_grads(params, X, y))
        loss, params = jax.block_until_ready(whole(params, X, y))
        return loss

    def verify() -> Any:
        loss, grads = with_grads([tuple(layer) for layer in case.params], X, y)
        return float(loss), [np.asarray(array) for layer in grads for array in layer]

    return step, verify


def sklearn_step(case: Case) -> tuple[Call, None] | None:
    """MLPClassifier.partial_fit with one batch of all rows; it also looks at its arguments."""
    from sklearn.neural_network import MLPClassifier

    if case.linear or case.sizes[-1] > 1000:  # which takes it minutes
        return None
    model = MLPClassifier(case.sizes[2], solver="sgd", momentum=0.0, alpha=0.0, batch_size=len(case.y), shuffle=False)
    model.partial_fit(case.X, case.y, classes=np.arange(case.sizes[-1]))
    return lambda: model.partial_fit(case.X, case.y), None


Competitor = Callable[[Case], tuple[Call, Call | None] | None]


COMPETITORS: dict[str, Competitor] = {
    "torch": torch_eager,
    "torch.compile": torch_compiled,
    "linear_cross_entropy": torch_chunked,
    "JAX": jax_jit,
    "scikit-learn": sklearn_step,
    "NumPy": plain_numpy,
    "xpsoftmax functions": package_functions,
    "xpsoftmax train": package_train,
    "products": products,
    "three products": lambda case: products(case, inputs_too=True) if case.linear else None,
}


# --- verify, measure, time --------------------------------------------------------------------------------------------


def made(name: str, case: Case, truth: tuple[Any, ...]) -> Made:
    """Return a competitor's step, and what compares its loss and gradients with the truth."""
    competitor = COMPETITORS[name](case)
    if competitor is None:
        return None
    step, verify = competitor
    if verify is None:
        return step, None

    def error() -> float:
        loss, grads = verify()
        return difference((float(loss), *grads), truth)

    return step, error


def measured(case: Case, names: Sequence[str], seconds: float) -> Finding:
    """Verify the competitors and time those that are right."""
    finding = Finding(str(case))
    loss, grads = by_hand(case)
    makers = {name: functools.partial(made, name, case, (loss, *grads)) for name in names}
    calls, errors = verified(makers, ALLOWED, finding.problems)
    finding.timings = timings(calls, errors, seconds)
    for name in calls if case.linear else ():
        if name not in FLOORS:
            finding.extra_mib[name] = peak_mib(case, name)
    return finding


def peak_mib(case: Case, name: str) -> float:
    """Peak of a call beyond its inputs, and the gradients that it returns, in a process of its own; MiB."""
    return float(output_of(__file__, "--peak", str(case), name).split()[-1])


def show_peak(case: Case, name: str) -> None:
    """Print the peak of the resident memory during one call, less what was there before and the gradients."""
    rows = min(case.sizes[0], 64)
    warm = COMPETITORS[name](Case((rows, *case.sizes[1:])))  # libraries, thread pools, compiled code
    assert warm is not None
    warm[0]()
    del warm
    made = COMPETITORS[name](case)
    assert made is not None
    call, outputs = made[0], sum(array.nbytes for layer in case.params for array in layer)
    if name in ("torch.compile", "JAX"):
        call()  # compiles for the sizes; what it kept is not counted below, as its peak is
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    result = call()
    del result
    print(max(0.0, (_status("VmHWM") - before) * 1024 - outputs) / 2**20)


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


# --- what is printed and written --------------------------------------------------------------------------------------


def table(findings: Sequence[Finding]) -> Table:
    """Ratios to PyTorch, a row a case."""
    names = [name for name in COMPETITORS if any(name in finding.timings for finding in findings)]
    result = Table("case", *names, title="A training step, float32: time / PyTorch eager (its own in ms)")
    for finding in findings:
        cells = []
        for name in names:
            ratio = finding.ratio(name)
            if name not in finding.timings:
                cells.append("-")
            elif ratio is None or name == REFERENCE:
                cells.append(f"{1e3 * finding.timings[name].median:.3g} ms")
            else:
                cells.append(f"{ratio:.2f}")
        result.add_row(finding.case, *cells)
        if finding.extra_mib:
            peaks = [f"{finding.extra_mib[name]:.0f} MiB" if name in finding.extra_mib else "" for name in names]
            result.add_row("  beyond in- and outputs", *peaks)
    return result


def as_json(findings: Sequence[Finding], absent: dict[str, str], argv: Sequence[str]) -> str:
    """Everything as JSON."""
    content = [
        {**asdict(finding), "ratios": {name: finding.ratio(name) for name in finding.timings}} for finding in findings
    ]
    about = {"simd": simd(), "absent": absent, "max_memory_of_linear": MEMORY}
    return json_text(run_record("benchmarks/bench_training.py", argv, PACKAGES, **about, findings=content))


def missing(names: Sequence[str]) -> dict[str, str]:
    """Why competitors cannot be used here: they are tried on a small case."""
    reasons = {}
    for name in names:
        try:
            for sizes in ((4, 3, 2), (4, 3, 5, 2)):
                made = COMPETITORS[name](Case(sizes))
                if made is not None:
                    made[0]()
        except Exception as error:  # noqa: BLE001
            reasons[name] = described(error)
    return reasons


# --- the command line -------------------------------------------------------------------------------------------------


def _case(text: str) -> Case:
    return Case(sizes(text, 3, 4, example="128x784x256x10, or 4096x512x32000 for a linear layer"))


def parser() -> Parser:
    """Name the options."""
    options = parser_of(__file__, __doc__)
    options.add_argument("--case", action="append", type=_case, metavar="NxDxHxC", help="only this one (repeatable)")
    options.add_argument("--competitor", action="append", choices=COMPETITORS, help="only this one (repeatable)")
    options.add_argument(
        "--seconds", type=float, default=2.0, help="for each competitor and case; default: %(default)s"
    )
    options.add_files("bench_training", json="json")
    options.add_argument("--peak", nargs=2, metavar=("CASE", "COMPETITOR"), help="only print the peak of one call, MiB")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Verify, time, print and write; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    options = parser()
    given = options.parse_args(argv)
    if given.peak:
        show_peak(_case(given.peak[0]), given.peak[1])
        return 0
    options.check_files(given.json)
    console = Console()
    if not console.is_terminal:
        console.width = 200
    wanted = given.competitor or list(COMPETITORS)
    absent = missing(wanted)
    names = [name for name in wanted if name not in absent]
    findings: list[Finding] = []
    with np.errstate(all="ignore"):
        for case in given.case or map(_case, CASES):
            finding = measured(case, names, given.seconds)
            findings.append(finding)
            cells = ", ".join(f"{name} {1e3 * timing.median:.3g} ms" for name, timing in finding.timings.items())
            console.print(f"{case}: {cells}", markup=False, highlight=False, soft_wrap=True)
            given.json.write_text(as_json(findings, absent, argv))
    console.print(table(findings))
    for name, reason in absent.items():
        console.print(f"{name} is missing: {reason}", markup=False, highlight=False, soft_wrap=True)
    for finding in findings:
        for problem in finding.problems:
            console.print(f"{finding.case}: {problem}", style="red", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Written: {given.json}", markup=False, highlight=False, soft_wrap=True)
    return 1 if any(finding.problems for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
