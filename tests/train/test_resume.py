"""A state of train() that is not what a training left: an error that says what is wrong, and never a hang."""

import contextlib
import copy
import math
import pickle
import random
import re
import signal

import numpy as np
import pytest

import xpsoftmax as xs

N, D, H, C = 23, 5, 7, 4
BATCH = 10  # three steps an epoch


@pytest.fixture
def problem(rng):
    return xs.init_params((D, H, C), rng=rng), rng.standard_normal((N, D)), rng.integers(0, C, N)


@contextlib.contextmanager
def ends_within(seconds):
    """Raise AssertionError where the block takes longer: a hang."""

    def handler(number, frame):
        raise AssertionError("a hang")

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def options(problem, **more):
    rng = np.random.default_rng(7)
    held_out = rng.standard_normal((9, D)), rng.integers(0, C, 9)
    shared = {"optimizer": xs.adam(0.01), "batch_size": BATCH, "rng": 3, "validation": held_out, "patience": 50}
    return shared | more


def state_of(problem, *, epochs=2, stop=7, **more):
    """The state after a step within the third epoch, or after whole epochs."""
    callback = None if stop is None else lambda step: step.step == stop
    chosen = options(problem, **more)
    return xs.train(*problem, epochs=epochs if stop is None else epochs + 1, callback=callback, **chosen).state


def arrays_of(layers):
    return [array for layer in layers for array in layer]


def changed(layers, i, change):
    """The layers with another array in the place i."""
    arrays = arrays_of(layers)
    arrays[i] = change(arrays[i])
    return tuple(xs.Layer(*arrays[2 * j : 2 * j + 2]) for j in range(len(layers)))


def with_nan(array):
    array = array.copy()
    array.flat[-1] = np.nan
    return array


RNG = np.random.default_rng(0).bit_generator.state
NUMBER = r"must be an integer, got "

