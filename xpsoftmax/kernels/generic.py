"""The row operations in the words of the Array API standard: the reference for every other kernel.

Every operation takes a block of rows, (R, C), of float16, bfloat16, float32 or float64, works in float32 or wider, and
treats each row by itself. Nothing here branches on a value, writes into an argument (but `out`) or moves data, so the
same text runs eagerly, lazily and under a tracing compiler.

The one idea: a row is always looked at *from one class*, called hot (the label; the largest logit; the largest soft
target). The other classes are summed without it, so nothing is ever subtracted from 1. `_against` does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from array_api_compat import array_namespace, device, is_jax_array, is_torch_array

from xpsoftmax._typing import SIXTEEN_BIT, Array, DType, LossSpec, Namespace, dtype_name
from xpsoftmax.kernels.activations import Activation
from xpsoftmax.kernels.rules import Rule

NAN = float("nan")
INF = float("inf")


def softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.softmax`."""
    xp, z = _working(logits)
    top, poor = _largest(xp, z)
    z = xp.where(poor[:, None], 0.0, z)
    e = xp.exp(z - top[:, None])
    p = e / row_sum(xp, e)[:, None]
    return _deliver(xp, xp.where(poor[:, None], NAN, p), logits.dtype, out)


def log_softmax_rows(logits: Array, out: Array | None = None) -> Array:
    """See `xpsoftmax.log_softmax`."""
    xp, z = _working(logits)
    _, poor = _largest(xp, z)
    log_p = _log_softmax(xp, xp.where(poor[:, None], 0.0, z))
    return _deliver(xp, xp.where(poor[:, None], NAN, log_p), logits.dtype, out)


def logsumexp_rows(logits: Array) -> Array:
    """See `xpsoftmax.logsumexp`."""
    xp, z = _working(logits)
    _, poor = _largest(xp, z)
    lse = _logsumexp(xp, xp.where(poor[:, None], 0.0, z))
    # Unlike a loss, the sum itself is known for rows that hold an infinity: log(0) = -inf, log(inf) = inf.
    lse = xp.where(poor, row_max(xp, z), lse)
    return narrowed(xp, lse, logits.dtype)


