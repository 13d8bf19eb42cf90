"""The scheduler that a training uses from its beginning to its end, and what is raised if its cluster is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dask
from dask.base import get_scheduler
from dask.utils import parse_bytes

from xpsoftmax._train.interrupts import interruptible
from xpsoftmax._train.records import TrainResult
from xpsoftmax._typing import Array
from xpsoftmax.dask.blocks import Model

LARGE_GRAPH = "distributed.admin.large-graph-warning-threshold"


class ClusterError(ConnectionError):
    """The scheduler or all workers of a cluster were lost in training.

    Parameters
    ----------
    reason : str
        What was lost.
    result : TrainResult or None
        What had been trained until then.

    Attributes
    ----------
    result : TrainResult or None
        What `train` would have returned after the last complete step: ``train(..., resume=error.result.state)``
        continues from there. None if `train` was still checking labels. None for the classifier, too, which is as it
        was before the call.
    """

    __module__ = "xpsoftmax.dask"  # tracebacks show the public name

    def __init__(self, reason: str, result: TrainResult | None = None) -> None:
        when = "" if result is None else f" after {len(result.history['loss'])} steps"
        kept = (
            "Nothing has been changed."
            if result is None
            else "The error's `result` has the parameters after the last of them, and the state to resume from."
        )
        super().__init__(f"the cluster must outlive the training, but it was lost{when}: {reason} {kept}")
        self.reason, self.result = reason, result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.result)


class Scheduler:
    """The scheduler that Dask chooses when training begins.

    It is kept until training ends. Dask itself would go on with threads of this process when a client is closed.
    """

    def __init__(self, collection: Any, model: Model) -> None:
        # Each graph holds the parameters on purpose, twice as large if they are of 16 bits: Dask must not warn of that.
        self.bytes_of_parameters = 2 * sum(array.nbytes for layer in model.params for array in layer)
        self.get = get_scheduler(collections=[collection])
        client = getattr(self.get, "__self__", None)
        self.client: Any = client if type(client).__module__.partition(".")[0] == "distributed" else None

    def compute(self, array: Array, *, optimized: bool = True) -> Any:
        """Return the value of an array; wait for the workers."""
        with self._noticing_loss():
            return dask.compute(array, scheduler=self.get, optimize_graph=optimized)[0]

    def persist(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """Return the arrays, which the workers keep in memory."""
        with self._noticing_loss():
            return dask.persist(*arrays, scheduler=self.get)  # type: ignore[no-any-return]

    @contextmanager
    def _noticing_loss(self) -> Iterator[None]:
        """Raise `ClusterError` if the cluster is lost within this context."""
        if self.client is None:
            with interruptible():
                yield
            return
        if self.client.status != "running":
            raise ClusterError(f"the client is {self.client.status}.")
        limit = parse_bytes(dask.config.get(LARGE_GRAPH)) + self.bytes_of_parameters
        try:
            with dask.config.set({LARGE_GRAPH: limit}), interruptible():
                yield
        except Exception as error:
            if not self._means_loss(error):
                raise
            raise ClusterError(f"{type(error).__name__}: {error}".rstrip(".") + ".") from error

    def _means_loss(self, error: Exception) -> bool:
        """Return whether an error means that the cluster is lost."""
        from distributed import CancelledError
        from distributed.comm.core import CommClosedError
        from distributed.scheduler import KilledWorker, NoWorkerError

        if isinstance(error, (CancelledError, KilledWorker, NoWorkerError, CommClosedError)):
            return True
        return bool(self.client.status != "running")