# Field, what it becomes given the state, error, message.
WRONG = {
    "step beyond the epoch": (
        "step",
        4,
        ValueError,
        r"^resume\.step must be at most 3, the steps of the epoch, got 4\.",
    ),
    "step far beyond": ("step", 10**30, ValueError, r"^resume\.step must be at most 3"),
    "step below 0": ("step", -1, ValueError, r"^resume\.step must be at least 0, got -1\."),
    "step float": ("step", 1.0, TypeError, rf"^resume\.step {NUMBER}1\.0\."),
    "step bool": ("step", True, TypeError, rf"^resume\.step {NUMBER}True\."),
    "step None": ("step", None, TypeError, rf"^resume\.step {NUMBER}None\."),
    "another step": (
        "step",
        1,
        ValueError,
        r'^resume\.history\["loss"\] must have a number for each of 7 steps \(resume\.epoch is 2 and .* 1\), got 8\.',
    ),
    "epoch below 0": ("epoch", -2, ValueError, r"^resume\.epoch must be at least 0, got -2\."),
    "epoch huge": (
        "epoch",
        10**30,
        ValueError,
        r'^resume\.history\["validation_loss"\] must have a number for each of 10',
    ),
    "epoch string": ("epoch", "2", TypeError, rf"^resume\.epoch {NUMBER}'2'\."),
    "rng empty": ("rng", {}, TypeError, r"^resume\.rng must be the state of a bit generator, a dict, got \{\}\."),
    "rng None": ("rng", None, TypeError, r"^resume\.rng must be the state of a bit generator, a dict, got None\."),
    "rng without numbers": (
        "rng",
        {"bit_generator": "PCG64"},
        ValueError,
        r"^resume\.rng must be a state of PCG64, got one that raises KeyError\('state'\)\.",
    ),
    "rng of strings": (
        "rng",
        RNG | {"state": {"state": "1", "inc": "2"}},
        ValueError,
        r"^resume\.rng must be a state of PCG64, got one that raises ",
    ),
    "rng with more": ("rng", RNG | {"more": 1}, ValueError, r"^resume\.rng must be a state of PCG64, got \{"),
    "rng of another kind": (
        "rng",
        np.random.MT19937(0).state,
        ValueError,
        r"^rng must be of the kind of resume, MT19937, got PCG64\.",
    ),
    "optimizer None": (
        "optimizer",
        None,
        TypeError,
        r"^resume\.optimizer must be the state of an optimizer, got None\.",
    ),
    "optimizer empty": (
        "optimizer",
        (),
        TypeError,
        r"^resume\.optimizer must be the state of an optimizer, got \(\)\.",
    ),
    "optimizer of sgd": (
        "optimizer",
        (8,),
        ValueError,
        r"^resume must be of a training by the same optimizer, got one that is not by Adam",
    ),
    "updates below 0": (
        "optimizer",
        lambda s: (-1, *s.optimizer[1:]),
        ValueError,
        r"^resume\.optimizer\[0\] must be at least 0, got -1\.",
    ),
    "updates": (
        "optimizer",
        lambda s: (7, *s.optimizer[1:]),
        ValueError,
        r"^resume\.optimizer\[0\], the number of updates, must be 8, .*, got 7\.",
    ),
    "updates of two kinds": (
        "optimizer",
        lambda s: (True, *s.optimizer[1:]),
        TypeError,
        rf"^resume\.optimizer\[0\] {NUMBER}True\.",
    ),
    "optimizer of numbers": (
        "optimizer",
        (8, 1.0, 2.0),
        TypeError,
        r"^resume\.optimizer\[1\] must be a sequence of layers \(weight, bias\), got 1\.0\.",
    ),
    "negative squares": (
        "optimizer",
        lambda s: (8, s.optimizer[1], changed(s.optimizer[2], 0, lambda a: -a - 1)),
        ValueError,
        r"^resume\.optimizer\[2\]\[0\]\.weight must be finite and not negative, got -.* at index \(0, 0\)\.",
    ),
    "params None": (
        "params",
        None,
        TypeError,
        r"^resume\.params must be a sequence of layers \(weight, bias\), got None\.",
    ),
    "params of strings": ("params", ("ab", "cd"), TypeError, r"^resume\.params must be a sequence of layers"),
    "params of lists": (
        "params",
        (([[1.0]], [1.0]),) * 2,
        TypeError,
        r"^resume\.params\[0\]\.weight must be an array of an Array API library",
    ),
    "params of one layer": (
        "params",
        lambda s: s.params[:1],
        ValueError,
        r"^resume\.params must have weights of the shapes of params",
    ),
    "params nan": (
        "params",
        lambda s: changed(s.params, 3, with_nan),
        ValueError,
        r"^resume\.params\[1\]\.bias must be finite, got nan at index 3\.",
    ),
    "params complex": (
        "params",
        lambda s: changed(s.params, 1, lambda a: a + 0j),
        TypeError,
        r"^resume\.params\[0\]\.bias must be of dtype",
    ),
    "one array in float32": (
        "params",
        lambda s: changed(s.params, 2, lambda a: a.astype("f4")),
        TypeError,
        r"^resume must be of a training in float64, got one in float32\.",
    ),
    "params of another activation": (
        "params",
        lambda s: xs.init_params((D, H, C), rng=0, activation="tanh"),
        ValueError,
        r"^resume\.optimizer\[1\] must carry the activation of params, 'tanh', got 'relu'\.",
    ),
    "history None": ("history", None, TypeError, r"^resume\.history must have the lists \"loss\" and, .*, got None\."),
    "history empty": ("history", {}, ValueError, r"^resume\.history must have the lists \"loss\" and, .*, got \[\]\."),
    "history without accuracy": (
        "history",
        lambda s: {k: v for k, v in s.history.items() if k != "validation_accuracy"},
        ValueError,
        r"^resume\.history must have the lists",
    ),
    "history without validation": (
        "history",
        lambda s: {"loss": s.history["loss"]},
        ValueError,
        r"^validation must be as in the training that is resumed, without such data, got one with it\.",
    ),
    "history of a number": (
        "history",
        lambda s: s.history | {"loss": 3},
        TypeError,
        r'^resume\.history\["loss"\] must be a list of numbers, got 3\.',
    ),
    "history of strings": (
        "history",
        lambda s: s.history | {"loss": ["a"] * 8},
        TypeError,
        r'^resume\.history\["loss"\]\[0\] must be a real number, got \'a\'\.',
    ),
    "history of infinity": (
        "history",
        lambda s: s.history | {"loss": [*s.history["loss"][:-1], math.inf]},
        ValueError,
        r'^resume\.history\["loss"\]\[7\] must be finite, or nan where no row counts, got inf\.',
    ),
    "history shorter": (
        "history",
        lambda s: s.history | {"loss": s.history["loss"][:-1]},
        ValueError,
        r'^resume\.history\["loss"\] must have a number for each of 8 steps .*, got 7\.',
    ),
    "validation history longer": (
        "history",
        lambda s: s.history | {"validation_accuracy": [1.0] * 3},
        ValueError,
        r'^resume\.history\["validation_accuracy"\] must have a number for each of 2 epochs, got 3\.',
    ),
    "best of one": (
        "best",
        (1,),
        ValueError,
        r"^resume\.best must be None or \(validation loss, epoch, parameters\), got \(1,\)\.",
    ),
    "best of a number": ("best", 3.0, TypeError, r"^resume\.best must be None or"),
    "best None": ("best", None, ValueError, r"^resume\.best must be the best epoch where patience is given, got None"),
    "best of another epoch": (
        "best",
        lambda s: (s.best[0], 3 - s.best[1], s.best[2]),
        ValueError,
        r'^resume\.best must be that of the least number of resume\.history\["validation_loss"\], \(.*\), got \(.*\)\.',
    ),
    "best of another loss": (
        "best",
        lambda s: (s.best[0] / 2, *s.best[1:]),
        ValueError,
        r"^resume\.best must be that of the least number",
    ),
    "best loss": (
        "best",
        lambda s: ("low", *s.best[1:]),
        TypeError,
        r"^resume\.best\[0\] must be a real number, got 'low'\.",
    ),
    "best epoch": (
        "best",
        lambda s: (s.best[0], 0, s.best[2]),
        ValueError,
        r"^resume\.best\[1\] must be at least 1, got 0\.",
    ),
    "best params": (
        "best",
        lambda s: (*s.best[:2], s.params[:1]),
        ValueError,
        r"^resume\.best\[2\] must have weights of the shapes of params",
    ),
    "best nan": (
        "best",
        lambda s: (*s.best[:2], changed(s.best[2], 0, with_nan)),
        ValueError,
        r"^resume\.best\[2\]\[0\]\.weight must be finite, got nan at index \(4, 6\)\.",
    ),
    "rows": ("rows", 22, ValueError, r"^X must have as many rows as in the training that is resumed, 22, got 23\."),
    "rows None": ("rows", None, TypeError, rf"^resume\.rows {NUMBER}None\."),
    "batch_size": (
        "batch_size",
        9,
        ValueError,
        r"^batch_size must be that of the training that is resumed, 9, got 10\.",
    ),
    "batch_size float": ("batch_size", 10.0, TypeError, rf"^resume\.batch_size {NUMBER}10\.0\."),
    "blocks": (
        "blocks",
        ((10, 13), 2),
        ValueError,
        r"^X must have the blocks of the training that is resumed, \(\(10, 13\), 2\), got None\.",
    ),
    "blocks of a number": (
        "blocks",
        3,
        TypeError,
        r"^resume\.blocks must be None or the rows of each block and a number, got 3\.",
    ),
    "blocks of strings": ("blocks", (("a",), 2), TypeError, rf"^resume\.blocks\[0\]\[0\] {NUMBER}'a'\."),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_state_is_said(name, problem):
    field, value, error, message = WRONG[name]
    state = state_of(problem)
    bad = state._replace(**{field: value(state) if callable(value) else value})
    with ends_within(20), pytest.raises(error, match=message):
        xs.train(*problem, epochs=4, resume=bad, **options(problem))


def test_a_result_is_not_its_state(problem):
    result = xs.train(*problem, epochs=1, **options(problem))
    with pytest.raises(TypeError, match=r"^resume must be the state .*, got a TrainResult\. Pass its `state`\."):
        xs.train(*problem, epochs=2, resume=result, **options(problem))


def test_a_state_of_pytorch(problem):
    torch = pytest.importorskip("torch")
    state = state_of(problem)
    params = tuple(xs.Layer(*map(torch.asarray, layer)) for layer in state.params)
    with pytest.raises(TypeError, match=r"^resume\.params\[0\]\.weight must be an array of the same library as params"):
        xs.train(*problem, epochs=4, resume=state._replace(params=params), **options(problem))


@pytest.mark.parametrize(
    ("kind", "name", "place"),
    [(np.random.MT19937, "pos", 10**6), (np.random.MT19937, "pos", -1), (np.random.Philox, "buffer_pos", -3)],
)
def test_places_beyond_the_arrays_of_a_bit_generator_are_refused(kind, name, place, problem):
    """NumPy itself takes them, and reads memory that is not its own."""
    chosen = options(problem, rng=np.random.Generator(kind(0)))
    state = xs.train(*problem, epochs=1, **chosen).state
    rng = copy.deepcopy(state.rng)
    (rng["state"] if name in rng["state"] else rng)[name] = place
    with pytest.raises(ValueError, match=rf"^resume\.rng must be a state of {kind.__name__}, got "):
        xs.train(*problem, epochs=2, resume=state._replace(rng=rng), **chosen)


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_every_bit_generator_resumes(kind, problem):
    def chosen():
        return options(problem, rng=np.random.Generator(kind(3)))

    whole = xs.train(*problem, epochs=4, **chosen())
    first = xs.train(*problem, epochs=3, callback=lambda step: step.step == 4, **chosen())
    second = xs.train(*problem, epochs=4, resume=pickle.loads(pickle.dumps(first.state)), **chosen())
    assert second.history == whole.history
    np.testing.assert_array_equal(flat(second.params), flat(whole.params))


def flat(layers):
    return np.concatenate([array.ravel() for array in arrays_of(layers)])


EQUAL = {
    "NumPy's integers": lambda s: s._replace(epoch=np.int64(s.epoch), step=np.uint8(s.step), rows=np.int32(s.rows)),
    "NumPy's numbers": lambda s: s._replace(history={k: [np.float64(x) for x in v] for k, v in s.history.items()}),
    "tuples for lists": lambda s: s._replace(history={k: tuple(v) for k, v in s.history.items()}),
    "lists for tuples": lambda s: s._replace(
        params=[list(layer) for layer in s.params], optimizer=list(s.optimizer), best=list(s.best)
    ),
    "other strides": lambda s: s._replace(
        params=tuple(xs.Layer(np.asfortranarray(layer.weight), layer.bias[::-1][::-1]) for layer in s.params)
    ),
}


@pytest.mark.parametrize("name", EQUAL)
def test_the_same_state_in_other_words(name, problem):
    state = state_of(problem)
    chosen = options(problem)
    expected = xs.train(*problem, epochs=4, resume=state, **chosen)
    got = xs.train(*problem, epochs=4, resume=EQUAL[name](state), **chosen)
    assert got.history == expected.history
    assert all(type(value) is float for values in got.history.values() for value in values)
    assert (type(got.state.epoch), type(got.state.rows)) == (int, int)
    np.testing.assert_array_equal(flat(got.params), flat(expected.params))


def test_patience_that_comes_and_goes(problem):
    """Without patience nothing is kept of the best epoch; a state says so where patience comes later."""
    state = state_of(problem, stop=None)
    chosen = options(problem, patience=None)
    later = xs.train(*problem, epochs=3, resume=state, **chosen).state
    assert later.best is None
    with pytest.raises(ValueError, match=r"^resume\.best must be the best epoch where patience is given, got None"):
        xs.train(*problem, epochs=4, resume=later, **options(problem))
    with pytest.raises(
        ValueError, match=r"^validation must be as in the training that is resumed, with such data, got one without it"
    ):
        xs.train(*problem, epochs=4, resume=later, **(chosen | {"validation": None}))


def test_epochs_that_are_over_already(problem):
    state = state_of(problem, stop=None)
    result = xs.train(*problem, epochs=1, resume=state, **options(problem))
    assert (result.state.epoch, result.state.step) == (2, 0)


# --- random changes ---------------------------------------------------------------------------------------------------

VALUES = [
    None, True, False, 0, 1, 2, 3, 5, -1, 10**30, -(10**30), 0.0, 2.0, math.nan, math.inf, "", "x", b"x", (), [], {},
    (1,), [1, 2], {"a": 1}, {1: 2}, np.int64(2), np.uint8(1), np.float32(1), np.bool_(True), np.nan, object, len,
    np.zeros(0), np.zeros(3), np.zeros((D, H)), np.full((D, H), np.nan), np.array("x"), np.array(None), np.ma.zeros(3),
    1j, range(3), iter(()), ...,
]  # fmt: skip


def places(value, path=()):
    """Paths to everything within tuples, lists and dicts."""
    yield path
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, (tuple, list)):
        entries = enumerate(value)
    else:
        return
    for key, part in entries:
        yield from places(part, (*path, key))


