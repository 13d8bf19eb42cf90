"""Files of parameters: every bit comes back, on every library; a file that is not whole or not ours is an error."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from assertions import assert_like, assert_same_bits

import xpsoftmax as xs
from xpsoftmax._arguments.host import to_host, to_library
from xpsoftmax._network.files import PARAMS
from xpsoftmax._network.tensors import load_arrays, save_arrays

DTYPES = ("float16", "bfloat16", "float32", "float64")
SIZES = (3, 5, 2)
POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions and signals of POSIX")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.safetensors"


def drawn(rng, dtype="float64", sizes=SIZES):
    """Parameters on the host, in which no two numbers are equal and none of the biases is zero."""
    layers = [(rng.standard_normal(shape), rng.standard_normal(shape[1])) for shape in itertools.pairwise(sizes)]
    return tuple(xs.Layer(*(array.astype(dtype) for array in layer)) for layer in layers)


def has(backend, dtype):
    if dtype == "bfloat16":  # see Backend.asarray
        return backend.name in ("torch", "jax") or backend.name.startswith("cupy")
    return dtype != "float16" or not backend.name.startswith("array_api_strict")


def bits(backend, array):
    """The numbers of an array, bfloat16 as float32, which holds every one of them."""
    return backend.to_numpy(array.compute() if backend.name == "dask" else array)


def assert_same_params(params, desired):
    assert isinstance(params, tuple)
    assert len(params) == len(desired)
    for layer, expected in zip(params, desired, strict=True):
        assert type(layer) is xs.Layer
        for array, values in zip(layer, expected, strict=True):
            assert type(array) is np.ndarray
            assert_same_bits(array, values)


def left_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DTYPES)
def test_every_bit_comes_back(backend, name, rng, path):
    if not has(backend, name):
        pytest.skip(f"{backend.name} has no {name}")
    params = [[backend.asarray(array, name) for array in layer] for layer in drawn(rng)]
    xs.save_params(path, params)
    loaded = xs.load_params(path, xp=backend.library, device=backend.device)
    assert [type(layer) for layer in loaded] == [xs.Layer, xs.Layer]
    for layer, expected in zip(loaded, params, strict=True):
        for array, original in zip(layer, expected, strict=True):
            assert_like(array, backend=backend, dtype=name, shape=original.shape)
            assert_same_bits(bits(backend, array), bits(backend, original))


def test_what_one_library_wrote_numpy_reads(backend, dtype, rng, path):
    host = drawn(rng, dtype)
    xs.save_params(path, [[backend.asarray(array) for array in layer] for layer in host])
    assert_same_params(xs.load_params(path), host)


def test_what_numpy_wrote_every_library_computes_with(backend, dtype, rng, path):
    host = drawn(rng, dtype)
    xs.save_params(path, host)
    params = xs.load_params(path, xp=backend.library, device=backend.device)
    X = rng.standard_normal((4, SIZES[0]))
    logits = bits(backend, xs.mlp_logits(params, backend.asarray(X, dtype)))
    np.testing.assert_allclose(logits, xs.mlp_logits(host, X.astype(dtype)), rtol=1e-4)


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_special_values_keep_their_bits(name, path):
    limits = np.finfo(name)
    values = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, limits.smallest_subnormal, -limits.max], name)
    xs.save_params(path, [(np.zeros((2, 7), name), values)])
    (layer,) = xs.load_params(path)
    assert layer.bias.tobytes() == values.tobytes()


@pytest.mark.backends("torch", "jax", "cupy")
def test_every_bfloat16_comes_back(backend, path):
    """All 65 536; nan as a nan."""
    every = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)
    every[np.isnan(every)] = np.nan  # a signalling one makes NumPy warn where JAX casts it
    xs.save_params(path, [(backend.asarray(every[None, :], "bfloat16"), backend.asarray(every, "bfloat16"))])
    (layer,) = xs.load_params(path, xp=backend.library)
    assert_like(layer.bias, backend=backend, dtype="bfloat16", shape=every.shape)
    assert_same_bits(backend.to_numpy(layer.bias), every)


@pytest.mark.parametrize(
    "arranged",
    [
        lambda array: array.astype(array.dtype.newbyteorder(">")),
        lambda array: array.astype(array.dtype.newbyteorder("<")),
        np.asfortranarray,
        lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
        lambda array: array[::-1].copy()[::-1],
    ],
    ids=["big-endian", "little-endian", "columns", "strided", "backwards"],
)
def test_how_an_array_lies_in_memory_does_not_matter(arranged, dtype, rng, path):
    host = drawn(rng, dtype)
    xs.save_params(path, [[arranged(array) for array in layer] for layer in host])
    assert_same_params(xs.load_params(path), host)


@pytest.mark.parametrize("sizes", [(0, 3), (0, 4, 2), (1, 1)])
def test_few_inputs(sizes, rng, path):
    """Also none: a weight of 0 rows has a shape, and no bytes."""
    host = drawn(rng, sizes=sizes)
    xs.save_params(path, host)
    assert_same_params(xs.load_params(path), host)


def test_layers_are_in_the_order_of_their_numbers(rng, path):
    """As strings, 10 comes before 2; all are of one shape, so that nothing else tells them apart."""
    host = drawn(rng, sizes=(2,) * 13)
    xs.save_params(path, host)
    assert_same_params(xs.load_params(path), host)


def test_arrays_of_a_file_are_writable_and_outlive_it(rng, path):
    host = drawn(rng)
    xs.save_params(path, host)
    params = xs.load_params(path)
    path.write_bytes(b"")
    assert_same_params(params, host)
    params[0].weight[...] = 0.0


@pytest.mark.parametrize("kind", [str, Path, os.DirEntry], ids=lambda kind: kind.__name__)
def test_a_path_is_a_string_or_path_like(kind, rng, path):
    host = drawn(rng)
    xs.save_params(str(path), host)
    with os.scandir(path.parent) as entries:
        given = next(entries) if kind is os.DirEntry else kind(path)
    xs.save_params(given, host[:1])
    assert_same_params(xs.load_params(given), host[:1])


def test_arguments_stay_as_they_are(rng, path):
    host = drawn(rng)
    before = [[array.copy() for array in layer] for layer in host]
    for layer in host:
        for array in layer:
            array.flags.writeable = False
    xs.save_params(path, host)
    assert_same_params(host, before)


# --- PyTorch's files --------------------------------------------------------------------------------------------------


@pytest.mark.backends("torch")
@pytest.mark.parametrize("name", DTYPES)
def test_pytorch_reads_the_file(backend, name, rng, path):
    from safetensors.torch import load_file

    tensors = [backend.asarray(array, name) for layer in drawn(rng) for array in layer]
    params = (xs.Layer(*tensors[:2]), xs.Layer(*tensors[2:]))
    xs.save_params(path, params)
    found = load_file(path)
    assert list(found) == ["layers.0.bias", "layers.0.weight", "layers.1.bias", "layers.1.weight"]
    for i, layer in enumerate(params):
        assert found[f"layers.{i}.weight"].dtype == layer.weight.dtype
        assert backend.library.equal(found[f"layers.{i}.weight"], layer.weight)
        assert backend.library.equal(found[f"layers.{i}.bias"], layer.bias)


@pytest.mark.backends("torch")
def test_a_file_that_pytorch_wrote_is_read(backend, rng, path):
    from safetensors.torch import save_file

    host = drawn(rng, "float32")
    names = [f"layers.{i}.{part}" for i in range(2) for part in ("weight", "bias")]
    tensors = [backend.asarray(array) for layer in host for array in layer]
    save_file(dict(zip(names, tensors, strict=True)), path, metadata={"xpsoftmax": json.dumps(PARAMS)})
    assert_same_params(xs.load_params(path), host)


@pytest.mark.backends("torch")
def test_tensors_that_require_grad(backend, rng, path):
    host = drawn(rng)
    params = [[backend.library.nn.Parameter(backend.asarray(array)) for array in layer] for layer in host]
    xs.save_params(path, params)
    assert_same_params(xs.load_params(path), host)
    assert params[0][0].requires_grad


# --- what is in the file ----------------------------------------------------------------------------------------------


def test_names_and_metadata(rng, path):
    host = drawn(rng)
    xs.save_params(path, host)
    with safetensors.safe_open(path, "np") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == {  # noqa: SIM118
            "layers.0.weight": (3, 5),
            "layers.0.bias": (5,),
            "layers.1.weight": (5, 2),
            "layers.1.bias": (2,),
        }
        assert json.loads(file.metadata()["xpsoftmax"]) == {
            "content": "params",
            "format": 1,
            "weight": "(fan_in, fan_out)",
        }


def test_equal_parameters_make_equal_files(rng, tmp_path):
    host = drawn(rng)
    for name in ("one", "two"):
        xs.save_params(tmp_path / name, host)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


# --- damaged files ----------------------------------------------------------------------------------------------------


def refused(path, content):
    """Whether these bytes are a ValueError that names the file; everything else fails the test."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        xs.load_params(path)


