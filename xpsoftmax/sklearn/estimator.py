"""The classifier: its parameters, and its public methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
except ImportError as error:
    raise ImportError(
        f"xpsoftmax.sklearn needs scikit-learn: pip install scikit-learn ({error}).", name=error.name
    ) from error
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from xpsoftmax._arguments.suggestions import EPOCHS, HELD_OUT, PENALTY, RANDOM, RATE, SIZES, suggesting
from xpsoftmax._network.layers import Params
from xpsoftmax._typing import Activation
from xpsoftmax.sklearn import fitting
from xpsoftmax.sklearn.converting import Conversion
from xpsoftmax.sklearn.fitted import params_of
from xpsoftmax.sklearn.parameters import has_minibatches
from xpsoftmax.sklearn.predicting import Prediction

__all__ = ["MLPClassifier"]


class MLPClassifier(Prediction, Conversion, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Multi-layer perceptron for scikit-learn: softmax loss and network of xpsoftmax, on any array library.

    The parameters and the rules of training are those of `sklearn.neural_network.MLPClassifier`. The same
    `random_state` gives the same initial weights and batches (except with `early_stopping`: the split is stratified
    here). In addition: arrays of CuPy, PyTorch and others stay on their device; class weights, label smoothing,
    probabilities as targets, bounded memory, no matrix of one-hot targets.

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
        An epoch counts as an improvement if the loss (with `early_stopping` the score) improves by at least this. lbfgs
        stops when the largest entry of the gradient is at most this.
    verbose : bool or int, default=False
        Print the loss of each epoch and why training stops.
    warm_start : bool, default=False
        Let `fit` start from the weights of the last fit.
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
        Stop after more than so many epochs without improvement; with ``numpy.inf``, never.
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
        The least loss of `loss_curve_`; None with `early_stopping`.
    validation_scores_ : list of float, or None
        Accuracy on the rows held out after each epoch, with `early_stopping`.
    best_validation_score_ : float or None
        The greatest of `validation_scores_`.
    validation_loss_curve_ : list of float, or None
        Loss of `X_val` after each epoch, or iteration of lbfgs, without the penalty.
    n_iter_ : int
        Epochs, or iterations of lbfgs, of the last call.
    t_ : int
        Rows in all training steps together.
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
    counts. Two columns whose difference is the weight vector of that output have, at best, half its squared norm, so
    that in the last layer ``alpha`` has the effect of ``alpha / 2`` in scikit-learn. ``hidden_layer_sizes=()`` with
    `alpha` is `LogisticRegression` with ``C = 1 / alpha``, or for two classes ``C = 2 / alpha``. ADR 11
    (docs/adr/0011-the-estimator.md) lists all other differences, with reasons.

    After an interrupt (Ctrl-C) the running step, or evaluation of lbfgs, ends; the model keeps the weights reached so
    far, and a warning says so. An incomplete epoch is not counted. A second interrupt is raised.

    Every error, for example because the loss is not finite, leaves the model as it was before the call.

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

    @suggesting(
        **dict.fromkeys((*SIZES.split(), "sizes"), "hidden_layer_sizes="),
        **dict.fromkeys(RATE, "learning_rate_init="),
        **dict.fromkeys(("epochs", *EPOCHS.split()), "max_iter="),
        **dict.fromkeys((*PENALTY.replace(" alpha", "").split(), "reg"), "alpha="),
        **dict.fromkeys(("rng", *RANDOM), "random_state="),
        **dict.fromkeys(HELD_OUT.replace(" validation_split", "").split(), "fit(X, y, X_val=..., y_val=...)"),
        **dict.fromkeys(("optimizer", "optim", "opt"), "solver="),
        **dict.fromkeys(("betas", "beta1", "beta2"), "beta_1= and beta_2="),
        validation_split="validation_fraction=",
        sample_weight="fit(X, y, sample_weight)",
        patience="n_iter_no_change=",
        C="alpha=, which is 1 / C",
        nesterov="nesterovs_momentum=",
        eps="epsilon=",
        progress="verbose=",
    )
    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: Activation = "relu",
        *,
        solver: Literal["adam", "sgd", "lbfgs"] = "adam",
        alpha: float = 0.0001,
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: Literal["constant", "invscaling", "adaptive"] = "constant",
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
        tags.input_tags.sparse = True
        return tags

    @suggesting(
        **dict.fromkeys((*HELD_OUT.replace(" X_val y_val", "").split(), "validation"), "X_val= and y_val="),
        **dict.fromkeys(("epochs", *EPOCHS.split()), "MLPClassifier(max_iter=...)"),
        batch_size="MLPClassifier(batch_size=...)",
        verbose="MLPClassifier(verbose=...)",
        class_weight="MLPClassifier(class_weight=...)",
    )
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:
        """Learn from all rows, for `max_iter` epochs or until nothing improves.

        Parameters
        ----------
        X : array or array-like, (N, D)
            `fit` computes on the host with NumPy arrays, data frames and lists, and on the device of the array with
            other libraries. Sparse matrices and arrays of SciPy and cupyx are never made dense; formats other than CSR
            are converted. Dask arrays and data frames are computed with block by block (see `xpsoftmax.dask.train`):
            epochs go through groups of 8 blocks, and labels and weights, which may be dask collections too, are brought
            to the client. Their `y` must be labels; inputs are searched for nan and infinity only if the loss is not
            finite.
        y : array or array-like, (N,) or (N, C)
            Labels of one kind, none of them missing: integers, booleans, strings, dates, durations, or floats of
            integral value below 2**53 (float32: 2**24). Integers are compared as integers, whatever holds them.
            Or floating probabilities, a column for each class, whose rows add up to 1.
        sample_weight : array or array-like, (N,), optional
            Finite and not negative. It and `y` may be of any library: they are brought to where `X` is.
        X_val, y_val, sample_weight_val : array or array-like, optional
            Validation data, as `X`, `y` and `sample_weight`; the labels must be among those of `y`. Beside dask arrays
            they are dask arrays, in any blocks, or in memory; `X_val` of dask is read once before the first step, to
            check it. Their loss goes to `validation_loss_curve_`. With `early_stopping` they take the place of the rows
            that would be held out: the model is fitted to all rows of `X`.

        Returns
        -------
        MLPClassifier
            Itself.

        Raises
        ------
        TypeError, ValueError
            If a parameter or an array does not fit, is masked, or holds missing values, where the message names the
            first row; or if the numbers of the solver are no longer finite, where the message names the step. The model
            is then as it was before.
        """
        fitting.fit(self, X, y, sample_weight, validation=(X_val, y_val, sample_weight_val))
        return self

    @available_if(has_minibatches)  # type: ignore[untyped-decorator, unused-ignore]
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Learn from these rows for one epoch, going on from where the last call ended.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array-like, (C,), optional
            All labels, each once. The first call needs them, unless `y` holds probabilities. With probabilities they
            name the columns and must be sorted. In scikit-learn's classifier `sample_weight` comes before them: pass
            both by name.

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
        `learning_rate`, `power_t`, `momentum`, `nesterovs_momentum`, `beta_1`, `beta_2` and `epsilon` have no effect on
        it. Other parameters take effect in the next call. Unlike in scikit-learn, so does `learning_rate_init`; the
        state of the optimiser stays.
        """
        if self.early_stopping:
            raise ValueError(
                "early_stopping must be False for partial_fit, got True: partial_fit does not support "
                "early_stopping=True, because it sees no whole epoch."
            )
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight must be None or a dict for partial_fit, got {self.class_weight!r}. "
                'sklearn.utils.compute_class_weight("balanced", ...) makes the weights of all data.'
            )
        fitting.fit(self, X, y, sample_weight, classes, incremental=True)
        return self

    @property
    def params_(self) -> Params:
        """Weights and biases as the functions of xpsoftmax take them: for `save_params`, `mlp_logits`, `train`."""
        check_is_fitted(self, "coefs_")
        return params_of(self)
