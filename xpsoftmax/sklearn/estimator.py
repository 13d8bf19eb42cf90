"""A classifier for scikit-learn, on any array library: parameters, checks and labels around the steps of `train`."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from types import ModuleType
from typing import Any, NoReturn, Self, TypeAlias

import numpy as np
from array_api_compat import array_namespace, device, is_cupy_array, is_dask_array, is_jax_namespace

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
except ImportError as error:
    raise ImportError(
        f"xpsoftmax.sklearn needs scikit-learn: pip install scikit-learn ({error}).", name=error.name
    ) from error
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from xpsoftmax._arguments import checks as check
from xpsoftmax._arguments.finite import sum_is_finite
from xpsoftmax._arguments.home import library, quiet
from xpsoftmax._arguments.host import to_host, to_library
from xpsoftmax._arguments.options import as_integer, as_number, check_choice, check_flag
from xpsoftmax._arguments.problem import LossOptions
from xpsoftmax._network.backprop import Buffers, forward
from xpsoftmax._network.chunks import DEFAULT_MAX_MEMORY, is_writable
from xpsoftmax._network.layers import Layer, PairsOfArrays, Params, carrying, check_activation, recorded
from xpsoftmax._network.network import Network, as_network, copied
from xpsoftmax._network.vectors import parts_of
from xpsoftmax._train.data import as_data
from xpsoftmax._train.interrupts import Interrupted, interrupts
from xpsoftmax._train.optimizers import Optimizer, State, UncorrectedAdam, VelocitySgd
from xpsoftmax._train.steps import Stepper
from xpsoftmax._typing import SIXTEEN_BIT, Array, Device, Namespace, dtype_name
from xpsoftmax.sklearn.checks import (
    bad_logits,
    check_inputs,
    check_logits,
    check_no_missing,
    is_overflow,
    overflow_error,
)
from xpsoftmax.sklearn.labels import (
    alike,
    are_sorted,
    as_labels,
    as_raw_array,
    encode,
    family,
    is_elsewhere,
    refuse_masked,
    shortened,
)
from xpsoftmax.sklearn.targets import (
    Targets,
    as_class_weight,
    as_classes,
    as_sample_weight,
    as_targets,
    is_probabilities,
    labels_of,
)

__all__ = ["MLPClassifier"]

NUMBERS: dict[str, dict[str, float]] = {
    "alpha": {},
    "learning_rate_init": {},
    "power_t": {},
    "tol": {},
    "momentum": {"high": 1.0},
    "validation_fraction": {"below": 1.0},
    "beta_1": {"below": 1.0},
    "beta_2": {"below": 1.0},
    "epsilon": {},
    "label_smoothing": {"high": 1.0},
}
"""Parameters that are numbers not below 0, with their upper limits."""
CHOICES = {
    "solver": ("adam", "sgd", "lbfgs"),
    "learning_rate": ("constant", "invscaling", "adaptive"),
}
FLAGS = ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping")
ONE_COLUMN = (
    "params must have a column for each class in the last layer, got one column and {}. scikit-learn has one "
    "logistic output w, b for two classes: pass the columns np.hstack([-w / 2, w / 2]) and np.hstack([-b / 2, b / 2]). "
    "For a network of one class pass classes=[label]."
)
NOT_FINITE = (
    "Solver produced non-finite parameter weights, {}. The input data may contain large values and need to be "
    "preprocessed; a smaller learning_rate_init may help, too. The model is as it was before."
)
IN_CACHE = 2**20
"""Bytes of the widest layer of a chunk of NumPy rows that are predicted."""
LEAST_ROWS = 64
"""The fewest rows of such a chunk: products of fewer rows take longer for each row."""
INTERRUPTED = "Training interrupted by user."
HINT = " Pass weights of the rows by name: sample_weight=..."
LEAST_RATE = 1e-6
"""An adaptive learning rate is divided only while it is above this."""


Rows: TypeAlias = tuple[Array, Array, Array | None]
"""Inputs, targets where the inputs are, and weights."""


class MLPClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Multi-layer perceptron for scikit-learn: softmax loss and network of xpsoftmax, on any array library.

    Parameters, rules of training and, from the same `random_state`, initial weights and batches are those of
    `sklearn.neural_network.MLPClassifier` (but with `early_stopping`: the split is stratified here). Beyond it: arrays
    of CuPy, PyTorch and others are computed with where they are; class weights, label smoothing, probabilities as
    targets, bounded memory, no matrix of one-hot targets.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default=(100,)
        Units of each hidden layer; ``()`` is softmax regression.
    activation : {"identity", "logistic", "tanh", "relu", "silu", "gelu"}, default="relu"
        Of the hidden layers.
    solver : {"adam", "sgd", "lbfgs"}, default="adam"
        "lbfgs" is SciPy's, on NumPy data alone.
    alpha : float, default=0.0001
        Strength of the L2 penalty ``alpha / 2 * sum(W**2) / n`` on the weight matrices, n being the rows of the batch,
        or the sum of their weights.
    batch_size : int or "auto", default="auto"
        Rows of a step; "auto" is ``min(200, N)``. Not for lbfgs.
    learning_rate : {"constant", "invscaling", "adaptive"}, default="constant"
        Only for sgd. "invscaling" is ``learning_rate_init / (t_ + 1)**power_t``, set after each epoch; "adaptive"
        divides by 5 where training would stop, until the rate is 1e-6.
    learning_rate_init : float, default=0.001
        Not for lbfgs.
    power_t : float, default=0.5
        Exponent of "invscaling".
    max_iter : int, default=200
        Epochs at most; iterations of lbfgs.
    shuffle : bool, default=True
        Draw a new order of the rows for each epoch. Not for lbfgs.
    random_state : int, RandomState or None, default=None
        For initial weights, the rows held out and the order of the rows. Numbers are drawn on the host: every library
        sees the same.
    tol : float, default=1e-4
        An epoch that improves the loss, or with `early_stopping` the score, by less counts as none; for lbfgs the
        largest entry of the gradient to stop at.
    verbose : bool or int, default=False
        Print the loss of each epoch and why training stops.
    warm_start : bool, default=False
        Let `fit` go on from the last weights.
    momentum : float, default=0.9
        Only for sgd.
    nesterovs_momentum : bool, default=True
        Only for sgd with momentum.
    early_stopping : bool, default=False
        Hold out rows, stop when the accuracy on them does not improve, and return to the best weights. Not for lbfgs.
    validation_fraction : float, default=0.1
        Share of the rows that are held out: of each class its share, if every class has at least two rows and one
        could go to each part; else at random.
    beta_1, beta_2 : float, default=0.9, 0.999
        Decay of the two means of adam.
    epsilon : float, default=1e-8
        Of adam, added as scikit-learn adds it: to the root of the mean square before its correction.
    n_iter_no_change : int, default=10
        Stop after more than so many epochs without improvement; ``numpy.inf`` never.
    max_fun : int, default=15000
        Evaluations of the loss at most, for lbfgs.
    class_weight : dict, "balanced" or None, default=None
        Weights of the labels (those that are not named weigh 1), by which the weights of their rows are multiplied;
        "balanced" is ``N / (C * count)``. For probabilities each class's term is multiplied.
    label_smoothing : float, default=0.0
        Targets become ``(1 - label_smoothing) * target + label_smoothing / C``.
    max_memory : int, optional
        Bytes of temporary memory of a step, and of `predict`; rows pass through the network in chunks.
    dtype : {"float32", "float64"} or dtype, optional
        To compute in. Default: that of `X` if it is float32, float32 for 16-bit `X`, else float64; that of the weights
        where a fit goes on.

    Attributes
    ----------
    classes_ : numpy.ndarray, (C,)
        Sorted labels, on the host; 0, 1, ..., C - 1 for probabilities. Nullable integers are integers here, and
        nullable booleans are booleans; the dtype is object for strings that came as objects, and for integers that
        neither int64 nor uint64 holds.
    coefs_, intercepts_ : list of array
        Weights (fan_in, fan_out) and biases (fan_out,) of each layer, where `X` was.
    params_ : tuple of Layer
        The same as the functions of xpsoftmax take them; they carry the activation of the fit.
    loss_ : float
        Loss of the last epoch (the mean over its steps, as far as they were made), penalty included; nan before there
        is one.
    loss_curve_ : list of float
        Loss of each epoch, or iteration of lbfgs; `warm_start` and `partial_fit` go on with it.
    best_loss_ : float or None
        The least of them; None with `early_stopping`.
    validation_scores_ : list of float, or None
        Accuracy on the rows held out after each epoch, with `early_stopping`.
    best_validation_score_ : float or None
        The greatest of them.
    n_iter_ : int
        Epochs, or iterations of lbfgs, of the last call.
    t_ : int
        Rows that steps were made with in all.
    n_features_in_, feature_names_in_
        As for every scikit-learn estimator.
    n_layers_, n_outputs_ : int
        Layers, that of the inputs included; classes.
    out_activation_ : "softmax"

    See Also
    --------
    train : the same steps without scikit-learn, with a callback, a progress bar, resumption.
    save_params, load_params : files of `params_`; `from_params` makes a model of them.

    Notes
    -----
    scikit-learn gives two classes one logistic output; here they have two softmax columns, of which only the difference
    counts. Its best split has half the squared norm, so that ``alpha`` here is like ``alpha / 2`` there in the last
    layer; ``hidden_layer_sizes=()`` with `alpha` is `LogisticRegression` with ``C = 1 / alpha``, or for two classes
    ``C = 2 / alpha``. What else differs, and why, is in ADR 11 (docs/adr/0011-the-estimator.md).

    An interrupt (Ctrl-C) ends the step that is being made, or the evaluation of lbfgs; what was learnt so far stays,
    with a warning, but an epoch that is not complete is not counted. A second one is raised.

    An error, a loss that is not finite among them, leaves the model as it was before the call.

    References
    ----------
    X. Glorot and Y. Bengio, AISTATS 2010 (initial weights); D. P. Kingma and J. Ba, arXiv:1412.6980; D. C. Liu and
    J. Nocedal, Mathematical Programming 45 (1989).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from xpsoftmax.sklearn import MLPClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> X_train, X_test, y_train, y_test = train_test_split(X / 16.0, y, random_state=0)
    >>> model = MLPClassifier(early_stopping=True, learning_rate_init=0.01, random_state=0)
    >>> model = model.fit(X_train, y_train)
    >>> model.score(X_test, y_test) > 0.95
    True
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        class_weight: Any = None,
        label_smoothing: float = 0.0,
        max_memory: int | None = None,
        dtype: Any = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.max_memory = max_memory
        self.dtype = dtype

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = self.solver != "lbfgs"
        return tags

    # --- learning -----------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Learn from all rows, for `max_iter` epochs or until nothing improves.

        Parameters
        ----------
        X : array or array-like, (N, D)
            NumPy arrays, data frames and lists are computed with on the host, arrays of any other library where they
            are. Dask arrays and data frames are computed with block by block (see `xpsoftmax.dask.train`): epochs go
            through groups of 8 blocks, and labels and weights, which may be of dask too, come to the client. Their
            `y` must be labels; inputs that are not finite are looked for when the loss is not finite.
        y : array or array-like, (N,) or (N, C)
            Labels of one kind, none of them missing: integers, booleans, strings, dates, durations, or floats of
            integral value below 2**53 (float32: 2**24). Integers are compared as integers, whatever holds them.
            Or floating probabilities, a column for each class, whose rows add up to 1.
        sample_weight : array or array-like, (N,), optional
            Finite and not negative. It and `y` may be of any library: they are brought to where `X` is.

        Returns
        -------
        MLPClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            If a parameter or an array does not fit, is masked, or holds missing values, where the message names the
            first row; or if the solver came to numbers that are not finite, where it names the step. The model is then
            as it was before.
        """
        return self._fit(X, y, sample_weight)

    @available_if(lambda self: self._makes_steps())  # type: ignore[untyped-decorator, unused-ignore]
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Learn from these rows for one epoch, going on from where the last call ended.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array-like, (C,), optional
            All labels that there are, each once; sorted if `y` holds probabilities, of which they name the columns. The
            first call must have them, unless `y` holds probabilities. In scikit-learn's classifier `sample_weight`
            comes before them: pass both by name.

        Returns
        -------
        MLPClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            As `fit`; and with `early_stopping` or a balanced `class_weight`, which are about all data at once.

        Notes
        -----
        As in scikit-learn the optimiser is made in the first call (or in `fit`) and stays: later changes of `solver`,
        `learning_rate`, `learning_rate_init`, `power_t`, `momentum`, `nesterovs_momentum`, `beta_1`, `beta_2` and
        `epsilon` have no effect on it. Other parameters count from the next call on.
        """
        if self.early_stopping:
            raise ValueError("early_stopping must be False for partial_fit, got True: partial_fit sees no whole epoch.")
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight must be None or a dict for partial_fit, got {self.class_weight!r}. "
                'sklearn.utils.compute_class_weight("balanced", ...) makes the weights of all data.'
            )
        return self._fit(X, y, sample_weight, classes, incremental=True)

    def _makes_steps(self) -> bool:
        if self.solver == "lbfgs":
            raise AttributeError('partial_fit needs the solver "adam" or "sgd": lbfgs looks at all data at once.')
        return True

    def _fit(self, X: Any, y: Any, sample_weight: Any, classes: Any = None, *, incremental: bool = False) -> Self:
        """Check everything, then begin, then learn; an error at any time leaves the model as it was."""
        with _all_or_nothing(self), _beside(X):
            hidden = self._check_parameters()
            first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
            if y is None:
                raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None.")
            X = self._checked(X, "partial_fit" if incremental else "fit", reset=first)
            X, y, sample_weight = _labels_here(X, y, sample_weight)
            given = None if classes is None else as_classes(classes, HINT)
            known = _known_classes(given, None if first else self.classes_)
            targets = as_targets(
                y, _block_of(X), known, complete=not incremental, hint=HINT if classes is not None else ""
            )
            check_consistent_length(X, targets.values)
            if targets.values.ndim == 2 and given is not None and not are_sorted(given):
                raise ValueError(f"classes must be sorted, as the columns of probabilities are, got {classes!r:.60}.")
            if known is None and incremental and targets.values.ndim == 1:
                raise ValueError("classes must be passed on the first call to partial_fit, got None.")
            weight = as_sample_weight(sample_weight, _on_client(X))
            sizes = (X.shape[1], *hidden, len(targets.classes))
            if not first:
                self._check_sizes(sizes)
                self._check_dtype(X)
            rng = _as_random_state(self.random_state)
            layers = self._initial(rng, sizes, _block_of(X)) if first else carrying(self.params_, self.activation)
            net = as_network(layers, None)
            stepper, held_out = self._prepared(net, X, targets, weight, rng)
            if first:
                self._begin(layers, targets.classes)
            else:
                self._go_on()
            with quiet(stepper.given.xp, stepper.given.frame.device), _blamed_on(X, stepper):
                if self.solver == "lbfgs":
                    layers = self._minimised(stepper)
                else:
                    layers = self._stepped(stepper, held_out, rng, incremental=incremental)
            self._keep(layers)
        return self

    def _check_parameters(self) -> list[int]:
        """Check all parameters; return the sizes of the hidden layers."""
        check_activation(self.activation)
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name, limits in NUMBERS.items():
            as_number(name, getattr(self, name), **limits)
        for name in ("learning_rate_init", "epsilon"):
            if getattr(self, name) == 0.0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in FLAGS:
            check_flag(name, getattr(self, name))
        if not isinstance(self.verbose, (bool, np.bool_)):
            as_integer("verbose", self.verbose, low=0)
        for name in ("max_iter", "max_fun"):
            as_integer(name, getattr(self, name), low=1)
        if self.n_iter_no_change != math.inf:
            as_integer("n_iter_no_change", self.n_iter_no_change, low=1)
        if not (isinstance(self.batch_size, str) and self.batch_size == "auto"):
            as_integer("batch_size", self.batch_size, low=1)
        return _hidden_sizes(self.hidden_layer_sizes)

    def _check_sizes(self, sizes: Sequence[int]) -> None:
        own = [self.coefs_[0].shape[0], *(bias.shape[0] for bias in self.intercepts_)]
        if own != list(sizes):
            raise ValueError(
                f"hidden_layer_sizes must make the layers to go on from, {own}, got {list(sizes)}. "
                "fit with warm_start=False begins anew."
            )

    def _check_dtype(self, X: Array) -> None:
        own = self.coefs_[0].dtype
        if self.dtype is not None and own != self._dtype(array_namespace(X), X):
            raise ValueError(
                f"dtype must be None or that of the weights to go on from, {dtype_name(own)}, got {self.dtype!r}. "
                "fit with warm_start=False begins anew."
            )

    def _checked(self, X: Any, method: str, *, reset: bool) -> Array:
        """Check inputs; return them in the dtype to compute in. Without `reset` they must fit the model."""
        refuse_masked("X", X)
        if not reset:
            self._check_library(X, method)
        if not (is_elsewhere(X) or is_lazy(X)):
            if not reset and self._seen_to_fit(X) and (method != "partial_fit" or sum_is_finite(X)):
                return X  # what is predicted is looked at on the way
            dtype: Any = self._dtype(np, X) if reset else self.coefs_[0].dtype
            return self._checked_on_host(X, dtype, reset=reset)
        if is_lazy(X):
            return self._checked_lazily(X, reset=reset)
        xp, array = check.as_array("X", X)
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"X must have shape (N, D), both at least 1, got {tuple(array.shape)}.")
        if xp.isdtype(array.dtype, "complex floating"):
            raise ValueError(f"X must be of real numbers, got {array.dtype}: complex data is not supported.")
        array = xp.astype(array, self._dtype(xp, array) if reset else self.coefs_[0].dtype, copy=False)
        validate_data(self, array, skip_check_array=True, reset=reset)
        check_inputs(array)
        return array

    def _checked_on_host(self, X: Any, dtype: Any, *, reset: bool) -> np.ndarray:
        """The same by scikit-learn's checks; but a number that is not finite is named by its row."""
        try:
            with np.errstate(over="ignore"):  # a number too large for float32 is found below
                X = validate_data(self, X, dtype=dtype, reset=reset, ensure_all_finite=False)
        except TypeError:
            check_no_missing(X)
            raise
        check_inputs(X)
        return X  # type: ignore[no-any-return]

    def _checked_lazily(self, X: Any, *, reset: bool) -> Array:
        """The same for dask: whether the numbers are finite shows when they are computed with."""
        from xpsoftmax.sklearn import on_dask as lazily

        array, frame = lazily.as_inputs(X), X if is_dask_array(X) else X._meta  # which has the names of features
        block = array._meta
        dtype = self._dtype(array_namespace(block), block) if reset else self.coefs_[0].dtype
        dtype = dtype[0] if isinstance(dtype, list) and block.dtype.name not in ("float32", "float64") else dtype
        validate_data(self, frame, skip_check_array=True, reset=reset)
        return array if isinstance(dtype, list) else array.astype(dtype)

    def _seen_to_fit(self, X: Any) -> bool:
        """Whether scikit-learn's checks can be left out, which take longer than a small prediction."""
        return (
            type(X) is np.ndarray
            and X.dtype == self.coefs_[0].dtype
            and X.ndim == 2
            and X.shape[0] > 0
            and X.shape[1] == self.n_features_in_
            and not hasattr(self, "feature_names_in_")
        )

    def _check_library(self, X: Any, method: str) -> None:
        own, where = array_namespace(self.coefs_[0]), device(self.coefs_[0])
        if is_lazy(X):
            X = X._meta
        xp, there = (array_namespace(X), device(X)) if is_elsewhere(X) else (array_namespace(np.empty(0)), "cpu")
        if xp is not own or there != where:
            raise ValueError(
                f"X passed to {type(self).__name__}.{method}() must use the same namespace and device as the model, "
                f"{library(own)} on {where}, got {library(xp)} on {there}. "
                "Move one of them; the model by its method to()."
            )

    def _dtype(self, xp: Namespace, X: Any) -> Any:
        """What to compute in; of several scikit-learn takes the first that fits."""
        name = self.dtype
        if name is None:
            kind = dtype_name(X.dtype) if hasattr(X, "dtype") else ""
            if not is_elsewhere(X):
                return np.float32 if kind in SIXTEEN_BIT else [np.float64, np.float32]
            wide = "float64" in xp.__array_namespace_info__().dtypes(kind="real floating")
            name = "float32" if kind in ("float32", *SIXTEEN_BIT) or not wide else "float64"
        else:
            with suppress(TypeError):  # of other libraries
                name = np.dtype(name)
            with suppress(TypeError):  # not one of any: it has no hash
                name = dtype_name(name)
        if name not in ("float32", "float64"):
            raise ValueError(f'dtype must be "float32" or "float64", got {self.dtype!r}.')
        if name not in xp.__array_namespace_info__().dtypes(kind="real floating"):
            raise ValueError(f"dtype must be one that {library(xp)} has{_if_set(xp)}, got {self.dtype!r}.")
        return getattr(xp, name)

    def _initial(self, rng: Any, sizes: Sequence[int], X: Array) -> Params:
        """Draw weights and biases uniformly, as scikit-learn does: from the same seed come the same numbers."""
        xp, options = array_namespace(X), {"dtype": X.dtype, "device": device(X)}
        layers = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            bound = math.sqrt((2.0 if self.activation == "logistic" else 6.0) / (fan_in + fan_out))
            arrays = (rng.uniform(-bound, bound, shape) for shape in ((fan_in, fan_out), (fan_out,)))
            layers.append(Layer(*(xp.asarray(array, **options) for array in arrays)))
        return carrying(layers, self.activation)

    def _begin(self, layers: Params, classes: np.ndarray) -> None:
        """Set what a first fit starts from."""
        self._keep(layers)
        self._activation = self.activation
        self.classes_ = classes
        self.n_layers_ = len(layers) + 1
        self.n_outputs_ = len(classes)
        self.out_activation_ = "softmax"
        self.n_iter_ = self.t_ = 0
        self.loss_ = math.nan
        self.loss_curve_: list[float] = []
        # Numbers and a list, or None: as scikit-learn has them.
        self.best_loss_: Any = None
        self.best_validation_score_: Any = None
        self.validation_scores_: Any = None
        self._no_improvement_count = 0
        self._optimizer: Optimizer | None = None
        self._schedule: tuple[str, float, float] = ("constant", 0.0, 0.0)
        self._state: State = ()
        self._best: Params = ()

    def _go_on(self) -> None:
        """Make lists that grow anew: those of before stay as they are, for the case of an error.

        As in scikit-learn, a parameter that was changed counts from this call on: the activation, too.
        """
        self._activation = self.activation
        self.loss_curve_ = list(self.loss_curve_)
        if self.validation_scores_ is not None:
            self.validation_scores_ = list(self.validation_scores_)

    def _keep(self, layers: Params) -> None:
        self.coefs_ = [layer.weight for layer in layers]
        self.intercepts_ = [layer.bias for layer in layers]

    def _prepared(
        self, net: Network, X: Array, targets: Targets, weight: Array | None, rng: Any
    ) -> tuple[Any, Rows | None]:
        """What makes steps on the rows to learn from; and rows held out."""
        xp, options = net.xp, {"dtype": net.dtype, "device": net.frame.device}
        if self.solver == "lbfgs" and type(_block_of(X)) is not np.ndarray:
            raise ValueError(
                f'solver must be "adam" or "sgd" for {library(xp)} arrays, got "lbfgs": SciPy needs NumPy.'
            )
        class_weight = as_class_weight(self.class_weight, targets)
        y, held_out = targets.values, None
        parts = self._split(to_host("y", y), rng) if self.early_stopping and self.solver != "lbfgs" else None
        if is_dask_array(X):
            return self._prepared_lazily(net, X, y, weight, class_weight, parts)
        if y.ndim == 1:
            y = xp.asarray(y, device=net.frame.device)
        if parts is not None:
            (X, y, weight), held_out = (_taken(net, (X, y, weight), part) for part in parts)
        loss = LossOptions(
            None if class_weight is None else xp.asarray(class_weight, **options), weight, None, self.label_smoothing
        )
        data = as_data(net, "X", X, y, loss, self.max_memory)
        if data.counts is not None and not data.counts.any():
            self._refuse_weights(weight, "to learn from")
        if held_out is not None and held_out[2] is not None and not bool(xp.any(held_out[2] != 0.0)):
            self._refuse_weights(held_out[2], "held out")
        return Stepper(net, data, float(self.alpha), "mean", self.max_memory, averaged=True), held_out

    def _prepared_lazily(
        self,
        net: Network,
        X: Array,
        y: np.ndarray,
        weight: np.ndarray | None,
        class_weight: np.ndarray | None,
        parts: Sequence[np.ndarray] | None,
    ) -> tuple[Any, Rows | None]:
        """The same for dask; rows keep their blocks, and in them their order."""
        from xpsoftmax.sklearn import on_dask as lazily

        held_out = None
        if parts is not None:
            rows, held = (np.sort(part) for part in parts)
            held_out = X[held], y[held], None if weight is None else weight[held]
            X, y, weight = X[rows], y[rows], None if weight is None else weight[rows]
            if held_out[2] is not None and not held_out[2].any():
                self._refuse_weights(held_out[2], "held out")
        counts = np.ones(len(y)) if weight is None else weight
        if not (counts if class_weight is None else counts * class_weight[y]).any():
            self._refuse_weights(weight, "to learn from")
        if class_weight is not None:
            class_weight = net.xp.asarray(class_weight, dtype=net.dtype, device=net.frame.device)
        steps = lazily.as_steps(
            net, X, y, weight, class_weight, self.label_smoothing, float(self.alpha), self.max_memory,
            all_blocks=self.solver == "lbfgs",
        )  # fmt: skip
        return steps, held_out

    def _refuse_weights(self, weight: Array | None, which: str) -> NoReturn:
        """Say by which weights no row counts; with early stopping, of which rows."""
        if weight is None or bool(array_namespace(weight).any(weight != 0.0)):
            name, got = "class_weight", f"{self.class_weight!r:.60}: no row is left that weighs anything"
        else:
            name, got = "sample_weight", "weights that are all zero"
        if self.early_stopping and self.solver != "lbfgs":
            raise ValueError(
                f"{name} must let a row count of those {which}, got {got}. Another random_state holds out others."
            )
        raise ValueError(f"{name} must let a row count, got {got}.")

    def _split(self, y: np.ndarray, rng: Any) -> Sequence[np.ndarray]:
        """Rows to learn from and rows to hold out, with their share of each class if every class has enough."""
        held, stratify = math.ceil(self.validation_fraction * len(y)), None
        if not 2 <= held < len(y):
            raise ValueError(
                f"validation_fraction must hold out at least 2 rows and leave one, got {self.validation_fraction} of "
                f"{len(y)} rows, which is {held}. The validation set is too {'small' if held < 2 else 'large'}."
            )
        if y.ndim == 1:
            counts = np.bincount(y)
            if counts[counts > 0].min() > 1 and min(held, len(y) - held) >= np.count_nonzero(counts):
                stratify = y
        rows = np.arange(len(y))
        return train_test_split(rows, test_size=held, stratify=stratify, random_state=rng)  # type: ignore[no-any-return]

    # --- solvers ------------------------------------------------------------------------------------------------------

    def _stepped(self, stepper: Any, held_out: Rows | None, rng: Any, *, incremental: bool) -> Params:
        """Make epochs of steps, by the rules of scikit-learn, until nothing improves."""
        net, rows = stepper.given, stepper.rows
        layers = copied(net, net.layers, net.dtype)
        optimizer, state = self._optimizer_and_state(net, layers, incremental=incremental)
        schedule, first_rate, power = self._schedule
        self._expect(layers if held_out is not None else None)
        batch = self._batch(rows)
        order = np.arange(rows) if self.shuffle and stepper.blocks is None else None
        self.n_iter_ = 0
        with interrupts() as interrupted:
            for _ in range(1 if incremental else self.max_iter):
                if order is not None:
                    order = order[rng.permutation(rows)]
                if stepper.blocks is None:
                    batches = _batches(stepper, order, batch)
                else:
                    batches = _batches_of_blocks(stepper, rng if self.shuffle else None, batch)
                layers, state, loss = _epoch(stepper, optimizer, layers, state, batches, interrupted)
                if interrupted():
                    self.loss_ = self.loss_ if math.isnan(loss) else loss
                    warnings.warn(INTERRUPTED, stacklevel=4)
                    break
                self._count(loss, rows)
                try:
                    waited = self._waited(stepper, layers, held_out)
                except Interrupted:
                    warnings.warn(INTERRUPTED, stacklevel=4)
                    break
                if schedule == "invscaling":
                    optimizer = replace(optimizer, learning_rate=first_rate / (self.t_ + 1) ** power)
                if waited:
                    optimizer, going = self._slowed(optimizer)
                    if not going:
                        break
                if self.n_iter_ == self.max_iter and not incremental:
                    warnings.warn(
                        f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization "
                        "hasn't converged yet. Increase max_iter, or scale the data.",
                        ConvergenceWarning,
                        stacklevel=4,
                    )
        self._optimizer, self._state = optimizer, state
        return _finite(self._best if held_out is not None else layers)

    def _optimizer_and_state(self, net: Network, layers: Params, *, incremental: bool) -> tuple[Any, State]:
        """New ones, or for `partial_fit` those of the steps before."""
        if not incremental or self._optimizer is None:
            optimizer = self._new_optimizer()
            return optimizer, optimizer.init(layers)
        count, *kept = self._state
        shapes = [tuple(layer.weight.shape) for layer in layers]
        if any([tuple(layer.weight.shape) for layer in part] != shapes for part in kept):
            raise ValueError(
                f"coefs_ and intercepts_ must have the shapes that partial_fit has seen, got {shapes}: what the "
                "optimiser keeps of the steps before does not fit. fit with warm_start=True goes on from them."
            )
        return self._optimizer, (count, *(copied(net, arrays, net.dtype) for arrays in kept))

    def _new_optimizer(self) -> Optimizer:
        """Make what the parameters ask for, and keep it: they may be others in a later call to `partial_fit`."""
        rate = float(self.learning_rate_init)
        self._schedule = (self.learning_rate if self.solver == "sgd" else "constant", rate, float(self.power_t))
        if self.solver == "sgd":
            return VelocitySgd(rate, float(self.momentum), self.nesterovs_momentum)
        return UncorrectedAdam(rate, (float(self.beta_1), float(self.beta_2)), float(self.epsilon), 0.0)

    def _batch(self, rows: int) -> int:
        if isinstance(self.batch_size, str):
            return min(200, rows)
        if self.batch_size > rows:
            warnings.warn(
                f"batch_size is {self.batch_size}, larger than the sample size, {rows}. It is going to be clipped.",
                stacklevel=5,
            )
        return min(int(self.batch_size), rows)  # one of few bits could not count the rows

    def _expect(self, layers: Params | None) -> None:
        """Set what losses or, with the layers to start from, validation scores are compared with, if nothing is yet."""
        if layers is None:
            self.best_validation_score_ = self.validation_scores_ = None
            if self.best_loss_ is None:
                self.best_loss_ = math.inf
            return
        self.best_loss_ = None
        if self.validation_scores_ is None:
            self.best_validation_score_, self.validation_scores_ = -math.inf, []
            self._best = layers

    def _count(self, loss: float, rows: int) -> None:
        self.n_iter_ += 1
        self.t_ += rows
        self.loss_ = loss
        self.loss_curve_.append(loss)
        self._say(f"Iteration {self.n_iter_}, loss = {loss:.8f}")

    def _waited(self, stepper: Any, layers: Params, held_out: Rows | None) -> bool:
        """Look at what the epoch brought; whether too many have brought nothing."""
        if held_out is None:
            better = self.loss_ <= self.best_loss_ - float(self.tol)
            self.best_loss_ = min(self.best_loss_, self.loss_)
        else:
            X, y, weight = held_out
            net = as_network(layers, None)
            codes, xp = self._codes_held_out(net, X, stepper), net.xp
            if is_dask_array(X):
                xp = np
            score = _accuracy(xp, codes == (y if y.ndim == 1 else xp.argmax(y, axis=1)), weight)
            self.validation_scores_.append(score)
            self._say(f"Validation score: {score:f}")
            better = score >= self.best_validation_score_ + float(self.tol)
            if score > self.best_validation_score_:
                self.best_validation_score_, self._best = score, copied(net, layers, net.dtype)
        self._no_improvement_count = 0 if better else self._no_improvement_count + 1
        return self._no_improvement_count > self.n_iter_no_change

    def _codes_held_out(self, net: Network, X: Array, stepper: Any) -> Array:
        try:
            codes = self._codes(net, X)
            return to_host("codes", stepper.scheduler.computed(codes)) if is_dask_array(X) else codes
        except ValueError as error:
            if not is_overflow(error):
                raise
            raise _diverged(f"and logits of rows held out that are not finite after epoch {self.n_iter_}") from error

    def _slowed(self, optimizer: Any) -> tuple[Any, bool]:
        """After too many epochs that brought nothing: a smaller learning rate and true, or false."""
        what = "Validation score" if self.early_stopping else "Training loss"
        said = f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} consecutive epochs."
        if self._schedule[0] != "adaptive":
            self._say(f"{said} Stopping.")
            return optimizer, False
        if optimizer.learning_rate <= LEAST_RATE:
            self._say(f"{said} Learning rate too small. Stopping.")
            return optimizer, False
        rate = optimizer.learning_rate / 5.0
        self._say(f"{said} Setting learning rate to {rate:f}")
        self._no_improvement_count = 0  # else it stays, as in scikit-learn: a warm start that brings nothing stops soon
        return replace(optimizer, learning_rate=rate), True

    def _minimised(self, stepper: Any) -> Params:
        """Minimise the loss of all rows by scipy's L-BFGS-B."""
        from scipy.optimize import OptimizeResult, minimize

        net = stepper.given
        found = OptimizeResult(x=_packed(net.layers), fun=math.nan)  # as far as it has come

        def loss_and_grad(x: np.ndarray) -> tuple[float, np.ndarray]:
            if interrupted():
                raise Interrupted
            loss, grads = stepper.loss_and_grads(_unpacked(x, net), None)
            if math.isnan(found.fun):
                found.fun = float(loss)
            return float(loss), _packed(grads)

        def report(intermediate_result: Any) -> None:
            found.update(x=intermediate_result.x.copy(), fun=float(intermediate_result.fun))
            self._count(found.fun, 0)

        self._expect(None)
        self.n_iter_ = 0
        options = {"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol}
        with interrupts() as interrupted:
            try:
                found = minimize(loss_and_grad, found.x, method="L-BFGS-B", jac=True, options=options, callback=report)
            except Interrupted:
                warnings.warn(INTERRUPTED, stacklevel=4)
            else:
                if not math.isfinite(found.fun):
                    raise _diverged(f"and the loss {found.fun} after {self.n_iter_} iterations")
                if found.status != 0:
                    warnings.warn(
                        f"lbfgs failed to converge after {self.n_iter_} iterations (status {found.status}): "
                        f"{found.message}. Increase max_iter or max_fun, or scale the data.",
                        ConvergenceWarning,
                        stacklevel=4,
                    )
        if not math.isnan(found.fun):  # there was an evaluation
            self.loss_ = float(found.fun)
            self.best_loss_ = min(self.best_loss_, self.loss_)
        return _finite(_unpacked(found.x, net))

    def _say(self, text: str) -> None:
        if self.verbose:
            print(text)

    # --- predicting ---------------------------------------------------------------------------------------------------

    def decision_function(self, X: Any) -> Array:
        """Logits, as scikit-learn's classifiers return them.

        Parameters
        ----------
        X : array or array-like, (N, D)
            Of the library and on the device that the model is on. For dask arrays and data frames, of which the blocks
            are, the result is a dask array.

        Returns
        -------
        array, (N, C), or (N,) for two classes
            For two classes the second logit minus the first: the log-odds of the second class.

        Raises
        ------
        NotFittedError, TypeError, ValueError
            If there is no model yet, if `X` does not fit it, or if the largest logit of a row is not finite: products
            overflow, or weights are not finite.
        """
        logits = self._outputs(X, "decision_function", None)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict(self, X: Any) -> Array:
        """Most probable label of each row.

        Parameters
        ----------
        X : array or array-like, (N, D)
            As for `decision_function`.

        Returns
        -------
        array, (N,)
            Where `X` is; on the host if its library does not have these labels: strings, or numbers of 64 bits beyond
            32 in JAX without ``jax_enable_x64``, or unsigned ones of more than 8 bits in PyTorch.

        Raises
        ------
        NotFittedError, TypeError, ValueError
            As `decision_function`.
        """
        check_is_fitted(self)
        with _beside(X):
            X = self._checked(X, "predict", reset=False)
            if is_dask_array(X):
                return self._lazily(X, "predict")
            return labels_of(self.classes_, self._codes(self._network(), X))

    def predict_proba(self, X: Any) -> Array:
        """Probabilities of the classes.

        Parameters
        ----------
        X : array or array-like, (N, D)
            As for `decision_function`.

        Returns
        -------
        array, (N, C)
            In the order of `classes_`.

        Raises
        ------
        NotFittedError, TypeError, ValueError
            As `decision_function`.
        """
        return self._outputs(X, "predict_proba", "softmax_rows")

    def predict_log_proba(self, X: Any) -> Array:
        """Logarithms of the probabilities: finite also where a probability is 0, but for those beyond all numbers.

        Parameters
        ----------
        X : array or array-like, (N, D)
            As for `decision_function`.

        Returns
        -------
        array, (N, C)
            In the order of `classes_`.

        Raises
        ------
        NotFittedError, TypeError, ValueError
            As `decision_function`.
        """
        return self._outputs(X, "predict_log_proba", "log_softmax_rows")

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy: the share of the rows whose predicted label is right.

        Parameters
        ----------
        X : array or array-like, (N, D)
            As for `decision_function`.
        y : array or array-like, (N,) or (N, C)
            Labels, or probabilities as for `fit`, of which the largest counts. Of any library: it is compared on the
            host, integers as integers.
        sample_weight : array or array-like, (N,), optional
            Finite, not negative, and not all zero.

        Returns
        -------
        float

        Raises
        ------
        NotFittedError, TypeError, ValueError
            As `decision_function`, and if `y` or `sample_weight` does not fit.
        """
        predicted = self.predict(X)
        y, predicted, sample_weight = (a.compute() if is_lazy(a) else a for a in (y, predicted, sample_weight))
        predicted = as_labels("predicted", predicted)
        raw = as_raw_array("y", y)
        if is_probabilities(raw):
            targets = as_targets(raw, np.empty(0), self.classes_, complete=False)
            labels = self.classes_[np.argmax(targets.values, axis=1)]
        else:
            labels = as_labels("y", raw)
        check_consistent_length(labels, predicted)
        if family(labels) != family(predicted):
            raise ValueError(f"y must be labels like {shortened(self.classes_)}, got {shortened(labels)}.")
        labels, predicted = alike(labels, predicted)
        weight = as_sample_weight(sample_weight, np.empty((len(labels), 0)))
        if weight is not None and not weight.any():
            raise ValueError("sample_weight must let a row count, got weights that are all zero.")
        return _accuracy(array_namespace(predicted), labels == predicted, weight)

    def _outputs(self, X: Any, method: str, operation: str | None) -> Array:
        """Logits of all rows, or what an operation on rows makes of them."""
        check_is_fitted(self)
        with _beside(X):
            X = self._checked(X, method, reset=False)
        if is_dask_array(X):
            return self._lazily(X, method)
        net = self._network()
        finish: Any = getattr(net.kernels, operation) if operation else None
        result = np.empty((X.shape[0], len(self.classes_)), net.dtype) if type(X) is np.ndarray else None
        parts = []
        with quiet(net.xp, net.frame.device):
            for rows, logits in self._passes(net, X):
                if result is None:
                    parts.append(finish(logits, out=logits if is_writable(logits) else None) if finish else logits)
                elif finish:
                    finish(logits, out=result[rows])
                else:  # the next chunk overwrites them
                    result[rows] = logits
            if result is not None:
                return result
            return parts[0] if len(parts) == 1 else net.xp.concat(parts)

    def _lazily(self, X: Array, method: str) -> Array:
        from xpsoftmax.sklearn import on_dask as lazily

        return lazily.outputs(self._network().layers, self.activation, X, method, self.classes_)

    def _codes(self, net: Network, X: Array) -> Array:
        """Places of the largest logits."""
        if is_dask_array(X):
            from xpsoftmax.sklearn import on_dask as lazily

            return lazily.outputs(net.layers, self.activation, X, "codes", self.classes_)
        with quiet(net.xp, net.frame.device):
            parts = [net.xp.argmax(logits, axis=1) for _, logits in self._passes(net, X)]
            return parts[0] if len(parts) == 1 else net.xp.concat(parts)

    def _passes(self, net: Network, X: Array) -> Iterator[tuple[slice, Array]]:
        """Chunks of rows and their logits, which are valid until the next chunk."""
        itemsize, widths = int(net.xp.finfo(net.dtype).bits) // 8, [*net.hidden, len(self.classes_)]
        memory = DEFAULT_MAX_MEMORY if self.max_memory is None else as_integer("max_memory", self.max_memory, low=1)
        step = max(1, memory // (2 * itemsize * sum(widths)))
        buffers = None
        watch = None
        if type(X) is np.ndarray:
            step, buffers = min(step, max(LEAST_ROWS, IN_CACHE // (itemsize * max(widths)))), Buffers()
            watch = self._watched(net, X)
        chunks = [slice(*ends) for ends in itertools.pairwise([*range(0, X.shape[0], step), X.shape[0]])]
        doubtful: Any = False
        for rows in chunks:
            logits = forward(net, X[rows, :], buffers=buffers, watch=watch)[2]
            # A flag for all chunks: elsewhere the result is waited for once, after the last.
            if type(logits) is np.ndarray:
                doubtful = doubtful or not sum_is_finite(logits)
            else:
                doubtful = doubtful | net.xp.any(bad_logits(logits))
            yield rows, logits
        if bool(doubtful):
            for rows in chunks:
                check_logits(net, forward(net, X[rows, :], buffers=buffers)[2], rows.start)

    def _watched(self, net: Network, X: np.ndarray) -> Callable[[Array], None] | None:
        """Return what looks at each first product, and reads `X` only where a column of it is not finite.

        Reading `X` each time would take a tenth of the prediction. A product with nan or infinity is not finite, unless
        the BLAS leaves out terms whose weight is 0: where the column has such weights, `X` is read now.
        """
        if not net.layers[0].weight[:, 0].all():
            check_inputs(X)
            return None
        seen = False

        def watch(z: Array) -> None:
            nonlocal seen
            if not (seen or sum_is_finite(z[:, 0])):
                check_inputs(X)  # it may be an overflow
                seen = True

        return watch

    # --- weights, and where they are ----------------------------------------------------------------------------------

    @property
    def params_(self) -> Params:
        """Weights and biases as the functions of xpsoftmax take them: for `save_params`, `mlp_logits`, `train`."""
        check_is_fitted(self, "coefs_")
        layers = [Layer(*layer) for layer in zip(self.coefs_, self.intercepts_, strict=True)]
        return carrying(layers, getattr(self, "_activation", self.activation))  # older pickles lack it

    def _network(self) -> Network:
        """Return the fitted network; only another fit changes its activation."""
        layers = self.params_
        fitted = recorded(layers)
        if fitted is not None and self.activation != fitted:
            raise ValueError(
                f"activation must be the one that the model was fitted with, {fitted!r}, got {self.activation!r}. "
                "A parameter that is changed counts from the next fit or partial_fit on."
            )
        return as_network(layers, fitted)

    @classmethod
    def from_params(cls, params: PairsOfArrays, *, classes: Any = None, **parameters: Any) -> Self:
        """Make a model of weights and biases that were trained elsewhere, or saved.

        Parameters
        ----------
        params : sequence of Layer
            As `load_params`, `train` and `init_params` return them, of any library. scikit-learn has one logistic
            output for two classes, with weight w and bias b of the last layer: they become
            ``np.hstack([-w / 2, w / 2])`` and ``np.hstack([-b / 2, b / 2])``.
        classes : array-like, (C,), optional
            Sorted labels, one for each column of the last weight. Default: 0, 1, ..., C - 1; a network of a single
            column needs its label.
        **parameters
            Parameters of the model. The sizes of the layers come from `params`, and so does `activation` where the
            layers carry one; plain pairs need it, if it is not "relu".

        Returns
        -------
        MLPClassifier
            Fitted. With ``warm_start=True`` its `fit` goes on from these weights.

        Raises
        ------
        TypeError, ValueError
            If `params` is not a network in float32 or float64, or `classes` or a parameter does not fit it:
            `activation` must be the one that the layers carry.

        Examples
        --------
        >>> import numpy as np
        >>> import xpsoftmax as xs
        >>> from xpsoftmax.sklearn import MLPClassifier
        >>> params = (xs.Layer(np.eye(2), np.zeros(2)),)
        >>> MLPClassifier.from_params(params, classes=["left", "right"]).predict([[1.0, 3.0]]).tolist()
        ['right']
        """
        net = as_network(params, parameters.get("activation"))
        if net.dtype != net.working:
            raise TypeError(f"params must be in float32 or float64, got {net.dtype}. Cast them.")
        carried = recorded(net.layers)
        if carried is not None:
            parameters["activation"] = carried
        model = cls(**{"hidden_layer_sizes": tuple(net.hidden), **parameters})
        outputs = net.layers[-1].bias.shape[0]
        labels = np.arange(outputs) if classes is None else as_classes(classes)
        if outputs == 1 and (classes is None or len(labels) == 2):
            raise ValueError(ONE_COLUMN.format("no classes" if classes is None else f"the classes {shortened(labels)}"))
        if labels.shape != (outputs,) or not are_sorted(labels):
            raise ValueError(f"classes must be {outputs} sorted and different labels, got {classes!r:.60}.")
        model._begin(copied(net, net.layers, net.dtype), labels)
        model._check_sizes([net.layers[0].weight.shape[0], *model._check_parameters(), outputs])
        model._check_dtype(net.layers[0].weight)
        model.n_features_in_ = net.layers[0].weight.shape[0]
        return model

    def to(self, xp: ModuleType, *, device: Device | None = None) -> Self:
        """Copy the model to another library or device, with what it needs to go on learning there.

        Parameters
        ----------
        xp : module
            numpy, cupy, torch, jax.numpy, ...
        device : device of `xp`, optional

        Returns
        -------
        MLPClassifier
            A copy whose arrays are there, in the same dtype.

        Raises
        ------
        NotFittedError
            If there is no model yet.
        TypeError, ValueError
            If `xp` is not a library of arrays, lacks the dtype, or has no such device.

        Examples
        --------
        >>> import numpy as np
        >>> from xpsoftmax.sklearn import MLPClassifier
        >>> model = MLPClassifier((4,), solver="lbfgs", random_state=0).fit([[0.0], [1.0]], ["no", "yes"])
        >>> model.to(np).predict([[1.0]]).tolist()  # from the GPU; model.to(cupy) goes back
        ['yes']
        """
        check_is_fitted(self)
        namespace, dtype = check.as_namespace("xp", xp), dtype_name(self.coefs_[0].dtype)
        if dtype not in namespace.__array_namespace_info__().dtypes(kind="real floating"):
            raise TypeError(
                f"xp must have the dtype of the model, {dtype}, got {library(namespace)}, which lacks it"
                f"{_if_set(namespace)}."
            )

        check.as_placement(namespace, getattr(namespace, dtype), device)

        def moved(layers: Params) -> Params:
            # A copy of its own: libraries share memory on the host.
            return tuple(
                type(layer)(*(to_library(to_host("params", a).copy(), namespace, device) for a in layer))
                for layer in layers
            )

        model = copy.copy(self)
        model._keep(moved(self.params_))
        model.loss_curve_ = list(self.loss_curve_)
        if self.validation_scores_ is not None:
            model.validation_scores_, model._best = list(self.validation_scores_), moved(self._best)
        if self._optimizer is not None:
            model._state = (self._state[0], *map(moved, self._state[1:]))
        return model


def is_lazy(X: Any) -> bool:
    """Whether these are dask arrays, or data frames: what dask has in common."""
    return hasattr(X, "__dask_graph__")


def _block_of(X: Array) -> Array:
    """What the blocks of a dask array are, without rows; any other array as it is."""
    return X._meta if is_dask_array(X) else X


def _on_client(X: Array) -> Array:
    """A stand-in of the shape and dtype of a dask array, for what is on the host beside it."""
    return np.broadcast_to(np.zeros((), X.dtype), X.shape) if is_dask_array(X) else X


def _labels_here(X: Array, y: Any, weight: Any) -> tuple[Array, Any, Any]:
    """Inputs that know their rows, and labels and weights in memory."""
    if not is_dask_array(X):
        if is_lazy(y) or is_lazy(weight):
            raise TypeError("y and sample_weight must be in memory if X is, got one of dask. Call its compute().")
        return X, y, weight
    from xpsoftmax.sklearn import on_dask as lazily

    if getattr(y, "ndim", 1) == 2 and y.shape[1] > 1:
        raise TypeError(
            f"y must be labels (N,) for dask arrays, got shape {y.shape}. xpsoftmax.dask.train takes probabilities."
        )
    X = lazily.of_known_sizes(X, y)
    return X, lazily.on_host(y), lazily.on_host(weight)


def _beside(X: Any) -> AbstractContextManager[Any]:
    """Surroundings in which CuPy's arrays are made where `X` is."""
    return X.device if is_cupy_array(X) else nullcontext()


def _as_random_state(seed: Any) -> np.random.RandomState:
    try:
        return check_random_state(seed)  # type: ignore[no-any-return]
    except ValueError:
        raise ValueError(f"random_state must be None, an integer from 0 or a RandomState, got {seed!r:.60}.") from None


def _if_set(xp: Namespace) -> str:
    return " (float64 only if jax_enable_x64 is set)" if is_jax_namespace(xp) else ""


@contextmanager
def _all_or_nothing(model: Any) -> Iterator[None]:
    """Let an error, or a second Ctrl-C, leave the attributes of a model as they were."""
    before = dict(vars(model))
    try:
        yield
    except BaseException:
        vars(model).clear()
        vars(model).update(before)
        raise


def _taken(net: Network, arrays: Rows, rows: np.ndarray) -> Rows:
    rows = net.xp.asarray(rows, device=net.frame.device)
    X, y, weight = (None if array is None else net.xp.take(array, rows, axis=0) for array in arrays)
    return X, y, weight


def _hidden_sizes(sizes: Any) -> list[int]:
    """The sizes of the hidden layers: one, or a sequence of them."""
    try:
        dimensions = np.ndim(sizes)
    except ValueError:  # lists of different lengths
        dimensions = 2
    if dimensions == 1:
        return [as_integer("hidden_layer_sizes", size, low=1) for size in sizes]
    try:
        return [as_integer("hidden_layer_sizes", sizes, low=1)]
    except TypeError:
        raise TypeError(
            f"hidden_layer_sizes must be an integer or a sequence of integers, got {sizes!r:.60}. "
            "() is a network without hidden layers."
        ) from None


def _known_classes(given: np.ndarray | None, before: np.ndarray | None) -> np.ndarray | None:
    """The classes that labels are looked up in; None if they are those that they have."""
    if given is None:
        return before
    classes = np.sort(given)
    if before is None:
        return classes
    if classes.shape != before.shape or not np.array_equal(encode(classes, before), np.arange(before.size)):
        raise ValueError(
            f"classes must be the same as on the first call to partial_fit, {before}, got {shortened(classes)}.{HINT}"
        )
    return before


def _diverged(what: str) -> ValueError:
    """The error of a solver that came to numbers that are not finite."""
    return overflow_error(NOT_FINITE.format(what))


@contextmanager
def _blamed_on(X: Array, stepper: Any) -> Iterator[None]:
    """Look through inputs of dask, which no one has seen before, when the numbers are not finite."""
    try:
        yield
    except ValueError as error:
        if is_dask_array(X) and is_overflow(error):
            from xpsoftmax.sklearn import on_dask as lazily

            lazily.check_inputs(stepper.scheduler, X)
        raise


def _batches(stepper: Stepper, order: np.ndarray | None, batch: int) -> Iterator[tuple[int, Any]]:
    """Batches in this order of the rows, each with how many rows it has."""
    there = None if batch == stepper.rows else stepper.there(order)
    for start in range(0, stepper.rows, batch):
        part = slice(start, min(start + batch, stepper.rows))
        taken: Any = None if batch == stepper.rows else part if there is None else there[part]
        yield part.stop - part.start, (taken, stepper.counts(order, part))


def _batches_of_blocks(stepper: Any, rng: Any, batch: int) -> Iterator[tuple[int, Any]]:
    epoch = stepper.batches(rng, batch)
    for drawn in epoch:
        yield epoch.size(drawn), drawn


def _epoch(
    stepper: Any,
    optimizer: Optimizer,
    layers: Params,
    state: State,
    batches: Iterator[tuple[int, Any]],
    interrupted: Callable[[], bool],
) -> tuple[Params, State, float]:
    """Make a step on each batch; also return their mean loss, nan if there is none."""
    first = state[0]
    losses: list[Any] = []
    total: Any = 0.0
    counted = 0
    for size, batch in batches:
        if interrupted():
            break
        try:
            found = stepper.of_batch(layers, batch)
        except Interrupted:
            break
        if found is None:
            continue
        loss, grads = found
        if stepper.on_host:  # elsewhere it is waited for only when the epoch ends
            loss = float(loss)
        losses.append(loss)
        total, counted = total + loss * size, counted + size
        if stepper.on_host and not math.isfinite(loss):
            break
        layers, state = optimizer.step(layers, grads, state, in_place=True)
    mean = float(total) / counted if counted else math.nan
    if counted and not math.isfinite(mean):
        bad = next((i for i, loss in enumerate(losses) if not math.isfinite(float(loss))), len(losses) - 1)
        raise _diverged(f"and the loss {float(losses[bad])} at step {first + bad}")
    return layers, state, mean


def _finite(layers: Params) -> Params:
    """The layers, if all their numbers are finite."""
    xp = array_namespace(layers[0].weight)
    if not all(bool(xp.all(xp.isfinite(array))) for layer in layers for array in layer):
        raise _diverged("by the last step")
    return layers


def _accuracy(xp: Namespace, right: Array, weight: Array | None) -> float:
    """The share of the rows, or of their weights, whose labels are right."""
    if weight is None:
        return int(xp.sum(xp.astype(right, xp.int32))) / int(right.shape[0])
    with np.errstate(over="ignore"):
        total = float(xp.sum(weight))
    if not math.isfinite(total):  # it overflows
        weight = weight / xp.max(weight)
    return float(xp.sum(xp.where(right, weight, 0.0)) / xp.sum(weight))


def _packed(layers: Params) -> np.ndarray:
    return np.concatenate([array.ravel() for layer in layers for array in layer]).astype(np.float64, copy=False)


def _unpacked(x: np.ndarray, net: Network) -> Params:
    return parts_of(x.astype(net.dtype, copy=False), net.layers)