@pytest.fixture
def content(rng, path):
    xs.save_params(path, drawn(rng, "float32"))
    return path.read_bytes()


def header_size(content):
    return 8 + int.from_bytes(content[:8], "little")


def test_a_file_cut_short_anywhere(content, path):
    for size in range(len(content)):
        refused(path, content[:size])


def test_a_file_with_more_than_belongs_to_it(content, path):
    refused(path, content + b"\0")


def test_any_flipped_bit_of_the_header(content, path):
    for i in range(header_size(content)):
        for bit in range(8):
            refused(path, content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :])


@pytest.mark.parametrize("filling", [b"", b"\0" * 64, b"\xff" * 64, b"\x80\x04K\x01.", b"{}", b"layers.0.weight = 1\n"])
def test_no_safetensors_file(filling, path):
    path.write_bytes(filling)
    message = f"path must name a safetensors file that is whole, got {re.escape(str(path))}: .*[Hh]eader"
    with pytest.raises(ValueError, match=message):
        xs.load_params(path)


def test_no_file(path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        xs.load_params(path)


def test_a_folder(path, rng):
    for call in (lambda: xs.load_params(path.parent), lambda: xs.save_params(path.parent, drawn(rng))):
        with pytest.raises(
            ValueError, match=f"path must name a file, got {re.escape(str(path.parent))}, which is no regular file"
        ):
            call()
    assert left_in(path.parent) == []


@POSIX
def test_a_device_is_not_replaced(path, rng):
    """os.replace would put a file in the place of /dev/null; a FIFO stands for it here."""
    os.mkfifo(path)
    with pytest.raises(ValueError, match="path must name a file"):
        xs.save_params(path, drawn(rng))
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert left_in(path.parent) == [path.name]


# --- foreign files ----------------------------------------------------------------------------------------------------


def stored(path, tensors, metadata=PARAMS):
    safetensors.numpy.save_file(tensors, path, metadata={"xpsoftmax": json.dumps(metadata)})


def whole():
    return {
        "layers.0.weight": np.zeros((3, 5)),
        "layers.0.bias": np.zeros(5),
        "layers.1.weight": np.zeros((5, 2)),
        "layers.1.bias": np.zeros(2),
    }


def test_the_file_of_these_tests_is_right(path):
    """Or every error below could be another one."""
    stored(path, whole())
    assert [layer.weight.shape for layer in xs.load_params(path)] == [(3, 5), (5, 2)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layers.0.bias": None}, "among 3 tensors it has no layers.0.bias"),
        ({"layers.0.weight": None, "layers.0.bias": None}, "among 2 tensors it has no layers.0.weight"),
        ({"layers.0.weight": None, "0.weight": np.zeros((3, 5))}, "among 4 tensors it has no layers.0.weight"),
        ({"layers.01.bias": np.zeros(2)}, "among 5 tensors it has no layers.2.weight"),
        ({"state": np.zeros(2), "other": np.zeros(2)}, "among 6 tensors it has no layers.2.weight"),
        ({"layers.1.weight": np.zeros((4, 2))}, r"params\[1\].weight must have shape \(5, fan_out\)"),
        ({"layers.1.bias": np.zeros(3)}, r"params\[1\].bias must have shape \(2,\).*got \(3,\)"),
        ({"layers.0.weight": np.zeros(15)}, r"params\[0\].weight must have shape \(fan_in, fan_out\), got \(15,\)"),
        ({"layers.1.bias": np.zeros(2, "f4")}, r"params\[1\].bias must have the dtype of .*float64, got float32"),
        ({"layers.0.weight": np.zeros((3, 5), "i8")}, "its layers.0.weight is of dtype int64"),
        ({"layers.0.bias": np.zeros(5, "?")}, "its layers.0.bias is of dtype bool"),
    ],
)
def test_other_tensors(path, change, reason):
    stored(path, {name: array for name, array in (whole() | change).items() if array is not None})
    with pytest.raises(ValueError, match=f"path must name a file that xpsoftmax wrote, got {path}: .*{reason}"):
        xs.load_params(path)