def replaced(value, path, change):
    """The same nested value with one part of it changed; nothing of the old one is."""
    if not path:
        return change(value)
    key, *rest = path
    if isinstance(value, dict):
        return value | {key: replaced(value[key], rest, change)}
    parts = list(value)
    parts[key] = replaced(value[key], rest, change)
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def mutation(draw, value):
    """Another value in the place of one: of another kind, size or dtype, or mangled."""
    kind = draw.randrange(4)
    if kind == 0 and isinstance(value, np.ndarray):
        return draw.choice(
            [value.astype("f4"), value.astype("f2"), value[:-1], value[..., None], value.T, value * np.nan, -value,
             value.astype(int), value.astype(object), value.astype(">f8"), np.asfortranarray(value), value.tolist()]
        )  # fmt: skip
    if kind == 0 and isinstance(value, (int, float)) and not isinstance(value, bool):
        return draw.choice([value + 1, value - 1, -value, value * 2, float(value), str(value), [value], 2**64, 2**200])
    if kind == 0 and isinstance(value, dict) and value:
        key = draw.choice(list(value))
        return draw.choice([{k: v for k, v in value.items() if k != key}, value | {key: None}, value | {"more": []}])
    if kind == 0 and isinstance(value, (tuple, list)) and value and not hasattr(value, "_fields"):
        return draw.choice([value[:-1], value[1:], value + value[-1:], value[::-1], list(value), tuple(value)])
    return draw.choice(VALUES)


