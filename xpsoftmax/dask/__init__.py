"""Loss, gradients, prediction and training over dask arrays, block by block."""

try:
    import dask.array as _dask  # noqa: F401
except ImportError:
    text = "xpsoftmax.dask needs dask, which is not installed: pip install 'dask[array,distributed]' threadpoolctl."
    raise ImportError(text, name="dask") from None

from xpsoftmax.dask.cluster import ClusterError
from xpsoftmax.dask.functions import mlp_loss, mlp_loss_and_grad, mlp_predict
from xpsoftmax.dask.training import train

__all__ = ["ClusterError", "mlp_loss", "mlp_loss_and_grad", "mlp_predict", "train"]


def __dir__() -> list[str]:
    return __all__