def test_no_tensors(path):
    stored(path, {})
    with pytest.raises(ValueError, match=r"among 0 tensors it has no layers.0.weight"):
        xs.load_params(path)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, "has no JSON text under the key xpsoftmax"),
        ({"format": "pt"}, "has no JSON text under the key xpsoftmax"),
        ({"xpsoftmax": "{"}, "has no JSON text under the key xpsoftmax"),
        ({"xpsoftmax": "[" * 100_000}, "has no JSON text under the key xpsoftmax"),
        ({"xpsoftmax": json.dumps("x" * 1000)}, "its metadata is 'x{199}, not "),
        ({"xpsoftmax": "1"}, "its metadata is 1, not {'content': 'params'"),
        ({"xpsoftmax": json.dumps(PARAMS | {"format": 2})}, "'format': 2, .*not .*'format': 1"),
        ({"xpsoftmax": json.dumps(PARAMS | {"content": "state"})}, "'content': 'state', .*not "),
    ],
)
def test_other_metadata(path, metadata, reason):
    """A stranger's weights may be (fan_out, fan_in): if they are square, nothing else would tell."""
    safetensors.numpy.save_file(whole(), path, metadata=metadata)
    with pytest.raises(ValueError, match=f"path must name a file that xpsoftmax wrote, got {path}: .*{reason}"):
        xs.load_params(path)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ((), TypeError, "params must be a non-empty sequence"),
        ([(np.zeros((2, 3)),)], TypeError, r"params\[0\] must be a pair"),
        ([(np.zeros((2, 3)), np.zeros(2))], ValueError, r"params\[0\].bias must have shape \(3,\)"),
        ([(np.zeros((2, 3), "i8"), np.zeros(3, "i8"))], TypeError, r"params\[0\].weight must be of dtype"),
    ],
)
def test_parameters_that_are_no_network(path, params, error, message):
    with pytest.raises(error, match=message):
        xs.save_params(path, params)
    assert left_in(path.parent) == []


