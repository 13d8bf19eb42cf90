"""A row seen from one class: the hot class against the sum of all others, without ever forming 1 - p.

    rest = sum of exp(z[j] - shift) over j != hot       total = rest + exp(z[hot] - shift)
    1 - p[hot] = rest / total                           -log p[hot] = log1p(rest), where the hot class leads

Probabilities below the smallest normal number have few digits or none, but their product with a large number may be a
normal number. `times_hot`, `times_rest` and `times_softmax` compute such products with all digits: they multiply by
exp(t/2) twice, which is a normal number.
"""

from __future__ import annotations

from typing import NamedTuple

from xpsoftmax._typing import Array, Namespace
from xpsoftmax.kernels.generic.arithmetic import INF, NAN, finite_row_max, row_max, row_sum
from xpsoftmax.kernels.two_sum import difference_error


class Odds(NamedTuple):
    """A row seen from its hot class.

    p[j] = e[j] * scale / total for the others, 1 - p[hot] = rest / total, and p[hot] = e_hot / total.
    """

    e: Array  # (R, C): exp(z - largest of the others), 0 at the hot class
    sum: Array  # (R,): sum of e
    scale: Array  # (R,): factor between the scales of e and of rest, at most 1
    rest: Array  # (R,): sum of the others
    e_hot: Array  # (R,)
    half: Array  # (R,): square root of scale or, where the hot class is behind, of e_hot; never subnormal
    total: Array  # (R,): rest + e_hot, at least 1
    loss: Array  # (R,): -log p[hot]


def odds_of(xp: Namespace, z: Array, hot: Array) -> Odds:
    """Compare one class of each row, marked in `hot` (R, C), with the sum of the others.

    The others are shifted by *their own* largest logit. However far the hot class leads, their sum then keeps its
    digits, even where each exp(z[j] - z[hot]) is subnormal; `scale` is multiplied last.
    """
    z_hot = xp.sum(xp.where(hot, z, 0.0), axis=1)  # one term: exact
    others = xp.where(hot, -INF, z)
    top = row_max(xp, others)
    top = xp.where(top == -INF, z_hot, top)  # all other classes are impossible: nothing to shift
    e = xp.exp(others - top[:, None])
    all_others = row_sum(xp, e)

    behind = top - z_hot  # by how much the hot class is behind the largest other; negative where it leads
    error = difference_error(top, z_hot, behind)
    error = xp.where(xp.isfinite(behind), error, 0.0)
    distance = -xp.abs(behind)
    error = xp.where(behind < 0.0, error, -error)
    smaller = xp.exp(distance) * (1.0 + error)
    half = xp.exp(0.5 * distance) * (1.0 + 0.5 * error)  # halving is exact
    scale = xp.where(behind < 0.0, smaller, 1.0)
    e_hot = xp.where(behind > 0.0, smaller, 1.0)
    normal = scale >= xp.finfo(z.dtype).smallest_normal
    rest = xp.where(normal, scale * all_others, half * all_others * half)
    total = rest + e_hot
    # Where the hot class is behind, total >= 1 + e_hot and both terms are positive: nothing cancels.
    loss = xp.where(behind > 0.0, (xp.log(total) - error) + behind, xp.log1p(rest))
    return Odds(e, all_others, scale, rest, e_hot, half, total, loss)


def times_hot(xp: Namespace, x: Array, odds: Odds) -> Array:
    """Product x * p[hot] (R,), with all digits also where p[hot] is subnormal."""
    x = x / odds.total
    normal = odds.e_hot >= xp.finfo(x.dtype).smallest_normal
    return xp.where(normal, x * odds.e_hot, (odds.half * x) * odds.half)


def times_rest(xp: Namespace, x: Array, odds: Odds) -> Array:
    """Product x * (1 - p[hot]) (R,), with all digits also where 1 - p[hot] is subnormal."""
    x = x / odds.total
    normal = odds.rest >= xp.finfo(x.dtype).smallest_normal
    return xp.where(normal, x * odds.rest, ((odds.half * x) * odds.sum) * odds.half)


class Shifted(NamedTuple):
    """Logits relative to the largest of their row, with the rounding error of the difference.

    exp(t) * fine, with fine = 1 + error, is exp(t + error) to its last digit, and t + error is exact. Products of two
    probabilities, and of a probability with a large number, need this: the rounding of t would count twice there.
    """

    t: Array  # (R, C), -inf where the probability is 0
    fine: Array  # (R, C)
    total: Array  # (R,): sum of exp(t) * fine; nan for an undefined row


def shifted(xp: Namespace, z: Array) -> Shifted:
    """Shift each row by its largest logit."""
    top, undefined = finite_row_max(xp, z)
    top = top[:, None]
    possible = (z >= top - 1000.0) & ~undefined[:, None]  # other p are 0 in every precision, and z - top may overflow
    z = xp.where(possible, z, top)
    t = z - top
    fine = 1.0 + difference_error(z, top, t)
    t = xp.where(possible, t, -INF)
    return Shifted(t, fine, xp.where(undefined, NAN, row_sum(xp, xp.exp(t) * fine)))


def times_softmax(xp: Namespace, x: Array, row: Shifted) -> Array:
    """Product x * p (R, C), with all digits also where p is subnormal."""
    x = (x / row.total[:, None]) * row.fine
    e, half = xp.exp(row.t), xp.exp(0.5 * row.t)  # halving is exact
    return xp.where(e >= xp.finfo(e.dtype).smallest_normal, x * e, (half * x) * half)
