"""Learning rates that change: their values beside PyTorch's, at the ends, in a training; what is refused."""

import math
import pickle

import numpy as np
import pytest

import xpsoftmax as xs

ALL = {
    "constant": xs.constant_schedule(0.3),
    "step": xs.step_schedule(0.3, every=7, factor=0.5),
    "cosine": xs.cosine_schedule(0.3, steps=20, final=0.01),
    "warm-up": xs.warm_up_schedule(xs.cosine_schedule(0.3, steps=20), steps=5, start=0.01),
}


def torch_rates(make, steps, rate=0.3):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("name", "make", "steps"),
    [
        ("step", lambda module, optimizer: module.StepLR(optimizer, 7, gamma=0.5), 30),
        ("cosine", lambda module, optimizer: module.CosineAnnealingLR(optimizer, 20, eta_min=0.01), 21),
    ],
)
def test_the_rates_are_those_of_pytorch(name, make, steps):
    np.testing.assert_allclose([ALL[name](step) for step in range(steps)], torch_rates(make, steps), rtol=1e-12)


def test_a_cosine_stays_where_it_ends():
    assert ALL["cosine"](20) == ALL["cosine"](10**9) == 0.01
    assert ALL["cosine"](0) == 0.3


def test_a_warm_up_is_a_line_to_the_first_rate_of_its_schedule():
    rates = [ALL["warm-up"](step) for step in range(6)]
    np.testing.assert_allclose(rates, np.linspace(0.01, 0.3, 6), rtol=1e-12)
    assert ALL["warm-up"](5 + 20) == 0.0


def test_every_rate_is_a_finite_number():
    for schedule in ALL.values():
        assert all(0.0 <= schedule(step) < math.inf for step in range(100))


def test_they_can_be_pickled_and_compared():
    for schedule in ALL.values():
        assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert xs.constant_schedule(0.1) != xs.constant_schedule(0.2)


@pytest.mark.parametrize("name", ALL)
def test_a_training_uses_them(name, rng):
    """The same as a training whose rate is looked up by hand."""
    X, y = rng.standard_normal((20, 3)), rng.integers(0, 4, 20)
    params = xs.init_params((3, 4), rng=0)
    trained = xs.train(params, X, y, optimizer=xs.sgd(ALL[name]), epochs=6, batch_size=5, rng=1)
    by_hand = [ALL[name](step) for step in range(24)]
    again = xs.train(params, X, y, optimizer=xs.sgd(by_hand.__getitem__), epochs=6, batch_size=5, rng=1)
    np.testing.assert_array_equal(trained.params[0].weight, again.params[0].weight)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: xs.constant_schedule(-1.0), ValueError, r"^rate must be finite and at least 0, got -1\.0\.$"),
        (lambda: xs.constant_schedule("1"), TypeError, r"^rate must be a real number, got '1'\.$"),
        (lambda: xs.step_schedule(math.nan, every=2), ValueError, r"^rate must be finite and at least 0, got nan\.$"),
        (lambda: xs.step_schedule(0.1, every=0), ValueError, r"^every must be .*1.*, got 0\.$"),
        (lambda: xs.step_schedule(0.1, every=2, factor=-1), ValueError, r"^factor must be finite and at least 0"),
        (lambda: xs.cosine_schedule(0.1, steps=2.0), TypeError, r"^steps must be an integer, got 2\.0\.$"),
        (lambda: xs.cosine_schedule(0.1, steps=2, final=math.inf), ValueError, r"^final must be finite .*, got inf\.$"),
        (lambda: xs.cosine_schedule(-0.1, steps=2), ValueError, r"^rate must be finite and at least 0, got -0\.1\.$"),
        (lambda: xs.warm_up_schedule(0.1, steps=2), TypeError, r"^schedule must be a function of .*, got 0\.1\. const"),
        (lambda: xs.warm_up_schedule(ALL["constant"], steps=0), ValueError, r"^steps must be .*1.*, got 0\.$"),
        (
            lambda: xs.warm_up_schedule(ALL["constant"], steps=2, start=-1),
            ValueError,
            r"^start must be finite and at least 0, got -1\.0\.$",
        ),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (-1, ValueError, r"^step must be at least 0, got -1\.$"),
        (True, TypeError, r"^step must be an integer, got True\.$"),
        (1.5, TypeError, r"^step must be an integer, got 1\.5\.$"),
        ("3", TypeError, r"^step must be an integer, got '3'\.$"),
        (None, TypeError, r"^step must be an integer, got None\.$"),
    ],
)
def test_a_number_of_updates_that_is_none(name, step, error, message):
    with pytest.raises(error, match=message):
        ALL[name](step)


def test_numbers_of_updates_without_end():
    """Rates far beyond the end of a training: no arithmetic of Python fails."""
    many = 10**400
    for name in ("constant", "cosine", "warm-up"):
        assert ALL[name](many) == ALL[name](10**6)
    assert xs.step_schedule(0.3, every=7, factor=0.5)(many) == 0.0
    assert xs.cosine_schedule(0.1, steps=many)(3) == 0.1
    assert xs.step_schedule(0.1, every=many)(3) == 0.1
    assert ALL["step"](np.int64(7)) == ALL["step"](7)


def test_a_factor_that_overflows(rng):
    """Python's power raises a bare OverflowError; training says which rate is not finite."""
    rate = xs.step_schedule(0.1, every=2, factor=1e200)
    assert [rate(step) for step in (0, 2, 4)] == [0.1, 0.1 * 1e200, math.inf]
    assert xs.step_schedule(0.0, every=2, factor=1e200)(4) == 0.0
    X, y = rng.standard_normal((20, 3)), rng.integers(0, 4, 20)
    params = xs.init_params((3, 4), rng=0)
    rate = xs.step_schedule(1e-300, every=2, factor=1e200)
    with pytest.raises(ValueError, match=r"^learning_rate\(4\) must be finite and at least 0, got inf\.$"):
        xs.train(params, X, y, optimizer=xs.sgd(rate), epochs=2, batch_size=5, rng=1)


@pytest.mark.parametrize(
    ("rate", "error", "got"),
    [("0.1", TypeError, "'0.1'"), (None, TypeError, "None"), (10**400, ValueError, "inf"), (-1.0, ValueError, "-1.0")],
)
def test_a_schedule_of_the_caller_that_returns_no_rate(rate, error, got):
    schedule = xs.warm_up_schedule(lambda step: rate, steps=3)
    with pytest.raises(error, match=rf"^schedule\(0\) must be .*, got {got}\.$"):
        schedule(1)
