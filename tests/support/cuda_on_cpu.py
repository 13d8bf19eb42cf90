"""The CUDA kernels on a CPU: the launches of `xpsoftmax.kernels.cuda.plan`, compiled with g++ and run fiber by fiber.

Arrays are NumPy arrays with ml_dtypes-free bfloat16: 16-bit logits are arrays of uint16, with the dtype named beside.

What CUDA leaves open is decided by the number of a schedule: the order of lanes, warps and blocks, when and in which
order asynchronous stores and copies arrive, where a thread lets others go first, and the last bits of `exp2_approx`. A
run that is watched also fails when a thread touches memory that it was not given, or memory that another thread touches
without an order between them. cuda_on_cpu/ has the parts: threads.h, watch.h, mbarriers.h, fibers.cpp, ptx.h.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from xpsoftmax.kernels.cuda import plan, texts

HERE = Path(__file__).parent / "cuda_on_cpu"
KERNELS = Path(plan.__file__).parent
# -O1 compiles fastest; no contraction, as on the GPU; the kernels read numbers of one type as another, as CUDA allows.
FLAGS = (
    "-std=c++20",
    "-O1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wno-unknown-pragmas",
)
WATCHING = ("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0")
"""g++ then calls a function before each access to memory, which cuda_on_cpu/watch.h has."""
ENTRY = """
template <class... A, size_t... I>
__attribute__((no_sanitize_thread)) void call_with(void (*kernel)(A...), void** params, std::index_sequence<I...>) {{
    kernel(*(A*)params[I]...);
}}
template <class... A>
void call(void (*kernel)(A...), void** params) {{
    call_with(kernel, params, std::index_sequence_for<A...>());
}}
extern "C" void body(void** params) {{ call({kernel}, params); }}
extern "C" int parameter_bytes(int i) {{
    return []<class... A>(void (*)(A...), int i) {{
        const int sizes[] = {{(int)sizeof(A)...}};
        return i < (int)sizeof...(A) ? sizes[i] : 0;
    }}({kernel}, i);
}}
"""


class KernelError(Exception):
    """What a GPU would have answered with an error, a hang or a wrong address."""


def unusable() -> str | None:
    """Why kernels cannot be run on this CPU, or None."""
    if os.uname().machine != "x86_64":
        return f"switching fibers is written for x86-64, not {os.uname().machine}"
    return None if shutil.which("g++") else "there is no g++"


@cache
def store() -> Path:
    """Folder of compiled kernels, named by their text: processes share it, and so do runs."""
    path = Path(tempfile.gettempdir()) / f"xpsoftmax-kernels-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def read(name: str) -> str:
    """A file of the kernels, or of those that only the tests have."""
    if name == "ptx.cuh":
        return (HERE / "ptx.h").read_text("utf-8")
    folder = KERNELS if (KERNELS / name).exists() else HERE / "kernels"
    return (folder / name).read_text("utf-8")


def _compiled(text: str, flags: tuple[str, ...] = (), libraries: tuple[str, ...] = ()) -> Path:
    name = hashlib.sha256("\0".join((text, *FLAGS, *flags, *libraries)).encode()).hexdigest()[:24]
    library = store() / f"lib{name}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=store()) as folder:
            part = Path(folder, "part.cpp")
            part.write_text(text, "utf-8")
            _call("g++", *FLAGS, *flags, "-c", str(part), "-o", f"{folder}/part.o")
            # Linked without the flags: the sanitizer's own library is not wanted.
            _call("g++", "-shared", f"{folder}/part.o", "-o", f"{folder}/part.so", *libraries)
            Path(folder, "part.so").replace(library)
    return library


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SyntaxError(done.stderr[:4000])


@cache
def fibers() -> tuple[Path, ctypes.CDLL]:
    text = texts.with_headers("fibers.cpp", lambda name: (HERE / name).read_text("utf-8"))
    path = _compiled(text, ("-O2",))
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.failure.restype = ctypes.c_char_p
    return path, library


@cache
def kernel(
    name: str,
    defines: tuple[tuple[str, str], ...],
    change: tuple[str, str] | None = None,
    watch: bool = False,
) -> ctypes.CDLL:
    """The kernel compiled for this CPU; with `change`, some of its text is replaced by other text."""
    text = _changed(texts.with_headers(f"{name}.cu", read), change)
    head = "".join(f"#define {key} {value}\n" for key, value in defines) + "#include <utility>\n"
    path, _ = fibers()
    flags = WATCHING if watch else ()
    return ctypes.CDLL(str(_compiled(head + text + ENTRY.format(kernel=name), flags, (str(path),))))


def _changed(text: str, change: tuple[str, str] | None) -> str:
    """The text with a part of it replaced, which must be there once; what stands in for ptx.cuh is no such place."""
    if change is None:
        return text
    before, line, rest = text.partition('#line 1 "ptx.cuh"')
    end = rest.find("#line ")  # where the file that includes it goes on
    parts = [before, rest[end:]]
    found = sum(part.count(change[0]) for part in parts)
    if found != 1:
        raise ValueError(f"the text to change must be there once, not {found} times: {change[0]}")
    before, after = (part.replace(*change) for part in parts)
    return before + line + rest[:end] + after


def run(
    launch: plan.Launch,
    *,
    schedule: int = 0,
    change: tuple[str, str] | None = None,
    memory: Iterable[Placed | np.ndarray] = (),
    watch: bool = False,
) -> None:
    """Run a launch as CuPy would: the arguments must have the types of the parameters.

    memory : the arrays that the kernel may read and write; none: any. Without `watch`, this is checked where whole
        vectors are read and written, and for bulk copies.
    watch : check every access to memory, and the order of accesses by different threads.
    """
    if launch.grid == 0:
        return
    library = kernel(launch.kernel, launch.defines, change, watch)
    sizes = [library.parameter_bytes(i) for i in range(len(launch.arguments) + 1)]
    if sizes != [argument.itemsize for argument in launch.arguments] + [0]:
        raise KernelError(f"{launch.kernel} takes parameters of {sizes} bytes, not {launch.arguments}")
    cells = [np.array(argument) for argument in launch.arguments]
    params = (ctypes.c_void_p * len(cells))(*(cell.ctypes.data for cell in cells))
    # A persistent kernel gets fewer clusters than rows, as on a GPU.
    grid = min(launch.grid, 2 * launch.cluster) if launch.persistent else launch.grid
    _, runtime = fibers()
    body = ctypes.cast(library.body, ctypes.c_void_p)
    flush = dict(launch.defines).get("SCALAR") != "double"  # -ftz=true is of float, and CuPy's option for all kernels
    parts = sorted(part for array in memory for part in _parts(array))
    runtime.give_memory((ctypes.c_size_t * (2 * len(parts)))(*(end for part in parts for end in part)), len(parts))
    size = ctypes.c_size_t(launch.shared_bytes)
    if runtime.run_kernel(body, params, grid, launch.block, launch.cluster, size, schedule, flush, watch):
        raise KernelError(runtime.failure().decode())


def _parts(array: Placed | np.ndarray) -> list[tuple[int, int]]:
    """First address and end of the parts of memory that an array has: its rows, if there are gaps between."""
    values = array.rows if isinstance(array, Placed) else array
    if values.flags.c_contiguous:
        return [(values.ctypes.data, values.ctypes.data + values.nbytes)]
    return [(row.ctypes.data, row.ctypes.data + row.nbytes) for row in values]


class Placed:
    """Rows in memory that hold more: before, between and behind the rows lies what must be neither read nor written."""

    FILL = 0xFF  # nan in every dtype, and no label
    MARGIN = 1 << 15  # bytes before and behind the rows: what seeded faults write there must not be another array

    def __init__(self, values: np.ndarray, dtype: str, *, offset: int = 0, gap: int = 0) -> None:
        """Values (R, C) in `dtype`, `offset` elements behind a 16-byte boundary, with `gap` elements between rows."""
        rows, classes = values.shape
        self.dtype, self.shape, itemsize = dtype, values.shape, values.itemsize
        self.stride = classes + gap
        held = (rows * self.stride + offset) * itemsize
        self.memory = np.full(held + 2 * self.MARGIN + 16, self.FILL, np.uint8)
        start = -self.memory.ctypes.data % 16 + self.MARGIN + offset * itemsize
        flat = self.memory[start : start + rows * self.stride * itemsize].view(values.dtype)
        self.rows = flat.reshape(rows, self.stride)[:, :classes]
        self.rows[:] = values

    @property
    def matrix(self) -> plan.Matrix:
        return plan.Matrix(self.rows.ctypes.data, *self.shape, self.stride, self.dtype)

    def assert_only_rows_changed(self) -> None:
        values = self.rows.copy()
        self.rows.view(f"u{values.itemsize}")[:] = 2 ** (8 * values.itemsize) - 1
        untouched = bool((self.memory == self.FILL).all())
        self.rows[:] = values
        assert untouched, "written outside the rows"


def to_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round to a dtype; bfloat16 as uint16, whose nan is that of the GPU's instruction."""
    if dtype != "bfloat16":
        return values.astype(dtype)
    bits = values.astype("f4").view("u4").astype("u8")
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype("u2")


def from_bits(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The values in the working precision."""
    if dtype == "bfloat16":
        return (bits.astype("u4") << 16).view("f4")
    return bits.astype("f8" if dtype == "float64" else "f4")


def address(array: np.ndarray | None) -> int:
    return 0 if array is None else array.ctypes.data


def working(dtype: str) -> Any:
    return np.float64 if dtype == "float64" else np.float32