SAID = (
    r"^(resume\b|rng must be of the kind of resume|X must have as many rows as in the training that is resumed"
    r"|batch_size must be that of the training that is resumed|X must have the blocks of the training that is resumed"
    r"|validation must be as in the training that is resumed)"
)
STATES = {
    "adam": {},
    "sgd": {"optimizer": xs.sgd(0.1), "patience": None, "validation": None},
    "momentum": {"optimizer": xs.sgd(0.1, 0.9), "patience": None, "stop": None},
    "ignored": {"ignore_index": 1, "batch_size": 1, "stop": 40},
    "other generator": {"rng": np.random.Generator(np.random.MT19937(1))},
}


def outcome(problem, state, chosen, train=xs.train):
    """The result of going on from a state, or the error."""
    with ends_within(20):
        try:
            return train(*problem, epochs=4, resume=state, **chosen)
        except Exception as error:  # noqa: BLE001 - the test looks at its type
            return error


@pytest.mark.filterwarnings("ignore")  # of NumPy's, about what is compared or cast
@pytest.mark.parametrize("name", STATES)
def test_random_changes_end_in_words_or_in_a_training(name, problem):
    more = dict(STATES[name])
    stop = more.pop("stop", 7)
    if "rng" in more:
        more["rng"] = copy.deepcopy(more["rng"])
    state = state_of(problem, stop=stop, **more)
    chosen = options(problem, **more)
    draw, refused, trained = random.Random(name), 0, 0
    paths = list(places(state))
    untouched = pickle.dumps(state)
    for _ in range(400):
        bad = state
        for _ in range(draw.choice([1, 1, 1, 2])):
            path = draw.choice(paths)
            with contextlib.suppress(TypeError, KeyError, IndexError, AttributeError):  # the path may be gone
                bad = replaced(bad, path, lambda value: mutation(draw, value))
        result = outcome(problem, bad, chosen)
        if isinstance(result, Exception):
            assert type(result) in (TypeError, ValueError), (path, repr(result))
            assert re.match(SAID, str(result)), (path, repr(result))
            refused += 1
        else:
            trained += 1
            assert result.state.epoch == 4 or bad.epoch > 4
            assert np.isfinite(flat(result.params)).all()
            assert len(result.history["loss"]) == result.state.epoch * -(-N // chosen["batch_size"])
        assert pickle.dumps(state) == untouched
    assert refused > 200
    assert trained > 5


BLOCKS = {
    "step beyond the epoch": (
        "step",
        8,
        ValueError,
        r"^resume\.step must be at most [67], the steps of the epoch, got 8\.",
    ),
    "blocks None": ("blocks", None, ValueError, r"^X must have the blocks of the training that is resumed, None, got"),
    "blocks of other sizes": ("blocks", ((13, 10, 0), 2), ValueError, r"^X must have the blocks of the training"),
    "blocks of lists": ("blocks", ([10, 0, 13], 2), None, None),
    "history shorter": (
        "history",
        {"loss": [1.0]},
        ValueError,
        r'^resume\.history\["loss"\] must have a number for each',
    ),
    "rng empty": ("rng", {}, TypeError, r"^resume\.rng must be the state of a bit generator, a dict, got"),
    "params None": ("params", None, TypeError, r"^resume\.params must be a sequence of layers"),
}


@pytest.fixture
def over_blocks(problem):
    """The arrays in blocks, one without rows, of which a step takes two."""
    pytest.importorskip("dask")
    import dask.array as da

    params, X, y = problem
    sizes = (10, 0, 13)
    arrays = params, da.from_array(X, chunks=(sizes, D)), da.from_array(y, chunks=(sizes,))
    return arrays, {"optimizer": xs.adam(0.01), "batch_size": 4, "blocks_per_step": 2, "rng": 3}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_state_of_blocks(name, over_blocks):
    import xpsoftmax.dask as xd

    arrays, chosen = over_blocks
    field, value, error, message = BLOCKS[name]
    state = xd.train(*arrays, epochs=3, callback=lambda step: step.step == 8, **chosen).state
    bad = state._replace(**{field: value})
    if error is None:
        assert xd.train(*arrays, epochs=3, resume=bad, **chosen).state.epoch == 3
        return
    with ends_within(20), pytest.raises(error, match=message):
        xd.train(*arrays, epochs=3, resume=bad, **chosen)


@pytest.mark.filterwarnings("ignore")
def test_random_changes_of_a_state_of_blocks(over_blocks):
    import xpsoftmax.dask as xd

    arrays, chosen = over_blocks
    state = xd.train(*arrays, epochs=3, callback=lambda step: step.step == 8, **chosen).state
    draw, paths, refused = random.Random(0), list(places(state)), 0
    for _ in range(100):
        path = draw.choice(paths)
        result = outcome(arrays, replaced(state, path, lambda value: mutation(draw, value)), chosen, xd.train)
        if isinstance(result, Exception):
            assert type(result) in (TypeError, ValueError), (path, repr(result))
            assert re.match(SAID, str(result)), (path, repr(result))
            refused += 1
        else:
            assert result.state.epoch == 4
            assert np.isfinite(flat(result.params)).all()
    assert refused > 50
