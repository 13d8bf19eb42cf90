"""Numerical gradients: central differences, entry by entry or along random directions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from array_api_compat import device

from xpsoftmax import _validate as check
from xpsoftmax._softmax import on_device, quiet
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
        float32 or float64; float64 if the result is to be trusted to more than a few digits. It is not modified.
    order : {2, 4}
        The error falls as ``step**order``.
    step : float, optional
        h, absolute. Default: ``eps ** (1 / (order + 1))``, 7e-4 for float64 and order 4.
    directions : int, optional
        Instead of all entries, take the derivatives along this many random directions: for arrays with many entries.
    rng : None, int, numpy.random.Generator, ...
        Where the directions come from: anything that `numpy.random.default_rng` takes.

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
    Keep kinks (of a ReLU) a few steps away: across them no difference quotient is right.

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
    xp, array, h = _arguments(function, x, order, step)
    with on_device(xp, device(array)):
        if directions is not None:
            vectors = _directions(xp, array, directions, rng)
            values = [_derivative(function, array, h * vectors[i, ...], order) / h for i in range(vectors.shape[0])]
            return xp.asarray(values, dtype=array.dtype, device=check.placement(array)), vectors
        index = xp.reshape(xp.arange(math.prod(array.shape), device=check.placement(array)), array.shape)
        values = []
        for i in range(math.prod(array.shape)):
            values.append(_derivative(function, array, xp.where(index == i, h, xp.zeros_like(array)), order) / h)
        return xp.reshape(xp.asarray(values, dtype=array.dtype, device=check.placement(array)), array.shape)


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
    order, step, directions, rng
        As for `numerical_grad`. With `directions`, g and n are the derivatives along them.

    Returns
    -------
    float
        0 if both are zero, nan if one is not finite. In float64 with order 4, right gradients are below 1e-8, wrong
        ones near 1.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    A network with ReLUs has kinks, and the default step (7e-4) may reach across one: then a right gradient shows an
    error of 1e-4 or so. Take a smaller `step` (1e-5) or a smooth activation.

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
    xp, array, _ = _arguments(function, x, order, step)
    frame = check.Frame(xp, check.home(array), tuple(array.shape), 0, array.dtype, "x")
    _, claimed = check.as_floating("grad", check.as_companion("grad", grad, frame))
    if tuple(claimed.shape) != tuple(array.shape):
        raise ValueError(f"grad must have the shape of x, {tuple(array.shape)}, got {tuple(claimed.shape)}.")
    numerical = numerical_grad(function, x, order=order, step=step, directions=directions, rng=rng)
    if directions is not None:
        numerical, vectors = numerical
    with quiet(xp, frame.device):
        if directions is not None:
            claimed = xp.stack([xp.sum(claimed * vectors[i, ...]) for i in range(vectors.shape[0])])
        difference, size = _norm(xp, claimed - numerical), max(_norm(xp, claimed), _norm(xp, numerical))
    return difference / size if difference != 0.0 else 0.0


def _arguments(
    function: Callable[[Array], Any], x: Array, order: int, step: float | None
) -> tuple[Namespace, Array, float]:
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r}.")
    xp, array = check.as_array("x", x)
    if dtype_name(array.dtype) not in ("float32", "float64"):
        raise TypeError(f"x must be of dtype float32 or float64, got {array.dtype}.")
    xp, array = check.as_floating("x", x)
    if check.as_integer("order", order) not in _STENCILS:
        raise ValueError(f"order must be 2 or 4, got {order}.")
    if step is None:
        return xp, array, float(xp.finfo(array.dtype).eps) ** (1 / (order + 1))
    h = check.as_number("step", step)
    if h == 0.0:
        raise ValueError("step must be positive, got 0.0.")
    return xp, array, h


def _directions(xp: Namespace, x: Array, count: int, rng: Any) -> Array:
    """Unit vectors (count, *shape of x), drawn on the host."""
    count = check.as_integer("directions", count)
    if count < 1:
        raise ValueError(f"directions must be at least 1, got {count}.")
    drawn = check.as_generator("rng", rng).standard_normal((count, math.prod(x.shape)))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return xp.asarray(drawn.reshape(count, *x.shape), dtype=x.dtype, device=check.placement(x))


def _derivative(function: Callable[[Array], Any], x: Array, shift: Array, order: int) -> float:
    """Derivative along `shift`, times its length."""
    values = [weight * _scalar(function(x + offset * shift)) for offset, weight in _STENCILS[int(order)]]
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


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
