"""Labels of MLPClassifier: integers of 64 bits in any container, labels that may be missing, and what is refused."""

import collections
import datetime as dt
import decimal
import enum
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.exceptions import DataConversionWarning

from xpsoftmax.sklearn import MLPClassifier
from xpsoftmax.sklearn.labels import encode

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROWS = 24
KNOWN = "integers, booleans, strings, dates, durations, or floats of integral value"


@pytest.fixture(name="X")
def clusters():
    """Rows of three clusters far apart."""
    return np.eye(3)[np.arange(ROWS) % 3] * 10.0 + np.arange(ROWS)[:, None] * 0.01


def learner(**options):
    return MLPClassifier((), **{"max_iter": 30, "learning_rate_init": 0.3, "random_state": 0, **options})


# --- integers in every container --------------------------------------------------------------------------------------


def with_pandas(make):
    def made(ids):
        return make(pytest.importorskip("pandas"), ids)

    return made


def with_pyarrow(make):
    def made(ids):
        pytest.importorskip("pyarrow")
        return make(pytest.importorskip("pandas"), ids)

    return made


def with_arrow(make):
    def made(ids):
        return make(pytest.importorskip("pyarrow"), ids)

    return made


def alternating(ids):
    """Scalars of NumPy, of int64 and uint64 in turn where they can be."""
    return [np.int64(x) if x < 0 or (i % 2 and x < 2**63) else np.uint64(x) for i, x in enumerate(ids)]


CONTAINERS = {
    "list": list,
    "column of a list": lambda ids: [[x] for x in ids],
    "list of scalars": alternating,
    "objects": lambda ids: np.array(ids, object),
    "column of objects": lambda ids: np.array(ids, object)[:, None],
    "int64": lambda ids: np.array(ids, np.int64),
    "uint64": lambda ids: np.array(ids, np.uint64),
    "int64 of the other byte order": lambda ids: np.array(ids, np.int64).astype(">i8"),
    "Int64": with_pandas(lambda pandas, ids: pandas.Series(np.array(ids, np.int64), dtype="Int64")),
    "UInt64": with_pandas(lambda pandas, ids: pandas.Series(np.array(ids, np.uint64), dtype="UInt64")),
    "array of UInt64": with_pandas(lambda pandas, ids: pandas.array(np.array(ids, np.uint64), dtype="UInt64")),
    "index of Int64": with_pandas(lambda pandas, ids: pandas.Index(np.array(ids, np.int64), dtype="Int64")),
    "frame of UInt64": with_pandas(
        lambda pandas, ids: pandas.DataFrame({"y": pandas.Series(np.array(ids, np.uint64), dtype="UInt64")})
    ),
    "convert_dtypes": with_pandas(lambda pandas, ids: pandas.Series(np.array(ids, np.int64)).convert_dtypes()),
    "categories of objects": with_pandas(lambda pandas, ids: pandas.Series(ids, dtype=object).astype("category")),
    "categories of UInt64": with_pandas(
        lambda pandas, ids: pandas.Series(np.array(ids, np.uint64), dtype="UInt64").astype("category")
    ),
    "Categorical": with_pandas(lambda pandas, ids: pandas.Categorical(np.array(ids, np.int64))),
    "sparse": with_pandas(lambda pandas, ids: pandas.Series(pandas.arrays.SparseArray(np.array(ids, np.int64)))),
    "int64[pyarrow]": with_pyarrow(lambda pandas, ids: pandas.Series(np.array(ids, np.int64)).astype("int64[pyarrow]")),
    "uint64[pyarrow]": with_pyarrow(
        lambda pandas, ids: pandas.Series(np.array(ids, np.uint64)).astype("uint64[pyarrow]")
    ),
    "array of pyarrow": with_arrow(lambda arrow, ids: arrow.array(np.array(ids, np.uint64))),
    "dictionary of pyarrow": with_arrow(lambda arrow, ids: arrow.array(np.array(ids, np.int64)).dictionary_encode()),
    "table of pyarrow": with_arrow(lambda arrow, ids: arrow.table({"y": np.array(ids, np.int64)})),
}
NEAR = {"2**53": 2**53, "-2**53": -(2**53), "2**62": 2**62, "2**63": 2**63, "2**64": 2**64 - 4, "-2**63": 4 - 2**63}