@pytest.mark.parametrize("given", [3, None, b"net.safetensors"])
def test_paths_that_are_none(given, rng):
    for call in (lambda: xs.load_params(given), lambda: xs.save_params(given, drawn(rng))):
        with pytest.raises(TypeError, match=f"path must be a str or an os.PathLike of one, got {given!r}."):
            call()


def test_a_path_that_cannot_be_one(rng):
    for call in (lambda: xs.load_params("a\0b"), lambda: xs.save_params("a\0b", drawn(rng))):
        with pytest.raises(ValueError, match=r"^path must name a file, got 'a\\x00b': .*null"):
            call()


@POSIX
def test_links_in_a_circle(path, rng):
    """Python 3.13 resolves them to one of themselves, which must not be replaced."""
    other = path.with_name("other")
    path.symlink_to(other)
    other.symlink_to(path)
    for call in (lambda: xs.load_params(path), lambda: xs.save_params(path, drawn(rng))):
        with pytest.raises(ValueError, match=r"^path must name a file, got "):
            call()
    assert path.is_symlink()
    assert other.is_symlink()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_library_without_the_dtype_of_the_file(backend, name, path):
    if has(backend, name):
        pytest.skip(f"{backend.name} has {name}")
    import ml_dtypes

    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else np.float16
    stored(path, {part: array.astype(dtype) for part, array in whole().items()})
    message = f"xp must have the dtype of the file, {name}, got {backend.module.partition(':')[0]}"
    with pytest.raises(TypeError, match=message):
        xs.load_params(path, xp=backend.library)


@pytest.mark.backends("jax")
def test_jax_without_float64_does_not_round(backend, path, rng):
    import jax

    xs.save_params(path, drawn(rng, "float64"))
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(TypeError, match=r"xp must have the dtype of the file, float64, got jax.numpy"):
            xs.load_params(path, xp=backend.library)
    finally:
        jax.config.update("jax_enable_x64", True)


def test_other_libraries_and_devices(path, rng):
    xs.save_params(path, drawn(rng))
    with pytest.raises(TypeError, match="xp must be an Array API library"):
        xs.load_params(path, xp=json)
    with pytest.raises(ValueError, match="device must be a device of numpy that can be used here, got 'cuda'"):
        xs.load_params(path, device="cuda")


@pytest.mark.parametrize("missing", ["safetensors", "ml_dtypes"])
def test_without_the_packages_that_it_needs(missing, monkeypatch, path, rng):
    monkeypatch.setitem(sys.modules, missing, None)
    for call in (lambda: xs.load_params(path), lambda: xs.save_params(path, drawn(rng))):
        with pytest.raises(
            ImportError, match=rf"need safetensors and ml_dtypes: pip install safetensors ml-dtypes \(.*{missing}"
        ):
            call()
    assert left_in(path.parent) == []


