"""Loss, gradients, prediction and training over dask arrays, block by block."""

from xpsoftmax.dask.cluster import ClusterError
from xpsoftmax.dask.functions import mlp_loss, mlp_loss_and_grad, mlp_predict
from xpsoftmax.dask.training import train

__all__ = ["ClusterError", "mlp_loss", "mlp_loss_and_grad", "mlp_predict", "train"]


def __dir__() -> list[str]:
    return __all__
