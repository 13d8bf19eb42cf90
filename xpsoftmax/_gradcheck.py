"""Numerical gradients: central differences, entry by entry or along random directions.

x + h is rounded to a number of the dtype, so the step taken is not exactly h. The difference of the function is
therefore divided by the step that was taken, (x + h) - x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.home import Home, home_of, on_device, placement, quiet
from xpsoftmax._arguments.host import to_host
from xpsoftmax._arguments.options import as_generator, as_integer, as_number
from xpsoftmax._arguments.tracing import check_concrete
from xpsoftmax._arguments.views import enter
from xpsoftmax._typing import Array, Namespace, dtype_name

# Offsets in steps and their coefficients: f'(x) = sum of c * f(x + o h) / h, with an error of h**order.
_STENCILS = {
    2: ((1.0, 1 / 2), (-1.0, -1 / 2)),
    4: ((2.0, -1 / 12), (1.0, 8 / 12), (-1.0, -8 / 12), (-2.0, 1 / 12)),
}


def numerical_grad(
    function: Callable[[Array], Any],
    x: Array,
    /,
    *,
    order: int = 4,
    step: float | None = None,
    directions: int | None = None,
    rng: Any = None,
) -> Any:
    r"""Gradient of a scalar function by central differences.

    .. math:: f'(x) \approx \frac{-f(x+2h) + 8 f(x+h) - 8 f(x-h) + f(x-2h)}{12 h} \quad \text{(order 4)}

    Parameters
    ----------
    function : callable
        Takes an array like `x` and returns one number (a 0-d array or a float).
    x : array, any shape
        float32 or float64. In float32 only a few digits of the result are right. It is not modified.
    order : {2, 4}
        The error is proportional to ``step**order``.
    step : float, optional
        h, the same absolute step for all entries; at least the distance from an entry to the next number of the dtype.
        Default: ``eps ** (1 / (order + 1))``, 7e-4 for float64 and order 4; longer at large entries (see Notes).
    directions : int, optional
        Number of random directions along which to differentiate, instead of along every entry; for large arrays.
    rng : None, int, numpy.random.Generator, ...
        Random generator of the directions: anything that `numpy.random.default_rng` takes.

    Returns
    -------
    array, shape of `x`
        The gradient; with `directions`, a pair: derivatives (directions,) and the unit vectors they are taken along,
        (directions, \*shape of `x`).

    Raises
    ------
    TypeError, ValueError
        If `x` or an option does not fit.

    Notes
    -----
    The differences are divided by the step that was taken, ``(x + h) - x``, not by h: in float32, 1e6 + 0.04 is
    1e6 + 0.0625. The vectors that `directions` returns are those along which the steps were taken.

    The default step is at least four times the distance between numbers of the dtype. Longer steps, each eight times
    the one before, are tried where entries are above 8, up to a step in proportion to the largest entry. A longer step
    is used as long as it changes the derivative by less than the rounding of the function may have changed it. Logits
    near 1e4 need steps near 1, for example, and the square of 1e8 needs steps near 1e5. For an entry much smaller than
    the step, a step in proportion to the entry is used if rounding hides the derivative at the default step, or if the
    function has no finite value there. Each attempt calls the function two or four times more. Pass `step` for a
    function that varies over distances far below 1.

    Keep kinks (as of a ReLU) a few steps away: no difference quotient across a kink is right.

    References
    ----------
    B. Fornberg, "Generation of finite difference formulas on arbitrarily spaced grids", Math. Comp. 51 (1988).

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> xs.numerical_grad(lambda x: (x**3).sum(), np.array([1.0, 2.0])).round(9)
    array([ 3., 12.])
    """
    entry = enter(_arguments(function, x, order, step)[1])
    xp, array = check.as_array("x", *entry.arguments)

    def at(point: Array) -> Any:
        return function(entry.back(point))

    steps = _Steps(xp, array, int(order), step)
    with on_device(xp, device(array)):
        if directions is not None:
            drawn = _directions(array, directions, rng)
            found = [_along(at, array, steps, vector.reshape(array.shape)) for vector in drawn]
            vectors = xp.stack([slope.vector for slope in found])
        else:
            index = xp.reshape(xp.arange(math.prod(array.shape), device=placement(array)), array.shape)
            found = [_of_entry(at, array, steps, index, i) for i in range(math.prod(array.shape))]
        values = xp.asarray([slope.derivative for slope in found], dtype=array.dtype, device=placement(array))
        return entry.back(xp.reshape(values, array.shape) if directions is None else (values, vectors))


def check_grad(
    function: Callable[[Array], Any],
    grad: Array,
    x: Array,
    /,
    *,
    order: int = 4,
    step: float | None = None,
    directions: int | None = None,
    rng: Any = None,
) -> float:
    r"""Relative error of a gradient, norm-wise, against the numerical one.

    .. math:: \frac{\lVert g - n \rVert_2}{\max(\lVert g \rVert_2, \lVert n \rVert_2)}

    Parameters
    ----------
    function : callable
        Takes an array like `x` and returns one number.
    grad : array, shape of `x`
        The gradient to check.
    x : array
        Where the gradients are compared.
    order : {2, 4}
        Order of the central differences.
    step : float, optional
        Distance of the points of a difference. Default: from the dtype and the size of the entries.
    directions : int, optional
        Compare along so many random directions; g and n are the derivatives along them. Default: every entry.
    rng : None, int, numpy.random.Generator, ...
        Draws the directions: anything that `numpy.random.default_rng` takes.

    Returns
    -------
    float
        0 if both are zero, nan if one is not finite. In float64 with order 4, the error of a correct gradient is below
        1e-8, that of a wrong one usually near 1.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    A network with ReLUs has kinks, and the default step (7e-4) may reach across one. A correct gradient then shows an
    error near 1e-4. Use a smaller `step` (1e-5) or a smooth activation.

    References
    ----------
    As `numerical_grad`.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> z, y = np.array([[1.0, 2.0, 3.0]]), np.array([1])
    >>> loss, dlogits = xs.softmax_loss_and_grad(z, y)
    >>> xs.check_grad(lambda z: xs.softmax_loss(z, y), dlogits, z) < 1e-9
    True
    """
    xp, array = _arguments(function, x, order, step)
    where = Home(xp, home_of(array), "x")
    _, claimed = check.as_floating("grad", check.as_companion("grad", grad, where))
    check_concrete(grad=claimed)
    if tuple(claimed.shape) != tuple(array.shape):
        raise ValueError(f"grad must have the shape of x, {tuple(array.shape)}, got {tuple(claimed.shape)}.")
    numerical = numerical_grad(function, x, order=order, step=step, directions=directions, rng=rng)
    if directions is not None:
        numerical, vectors = numerical
    with quiet(xp, where.device):
        if directions is not None:
            claimed = xp.stack([xp.sum(claimed * vectors[i, ...]) for i in range(vectors.shape[0])])
        difference, size = _norm(xp, claimed - numerical), max(_norm(xp, claimed), _norm(xp, numerical))
    return difference / size if difference != 0.0 else 0.0


def _arguments(function: Callable[[Array], Any], x: Array, order: int, step: float | None) -> tuple[Namespace, Array]:
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r}.")
    xp, array = check.as_array("x", x)
    if dtype_name(array.dtype) not in ("float32", "float64"):
        raise TypeError(f"x must be of dtype float32 or float64, got {array.dtype}.")
    xp, array = check.as_floating("x", x)
    check_concrete(x=array)
    if as_integer("order", order) not in _STENCILS:
        raise ValueError(f"order must be 2 or 4, got {order}.")
    if step is not None and as_number("step", step) == 0.0:
        raise ValueError("step must be positive, got 0.0.")
    return xp, array


def _directions(x: Array, count: int, rng: Any) -> np.ndarray:
    """Random unit vectors (count, size of x) on the host."""
    count = as_integer("directions", count)
    if count < 1:
        raise ValueError(f"directions must be at least 1, got {count}.")
    drawn = as_generator("rng", rng).standard_normal((count, math.prod(x.shape)))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


# --- steps ------------------------------------------------------------------------------------------------------------

LEAST_SPACINGS = 4
"""Least default step, in distances between numbers: rounding then hardly changes the ratios of the offsets."""
LONGER = 8.0
"""Ratio of a longer step to the step before."""
ENOUGH = 8.0
"""Accepted rounding error, in multiples of that of the default step for entries and values near 1."""


class _Range(NamedTuple):
    """Lengths of steps: the first that is tried, the shortest and the longest."""

    shortest: float
    first: float
    longest: float


class _Steps:
    """The lengths of steps at each entry of x, which is on the host here."""

    def __init__(self, xp: Namespace, x: Array, order: int, given: float | None) -> None:
        self.xp, self.order, self.given = xp, order, given
        self.eps = float(xp.finfo(x.dtype).eps)
        self.usual = self.eps ** (1 / (order + 1)) if given is None else float(given)
        self.x = to_host("x", x).ravel()
        with np.errstate(all="ignore"):
            self.size = np.abs(self.x)
            self.spacing = np.spacing(self.size)  # nan for infinities and nan
            # In proportion to the largest entry, because rounding in the function may be relative to it.
            self.longest = self.usual * float(np.max(self.size, where=np.isfinite(self.size), initial=0.0))
            if given is not None and (self.usual < self.spacing).any():
                raise self.too_short(int(np.argmax(self.usual < self.spacing)), "at least")

    def too_short(self, entry: int, rule: str) -> ValueError:
        distance = f"{self.spacing[entry]:.3g}, the distance between numbers of {self.x.dtype}"
        value = f"{self.x[entry]:.6g}, an entry of x"
        return ValueError(f"step must be {rule} {distance} near {value}, got {self.given!r}.")

    def range(self, entry: int) -> _Range:
        """Lengths of steps at an entry."""
        if self.given is not None:
            return _Range(self.usual, self.usual, self.usual)
        first = float(np.fmax(self.usual, LEAST_SPACINGS * float(self.spacing[entry])))
        return _Range(self.usual * float(self.size[entry]), first, self.longest)

    def range_along(self, vector: np.ndarray) -> tuple[np.ndarray, _Range]:
        """Lengths of steps along a unit vector, and the vector, turned towards entries of x that need longer steps."""
        if self.given is not None or not vector.size:
            return vector, _Range(self.usual, self.usual, self.usual)
        least = LEAST_SPACINGS * math.sqrt(vector.size) * self.spacing.astype(np.float64)
        scaled = vector * np.fmax(1.0, least / self.usual).reshape(vector.shape)
        length = float(np.linalg.norm(scaled))
        return scaled / length, _Range(self.longest, self.usual * length, self.longest)


class _Slope(NamedTuple):
    """A derivative as it was measured."""

    derivative: float
    error: float  # estimate: that of rounding, and the change since the last step
    vector: Array | None = None  # the unit vector along which it is taken


def _of_entry(function: Callable[[Array], Any], x: Array, steps: _Steps, index: Array, entry: int) -> _Slope:
    """Derivative with respect to one entry."""
    value, dtype = float(steps.x[entry]), steps.x.dtype

    def measured(h: float) -> _Slope:
        taken, values = 0.0, []
        for offset, weight in _STENCILS[steps.order]:
            with np.errstate(all="ignore"):
                point = float(dtype.type(value + offset * h))  # a number of the dtype, which no library rounds
            values.append((weight, _scalar(function(steps.xp.where(index == entry, point, x)))))
            taken += weight * (point - value)
        return _quotient(values, taken, steps.eps)

    return _best(measured, steps.range(entry), steps)


def _along(function: Callable[[Array], Any], x: Array, steps: _Steps, direction: np.ndarray) -> _Slope:
    """Derivative along a vector."""
    direction, lengths = steps.range_along(direction)
    xp, vector = steps.xp, steps.xp.asarray(direction, dtype=x.dtype, device=placement(x))

    def measured(h: float) -> _Slope:
        taken, values = xp.zeros_like(x), []
        for offset, weight in _STENCILS[steps.order]:
            with quiet(xp, device(x)):
                point = x + (offset * h) * vector
                taken = taken + weight * (point - x)
            values.append((weight, _scalar(function(point))))
        with quiet(xp, device(x)):
            length = _norm(xp, taken)
            if length == 0.0 and steps.x.size:
                raise steps.too_short(int(np.argmax(steps.size)), "well above")
            # Where x is not finite, neither is the step taken: the vector stays as it was drawn.
            used = taken / length if 0.0 < length < math.inf else vector
        return _quotient(values, length, steps.eps)._replace(vector=used)

    return _best(measured, lengths, steps)


def _quotient(values: list[tuple[float, float]], taken: float, eps: float) -> _Slope:
    """Difference quotient for the step taken; the error assumes that each value is rounded by eps."""
    if not (taken != 0.0 and math.isfinite(taken) and all(math.isfinite(value) for _, value in values)):
        return _Slope(math.nan, math.nan)
    rounding = eps * sum(abs(weight) for weight, _ in values) * max(abs(value) for _, value in values)
    return _Slope(math.fsum(weight * value for weight, value in values) / taken, rounding / abs(taken))


def _best(measured: Callable[[float], _Slope], lengths: _Range, steps: _Steps) -> _Slope:
    """The derivative by the first step, or by another one that is more accurate.

    A longer step has less rounding error and more curvature error. For a small entry a short step may have less
    rounding error, because the function is small there, too. A derivative is replaced by that of another step if it
    changes by less than its error.
    """
    shortest, h, longest = lengths
    best = measured(h)
    rounding, enough = best.error, ENOUGH * steps.usual**steps.order
    if 0.0 < shortest < h and not math.isfinite(best.derivative):
        return measured(shortest)
    if 0.0 < LONGER * shortest < h and rounding > enough * abs(best.derivative):
        shorter = _better(best, measured(shortest))
        if shorter is not None:
            return shorter
    while rounding > enough * abs(best.derivative) and LONGER * h <= longest:
        h *= LONGER
        longer = measured(h)
        rounding, better = longer.error, _better(best, longer)
        if better is None:
            break
        best = better
    return best


def _better(best: _Slope, other: _Slope) -> _Slope | None:
    """Another measurement with its error, if the error is smaller; else None."""
    error = abs(other.derivative - best.derivative) + other.error
    return other._replace(error=error) if error < best.error else None


def _scalar(value: Any) -> float:
    if getattr(value, "shape", ()) != ():
        raise ValueError(f"function must return one number, got an array of shape {tuple(value.shape)}.")
    value = value.detach() if hasattr(value, "detach") else value  # PyTorch warns of a number that has a gradient
    try:
        if isinstance(value, (str, bytes)) or "complex" in str(getattr(value, "dtype", "")):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"function must return one real number, got {value!r}.") from None


def _norm(xp: Namespace, array: Array) -> float:
    """Euclidean norm, without overflow or underflow of the squares."""
    top = float(xp.max(xp.abs(array))) if 0 not in array.shape else 0.0
    if top == 0.0 or not math.isfinite(top):
        return top
    array = array / top
    return top * math.sqrt(float(xp.sum(array * array)))