def test_importing_the_package_does_not_import_them():
    code = "import sys, xpsoftmax; print({'safetensors', 'ml_dtypes'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "set()\n"


# --- in one step ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_fault", ["os.fsync", "pathlib.Path.replace", "xpsoftmax._network.tensors.to_host"])
@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=["OSError", "interrupt"])
def test_an_older_file_survives_an_error(at_fault, error, monkeypatch, path, rng):
    older = drawn(rng)
    xs.save_params(path, older)

    def failing(*arguments):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(at_fault, failing)
        with pytest.raises(type(error)):
            xs.save_params(path, drawn(rng))
    assert_same_params(xs.load_params(path), older)
    assert left_in(path.parent) == [path.name]


def test_nothing_is_left_where_nothing_was(monkeypatch, path, rng):
    def failing(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(OSError, match="no space left"):
        xs.save_params(path, drawn(rng))
    assert left_in(path.parent) == []


@POSIX
def test_a_disk_that_is_full(path):
    """The limit on the size of a file stands for it: a write fails half way, as a real one does."""
    code = f"""
import resource, signal, xpsoftmax as xs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
xs.save_params({str(path)!r}, xs.init_params((3, 2), rng=0))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    xs.save_params({str(path)!r}, xs.init_params((300, 200), rng=0))
except OSError as error:
    print(error.strerror)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert process.stdout == "File too large\n"
    assert_same_params(xs.load_params(path), xs.init_params((3, 2), rng=0))
    assert left_in(path.parent) == [path.name]


@POSIX
@pytest.mark.parametrize("moment", ["os.fsync", "pathlib.Path.replace"])
def test_an_older_file_survives_a_kill(moment, path):
    module, _, name = moment.rpartition(".")
    code = f"""
import os, pathlib, signal, xpsoftmax as xs
xs.save_params({str(path)!r}, xs.init_params((3, 2), rng=0))
{module}.{name} = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
xs.save_params({str(path)!r}, xs.init_params((3, 2), rng=1))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(left_in(path.parent)) == 2  # the new one was being written
    assert_same_params(xs.load_params(path), xs.init_params((3, 2), rng=0))
    xs.save_params(path.with_name("another"), xs.init_params((3, 2), rng=0))
    assert left_in(path.parent) == ["another", path.name]  # the next writer has removed what was left


@POSIX
def test_the_file_of_a_live_writer_is_left_alone(path):
    """It waits before the new name, and many others write meanwhile."""
    code = f"""
import pathlib, xpsoftmax as xs
replace = pathlib.Path.replace
def waiting(source, target):
    print(source.name, flush=True)
    input()
    return replace(source, target)
pathlib.Path.replace = waiting
xs.save_params({str(path)!r}, xs.init_params((3, 2), rng=1))
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        temporary = process.stdout.readline().strip()
        for i in range(3):
            xs.save_params(path.with_name(f"other-{i}"), xs.init_params((3, 2), rng=0))
            assert path.with_name(temporary).exists()
        process.communicate("\n")
    assert process.returncode == 0
    assert left_in(path.parent) == [path.name, "other-0", "other-1", "other-2"]
    assert_same_params(xs.load_params(path), xs.init_params((3, 2), rng=1))


@POSIX
def test_a_file_that_is_taken_for_a_leftover_before_it_is_locked(monkeypatch, path, rng):
    """Another writer removes it between its creation and its lock: there is a second one."""
    fcntl = pytest.importorskip("fcntl")
    flock, seen = fcntl.flock, []

    def locked(file, how):
        if not seen:
            seen.append(file.name)
            Path(file.name).unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", locked)
    host = drawn(rng)
    xs.save_params(path, host)
    assert len(seen) == 1
    assert_same_params(xs.load_params(path), host)
    assert left_in(path.parent) == [path.name]


@POSIX
def test_a_file_system_without_locks(monkeypatch, path, rng):
    """Files are written as before; nothing is taken for a leftover."""
    fcntl = pytest.importorskip("fcntl")

    def failing(file, how):
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", failing)
    leftover = path.with_name(".xpsoftmax-0123456789abcdef.part")
    leftover.touch()
    host = drawn(rng)
    xs.save_params(path, host)
    assert_same_params(xs.load_params(path), host)
    assert left_in(path.parent) == [leftover.name, path.name]


def test_bytes_reach_the_disk_before_the_name(monkeypatch, path, rng):
    steps = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor):
        found = os.fstat(descriptor)
        steps.append(("fsync", "folder" if stat.S_ISDIR(found.st_mode) else found.st_size))
        fsync(descriptor)

    def replaced(source, target):
        steps.append(("replace", source.stat().st_size))
        assert source.parent == target.parent  # or it would be no single step
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    xs.save_params(path, drawn(rng))
    size = path.stat().st_size
    assert steps[:2] == [("fsync", size), ("replace", size)]
    assert steps[2:] == ([("fsync", "folder")] if os.name == "posix" else [])


def failing_for_folders(monkeypatch, code):
    fsync = os.fsync

    def synced(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)


@POSIX
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_synchronise_folders(code, monkeypatch, path, rng):
    failing_for_folders(monkeypatch, code)
    params = drawn(rng)
    xs.save_params(path, params)
    assert_same_params(xs.load_params(path), params)


@POSIX
def test_a_folder_that_cannot_be_read(monkeypatch, path, rng):
    """The tests may run as root, who reads every folder."""
    opened = os.open

    def refused(name, flags, *mode, **options):
        if Path(name).is_dir():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(name, flags, *mode, **options)

    monkeypatch.setattr(os, "open", refused)
    params = drawn(rng)
    xs.save_params(path, params)
    assert_same_params(xs.load_params(path), params)


@POSIX
def test_a_disk_that_fails_after_the_file_is_replaced(monkeypatch, path, rng):
    failing_for_folders(monkeypatch, errno.EIO)
    params = drawn(rng)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as raised:
        xs.save_params(path, params)
    assert raised.value.__notes__ == ["The new file is in its place, but a crash of the machine could still lose it."]
    assert_same_params(xs.load_params(path), params)
    assert left_in(path.parent) == [path.name]


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_any_new_file(umask, path, rng):
    before = os.umask(umask)
    try:
        xs.save_params(path, drawn(rng))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
def test_an_older_file_keeps_its_permissions(mode, path, rng):
    path.touch()
    path.chmod(mode)
    xs.save_params(path, drawn(rng))
    assert stat.S_IMODE(path.stat().st_mode) == mode


@POSIX
def test_a_link_stays_a_link(path, rng, tmp_path):
    (tmp_path / "runs").mkdir()
    path.symlink_to(Path("runs", "best.safetensors"))
    host = drawn(rng)
    xs.save_params(path, host)
    assert path.is_symlink()
    assert left_in(tmp_path / "runs") == ["best.safetensors"]
    assert_same_params(xs.load_params(path), host)


def test_a_folder_that_is_not_there(path, rng):
    with pytest.raises(FileNotFoundError, match=re.escape(str(path.parent / "runs"))):
        xs.save_params(path.parent / "runs" / path.name, drawn(rng))
    assert left_in(path.parent) == []


# --- arrays by name ---------------------------------------------------------------------------------------------------


def test_arrays_and_what_json_can_say_about_them(path, rng):
    """What the state of a training run is made of."""
    arrays = {
        "empty": np.zeros((0, 3)),
        "moment": rng.standard_normal((4, 3)).T,
        "scalar": np.asarray(np.float32(2.5)),
        "step": np.asarray(7),
        "stopped": np.asarray([True, False]),
        "order": np.arange(5, dtype=">u4"),
    }
    metadata = {"rng": {"state": 2**127 + 1}, "history": {"loss": [0.1, None, 1e-300]}, "name": "Zürich \0 \U0001f600"}
    save_arrays(path, arrays, metadata)
    found, said = load_arrays(path)
    assert said == metadata
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("name", ["float32", "int64", "int32", "bool"])
def test_arrays_of_any_dtype_come_from_and_return_to_a_library(backend, name, rng):
    values = rng.integers(0, 2, (2, 3)).astype(name)
    host = to_host("value", backend.asarray(values))
    assert_same_bits(host, values)
    array = to_library(host, backend.xp, backend.device)
    assert_like(array, backend=backend, dtype=name, shape=(2, 3))
    assert_same_bits(bits(backend, array), values)


def test_a_number_stays_an_array_without_axes(backend):
    host = to_host("step", backend.asarray(np.asarray(2.5)))
    assert type(host) is np.ndarray
    assert host.shape == ()
    assert_like(to_library(host, backend.xp, backend.device), backend=backend, dtype="float64", shape=())


def test_the_assertion_on_parameters_can_fail(rng):
    host = drawn(rng)
    others = [host[:1], [host[0], host[1]._replace(bias=-host[1].bias)], [tuple(layer) for layer in host]]
    for params in others:
        with pytest.raises(AssertionError):
            assert_same_params(params, host)
