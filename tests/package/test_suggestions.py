"""Mistaken keywords are answered by the right ones, and what is not an array by how to make one."""

import inspect
import re

import numpy as np
import pytest

import xpsoftmax as xs

PARAMS = xs.init_params((2, 4, 3), rng=0)
X, Y = np.zeros((6, 2)), np.zeros(6, dtype=int)


def train(**options):
    return xs.train(PARAMS, X, Y, optimizer=xs.sgd(0.1), batch_size=2, rng=0, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: xs.adam(lr=0.1), r"adam\(\) has no argument 'lr'\. Did you mean learning_rate=\?"),
        (lambda: xs.adamw(0.1, decay=0.1), r"adamw\(\) has no argument 'decay'\. Did you mean weight_decay=\?"),
        (lambda: xs.adam(beta_1=0.9), r"adam\(\) has no argument 'beta_1'\. Did you mean betas=\(beta_1, beta_2\)\?"),
        (lambda: xs.sgd(0.1, momentun=0.9), r"sgd\(\) has no argument 'momentun'\. Did you mean momentum=\?"),
        (lambda: train(epoch=1), r"train\(\) has no argument 'epoch'\. Did you mean epochs=\?"),
        (lambda: train(num_epochs=1), r"train\(\) has no argument 'num_epochs'\. Did you mean epochs=\?"),
        (
            lambda: train(epochs=1, lr=1.0),
            r"train\(\) has no argument 'lr'\. Did you mean optimizer=xs\.adam",
        ),
        (lambda: train(epochs=1, quux=1), r"train\(\) has no argument 'quux'\.$"),
        (
            lambda: xs.init_params(hidden=9, rng=0),
            r"init_params\(\) has no argument 'hidden'\. Did you mean sizes=",
        ),
        (lambda: xs.init_params((2, 3), seed=0), r"init_params\(\) has no argument 'seed'\. Did you mean rng=\?"),
    ],
)
def test_a_mistaken_keyword(call, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        call()


# What users of PyTorch, Keras, JAX (optax) and scikit-learn would type, and a word of the advice.
OF_TRAIN = {
    "optimizer=": "lr learning_rate momentum nesterov betas eps clipnorm max_grad_norm lr_scheduler optim solver",
    "init_params": "hidden hidden_sizes hidden_layer_sizes hidden_units layers dtype device",
    "epochs=": "num_epochs n_epochs nb_epoch max_epochs max_iter steps num_steps",
    "batch_size=": "batch minibatch batchsize",
    "rng=": "seed random_seed random_state key generator",
    "reg=": "l2 weight_decay alpha lam penalty kernel_regularizer",
    "validation=": "validation_data validation_split eval_set X_val y_val val_data",
    "patience=": "early_stopping n_iter_no_change tol",
    "progress=": "verbose",
    "resume=": "initial_epoch warm_start",
    "class_weight=": "weight weights class_weights",
    "sample_weight=": "sample_weights weight",
    "callback=": "callbacks checkpoint",
    "label_smoothing=": "smoothing",
    "targets": "y labels",
}
OF_SGD = {
    "learning_rate=": "lr eta0 step_size lr_scheduler",
    "train(reg=": "weight_decay l2 decay alpha",
    "nesterov=": "nesterovs_momentum use_nesterov",
    "clip_by_global_norm": "clipnorm global_clipnorm",
    "init(params)": "params",
}
OF_ADAM = {
    "learning_rate=": "lr step_size",
    "betas=": "beta_1 beta_2 beta1 b1 b2",
    "eps=": "epsilon",
    "adamw(weight_decay": "weight_decay l2 decay",
}
OF_ADAMW = {"weight_decay=": "decay l2 wd reg_lambda", "betas=": "b1", "eps=": "epsilon", "learning_rate=": "lr"}
OF_INIT = {
    "sizes=": "hidden hidden_layer_sizes layers layer_sizes hidden_dims",
    "rng=": "seed random_state key",
    "scheme=": "init initializer kernel_initializer",
    "std=": "scale stddev gain",
    "activation=": "nonlinearity act",
    "xp=": "backend library framework",
}
OF_STEP = {"rate=": "lr learning_rate init_value", "factor=": "gamma decay_rate", "every=": "step_size decay_steps"}
OF_COSINE = {"rate=": "lr init_value", "steps=": "T_max decay_steps", "final=": "eta_min alpha"}
OF_WARM_UP = {
    "steps=": "warmup_steps num_warmup_steps total_iters",
    "start=": "start_factor",
    "constant_sch": "lr rate",
}
OF_CLASSIFIER = {
    "hidden_layer_sizes=": "hidden hidden_sizes hidden_units layers n_hidden",
    "max_iter=": "epochs n_epochs num_epochs max_epochs",
    "learning_rate_init=": "lr eta0",
    "alpha=": "l2 weight_decay reg C penalty",
    "random_state=": "seed rng random_seed",
    "solver=": "optimizer",
    "beta_1=": "betas",
    "epsilon=": "eps",
    "nesterovs_momentum=": "nesterov",
    "n_iter_no_change=": "patience",
    "validation_fraction=": "validation_split",
    "fit(X, y, X_val=": "validation_data X_val eval_set",
    "fit(X, y, sample_weight)": "sample_weight",
    "class_weight=": "class_weights",
    "verbose=": "progress",
}
FUNCTIONS = {
    "train": (xs.train, OF_TRAIN),
    "sgd": (xs.sgd, OF_SGD),
    "adam": (xs.adam, OF_ADAM),
    "adamw": (xs.adamw, OF_ADAMW),
    "init_params": (xs.init_params, OF_INIT),
    "constant_schedule": (xs.constant_schedule, {"rate=": "lr learning_rate init_value"}),
    "step_schedule": (xs.step_schedule, OF_STEP),
    "cosine_schedule": (xs.cosine_schedule, OF_COSINE),
    "warm_up_schedule": (xs.warm_up_schedule, OF_WARM_UP),
    "clip_by_global_norm": (xs.clip_by_global_norm, {"max_norm=": "clipnorm norm max_grad_norm"}),
    "checkpoint": (xs.checkpoint, {"every=": "interval period save_freq"}),
}
NAMED = [
    (name, meant, option)
    for name, (_, table) in FUNCTIONS.items()
    for meant, options in table.items()
    for option in options.split()
]


@pytest.mark.parametrize(("name", "meant", "option"), NAMED)
def test_names_of_other_libraries(name, meant, option):
    with pytest.raises(TypeError, match=rf"^{name}\(\) has no argument '{option}'\. Did you mean .*\?$") as caught:
        FUNCTIONS[name][0](**{option: 1})
    assert meant in str(caught.value).partition("Did you mean ")[2]


def test_training_over_dask_says_the_same():
    pytest.importorskip("dask.array")
    pytest.importorskip("distributed")
    import xpsoftmax.dask as xd

    with pytest.raises(TypeError, match=r"^train\(\) has no argument 'hidden'\. Did you mean params = xs\.init_params"):
        xd.train(hidden=3)


@pytest.mark.parametrize(("meant", "options"), OF_CLASSIFIER.items())
def test_a_mistaken_keyword_of_the_classifier(meant, options):
    pytest.importorskip("sklearn")
    from xpsoftmax.sklearn import MLPClassifier

    for option in options.split():
        with pytest.raises(TypeError, match=rf"^MLPClassifier\(\) has no argument '{option}'\. Did") as caught:
            MLPClassifier(**{option: 1})
        assert meant in str(caught.value).partition("Did you mean ")[2]


@pytest.mark.parametrize(
    ("option", "meant"), [("validation_data", "X_val= and y_val="), ("epochs", "MLPClassifier(max_iter=...)")]
)
def test_a_mistaken_keyword_of_fit(option, meant):
    pytest.importorskip("sklearn")
    from xpsoftmax.sklearn import MLPClassifier

    message = rf"^MLPClassifier\.fit\(\) has no argument '{option}'\. Did you mean {re.escape(meant)}\?$"
    with pytest.raises(TypeError, match=message):
        MLPClassifier().fit(X, Y, **{option: 1})


def test_what_is_meant_exists():
    """No suggestion of spelling or of another library names a keyword that is not there."""
    from xpsoftmax._arguments.suggestions import suggesting

    def function(rate, *, other):
        return rate + other

    checked = suggesting(lr="rate=")(function)
    assert checked(1, other=2) == 3
    assert inspect.signature(checked) == inspect.signature(function)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'other'"):
        checked(1)
    for name in ("learning_rate", "betas", "weight_decay"):
        assert name in inspect.signature(xs.adamw).parameters
    for name in ("optimizer", "epochs", "rng", "reg"):
        assert name in inspect.signature(xs.train).parameters


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: xs.softmax([1.0, 2.0]), r"logits must be .*, got list\. Make one with numpy\.asarray\.$"),
        (lambda: xs.softmax_loss(np.zeros(3), 0), r"targets must be .*, got int\. Make one with numpy\.asarray\.$"),
        (lambda: xs.softmax_loss(np.zeros(3), None), r"targets must be .*, got NoneType\.$"),
    ],
)
def test_what_is_no_array(call, message):
    with pytest.raises(TypeError, match=f"^{message}"):
        call()


def test_dask_arrays_beside_parameters_in_memory():
    da = pytest.importorskip("dask.array")
    with pytest.raises(TypeError, match=r"^X must be .* For rows in dask arrays see xpsoftmax\.dask\.$"):
        xs.train(PARAMS, da.zeros((6, 2)), da.zeros(6, dtype=int), optimizer=xs.adam(), epochs=1, batch_size=2, rng=0)


def test_adam_has_the_usual_rate():
    for optimizer in (xs.adam(), xs.adamw()):
        assert optimizer.learning_rate == 1e-3


def test_dir_shows_what_is_public():
    assert set(dir(xs)) == {*xs.__all__, "__version__"}
    pytest.importorskip("dask.array")
    pytest.importorskip("distributed")
    import xpsoftmax.dask

    assert dir(xpsoftmax.dask) == sorted(xpsoftmax.dask.__all__)
    pytest.importorskip("sklearn")
    import xpsoftmax.sklearn

    assert dir(xpsoftmax.sklearn) == ["MLPClassifier"]
