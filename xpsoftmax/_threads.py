"""The public limit on the number of threads of the NumPy kernels."""

from __future__ import annotations

from contextlib import AbstractContextManager

from xpsoftmax._arguments.options import as_integer
from xpsoftmax.kernels.numpy.threads import limited


def threads(n: int, /) -> AbstractContextManager[None]:
    """Let the NumPy kernels use at most `n` threads inside a ``with`` block.

    Parameters
    ----------
    n : int
        At least 1, the thread of the caller. Without a limit the kernels use up to one thread for each core that the
        process may use.

    Returns
    -------
    context manager

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If it is less than 1.

    Notes
    -----
    The limit holds for the whole process, also for calls from other threads, so that it can be put around a thread
    pool or a Dask computation. If several ``with`` statements are active, the lowest limit counts. The limit changes no
    bit of any result.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> with xs.threads(1):
    ...     p = xs.softmax(np.zeros((4096, 1000)))
    """
    return limited(as_integer("n", n, low=1))