def softmax_loss_rows(
    logits: Array, targets: Array, row_weight: Array, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """Loss (R,) of each row times its weight and, with `grad`, its gradient (R, C).

    Parameters
    ----------
    logits : (R, C)
    targets : (R,) labels in the library's index dtype, or (R, C) soft targets in the working precision
    row_weight : (R,) in the working precision; a row of weight 0 adds exactly 0, whatever it holds
    spec : LossSpec
    grad : whether the gradient is wanted
    out : (R, C), where the gradient is written

    Returns
    -------
    losses : (R,) in the working precision
    dlogits : (R, C) in the dtype of `out`, else of `logits`; None without `grad`
    """
    xp, z = _working(logits)
    poor = without_number(z, targets)
    # Rows that have no number, or must not count, become zeros before anything is computed from them: no library then
    # warns, and no nan can leak through a product with zero. At the end the factor makes them nan, or leaves them zero.
    counted = row_weight != 0.0
    usable = (counted & ~poor)[:, None]
    factor = xp.where(counted & poor, NAN, row_weight)
    z = xp.where(usable, z, 0.0)

    lse = _logsumexp(xp, z) if spec.z_loss != 0.0 else None
    # The gradient of z_loss * lse**2 is this times p: so much more of p in every class.
    slope = None if lse is None else 2.0 * spec.z_loss * class_weight_of(xp, targets, spec) * lse
    if targets.ndim == 1 and spec.label_smoothing == 0.0:
        loss, dz = _hard(xp, z, targets, slope, grad=grad)
    else:
        q = xp.where(usable, soft_targets(xp, z, targets, spec), 0.0)
        loss, dz = _soft(xp, z, q, slope, grad=grad)
    if slope is not None:
        loss = loss + 0.5 * slope * lse
    if dz is None:
        return loss * factor, None
    return loss * factor, _deliver(xp, dz * factor[:, None], logits.dtype, out)


def without_number(z: Array, targets: Array) -> Array:
    """Mark the rows (R,) whose loss is nan: no largest logit, a label that is no class, a soft target that is none."""
    xp = array_namespace(z)
    _, poor = _largest(xp, z)
    if targets.ndim == 1:
        return poor | (targets < 0) | (targets >= z.shape[1])
    # The sum of a row is not finite if an entry is not, or if its own size is beyond the dtype.
    return poor | ~xp.isfinite(row_sum(xp, targets)) | xp.any(targets < 0.0, axis=1)


def class_weight_at(class_weight: Array, labels: Array) -> Array:
    """Weights (C,) of the classes that the labels (R,) name."""
    return array_namespace(labels).take(class_weight, labels, axis=0)


def product(left: Array, right: Array, like: Array | None = None) -> Array:  # noqa: ARG001
    """Product of two matrices; on several devices the result lies there as `like` does, which has its shape."""
    return left @ right


def some_rows(array: Array, rows: slice) -> Array:
    """Some rows of an array (R, ...)."""
    return array[rows, ...]


def reshaped(array: Array, shape: tuple[int, ...]) -> Array:
    """The array in another shape: its first axes made one, or one axis made several."""
    return array_namespace(array).reshape(array, shape)


def are_classes(labels: Array, classes: int) -> bool:
    """Whether all labels are from 0 to classes - 1. It waits for the answer."""
    return not bool(array_namespace(labels).any((labels < 0) | (labels >= classes)))


def total(x: Array) -> Array:
    """Sum of all entries, 0-d."""
    xp = array_namespace(x)
    return xp.asarray(xp.sum(x))


def softmax_loss_total(
    logits: Array, targets: Array, row_weight: Array | float, spec: LossSpec, *, grad: bool, out: Array | None = None
) -> tuple[Array, Array | None]:
    """Sum of the losses, 0-d, and the gradient; see `softmax_loss_rows`."""
    losses, dlogits = softmax_loss_rows(logits, targets, row_weight, spec, grad=grad, out=out)
    return total(losses), dlogits


def softmax_jvp_rows(logits: Array, tangent: Array) -> Array:
    """See `xpsoftmax.softmax_jvp`; both (R, C) in the working precision."""
    xp = array_namespace(logits)
    shifted = _shifted(xp, logits)
    return _times_softmax(xp, _relative_to_mean(xp, tangent, shifted), shifted)


def log_softmax_jvp_rows(logits: Array, tangent: Array) -> Array:
    """Jacobian of the log-softmax times a vector: v[k] - <p, v>; both (R, C) in the working precision."""
    xp = array_namespace(logits)
    return _relative_to_mean(xp, tangent, _shifted(xp, logits))


def log_softmax_vjp_rows(logits: Array, cotangent: Array) -> Array:
    """Vector times the Jacobian of the log-softmax: u[k] - p[k] sum(u); both (R, C) in the working precision.

    It is minus the gradient of a loss with the target masses u, which here may be of either sign.
    """
    xp = array_namespace(logits)
    top = _one_hot(xp, logits, xp.argmax(logits, axis=1))
    odds = _against(xp, logits, top)
    of_top = xp.sum(xp.where(top, cotangent, 0.0), axis=1)
    of_others = row_sum(xp, xp.where(top, 0.0, cotangent))
    result = cotangent - _times_softmax(xp, (of_top + of_others)[:, None], _shifted(xp, logits))
    # Only the largest p can be above 1/2, where 1 - p would lose digits: u (1 - p) - p (sum of the other u) there.
    at_top = _times_rest(xp, of_top, odds) - _times_hot(xp, of_others, odds)
    return xp.where(top, at_top[:, None], result)


def _relative_to_mean(xp: Namespace, v: Array, shifted: _Shifted) -> Array:
    """Return v[k] - <p, v>."""
    # What is taken off first is one of v's own entries, the nearest to the mean. A constant v leaves exactly zero, and
    # no entry loses more digits than the sum of p[j] abs(v[k] - v[j]) has.
    mean = row_sum(xp, _times_softmax(xp, v, shifted))
    nearest = _one_hot(xp, v, xp.argmin(xp.abs(v - mean[:, None]), axis=1))
    v = v - xp.sum(xp.where(nearest, v, 0.0), axis=1)[:, None]
    return v - row_sum(xp, _times_softmax(xp, v, shifted))[:, None]


def softmax_jacobian_rows(logits: Array) -> Array:
    """See `xpsoftmax.softmax_jacobian`; (R, C) in the working precision to (R, C, C)."""
    xp = array_namespace(logits)
    p = _times_softmax(xp, xp.ones_like(logits), _shifted(xp, logits))
    largest = _one_hot(xp, p, xp.argmax(p, axis=1))
    # 1 - p cancels only above 1/2, that is at the largest p.
    others = xp.where(largest, row_sum(xp, xp.where(largest, 0.0, p))[:, None], 1.0 - p)
    index = xp.arange(p.shape[1], device=device(p))
    diagonal = (index[:, None] == index[None, :])[None, :, :]
    return xp.where(diagonal, (p * others)[:, :, None], -p[:, :, None] * p[:, None, :])


def bias_activation(
    z: Array,
    bias: Array,
    activation: Activation,
    *,
    grad: bool,
    out: Array | None = None,  # noqa: ARG001
) -> tuple[Array, Array | None]:
    """Activation of z + bias (R, H) and, with `grad`, what `activation_backward` needs to know of its slope.

    A kernel may overwrite z, and write the slope into `out`.
    """
    xp = array_namespace(z)
    z = z + bias
    return activation.with_slope(xp, z) if grad else (activation.function(xp, z), None)


def activation_backward(delta: Array, slope: Array | None, activation: Activation) -> Array:
    """Gradient (R, H) with respect to the pre-activation, from `delta`, the gradient with respect to the activation.

    `slope` is what `bias_activation` returned. A kernel may overwrite `delta`.
    """
    if slope is None:
        return delta
    if activation.kept == "value":
        slope = array_namespace(delta).astype(slope > 0.0, delta.dtype)
    return delta * slope


ROWS_OF_A_SUM = 256
"""Rows that are added up one after the other: a million of them would leave two digits of float32."""


def sum_of_rows(x: Array) -> Array:
    """Sum over the rows of an array (R, H), to the last digits however many there are.

    A library that may add one row after the other does it in float64. PyTorch and JAX add up in parts themselves.
    """
    xp = array_namespace(x)
    if x.shape[0] <= ROWS_OF_A_SUM or is_torch_array(x) or is_jax_array(x):
        return xp.sum(x, axis=0)
    return xp.astype(xp.sum(x, axis=0, dtype=xp.float64), x.dtype)


def weight_penalty(weight: Array, grad: Array | None, reg: float | Array) -> tuple[Array, Array | None]:
    """The L2 penalty ``reg/2 * sum(W**2)``, and `grad` with that of the penalty, ``reg * W``, added.

    A kernel may overwrite `grad`.
    """
    xp = array_namespace(weight)
    return 0.5 * reg * xp.sum(weight * weight), None if grad is None else grad + reg * weight


def parameter_update(
    rule: Rule,
    arrays: Sequence[Array],
    grad: Array,
    numbers: tuple[float, ...],
    *,
    ok: Array | None = None,
    in_place: bool = False,  # noqa: ARG001
) -> tuple[Array, ...]:
    """Apply an update rule to a parameter and the arrays that the optimiser keeps of it.

    `arrays` are these, the parameter first. The result has their new values, or the old ones where `ok` (0-d) is false.
    With `in_place` a kernel may overwrite `arrays`.
    """
    after = rule(*arrays, grad, *numbers)
    if ok is None:
        return after
    xp = array_namespace(grad)
    return tuple(xp.where(ok, new, old) for new, old in zip(after, arrays, strict=True))


def scratch_arrays(*, soft: bool, z_loss: bool) -> int:
    """How many arrays of the size of the logits, these included, the loss and gradient hold at once."""
    return 13 if soft else 12 if z_loss else 7


def _hard(xp: Namespace, z: Array, labels: Array, slope: Array | None, *, grad: bool) -> tuple[Array, Array | None]:
    """Loss -log p[y] and gradient p - onehot(y) + slope p, for one label a row."""
    hot = _one_hot(xp, z, labels)
    odds = _against(xp, z, hot)
    if not grad:
        return odds.loss, None
    dz_hot = -(odds.rest / odds.total)
    if slope is None:
        dz = odds.e * (odds.scale / odds.total)[:, None]
    else:
        dz = _times_softmax(xp, (1.0 + slope)[:, None], _shifted(xp, z))
        dz_hot = dz_hot + _times_hot(xp, slope, odds)
    return odds.loss, xp.where(hot, dz_hot[:, None], dz)


def _soft(xp: Namespace, z: Array, q: Array, slope: Array | None, *, grad: bool) -> tuple[Array, Array | None]:
    """Loss sum of q[j] * -log p[j] and gradient sum(q) p - q + slope p, for target masses q (R, C)."""
    loss = _soft_loss(xp, z, q)
    if not grad:
        return loss, None
    hot = _one_hot(xp, z, xp.argmax(q, axis=1))
    odds = _against(xp, z, hot)
    q_hot = xp.sum(xp.where(hot, q, 0.0), axis=1)
    q_rest = row_sum(xp, xp.where(hot, 0.0, q))
    more = 0.0 if slope is None else slope
    # Q p - q for the others: q <= Q/2 there, so the difference keeps its digits. For the hot class both terms are
    # formed from what belongs to the others: (Q - q) p - q (1 - p).
    dz = _times_softmax(xp, (q_hot + q_rest + more)[:, None], _shifted(xp, z)) - q
    dz_hot = _times_hot(xp, q_rest + more, odds) - _times_rest(xp, q_hot, odds)
    return loss, xp.where(hot, dz_hot[:, None], dz)


def _soft_loss(xp: Namespace, z: Array, q: Array) -> Array:
    top = _one_hot(xp, z, xp.argmax(z, axis=1))
    odds = _against(xp, z, top)
    minus_log_p = (row_max(xp, z)[:, None] - z) + odds.loss[:, None]
    terms = xp.where(q > 0.0, q * minus_log_p, 0.0)  # 0 * inf is 0 here
    # -log p of the largest is 1 - p to its last digit where that is subnormal; times a large q it need not be.
    sure = odds.rest < xp.finfo(z.dtype).smallest_normal
    of_top = _times_rest(xp, xp.sum(xp.where(top, q, 0.0), axis=1), odds)
    return row_sum(xp, xp.where(top & sure[:, None], of_top[:, None], terms))


class _Odds(NamedTuple):
    """A row seen from its hot class.

    p[j] = e[j] * scale / total, their sum 1 - p[hot] = rest / total, and p[hot] = e_hot / total.
    """

    e: Array  # (R, C): exp(z - largest of the others), 0 at the hot class
    sum: Array  # (R,): of e
    scale: Array  # (R,): what takes e to the scale of rest, at most 1
    rest: Array  # (R,): sum of the others
    e_hot: Array  # (R,)
    half: Array  # (R,): its square is scale or, where the hot class is behind, e_hot; not subnormal where they are
    total: Array  # (R,): rest + e_hot, at least 1
    loss: Array  # (R,): -log p[hot]


def _against(xp: Namespace, z: Array, hot: Array) -> _Odds:
    """Set one class, marked in `hot` (R, C), against the sum of the others.

    The others are shifted by *their own* largest logit. However far the hot class leads, their sum then keeps its
    digits, even where each exp(z[j] - z[hot]) alone would be subnormal; `scale` brings it down at the very end.
    """
    z_hot = xp.sum(xp.where(hot, z, 0.0), axis=1)  # one term: exact
    others = xp.where(hot, -INF, z)
    top = row_max(xp, others)
    top = xp.where(top == -INF, z_hot, top)  # no other class is possible: nothing to shift
    e = xp.exp(others - top[:, None])
    all_others = row_sum(xp, e)

    behind = top - z_hot  # by how much the hot class is behind; negative where it leads
    back = behind - top
    lost = (top - (behind - back)) - (z_hot + back)  # what rounding took from it (D. E. Knuth's TwoSum)
    lost = xp.where(xp.isfinite(behind), lost, 0.0)
    away = -xp.abs(behind)
    lost = xp.where(behind < 0.0, lost, -lost)
    smaller = xp.exp(away) * (1.0 + lost)
    half = xp.exp(0.5 * away) * (1.0 + 0.5 * lost)  # halving is exact
    scale = xp.where(behind < 0.0, smaller, 1.0)
    e_hot = xp.where(behind > 0.0, smaller, 1.0)
    normal = scale >= xp.finfo(z.dtype).smallest_normal
    rest = xp.where(normal, scale * all_others, half * all_others * half)
    total = rest + e_hot
    # Behind: total >= 1 + e_hot and both terms are positive, so nothing cancels.
    loss = xp.where(behind > 0.0, (xp.log(total) - lost) + behind, xp.log1p(rest))
    return _Odds(e, all_others, scale, rest, e_hot, half, total, loss)


def _times_hot(xp: Namespace, x: Array, odds: _Odds) -> Array:
    """Product x * p[hot], with all its digits also where p[hot] is subnormal and the product is not; (R,)."""
    x = x / odds.total
    normal = odds.e_hot >= xp.finfo(x.dtype).smallest_normal
    return xp.where(normal, x * odds.e_hot, (odds.half * x) * odds.half)


def _times_rest(xp: Namespace, x: Array, odds: _Odds) -> Array:
    """The same for x * (1 - p[hot])."""
    x = x / odds.total
    normal = odds.rest >= xp.finfo(x.dtype).smallest_normal
    return xp.where(normal, x * odds.rest, ((odds.half * x) * odds.sum) * odds.half)


class _Shifted(NamedTuple):
    """Logits relative to the largest of their row, without the rounding of the difference.

    exp(t) * fine, fine = 1 + lost, is exp(t + lost) to its last digit, and t + lost is exact (D. E. Knuth's TwoSum).
    For products of two probabilities, and of one with a large number: there the rounding of t would count twice.
    """

    t: Array  # (R, C), -inf where the probability is 0
    fine: Array  # (R, C)
    total: Array  # (R,): sum of exp(t) * fine; nan for a row without a largest logit


def _shifted(xp: Namespace, z: Array) -> _Shifted:
    top, poor = _largest(xp, z)
    top = top[:, None]
    possible = (z >= top - 1000.0) & ~poor[:, None]  # others are 0 in every precision, and would overflow here
    z = xp.where(possible, z, top)
    t = z - top
    back = t - z
    fine = 1.0 + ((z - (t - back)) - (top + back))
    t = xp.where(possible, t, -INF)
    return _Shifted(t, fine, xp.where(poor, NAN, row_sum(xp, xp.exp(t) * fine)))


def _times_softmax(xp: Namespace, x: Array, shifted: _Shifted) -> Array:
    """Product x * p, with all its digits also where p is subnormal and the product is not."""
    x = (x / shifted.total[:, None]) * shifted.fine
    e, half = xp.exp(shifted.t), xp.exp(0.5 * shifted.t)  # halving is exact
    return xp.where(e >= xp.finfo(e.dtype).smallest_normal, x * e, (half * x) * half)


def _log_softmax(xp: Namespace, z: Array) -> Array:
    top = row_max(xp, z)
    odds = _against(xp, z, _one_hot(xp, z, xp.argmax(z, axis=1)))
    return (z - top[:, None]) - odds.loss[:, None]


def _logsumexp(xp: Namespace, z: Array) -> Array:
    odds = _against(xp, z, _one_hot(xp, z, xp.argmax(z, axis=1)))
    return row_max(xp, z) + odds.loss


def soft_targets(xp: Namespace, z: Array, targets: Array, spec: LossSpec) -> Array:
    """Target masses (R, C): smoothed and multiplied by the class weights."""
    eps = spec.label_smoothing
    q = xp.astype(_one_hot(xp, z, targets), z.dtype) if targets.ndim == 1 else targets
    q = (1.0 - eps) * q + eps / z.shape[1]
    return q if spec.class_weight is None else q * spec.class_weight[None, :]


def class_weight_of(xp: Namespace, targets: Array, spec: LossSpec) -> Any:
    """Class weight at each label (R,); 1 for soft targets, and where there are no class weights."""
    if spec.class_weight is None or targets.ndim == 2:
        return 1.0
    classes = spec.class_weight.shape[0]
    return class_weight_at(spec.class_weight, xp.where((targets < 0) | (targets >= classes), 0, targets))


def _one_hot(xp: Namespace, z: Array, labels: Array) -> Array:
    """Mark one class a row, (R, C) of bool; none where the label is out of range."""
    return xp.arange(z.shape[1], dtype=labels.dtype, device=device(z))[None, :] == labels[:, None]


def row_sum(xp: Namespace, x: Array) -> Array:  # noqa: ARG001
    """Sum each row of x (R, C) by halving: log2(C) elementwise additions.

    The same additions in the same order in every library and for every memory layout, and as accurate as pairwise
    summation: a row's bits depend on nothing but the row.
    """
    odd: Array | None = None  # what is left over where a length is odd: at most log2(C) numbers, added up on their own
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        if x.shape[1] % 2:
            odd = x[:, -1] if odd is None else odd + x[:, -1]
        x = x[:, :half] + x[:, half : 2 * half]
    return x[:, 0] if odd is None else x[:, 0] + odd


def row_max(xp: Namespace, x: Array) -> Array:
    """Largest entry of each row of x (R, C), nan if one is; by halving, as `row_sum`.

    The libraries' own maxima differ where it matters: dask's fails on an empty block, CuPy's has failed on infinities.
    """
    columns = x.shape[1]
    while columns > 1:
        half = (columns + 1) // 2
        x = xp.maximum(x[:, :half], x[:, columns - half : columns])  # the middle one twice if there is one
        columns = half
    return x[:, 0]


def _working(logits: Array) -> tuple[Namespace, Array]:
    """The namespace, and the logits in the working precision: 16-bit numbers in float32."""
    xp = array_namespace(logits)
    dtype = xp.float32 if dtype_name(logits.dtype) in SIXTEEN_BIT else logits.dtype
    return xp, xp.astype(logits, dtype, copy=False)


def _largest(xp: Namespace, z: Array) -> tuple[Array, Array]:
    """The largest logit of each row (R,), and whether the row has none: nan, +inf or all -inf.

    Such a row's largest logit is returned as 0.
    """
    top = row_max(xp, z)
    poor = ~xp.isfinite(top)
    return xp.where(poor, 0.0, top), poor


def _deliver(xp: Namespace, result: Array, dtype: DType, out: Array | None) -> Array:
    if out is None:
        return narrowed(xp, result, dtype)
    out[...] = narrowed(xp, result, out.dtype)
    return out


def narrowed(xp: Namespace, x: Array, dtype: DType) -> Array:
    """Round to a dtype. What float16 cannot hold becomes infinite before the cast: dask's threads would warn of it."""
    if dtype_name(dtype) == "float16" and dtype != x.dtype:
        x = xp.where(x >= 65520.0, INF, xp.where(x <= -65520.0, -INF, x))
    return xp.astype(x, dtype, copy=False)
