"""Optimisers: new parameters, and a new state, from parameters, gradients and a state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from xpsoftmax._arguments.home import on_device, quiet
from xpsoftmax._arguments.naming import named
from xpsoftmax._arguments.options import as_number, check_flag
from xpsoftmax._arguments.suggestions import CLIPPING, PENALTY, RATE, suggesting
from xpsoftmax._arguments.views import on_views
from xpsoftmax._network.layers import Layer, PairsOfArrays, Params
from xpsoftmax._network.matching import check_matching
from xpsoftmax._network.network import as_network
from xpsoftmax._network.vectors import parts_of, vector_of
from xpsoftmax._typing import Array
from xpsoftmax.kernels import operations
from xpsoftmax.kernels.rules import ADAM, ADAMW, MOMENTUM, NESTEROV, NESTEROV_VELOCITY, SGD, VELOCITY, Rule

BETAS = {
    **dict.fromkeys(("beta_1", "beta_2", "beta1", "beta2", "b1", "b2"), "betas=(beta_1, beta_2)"),
    "epsilon": "eps=",
    "params": "optimizer.init(params)",
}

LearningRate: TypeAlias = float | Callable[[int], float]


State: TypeAlias = tuple[Any, ...]
"""The number of updates made, then a tuple of layers for each array that is kept of every parameter."""


class Optimizer(ABC):
    """What `sgd`, `adam` and `adamw` return. It is immutable: all that changes is in the parameters and the state.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> X, y, params = np.eye(3), np.array([0, 1, 2]), xs.init_params((3, 3), rng=0)
    >>> optimizer = xs.sgd(1.0, momentum=0.9)
    >>> state = optimizer.init(params)
    >>> for _ in range(20):
    ...     loss, grads = xs.mlp_loss_and_grad(params, X, y)
    ...     params, state = optimizer.update(params, grads, state)
    >>> bool(loss < 0.1)
    True
    """

    learning_rate: LearningRate

    def init(self, params: PairsOfArrays) -> State:
        """State before the first update.

        Parameters
        ----------
        params : sequence of Layer

        Returns
        -------
        tuple
            The number of updates, 0, then tuples of layers shaped like `params` and zero, in float32 or wider.

        Raises
        ------
        TypeError, ValueError
            If `params` is not a network.
        """
        net = as_network(params, None)
        if type(net.layers[0].weight) is np.ndarray:
            size = sum(array.size for layer in net.layers for array in layer)
            return (0, *(parts_of(np.zeros(size, net.working), net.layers) for _ in range(self.kept)))
        with on_device(net.xp, net.home.device):
            zeros = [
                tuple(type(layer)(*map(net.xp.zeros_like, layer)) for layer in net.layers) for _ in range(self.kept)
            ]
        return (0, *zeros)

    @on_views()
    def update(self, params: PairsOfArrays, grads: PairsOfArrays, state: State) -> tuple[Params, State]:
        """Parameters and state after one step. No argument is modified.

        Parameters
        ----------
        params, grads : sequence of Layer
            As `mlp_loss_and_grad` takes and returns them.
        state : tuple
            As `init` and `update` return it.

        Returns
        -------
        params : tuple of Layer
            In the dtype of `params`; 16-bit ones are computed in float32.
        state : tuple

        Raises
        ------
        TypeError, ValueError
            If gradients or state do not fit the parameters, or a learning rate is not a number from 0 on.
        """
        net = as_network(params, None)
        if not isinstance(grads, (tuple, list)) or not grads:
            raise TypeError(f"grads must be a non-empty sequence of (weight, bias) pairs, got {grads!r:.60}.")
        with named({"params": "grads"}):
            of_grads = as_network(grads, None)
        slopes = of_grads.layers
        check_matching("grads", slopes, net.layers, "params")
        if of_grads.dtype not in (net.dtype, net.working):
            raise TypeError(f"grads must have the dtype of params, {net.dtype}, got {of_grads.dtype}.")
        if (
            type(state) is not tuple
            or len(state) != 1 + self.kept
            or type(state[0]) is not int
            or state[0] < 0
            or not all(isinstance(layer, Layer) for kept in state[1:] if type(kept) is tuple for layer in kept)
            or not all(type(kept) is tuple for kept in state[1:])
        ):
            hint = " Pass its `optimizer`." if hasattr(state, "optimizer") else ""
            hint = hint or (" Pass its `state.optimizer`." if hasattr(state, "state") else "")
            raise TypeError(f"state must be what init or update of {self} returned, got {state!r:.60}.{hint}")
        for kept in state[1:]:
            check_matching("state", kept, net.layers, "params")
            if any(array.dtype != net.working for layer in kept for array in layer):
                raise TypeError(f"state must be of {net.working}, as params are computed, got {kept[0].weight.dtype}.")
        with quiet(net.xp, net.home.device):
            layers, state = self.step(net.layers, slopes, state)
            if net.dtype != net.working:
                layers = tuple(type(layer)(*(net.xp.astype(array, net.dtype) for array in layer)) for layer in layers)
        return layers, state

    def step(
        self, params: Params, grads: Params, state: State, *, ok: Array | None = None, in_place: bool = False
    ) -> tuple[Params, State]:
        """`update` without checks; where `ok`, 0-d, is false nothing changes but the number of updates.

        With `in_place` parameters and state may be overwritten. Where they and the gradients are parts of vectors, all
        are updated at once: with small layers the calls take most of the time.
        """
        count, *kept = state
        rule, numbers = self.rule(self.rate(count), count + 1)
        update = operations(params[0].weight, "auto").parameter_updates
        *vectors, slope = (vector_of(layers) if in_place else None for layers in (params, *kept, grads))
        if slope is not None and all(vector is not None for vector in vectors):
            (done,) = update(rule, [vectors], [slope], numbers, ok=ok, in_place=True)
            before = zip(done, vectors, (params, *kept), strict=True)
            params, *kept = (layers if new is old else parts_of(new, layers) for new, old, layers in before)
            return params, (count + 1, *kept)
        *changed, slopes = ([array for layer in layers for array in layer] for layers in (params, *kept, grads))
        updated = update(rule, list(zip(*changed, strict=True)), slopes, numbers, ok=ok, in_place=in_place)
        params, *kept = (
            tuple(type(layer)(*arrays[2 * i : 2 * i + 2]) for i, layer in enumerate(params))
            for arrays in zip(*updated, strict=True)
        )
        return params, (count + 1, *kept)

    def rate(self, count: int) -> float:
        """Return the learning rate after so many updates; a function is called, and its number checked.

        Parameters
        ----------
        count : int
        """
        rate = self.learning_rate
        return as_number(f"learning_rate({count})", rate(count)) if callable(rate) else rate

    @property
    @abstractmethod
    def kept(self) -> int:
        """How many arrays are kept for each parameter."""

    @property
    def squares(self) -> tuple[int, ...]:
        """Which of the arrays that are kept are means of squares, and never negative."""
        return ()

    @abstractmethod
    def rule(self, rate: float, step: int) -> tuple[Rule, tuple[float, ...]]:
        """The rule of the `step`-th update, counted from 1, and its numbers.

        The rule is called with a parameter, the arrays that are kept for it, its gradient and the numbers. It returns
        the new parameter and the new arrays.
        """


@dataclass(frozen=True)
class Sgd(Optimizer):
    learning_rate: LearningRate
    momentum: float
    nesterov: bool

    @property
    def kept(self) -> int:
        return int(self.momentum > 0.0)

    def rule(self, rate: float, step: int) -> tuple[Rule, tuple[float, ...]]:  # noqa: ARG002
        if not self.kept:
            return SGD, (rate,)
        return NESTEROV if self.nesterov else MOMENTUM, (rate, self.momentum)


@dataclass(frozen=True)
class Adam(Optimizer):
    learning_rate: LearningRate
    betas: tuple[float, float]
    eps: float
    weight_decay: float

    @property
    def kept(self) -> int:
        return 2

    @property
    def squares(self) -> tuple[int, ...]:
        return (1,)

    def rule(self, rate: float, step: int) -> tuple[Rule, tuple[float, ...]]:
        b1, b2 = self.betas
        # The corrections of the two means, which begin at 0.
        rate_of_m, root_of_v = rate / (1.0 - b1**step), 1.0 / math.sqrt(1.0 - b2**step)
        numbers = (rate_of_m, root_of_v, b1, 1.0 - b1, b2, 1.0 - b2, self.eps)
        if self.weight_decay == 0.0:
            return ADAM, numbers
        return ADAMW, (1.0 - rate * self.weight_decay, *numbers)


@dataclass(frozen=True)
class VelocitySgd(Sgd):
    """In the form of scikit-learn: the rate is part of the velocity, so a new rate takes effect gradually."""

    def rule(self, rate: float, step: int) -> tuple[Rule, tuple[float, ...]]:
        if not self.kept:
            return super().rule(rate, step)
        return NESTEROV_VELOCITY if self.nesterov else VELOCITY, (rate, self.momentum)


@dataclass(frozen=True)
class UncorrectedAdam(Adam):
    """In the form of scikit-learn: `eps` is added to the root before its correction (end of the paper's section 2)."""

    def rule(self, rate: float, step: int) -> tuple[Rule, tuple[float, ...]]:
        b1, b2 = self.betas
        rate *= math.sqrt(1.0 - b2**step) / (1.0 - b1**step)
        return ADAM, (rate, 1.0, b1, 1.0 - b1, b2, 1.0 - b2, self.eps)


@suggesting(
    **RATE,
    **CLIPPING,
    **dict.fromkeys((*PENALTY.split(), "decay"), "train(reg=...), the L2 penalty, or adamw(weight_decay=...)"),
    nesterovs_momentum="nesterov=",
    use_nesterov="nesterov=",
    mu="momentum=",
    beta="momentum=",
    params="optimizer.init(params)",
)
def sgd(learning_rate: LearningRate, momentum: float = 0.0, nesterov: bool = False) -> Optimizer:  # noqa: FBT001, FBT002
    r"""Gradient descent, with momentum if asked.

    .. math:: v \leftarrow \mu v + g, \qquad p \leftarrow p - \eta v \quad
              (\text{Nesterov: } p \leftarrow p - \eta (g + \mu v))

    Parameters
    ----------
    learning_rate : float or function of int
        :math:`\eta`; a function is called with the number of updates made so far: 0 for the first.
    momentum : float
        :math:`\mu`, usually below 1.
    nesterov : bool
        Take the step from where the momentum leads.

    Returns
    -------
    Optimizer
        With ``init(params)`` and ``update(params, grads, state)``.

    Raises
    ------
    TypeError, ValueError
        If an option is not a number from 0 on; if `nesterov` comes without momentum.

    See Also
    --------
    adam : steps that do not depend on the size of the gradients
    train : uses it

    Notes
    -----
    Each step is that of ``torch.optim.SGD`` (``tests/train/test_optim.py``).

    References
    ----------
    B. T. Polyak, USSR Computational Mathematics and Mathematical Physics 4 (1964), doi:10.1016/0041-5553(64)90137-5;
    Nesterov's in the form of I. Sutskever et al., "On the importance of initialization and momentum in deep learning",
    ICML 2013.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = (xs.Layer(np.ones((1, 2)), np.zeros(2)),)
    >>> optimizer = xs.sgd(0.5)
    >>> params, state = optimizer.update(params, params, optimizer.init(params))
    >>> params[0].weight
    array([[0.5, 0.5]])
    """
    momentum = as_number("momentum", momentum)
    check_flag("nesterov", nesterov)
    if nesterov and momentum == 0.0:
        raise ValueError("momentum must be positive for nesterov=True, got 0.0.")
    return Sgd(_as_rate(learning_rate), momentum, bool(nesterov))


@suggesting(**RATE, **CLIPPING, **BETAS, **dict.fromkeys((*PENALTY.split(), "decay"), "adamw(weight_decay=...)"))
def adam(learning_rate: LearningRate = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Optimizer:
    r"""Adam: the size of the steps does not depend on the scale of the gradients.

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
              p \leftarrow p - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Parameters
    ----------
    learning_rate : float or function of int
        :math:`\eta`; a function is called with the number of updates made so far: 0 for the first.
    betas : (float, float), from 0 to below 1
        :math:`\beta_1, \beta_2`: how much of the means of gradients and of their squares is kept at each step.
    eps : float
        :math:`\epsilon`, added to the root. With 0 a parameter whose gradient has always been 0 becomes nan.

    Returns
    -------
    Optimizer
        As `sgd`.

    Raises
    ------
    TypeError, ValueError
        If an option is not a number in its range.

    See Also
    --------
    adamw : with weight decay
    sgd : plain steps, with momentum

    Notes
    -----
    Each step is that of ``torch.optim.Adam`` (``tests/train/test_optim.py``).

    References
    ----------
    D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, arXiv:1412.6980.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = (xs.Layer(np.ones((1, 2)), np.zeros(2)),)
    >>> optimizer = xs.adam(0.25)
    >>> params, state = optimizer.update(params, params, optimizer.init(params))
    >>> params[0].weight.round(6)
    array([[0.75, 0.75]])
    """
    return _adam(learning_rate, betas, eps, 0.0)


@suggesting(**RATE, **CLIPPING, **BETAS, **dict.fromkeys((*PENALTY.split(), "decay", "wd"), "weight_decay="))
def adamw(
    learning_rate: LearningRate = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    r"""Adam with decoupled weight decay: p shrinks by :math:`1 - \eta \lambda` before each step.

    Parameters
    ----------
    learning_rate : float or function of int
        :math:`\eta`; a function is called with the number of updates made so far: 0 for the first.
    betas : (float, float), from 0 to below 1
        How much of the means of gradients and of their squares is kept at each step.
    eps : float
        Added to the root of the mean of the squares.
    weight_decay : float
        :math:`\lambda`, for weights and biases alike.

    Returns
    -------
    Optimizer
        As `sgd`.

    Raises
    ------
    TypeError, ValueError
        As `adam`.

    See Also
    --------
    adam : without weight decay

    Notes
    -----
    Each step is that of ``torch.optim.AdamW`` (``tests/train/test_optim.py``).

    References
    ----------
    I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019, arXiv:1711.05101.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> params = (xs.Layer(np.ones((1, 2)), np.zeros(2)),)
    >>> optimizer = xs.adamw(0.25, weight_decay=0.4)
    >>> params, state = optimizer.update(params, params, optimizer.init(params))
    >>> params[0].weight.round(6)
    array([[0.65, 0.65]])
    """
    return _adam(learning_rate, betas, eps, as_number("weight_decay", weight_decay))


def _adam(learning_rate: LearningRate, betas: tuple[float, float], eps: float, weight_decay: float) -> Optimizer:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers, got {betas!r}.")
    first, second = (as_number(f"betas[{i}]", beta, below=1.0) for i, beta in enumerate(betas))
    return Adam(_as_rate(learning_rate), (first, second), as_number("eps", eps), weight_decay)


def _as_rate(learning_rate: LearningRate) -> LearningRate:
    return learning_rate if callable(learning_rate) else as_number("learning_rate", learning_rate)
