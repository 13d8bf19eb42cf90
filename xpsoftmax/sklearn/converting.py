"""Conversion: the public methods that make a classifier of weights or of another model, and the other way round."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Self

from sklearn.utils.validation import check_is_fitted

from xpsoftmax._network.layers import PairsOfArrays
from xpsoftmax._typing import Device
from xpsoftmax.sklearn import exchange, transfer


class Conversion:
    """The methods of a classifier that convert it, or make one."""

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
            Fitted. With ``warm_start=True`` its `fit` starts from these weights.

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
        return transfer.model_of(cls, params, classes, parameters)  # type: ignore[no-any-return]

    @classmethod
    def from_sklearn(cls, model: Any) -> Self:
        """Take over a fitted model of scikit-learn: parameters, weights, classes, losses and scores.

        Parameters
        ----------
        model : MLPClassifier or LogisticRegression of scikit-learn
            Fitted. The one logistic output of two classes, with weight w and bias b, becomes the two columns
            ``(-w / 2, w / 2)`` and ``(-b / 2, b / 2)``. A regression becomes a network without hidden layers, for
            the solver "lbfgs", with the `alpha` that is its `C`; an L1 penalty has no counterpart here.

        Returns
        -------
        MLPClassifier
            Fitted: the probabilities are those of `model`. A `fit` with ``warm_start=True``, and `partial_fit`, go on
            from its weights, with a new optimiser.

        Raises
        ------
        NotFittedError
            If `model` is not fitted.
        TypeError, ValueError
            If it is something else, has independent labels (multilabel) or a single class, or is a regression by one
            classifier for each class.

        Examples
        --------
        >>> from sklearn.linear_model import LogisticRegression
        >>> from xpsoftmax.sklearn import MLPClassifier
        >>> other = LogisticRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["low", "low", "high", "high"])
        >>> model = MLPClassifier.from_sklearn(other)
        >>> bool(abs(model.predict_proba([[0.5]]) - other.predict_proba([[0.5]])).max() < 1e-12)
        True
        """
        return exchange.from_sklearn(cls, model)  # type: ignore[no-any-return]

    def to_sklearn(self) -> Any:
        """Make a fitted model of scikit-learn that predicts as this one does, for its tools and for ONNX.

        Returns
        -------
        MLPClassifier or LogisticRegression of scikit-learn
            LogisticRegression without hidden layers. The model is on the host, with the parameters that it shares with
            this model; those that are new here are left out. The two columns of two classes become one logistic output,
            their difference.

        Raises
        ------
        NotFittedError
            If there is no model yet.
        ValueError
            If `activation` is one that scikit-learn does not have ("silu", "gelu"), or there is a single class.

        Examples
        --------
        >>> from xpsoftmax.sklearn import MLPClassifier
        >>> model = MLPClassifier((4,), solver="lbfgs", random_state=0).fit([[0.0], [1.0]], ["no", "yes"])
        >>> other = model.to_sklearn()
        >>> type(other).__module__.partition(".")[0], other.predict([[1.0]]).tolist()
        ('sklearn', ['yes'])
        """
        check_is_fitted(self)
        return exchange.to_sklearn(self)

    def to(self, xp: ModuleType, *, device: Device | None = None) -> Self:
        """Copy the model to another library or device, with the state from which training continues there.

        Parameters
        ----------
        xp : module
            numpy, cupy, torch, jax.numpy, ...
        device : device of `xp`, optional

        Returns
        -------
        MLPClassifier
            A copy whose arrays are in that library and on that device, in the same dtype.

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
        return transfer.moved(self, xp, device)  # type: ignore[no-any-return]
