"""Layers, and the activation that hidden layers carry.

The activation is part of a layer's type: code that rebuilds a layer with `type(layer)(...)`, as JAX, PyTorch, dask and
pickle do, keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from xpsoftmax._arguments.options import check_choice
from xpsoftmax._typing import Activation, Array, dtype_name
from xpsoftmax.kernels.activations import ACTIVATIONS


def check_activation(name: str) -> None:
    """Check the name of an activation; the error lists the names that exist."""
    check_choice("activation", name, tuple(ACTIVATIONS))


class Layer(NamedTuple):
    """Weights and bias of one layer: ``X @ weight + bias``.

    Attributes
    ----------
    weight : array, (fan_in, fan_out)
    bias : array, (fan_out,)

    Notes
    -----
    ``layer.activation`` is the activation that a hidden layer of a network carries, or None. `init_params` with
    ``activation=`` and `train` return such layers, of a subclass for each activation, and the functions take the
    activation from them. ``layer._replace(weight=...)``, copies, pickles, and the pytrees of JAX and PyTorch keep it.
    Every function also takes a plain pair ``(weight, bias)`` in place of a layer; it carries no activation.

    Examples
    --------
    >>> import numpy as np
    >>> import xpsoftmax as xs
    >>> layer = xs.Layer(np.array([[1.0, -1.0, 0.0]]), np.zeros(3))
    >>> xs.mlp_logits((layer,), np.array([[2.0]]))
    array([[ 2., -2.,  0.]])
    >>> weight, bias = layer
    >>> [layer.activation for layer in xs.init_params((4, 10, 3), rng=0, activation="tanh")]
    ['tanh', None]
    """

    weight: Array
    bias: Array

    @property
    def activation(self) -> Activation | None:
        """Activation that the layer carries."""
        return None

    def __repr__(self) -> str:
        """Sizes, activation and dtype: the numbers would fill a page."""
        sizes = sizes_of([self])
        if sizes is None:
            return f"{type(self).__name__}(weight={self.weight!r}, bias={self.bias!r})"
        words = (sizes, self.activation, dtype_name(self.weight.dtype))
        return f"Layer({', '.join(word for word in words if word)})"


def sizes_of(layers: Sequence[Any]) -> str | None:
    """Return the sizes of layers in a word, such as "64-32-10"; None if an entry is not an array."""
    shapes: list[Any] = [getattr(layer[0], "shape", ()) for layer in layers]
    if not shapes or any(len(shape) != 2 for shape in shapes) or not hasattr(layers[0][0], "dtype"):
        return None
    return "-".join(str(size) for size in (shapes[0][0], *(shape[1] for shape in shapes)))


class IdentityLayer(Layer):
    """A hidden layer without an activation."""

    __slots__ = ()
    activation = "identity"


class ReluLayer(Layer):
    """A hidden layer with ReLU."""

    __slots__ = ()
    activation = "relu"


class TanhLayer(Layer):
    """A hidden layer with tanh."""

    __slots__ = ()
    activation = "tanh"


class LogisticLayer(Layer):
    """A hidden layer with the logistic function."""

    __slots__ = ()
    activation = "logistic"


class SiluLayer(Layer):
    """A hidden layer with SiLU."""

    __slots__ = ()
    activation = "silu"


class GeluLayer(Layer):
    """A hidden layer with GELU."""

    __slots__ = ()
    activation = "gelu"


Params = tuple[Layer, ...]


PairsOfArrays: TypeAlias = Sequence[tuple[Array, Array] | list[Array]]
"""Parameters as the public functions take them: layers, or plain pairs (weight, bias)."""


HIDDEN_TYPES: dict[str, type[Layer]] = {
    kind.activation: kind for kind in (IdentityLayer, ReluLayer, TanhLayer, LogisticLayer, SiluLayer, GeluLayer)
}
"""The type of a hidden layer that carries an activation, by the name of the activation."""


LAYER_TYPES = frozenset({Layer, *HIDDEN_TYPES.values()})
"""The types of all layers."""


DEFAULT = "relu"


def layer_type_of(layer: object) -> type[Layer]:
    """Return the type for a layer that is made from this one: the type of this one, or `Layer` for a plain pair."""
    kind: Any = type(layer)
    if kind in LAYER_TYPES:
        return kind  # type: ignore[no-any-return]
    return HIDDEN_TYPES.get(layer.activation or "", Layer) if isinstance(layer, Layer) else Layer


def recorded_activation(layers: Sequence[Any], name: str = "params") -> str | None:
    """Return the activation that the hidden layers carry, or None. The last layer has no activation."""
    found, first = None, 0
    for i, layer in enumerate(layers[:-1]):
        own = layer.activation if isinstance(layer, Layer) else None
        if own is None or own == found:
            continue
        if found is not None:
            raise ValueError(f"{name}[{i}] must carry the activation of {name}[{first}], {found!r}, got {own!r}.")
        found, first = own, i
    return found


def resolved_activation(layers: Sequence[Any], activation: str | None) -> str:
    """Return the activation of a network: the explicit one, else the one that its layers carry, else the default."""
    if activation is not None:
        check_activation(activation)
    own = recorded_activation(layers)
    if own is None:
        return DEFAULT if activation is None else activation
    if activation is not None and activation != own:
        raise ValueError(
            f"activation must be the one that params carry, {own!r}, got {activation!r}. Leave activation out; "
            "plain pairs (weight, bias) carry none."
        )
    return own


def with_activation(layers: Sequence[Layer], activation: str) -> Params:
    """Return the layers; the hidden ones carry the activation."""
    kind = HIDDEN_TYPES[activation]
    return (*(kind(*layer) for layer in layers[:-1]), *layers[-1:])


def with_types_of(layers: Sequence[Layer], others: Sequence[Layer]) -> Params:
    """Return `layers` with the types, and so the activations, of `others`."""
    return tuple(layer_type_of(other)(*layer) for layer, other in zip(layers, others, strict=True))
