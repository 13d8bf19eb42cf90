"""Time passes of `xpsoftmax.dask` over blocks: the overhead over a plain loop, and worker processes.

    python benchmarks/scale_dask.py
    python benchmarks/scale_dask.py --rows 1000 --blocks 20 --seconds 1
    python benchmarks/scale_dask.py --device cuda

A pass is the loss and all gradients of a network (256 features, 64 hidden units, 10 classes; float32) over all blocks.

- overhead: one pass over `--blocks` blocks of `--rows` rows that lie in memory, by Dask's threads, by one of them, and
  by a plain loop that adds up `mlp_partial_sums`, with all threads of kernels and BLAS and with one. In turn; medians.
- workers: the same data, and a half and a quarter of it, held by one and by two worker processes of one thread.
- constants: what a pass costs beside its arithmetic, by passes over blocks of one row: seconds that do not depend on
  anything, seconds a block, and seconds a byte of parameters, for the loss alone (the way of the parameters) and with
  gradients (their way back). These are the constants of docs/scaling.md, and of its table, which is printed.

Every way is verified, against the loop, before it is timed. With `--device cuda` blocks are CuPy arrays, and only the
first part is measured, by one thread. Needs dask, distributed, matplotlib and rich.
"""

from __future__ import annotations

import importlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from distributed import Client, LocalCluster, wait
from harness import Parser, drawn, json_text, parser_of, run_record
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

import xpsoftmax as xs
import xpsoftmax.dask as xd

FEATURES, HIDDEN, CLASSES = 256, 64, 10
DISTINCT = 10  # blocks that differ; all others are these again, so that the machine need not hold them all
WIDTHS = (64, 512, 2048, 4096)  # of the hidden layers in the passes that show what a byte of parameters costs
COUNTS = (25, 50, 100, 200)  # blocks of one row
PAUSE = 0.2
"""Seconds before each pass: the threads of a BLAS go on waiting for work for a while, at the cost of the next way."""
PACKAGES = ("numpy", "dask", "distributed", "threadpoolctl")
WORKER = {
    "threads_per_worker": 1,
    "memory_limit": 0,
    "dashboard_address": ":0",
    "scheduler_kwargs": {"dashboard": False},
}

Pass = Callable[[], Any]


@dataclass
class Report:
    """All that was measured, in seconds."""

    rows: int
    blocks: int
    overhead: dict[str, dict[str, float]] = field(default_factory=dict)  # way -> median, least, most, error
    workers: list[dict[str, float]] = field(default_factory=list)  # workers, blocks, seconds, rows a second
    constants: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def share(self, way: str, time: str = "median") -> float:
        """Seconds of a way beyond those of the plain loop of as many threads, as a share of them."""
        loop = "loop, one thread" if way == "dask, one thread" and "loop, one thread" in self.overhead else "loop"
        return self.overhead[way][time] / self.overhead[loop][time] - 1.0


# --- data -------------------------------------------------------------------------------------------------------------


def block_of(number: int, rows: int, device: str = "cpu") -> tuple[Any, Any]:
    """Inputs and labels of a block."""
    rng = np.random.default_rng(number % DISTINCT)
    X, y = rng.standard_normal((rows, FEATURES), np.float32), rng.integers(0, CLASSES, rows)
    if device == "cpu":
        return X, y
    cupy = importlib.import_module("cupy")
    return cupy.asarray(X), cupy.asarray(y)


def inputs_of(number: int, rows: int) -> Any:
    """Inputs of a block, made where they are needed."""
    return block_of(number, rows)[0]


def labels_of(number: int, rows: int) -> Any:
    """Labels of a block."""
    return block_of(number, rows)[1]