def held_by(name, ids):
    """What a container makes of ids, or None if they are not among its numbers."""
    low, high = min(ids), max(ids)
    signed = not any(word in name for word in ("uint", "UInt", "array of pyarrow", "list", "objects"))
    if ("uint" in name or "UInt" in name or name == "array of pyarrow") and low < 0:
        return None
    if signed and high >= 2**63:
        return None
    return CONTAINERS[name](ids)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
@pytest.mark.parametrize("near", NEAR)
@pytest.mark.parametrize("name", CONTAINERS)
def test_integers_are_compared_as_integers(name, near, X, rng):
    """As floats of 64 bits neighbours would be one class, of which every row has the label."""
    ids = sorted(int(NEAR[near]) + int(i) for i in rng.choice(np.arange(-3, 4), 3, replace=False))
    rows = [ids[i % 3] for i in range(ROWS)]
    y = held_by(name, rows)
    if y is None:
        pytest.skip("it has no such integers")
    model = learner().fit(X, y)
    assert model.classes_.tolist() == ids
    assert model.classes_.dtype.kind in "iu"
    assert model.predict(X).tolist() == rows
    assert model.score(X, y) == 1.0
    others = [ids[(i + (i < 6)) % 3] for i in range(ROWS)]
    for other in CONTAINERS:
        given, classes = held_by(other, others), held_by(other, ids)
        if given is None:
            continue
        assert model.score(X, given) == 0.75, other
        if np.ndim(classes) == 1:
            known = learner(class_weight={ids[1]: 3.0}).partial_fit(X, y, classes=classes)
            expected = learner().partial_fit(X, np.arange(ROWS) % 3, range(3), [1.0, 3.0, 1.0] * (ROWS // 3))
            np.testing.assert_array_equal(known.coefs_[0], expected.coefs_[0])
            assert MLPClassifier.from_params(model.params_, classes=classes).predict(X).tolist() == rows


def test_integers_that_no_dtype_holds_together(X):
    for ids in ([-1, 5, 2**63], [-(2**70), 2**64, 2**64 + 1]):
        rows = [ids[i % 3] for i in range(ROWS)]
        for y in (rows, np.array(rows, object), alternating(rows) if ids[0] == -1 else rows):
            model = learner(early_stopping=True).fit(X, y)
            assert model.classes_.dtype == object
            assert model.classes_.tolist() == ids
            assert set(model.predict(X)) <= set(ids)
            assert model.score(X, rows) == np.mean(model.predict(X) == np.array(rows, object))


def test_signed_labels_beside_unsigned_classes(X):
    """NumPy would compare both as floats."""
    classes = np.array([2**60, 2**60 + 1, 2**63 + 1], np.uint64)
    y = np.array([2**60, 2**60 + 1], np.int64)[np.arange(ROWS) % 2]
    model = learner().partial_fit(X, y, classes=classes)
    with pytest.raises(ValueError, match=r"y must have no classes but those .*, got also \[11529215046068469"):
        model.partial_fit(X, y + 2)
    with pytest.raises(ValueError, match="classes must be the same as on the first call"):
        model.partial_fit(X, y, classes=[2**60, 2**60 + 2, 2**63 + 1])
    model.partial_fit(X, y, classes=classes.tolist())
    assert model.classes_.dtype == np.uint64
    assert model.score(X, np.full(ROWS, -1)) == 0.0


def test_early_stopping_tells_neighbours_apart(X):
    ids = [2**53, 2**53 + 1, 2**53 + 2]
    rows = np.array(ids)[np.arange(ROWS) % 3]
    shuffled = np.roll(rows, 1)
    for y, best in ((rows, True), (np.where(np.arange(ROWS) % 2, rows, shuffled), False)):
        model = learner(early_stopping=True, validation_fraction=0.5).fit(X, y.astype(object))
        assert (model.best_validation_score_ == 1.0) == best


@pytest.mark.parametrize("kind", ["array", "Int64", "uint64[pyarrow]", "categories", "objects"])
def test_integers_of_dask(kind, X):
    da = pytest.importorskip("dask.array")
    ids = [2**62 - 1, 2**62, 2**62 + 1]
    rows = np.array([ids[i % 3] for i in range(ROWS)])
    lazy = da.from_array(X, chunks=(10, 3))
    if kind in ("array", "objects"):
        y = da.from_array(rows.astype(object if kind == "objects" else np.int64), chunks=10)
    else:
        pandas, frames = pytest.importorskip("pandas"), pytest.importorskip("dask.dataframe")
        dtype = "category" if kind == "categories" else kind
        y = frames.from_pandas(pandas.Series(rows).astype(dtype), npartitions=3)
    model = learner(early_stopping=True, validation_fraction=0.25).fit(lazy, y)
    assert model.classes_.tolist() == ids
    predicted = model.predict(lazy).compute()
    assert model.score(lazy, y) == np.mean(predicted == rows) > 0.3
    assert model.score(lazy, rows + 1) == np.mean(predicted == rows + 1)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_of_every_library(dtype, backend, X):
    if backend.name == "dask":
        pytest.skip("refused")
    ids = np.array([2**62, 2**62 + 1, 2**62 + 2], dtype)
    y = backend.asarray(ids[np.arange(ROWS) % 3])
    if str(y.dtype).rpartition(".")[2] != dtype:
        pytest.skip("it has no 64 bits")
    model = learner().fit(backend.asarray(X), y)
    assert model.classes_.tolist() == ids.tolist()
    assert model.score(backend.asarray(X), y) == 1.0
    assert model.score(backend.asarray(X), ids[np.arange(ROWS) % 3].tolist()) == 1.0
    assert model.score(backend.asarray(X), np.full(ROWS, 2**62 + 3)) == 0.0


# --- other labels -----------------------------------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 1
    BLUE = 2


class Letter(str, enum.Enum):  # noqa: UP042
    """Members are strings, but str() of a member is its name."""

    FIRST = "a"
    SECOND = "b"


KINDS = {
    "boolean": (with_pandas(lambda pandas, codes: pandas.Series(codes == 1, dtype="boolean")), np.dtype(bool)),
    "bool[pyarrow]": (with_pyarrow(lambda pandas, codes: pandas.Series(codes == 1).astype("bool[pyarrow]")), bool),
    "string[pyarrow]": (
        with_pyarrow(lambda pandas, codes: pandas.Series(np.array(["a", "b"])[codes]).astype("string[pyarrow]")),
        object,
    ),
    "string": (with_pandas(lambda pandas, codes: pandas.Series(np.array(["a", "b"])[codes], dtype="string")), object),
    "categories": (
        with_pandas(lambda pandas, codes: pandas.Series(np.array(["z", "a"])[codes], dtype="category")),
        object,
    ),
    "Float64": (with_pandas(lambda pandas, codes: pandas.Series(codes.astype(float), dtype="Float64")), float),
    "dates": (lambda codes: np.array(["2020-01-01", "2021-01-01"], "M8[D]")[codes], "M8[D]"),
    "dates of Python": (lambda codes: [dt.date(2020 + code, 1, 1) for code in codes], "M8[D]"),
    "timestamps": (
        with_pandas(lambda pandas, codes: [pandas.Timestamp(2020 + code, 1, 1, nanosecond=1) for code in codes]),
        "M8[ns]",
    ),
    "durations": (lambda codes: (codes + 1).astype("m8[s]"), "m8[s]"),
    "durations of Python": (lambda codes: [dt.timedelta(days=code + 1) for code in codes.tolist()], "m8[us]"),
    "durations in several units": (
        lambda codes: [np.timedelta64(1, "D" if code else "h") for code in codes],
        "m8[h]",
    ),
    "objects of pandas' durations": (
        with_pandas(lambda pandas, codes: [pandas.Timedelta(f"{code + 1} ns") for code in codes]),
        "m8[ns]",
    ),
    "duration[us][pyarrow]": (
        with_pyarrow(lambda pandas, codes: pandas.Series((codes + 1).astype("m8[us]")).astype("duration[us][pyarrow]")),
        "m8[us]",
    ),
    "months": (lambda codes: [np.timedelta64(1, "Y" if code else "M") for code in codes], "m8[M]"),
    "other sequences": (lambda codes: collections.deque([2**63, 2**63 + 1][code] for code in codes), np.uint64),
    "enumeration of strings": (lambda codes: [(Letter.FIRST, Letter.SECOND)[code] for code in codes], object),
    "objects of bool": (lambda codes: (codes == 1).astype(object), bool),
    "enumeration": (lambda codes: [Colour(code + 1) for code in codes], np.int64),
    "whole floats beside integers": (lambda codes: [float(codes[0]), *codes[1:].tolist()], float),
    "strings of any length": (lambda codes: np.array(["a", "b"], np.dtypes.StringDType())[codes], object),
    "strings that NumPy makes one": (lambda codes: np.array(["a", "a\0"], object)[codes].tolist(), object),
    "arrays without dimensions": (lambda codes: [np.array(code) for code in codes], np.int64),
}


@pytest.mark.parametrize("name", KINDS)
def test_labels_of_other_kinds(name, X):
    make, dtype = KINDS[name]
    codes = np.arange(ROWS) % 3 // 2
    y = make(codes)
    model = learner(max_iter=60).fit(X, y)
    assert model.classes_.dtype == np.dtype(dtype)
    assert len(model.classes_) == 2
    assert model.predict(X).dtype == np.dtype(dtype)
    assert model.score(X, y) == model.score(X, model.predict(X)) == 1.0
    weighted = learner(class_weight={model.classes_[0]: 2.0}).fit(X, y)
    assert not np.array_equal(weighted.coefs_[0], learner().fit(X, y).coefs_[0])


def test_numbers_of_any_kind_are_equal_to_each_other(X):
    """As NumPy compares them; strings are equal to no number."""
    codes = np.arange(ROWS) % 3 // 2
    model = learner().fit(X, codes)
    for y in (codes.astype(float), codes.astype(bool), codes.astype("u1")):
        assert model.score(X, y) == 1.0
    for strings in (codes.astype(str), np.array(["False", "True"])[codes]):
        with pytest.raises(ValueError, match=r"y must be labels like \[0 1\], got \['"):
            model.score(X, strings)
        with pytest.raises(
            ValueError, match=r"y must have no classes but those that are known, \['.* got also \[0 1\]"
        ):
            learner().partial_fit(X, codes, classes=np.unique(strings))
    with pytest.raises(ValueError, match=r"y must have no classes but those .* \['False' 'True'\], got also \[False"):
        learner().partial_fit(X, codes == 1, classes=["False", "True"])


def test_an_enumeration_of_strings_is_compared_by_its_strings(X):
    codes = np.arange(ROWS) % 3 // 2
    model = learner().fit(X, [(Letter.FIRST, Letter.SECOND)[code] for code in codes])
    assert model.classes_.tolist() == ["a", "b"]
    assert model.score(X, np.array(["a", "b"])[codes]) == 1.0


@pytest.mark.parametrize("kind", ["M8", "m8"])
def test_times_of_other_units_are_compared_exactly(kind):
    """In nanoseconds, the finer unit of both, the last labels would overflow."""
    classes = np.array([-1, 0, 10**9, 2 * 10**9], f"{kind}[ns]")
    far = 2**64 // 10**9 + 2  # seconds; in nanoseconds this is class 3, or near it, after overflow
    labels = np.array([-1, 0, 1, 2, far, -far], f"{kind}[s]")
    assert encode(labels, classes).tolist() == [-1, 1, 2, 3, -1, -1]
    assert encode(classes, np.sort(labels)).tolist() == [-1, 2, 3, 4]
    days = np.array([0, 10**6], f"{kind}[D]")
    assert encode(classes, days).tolist() == [-1, 0, -1, -1]
    overflowing = np.array([2**64 // 86400 * 86400 % 2**63], np.int64)  # whole days of seconds
    assert encode(overflowing.astype(f"{kind}[s]"), classes).tolist() == [-1]


def test_months_are_no_number_of_days():
    months = np.array([1, 2], "m8[M]")
    assert encode(np.array([2, 12], "m8[M]"), np.array([1], "m8[Y]")).tolist() == [-1, 0]
    assert encode(np.array([30, 31], "m8[D]"), months).tolist() == [-1, -1]


def test_a_column_of_a_frame_is_taken_with_a_warning(X):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"y": pandas.Series(np.arange(ROWS) % 3, dtype="Int64")})
    with pytest.warns(DataConversionWarning, match="column-vector") as caught:
        learner().fit(X, frame)
    assert [warning.filename for warning in caught if warning.category is DataConversionWarning] == [__file__]


def test_probabilities_in_nullable_columns(X):
    pandas = pytest.importorskip("pandas")
    y = np.eye(3)[np.arange(ROWS) % 3]
    expected = learner().fit(X, y)
    model = learner().fit(X, pandas.DataFrame(y, dtype="Float64"))
    np.testing.assert_array_equal(model.coefs_[0], expected.coefs_[0])
    beside_integers = pandas.DataFrame(y, dtype="Float64").astype({1: "Int64"})
    np.testing.assert_array_equal(learner().fit(X, beside_integers).coefs_[0], expected.coefs_[0])
    with pytest.raises(ValueError, match=r"y must be labels \(N,\) or floating probabilities \(N, C\), got object"):
        learner().fit(X, pandas.DataFrame(y.astype(int), dtype="Int64"))


# --- what is refused --------------------------------------------------------------------------------------------------

MISSING = {
    "None": lambda: [0, 1, None, 1],
    "None among objects": lambda: np.array([0, 1, None, 1], object),
    "None among strings": lambda: ["a", "b", None, "b"],
    "nan": lambda: [0.0, 1.0, np.nan, 1.0],
    "nan among strings": lambda: np.array(["a", "b", np.nan, "b"], object),
    "NaT": lambda: np.array(["2020", "2021", "NaT", "2021"], "M8[D]"),
    "NA": with_pandas(lambda pandas, _: [0, 1, pandas.NA, 1]),
    "Int64": with_pandas(lambda pandas, _: pandas.Series([2**60, 2**60 + 1, None, 1], dtype="Int64")),
    "boolean": with_pandas(lambda pandas, _: pandas.Series([True, False, None, True], dtype="boolean")),
    "strings": with_pandas(lambda pandas, _: pandas.Series(["a", "b", None, "b"], dtype="string")),
    "categories": with_pandas(lambda pandas, _: pandas.Series(["a", "b", None, "b"], dtype="category")),
    "categories of Int64": with_pandas(
        lambda pandas, _: pandas.Series([1, 2, None, 1], dtype="Int64").astype("category")
    ),
    "dates": with_pandas(
        lambda pandas, _: pandas.Series(pandas.to_datetime(["2020-01-01", "2021-01-01", None] * 2))[:4]
    ),
    "pyarrow": with_arrow(lambda arrow, _: arrow.array([2**60, 1, None, 1])),
    "bool of pyarrow": with_arrow(lambda arrow, _: arrow.array([True, False, None, True])),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_labels_are_named(name):
    make = MISSING[name]
    y = make() if make.__code__.co_argcount == 0 else make(None)
    model = learner(max_iter=1).fit(np.eye(4), [0, 1, 0, 1])
    for call in (
        lambda: learner().fit(np.eye(4), y),
        lambda: learner().partial_fit(np.eye(4), y, classes=[0, 1]),
        lambda: model.score(np.eye(4), y),
    ):
        with pytest.raises(ValueError, match=r"^y must hold no missing values, got (None|NaN|NaT|<NA>) at row 2\."):
            call()
    with pytest.raises(ValueError, match=r"^classes must hold no missing values, got .* at place 2\. Pass weights of"):
        learner().partial_fit(np.eye(4), [0, 1, 0, 1], classes=y)


REFUSED = {
    "strings beside integers": (["a", 1] * 2, TypeError, "labels of one kind, got str 'a' at row 0 and int 1 at row 1"),
    "the same among objects": (np.array([1, 1, "1", 2], object), TypeError, "got int 1 at row 0 and str '1' at row 2"),
    "booleans beside integers": ([True, 1, 0, 2], TypeError, "got bool True at row 0 and int 1 at row 1"),
    "booleans beside strings": ([True, "True"] * 2, TypeError, "got bool True at row 0 and str 'True' at row 1"),
    "dates beside integers": ([dt.date(2020, 1, 1), 1] * 2, TypeError, "got datetime64 .* and int 1 at row 1"),
    "decimals": ([decimal.Decimal(1), decimal.Decimal(2)] * 2, TypeError, rf"labels: {KNOWN}, got Decimal .* at row 0"),
    "times of a zone": (
        [dt.datetime(2020 + i, 1, 1, tzinfo=dt.UTC) for i in range(4)],
        TypeError,
        rf"labels: {KNOWN}, got datetime ",
    ),
    "times beyond the finest unit": (
        [np.datetime64("2500-01-01"), np.datetime64(1, "ns")] * 2,
        ValueError,
        r"dates that datetime64\[ns\], the finest of their units, holds, got np\.datetime64\('2500-01-01'\) at row 0",
    ),
    "months beside days": (
        [np.timedelta64(1, "D"), np.timedelta64(1, "M")] * 2,
        TypeError,
        r"durations of one kind, got np\.timedelta64\(1,'D'\) and np\.timedelta64\(1,'M'\): months",
    ),
    "kinds in another sequence": (
        collections.deque(["a", 1] * 2),
        TypeError,
        "got str 'a' at row 0 and int 1 at row 1",
    ),
    "masked rows in another sequence": (
        collections.deque([np.ma.masked_equal([1], 1), np.array([2])] * 2),
        TypeError,
        "not be a masked array",
    ),
    "bytes": (np.array([b"a", b"b"] * 2), TypeError, rf"labels: {KNOWN}, got \|S1\. Decode bytes to strings"),
    "records": (np.zeros(4, "i4,i4"), TypeError, rf"labels: {KNOWN}, got \["),
    "complex numbers": (np.array([1j, 2, 1j, 2]), ValueError, "got complex128. Complex data not supported"),
    "continuous": ([0.0, 1.0, 0.5, 1.0], ValueError, rf"labels: {KNOWN}, got 0\.5 at row 2\. Unknown label type: cont"),
    "infinity": ([0.0, 1.0, np.inf, 1.0], ValueError, rf"labels: {KNOWN}, got inf at row 2"),
    "float64": (
        [2.0**53 - 1, 1.0, 2.0**53, 1.0],
        ValueError,
        r"from 2\*\*53 on, got 9007199254740992\.0 at row 2\. flo",
    ),
    "-float64": (np.array([1.0, -(2.0**53)] * 2), ValueError, r"from 2\*\*53 on, got -9007199254740992\.0 at row 1"),
    "float32": (
        np.array([2**24 - 1, 1, 2**24, 1], "f4"),
        ValueError,
        r"from 2\*\*24 on, got 16777216\.0 at row 2\. float32",
    ),
    "float16": (np.array([2047, 1, 2048, 1], "f2"), ValueError, r"from 2\*\*11 on, got 2048\.0 at row 2\. float16"),
    "longdouble": (np.array([1, 2, 2**53, 1], np.longdouble), ValueError, r"from 2\*\*53 on, got .* at row 2"),
    "beside integers": ([2**60, 1, 2.0**53, 1], ValueError, r"from 2\*\*53 on, got 9007199254740992\.0 at row 2"),
    "rows of other lengths": (
        [[1], [1, 2], [1], [2]],
        ValueError,
        r"have rows of one length, got \[\[1\], \[1, 2\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_labels_that_are_refused(name):
    y, error, message = REFUSED[name]
    model = learner(max_iter=1).fit(np.eye(4), [0, 1, 0, 1])
    for call in (lambda: learner().fit(np.eye(4), y), lambda: model.score(np.eye(4), y)):
        with warnings.catch_warnings(), pytest.raises(error, match=f"^y must .*{message}"):
            call()


def test_sparse_labels_are_refused():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"^y must be dense, got a sparse csr_array\. Call its toarray\(\)"):
        learner().fit(np.eye(4), sparse.csr_array(np.eye(4)))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (
            {2.0**53: 2.0},
            ValueError,
            r"class_weight must be integers .* from 2\*\*53 on, got 9007199254740992\.0 at key 0",
        ),
        ({2**53 + 3: 2.0}, ValueError, r"class_weight must be of the labels of y, .* got one of 9007199254740995"),
        ({str(2**53): 2.0}, ValueError, "class_weight must be of the labels of y, .* got one of '9007199254740992'"),
        ({2**53: 1.0, None: 2.0}, ValueError, "class_weight must hold no missing values, got None at key 1"),
        ({2**53: 1.0, "a": 2.0}, TypeError, "class_weight must be labels of one kind, got int .* and str 'a' at key 1"),
        ({(1, 2): 1.0}, TypeError, r"class_weight must be labels: .* got tuple \(1, 2\) at key 0"),
    ],
)
def test_keys_of_class_weight_are_labels(weights, error, message):
    with pytest.raises(error, match=message):
        learner(class_weight=weights).fit(np.eye(4), [2**53, 2**53 + 1] * 2)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, np.nan, 1.0, 1.0], "got nan at row 1"),
        ([1.0, 1.0, None, 1.0], "got None at row 2"),
        ([1.0, np.inf, 1.0, 1.0], "got inf at row 1"),
        ([1.0, 1.0, 1.0, -2.0], r"got -2\.0 at row 3"),
    ],
)
def test_weights_that_are_refused(weight, message):
    model = learner(max_iter=1).fit(np.eye(4), [0, 1, 0, 1])
    for call in (model.fit, model.score):
        with pytest.raises(ValueError, match=f"^sample_weight must be finite and not negative, {message}"):
            call(np.eye(4), [0, 1, 0, 1], sample_weight=weight)
    with pytest.raises(ValueError, match=r"^sample_weight must let a row count, got weights that are all zero\."):
        model.score(np.eye(4), [0, 1, 0, 1], sample_weight=[0.0] * 4)


def test_a_logistic_output_becomes_two_columns(X):
    """As the message of from_params says; the probabilities are those of scikit-learn."""
    from sklearn.neural_network import MLPClassifier as Theirs

    y = np.arange(ROWS) % 3 // 2
    theirs = Theirs((4,), max_iter=20, random_state=0).fit(X, y)
    params = list(zip(theirs.coefs_, theirs.intercepts_, strict=True))
    with pytest.raises(ValueError, match=r"np\.hstack\(\[-w / 2, w / 2\]\) and np\.hstack\(\[-b / 2, b / 2\]\)"):
        MLPClassifier.from_params(params, classes=theirs.classes_)
    w, b = params[-1]
    params[-1] = np.hstack([-w / 2, w / 2]), np.hstack([-b / 2, b / 2])
    model = MLPClassifier.from_params(params, classes=theirs.classes_)
    np.testing.assert_allclose(model.predict_proba(X), theirs.predict_proba(X), rtol=1e-12, atol=1e-15)
    one = MLPClassifier.from_params([(np.ones((3, 1)), np.zeros(1))], classes=["only"])
    assert one.predict(X[:2]).tolist() == ["only", "only"]
