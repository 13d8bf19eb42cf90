"""Whether PyTorch records, transforms or compiles what is computed, and which tensors the kernels take."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch.autograd import forward_ad

from xpsoftmax._typing import Array

HAS_CUPY = find_spec("cupy") is not None
PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
"""The types of tensors that are read as arrays. In a subclass, operations may have another meaning."""


def is_differentiated(*tensors: Array | None) -> bool:
    """Whether a result of these tensors may be differentiated."""
    if is_transformed():
        return True
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def is_transformed() -> bool:
    """Whether PyTorch may follow the operations of what is computed now, which it cannot follow through NumPy.

    So do torch.func, forward-mode AD, `make_fx` and other modes of dispatch, and `torch.jit.trace`.
    """
    if forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        return bool(torch._C._functorch.get_dynamic_layer_stack_depth() > 0)
    return bool(
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


def is_batched(cotangent: Array) -> bool:
    """Whether an incoming gradient stands for many (`is_grads_batched`, `vectorize`): no kernel can read it."""
    return not torch.compiler.is_compiling() and bool(torch._C._functorch.is_legacy_batchedtensor(cotangent))


def is_eager() -> bool:
    """Whether neither a compiler nor a transform follows what is computed now: see `is_transformed`."""
    return not (torch.compiler.is_compiling() or is_transformed())


def refusal(logits: Array) -> str | None:
    """Why no kernel takes this tensor."""
    if type(logits) not in PLAIN and not torch.compiler.is_compiling():
        return "they are of a subclass of Tensor"
    if logits.device.type == "cpu":
        return None
    if logits.device.type != "cuda" or torch.version.hip:
        return f"they are on a device of the type {logits.device.type}"
    return None if HAS_CUPY else "CuPy is not installed"