def in_memory(pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Dask arrays of blocks that are there."""
    rows = tuple(len(y) for _, y in pairs)
    name = f"block-{id(pairs)}"
    X = {(f"{name}-X", i, 0): X for i, (X, _) in enumerate(pairs)}
    y = {(f"{name}-y", i): y for i, (_, y) in enumerate(pairs)}
    columns = (pairs[0][0].shape[1],)
    return (
        da.Array(X, f"{name}-X", chunks=(rows, columns), meta=pairs[0][0][:0]),
        da.Array(y, f"{name}-y", chunks=(rows,), meta=pairs[0][1][:0]),
    )


def on_workers(blocks: int, rows: int) -> tuple[Any, Any]:
    """Dask arrays of blocks that each worker makes for itself."""
    make_X, make_y = dask.delayed(inputs_of, pure=True), dask.delayed(labels_of, pure=True)
    X = [da.from_delayed(make_X(i, rows), (rows, FEATURES), meta=np.empty((0, FEATURES), "f4")) for i in range(blocks)]
    y = [da.from_delayed(make_y(i, rows), (rows,), meta=np.empty(0, int)) for i in range(blocks)]
    return da.concatenate(X), da.concatenate(y)


def network(hidden: int = HIDDEN, features: int = FEATURES, device: str = "cpu") -> tuple[xs.Layer, ...]:
    """The parameters of all passes."""
    xp = np if device == "cpu" else importlib.import_module("cupy")
    return xs.init_params((features, hidden, CLASSES), rng=0, dtype=xp.float32, xp=xp)


def bytes_of(params: Sequence[xs.Layer]) -> int:
    """How large parameters are."""
    return sum(array.nbytes for layer in params for array in layer)


# --- time -------------------------------------------------------------------------------------------------------------


def timed(passes: dict[str, Pass], seconds: float, least: int = 5) -> dict[str, list[float]]:
    """Times of some ways, in turn, after a pass that does not count."""
    for make_pass in passes.values():
        make_pass()
    times: dict[str, list[float]] = {name: [] for name in passes}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < least:
        for name, make_pass in passes.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            make_pass()
            times[name].append(time.perf_counter() - start)
    return times


def difference(result: Any, desired: Any) -> float:
    """Largest difference of loss and gradients, each relative to its largest entry."""
    pairs = [(result[0], desired[0])]
    pairs += [(a, b) for x, y in zip(result[1], desired[1], strict=True) for a, b in zip(x, y, strict=True)]
    return max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)


def measure_overhead(report: Report, seconds: float, device: str) -> None:
    """Passes over blocks in the memory of this process."""
    np.ones(30 * 2**20, np.uint8)  # from now on glibc keeps what is freed: otherwise the loop pays for new pages
    distinct = [block_of(i, report.rows, device) for i in range(DISTINCT)]
    pairs = [distinct[i % DISTINCT] for i in range(report.blocks)]
    X, y = in_memory(pairs)
    params = network(device=device)

    def loop(blas: int | None = None) -> Any:
        with xs.threads(blas) if blas else nullcontext(), threadpool_limits(blas, "blas"):
            total = sum(xs.mlp_partial_sums(params, X, y) for X, y in pairs)
            return waited(total.finish(params))  # type: ignore[union-attr]

    def threads(**options: Any) -> Any:
        return waited(dask.compute(*xd.mlp_loss_and_grad(params, X, y), scheduler="threads", **options))

    passes = {
        "loop": loop,
        "loop, one thread": lambda: loop(1),
        "dask, threads": threads,
        "dask, one thread": lambda: threads(num_workers=1),
    }
    if device != "cpu":
        del passes["loop, one thread"], passes["dask, threads"]
    desired = loop()
    errors = {name: difference(make_pass(), desired) for name, make_pass in passes.items()}
    for name, times in timed(passes, seconds).items():
        report.overhead[name] = {
            "median": statistics.median(times), "least": min(times), "most": max(times), "error": errors[name],
        }  # fmt: skip
        if not errors[name] < 1e-5:
            report.problems.append(f"{name}: the result differs by {errors[name]:.1e} from that of the loop.")


def waited(result: Any) -> Any:
    """A result that is there: on a GPU calls return before."""
    float(result[0])
    return result


def measure_workers(report: Report, seconds: float) -> None:
    """Passes over blocks that one and two worker processes hold."""
    params = network()
    for workers in (1, 2):
        with LocalCluster(n_workers=workers, **WORKER) as cluster, Client(cluster) as client:
            for blocks in sorted({report.blocks // 4, report.blocks // 2, report.blocks} - {0}):
                X, y = client.persist(on_workers(blocks, report.rows))
                wait([X, y])

                def one_pass(X: Any = X, y: Any = y) -> Any:
                    return dask.compute(*xd.mlp_loss_and_grad(params, X, y))

                times = timed({"pass": one_pass}, seconds / 6)["pass"]
                median = statistics.median(times)
                rate = blocks * report.rows / median
                line = {"workers": workers, "blocks": blocks, "seconds": median, "rows_per_second": rate}
                report.workers.append(line)
            if workers == 2:
                measure_constants(report, seconds)


def measure_constants(report: Report, seconds: float) -> None:
    """What a pass costs beside its arithmetic, on the cluster that is there; straight lines through medians."""
    params = network(8)

    def passes(blocks: int, params: Any, *, grad: bool = True) -> Pass:
        X = da.zeros((blocks, FEATURES), chunks=(1, FEATURES), dtype="f4")
        X, y = dask.persist(X, da.zeros(blocks, chunks=1, dtype=int))
        function = xd.mlp_loss_and_grad if grad else xd.mlp_loss
        return lambda: dask.compute(function(params, X, y))

    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 GiB"}):
        times = timed({blocks: passes(blocks, params) for blocks in COUNTS}, seconds / 4)
        per_block, fixed = np.polyfit(COUNTS, [statistics.median(times[blocks]) for blocks in COUNTS], 1)
        networks = {hidden: network(hidden) for hidden in WIDTHS}
        sizes = [bytes_of(params) for params in networks.values()]
        forth = timed({w: passes(2, params, grad=False) for w, params in networks.items()}, seconds / 4)
        both = timed({w: passes(2, params) for w, params in networks.items()}, seconds / 4)
    forth_per_byte = np.polyfit(sizes, [statistics.median(forth[w]) for w in WIDTHS], 1)[0]
    both_per_byte = np.polyfit(sizes, [statistics.median(both[w]) for w in WIDTHS], 1)[0]
    report.constants = {
        "seconds_fixed": float(fixed),
        "seconds_per_block": float(per_block),
        "seconds_per_byte_of_parameters": float(forth_per_byte),
        "seconds_per_byte_of_gradients": float(max(0.0, both_per_byte - forth_per_byte)),
    }


# --- the model of docs/scaling.md -------------------------------------------------------------------------------------

FAN_IN = 8
GPU = {"flops": 5e13, "bytes_per_second": 1.2e10}  # assumed, not measured: see docs/scaling.md
ROWS_OF_GPU, PARAMETERS = 1_000_000, (10**6, 10**7, 10**8)


def step_seconds(gpus: int, parameters: int, rows: int, constants: dict[str, float]) -> dict[str, float]:
    """Seconds of one step, `rows` rows and one block on each GPU, by what takes them."""
    size = 4 * parameters
    levels = math.ceil(math.log(gpus, FAN_IN) - 1e-9)
    through_client = constants["seconds_per_byte_of_parameters"] * size
    return {
        "compute": 6.0 * parameters * rows / GPU["flops"],
        "scheduler": constants["seconds_fixed"] + constants["seconds_per_block"] * gpus,
        "parameters": through_client + math.log2(gpus) * size / GPU["bytes_per_second"],
        "reduction": constants["seconds_per_byte_of_gradients"] * size
        + levels * (FAN_IN - 1) * size / GPU["bytes_per_second"],
    }


def predictions(constants: dict[str, float]) -> list[dict[str, Any]]:
    """The table of docs/scaling.md."""
    found = []
    for parameters in PARAMETERS:
        for gpus in (8, 64, 512):
            seconds = step_seconds(gpus, parameters, ROWS_OF_GPU, constants)
            total = sum(seconds.values())
            found.append(
                {"size": parameters, "gpus": gpus, **seconds, "efficiency": seconds["compute"] / total}
            )  # fmt: skip
    return found


# --- what is printed and written --------------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """Print three tables."""
    table = Table(
        "way",
        "median",
        "least",
        "beyond the loop of as many threads",
        title=f"{report.blocks} blocks of {report.rows} x {FEATURES}",
    )
    for way, times in report.overhead.items():
        beyond = f"{100 * report.share(way):+.1f} %, {100 * report.share(way, 'least'):+.1f} %" if "dask" in way else ""
        table.add_row(way, f"{1e3 * times['median']:.1f} ms", f"{1e3 * times['least']:.1f} ms", beyond)
    console.print(table)
    if report.workers:
        table = Table("workers", "blocks", "pass", "rows a second")
        for line in report.workers:
            cells = f"{line['workers']}", f"{line['blocks']}", f"{1e3 * line['seconds']:.0f} ms"
            table.add_row(*cells, f"{line['rows_per_second']:.3g}")
        console.print(table)
    if report.constants:
        console.print({name: float(f"{value:.3g}") for name, value in report.constants.items()})
        table = Table("parameters", "GPUs", "compute", "scheduler", "parameters", "reduction", "efficiency")
        for line in predictions(report.constants):
            cells = [f"{line[name]:.3g} s" for name in ("compute", "scheduler", "parameters", "reduction")]
            table.add_row(f"{line['size']:.0e}", str(line["gpus"]), *cells, f"{100 * line['efficiency']:.0f} %")
        console.print(table)
    for problem in report.problems:
        console.print(problem)


def as_json(report: Report, argv: Sequence[str]) -> str:
    """Everything as JSON."""
    beyond = {
        way: {time: report.share(way, time) for time in ("median", "least")} for way in report.overhead if "dask" in way
    }
    content = {
        "network": [FEATURES, HIDDEN, CLASSES],
        **asdict(report),
        "beyond_the_loop": beyond,
        "assumed": GPU,
        "predictions": predictions(report.constants) if report.constants else [],
    }
    return json_text(run_record("benchmarks/scale_dask.py", argv, PACKAGES, **content))


def plot(report: Report, path: Path) -> None:
    """Throughput by workers, and what a step of many GPUs takes."""
    with drawn(path, 1, 2, (10, 4), dpi=120) as (_, ((left, right),)):
        for workers in (1, 2):
            lines = [line for line in report.workers if line["workers"] == workers]
            rows = [line["blocks"] * report.rows for line in lines]
            left.plot(rows, [line["rows_per_second"] for line in lines], "o-", label=f"{workers} worker processes")
        loop = report.blocks * report.rows / report.overhead["loop"]["median"]
        left.axhline(loop, color="0.5", linestyle="--", label="plain loop")
        left.set(xlabel="rows", ylabel="rows a second (measured)", ylim=(0, None))
        left.legend()
        gpus = [2**i for i in range(3, 10)]
        for parameters in PARAMETERS:
            shares = []
            for count in gpus:
                seconds = step_seconds(count, parameters, ROWS_OF_GPU, report.constants)
                shares.append(seconds["compute"] / sum(seconds.values()))
            right.semilogx(gpus, shares, "o-", base=2, label=f"{parameters:.0e} parameters")
        right.set(xlabel="GPUs (predicted)", ylabel="share of a step that computes", ylim=(0, 1))
        right.legend()


def parser() -> Parser:
    """Name the options."""
    options = parser_of(__file__, __doc__)
    options.add_argument("--rows", type=int, default=10_000, help="of a block; default: %(default)s")
    options.add_argument("--blocks", type=int, default=100, help="default: %(default)s")
    options.add_argument(
        "--seconds", type=float, default=30.0, help="for each of the three parts; default: %(default)s"
    )
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    options.add_files("scale_dask", json="json", plot="png")
    return options


def main(argv: Sequence[str]) -> int:
    """Measure, print and write; 1 if a result is wrong."""
    options = parser()
    given = options.parse_args(argv)
    options.check_files(given.json, *([given.plot] if given.device == "cpu" else []))
    report = Report(given.rows, given.blocks)
    measure_overhead(report, given.seconds, given.device)
    if given.device == "cpu":
        measure_workers(report, given.seconds)
    given.json.write_text(as_json(report, argv), encoding="utf-8")
    if report.constants:
        plot(report, given.plot)
    show(report, Console())
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
