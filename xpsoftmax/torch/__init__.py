"""The softmax loss for models written in PyTorch, with the parameters and values of ``torch.nn.functional``.

It needs PyTorch (2.6 or later), which is imported here and nowhere else in the package. On an NVIDIA GPU, CuPy makes it
fast.
"""

from xpsoftmax.torch.linear import linear_cross_entropy
from xpsoftmax.torch.losses import CrossEntropyLoss, cross_entropy, log_softmax, softmax

__all__ = ["CrossEntropyLoss", "cross_entropy", "linear_cross_entropy", "log_softmax", "softmax"]
