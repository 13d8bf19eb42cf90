"""What the CUDA backend launches: size classes, arguments, source text; and CuPy without a GPU."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xpsoftmax.kernels.cuda import plan, sizes, table_plan, texts

MATRIX = plan.Matrix(1024, 10, 1000, 1000, "float32")


OPERATIONS = ("softmax_loss", "softmax_loss_smoothed", "softmax", "log_softmax", "logsumexp")
EVERY_CLASS = sorted(
    {kind for name in OPERATIONS for dtype in texts.SCALARS for kind in sizes.size_classes(name, dtype)}
)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", texts.SCALARS)
@pytest.mark.parametrize("capability", [75, 90, 120])
def test_every_row_is_covered_by_the_smallest_class(operation, dtype, capability):
    """Wherever it begins: of C classes, at most C / per vector are in whole vectors."""
    kinds, per = sizes.classes_on(operation, dtype, capability), sizes.VECTOR // sizes.ITEMSIZES[dtype]
    edges = {kind.capacity * per + step for kind in kinds for step in range(-9, 10)}
    for classes in sorted(edge for edge in edges if edge > 0):
        logits = plan.Matrix(1024, 10, classes, classes, dtype)
        kind = sizes.size_class(operation, logits.classes, logits.dtype, capability)
        assert kind.vectors == 0 or classes // per <= kind.capacity
        smaller = [k for k in kinds if k.vectors and classes // per <= k.capacity < (kind.capacity or 2**63)]
        assert not smaller, f"{classes} classes would fit {smaller}, not {kind}"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", texts.SCALARS)
def test_classes_are_tried_from_the_smallest(operation, dtype):
    *held, streamed = sizes.size_classes(operation, dtype)
    capacities = [kind.capacity for kind in held]
    assert capacities == sorted(set(capacities))
    assert streamed.vectors == 0


@pytest.mark.parametrize("kind", EVERY_CLASS)
def test_a_class_is_something_that_can_be_launched(kind):
    assert kind.threads % 32 == 0
    assert kind.threads <= 1024
    assert sizes.on_capability(kind, 90) == kind
    for capability in (75, 80, 100, 120):
        assert sizes.on_capability(kind, capability).resident * kind.threads <= 1024
    assert kind.blocks <= 8
    if not kind.slots:
        assert kind.lanes in (4, 8, 16, 32) or kind.lanes == kind.threads
        assert kind.lanes & (kind.lanes - 1) == 0
    assert kind.persistent == (kind.vectors > 0 and kind.resident == 1)


@pytest.mark.parametrize("dtype", texts.SCALARS)
def test_rows_up_to_128_kib_have_one_block(dtype):
    classes = 2**17 // sizes.ITEMSIZES[dtype]
    logits = plan.Matrix(1024, 10, classes, classes, dtype)
    kind = sizes.size_class("softmax_loss", logits.classes, logits.dtype, 90)
    assert (kind.blocks, kind.vectors > 0) == (1, True)


@pytest.mark.parametrize("kind", [kind for kind in EVERY_CLASS if kind.slots])
def test_a_ring_can_be_launched(kind):
    """It holds whole rows in whole slots, and fits what a block can have: 227 KiB, less what is not of the ring."""
    assert kind.lanes % 32 == 0
    assert kind.threads == kind.lanes + 32
    assert kind.threads % 128 == 0, "registers are dealt out to four warps at once"
    assert kind.rows == 1
    assert kind.persistent
    assert kind.vectors % kind.group == 0
    assert kind.slots % (kind.vectors // kind.group) == 0
    assert kind.shared_bytes == kind.slots * kind.group * kind.lanes * 16 <= 225 * 1024
    assert kind.group * kind.lanes * 16 < 2**20, "bytes that a barrier counts"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", texts.SCALARS)
@pytest.mark.parametrize("capability", [75, 80, 89, 90, 100, 120])
def test_where_rows_come_through_a_ring(operation, dtype, capability):
    """From 9.0 on, where a block has the memory, in float32, where it was measured to be faster."""
    kinds = sizes.classes_on(operation, dtype, capability)
    rings = [kind for kind in kinds if kind.slots]
    assert bool(rings) == (dtype == "float32" and capability in (90, 100))
    assert set(kinds) <= set(sizes.size_classes(operation, dtype))
    for kind in kinds:
        assert sizes.exists_on(kind, capability)
    for classes, ring in ((128_256, True), (50_257, operation in ("softmax_loss", "softmax", "logsumexp"))):
        logits = plan.Matrix(1024, 10, classes, classes, dtype)
        kind = sizes.size_class(operation, logits.classes, logits.dtype, capability)
        assert bool(kind.slots) == (ring and bool(rings))
    assert all(kind.capacity * sizes.VECTOR > 2**17 for kind in rings)


@pytest.mark.parametrize(("capability", "held"), [(80, True), (86, False), (89, False), (90, True)])
def test_the_loss_of_long_rows_is_streamed_where_it_would_spill(capability, held):
    kind = sizes.size_class("softmax_loss", 2**15 + 8, "float32", capability)
    assert (kind.vectors > 0) == held
    assert sizes.size_class("softmax", 2**15 + 8, "float32", capability).vectors > 0


def test_a_launch_says_how_much_shared_memory_it_needs():
    logits = MATRIX._replace(classes=128_256, stride=128_256)
    launch = plan.rows_launch("softmax", logits, logits, 90)
    assert (launch.block, launch.cluster, launch.shared_bytes) == (512, 8, 9 * 3 * 480 * 16)
    assert dict(launch.defines)["SLOTS"] == "9"
    assert dict(launch.defines)["GROUP"] == "3"
    held = plan.rows_launch("softmax", logits, logits, 120)
    assert (held.cluster, held.shared_bytes) == (4, 0)
    assert "SLOTS" not in dict(held.defines)


def test_clusters_only_where_there_are_any():
    logits = MATRIX._replace(classes=60_000, stride=60_000)
    assert sizes.size_class("softmax_loss", logits.classes, logits.dtype, 90).blocks > 1
    assert sizes.size_class("softmax_loss", logits.classes, logits.dtype, 89) == sizes.STREAMED


@pytest.mark.parametrize(
    ("classes", "dtype", "result", "quick"),
    [
        (256, "bfloat16", "bfloat16", True),
        (256, "float16", "float16", True),
        (255, "bfloat16", "bfloat16", False),
        (50_000, "bfloat16", "float32", False),
        (50_000, "float32", "float32", False),
        (50_000, "float64", "float64", False),
    ],
)
def test_which_rows_take_the_quick_exponential(classes, dtype, result, quick):
    logits = plan.Matrix(1024, 3, classes, classes, dtype)
    launch = plan.rows_launch("softmax", logits, logits._replace(dtype=result), 90)
    assert dict(launch.defines)["QUICK"] == str(int(quick))
    assert dict(launch.defines)["RESULT"] == texts.SCALARS[result]


@pytest.mark.parametrize(
    ("change", "first_bytes"),
    [
        ({}, 0),
        ({"address": 1028}, 12),
        ({"classes": 999, "stride": 999}, 12),
        ({"classes": 999, "stride": 999, "rows": 1}, 0),
        ({"classes": 999}, 0),
        ({"stride": -1000}, 0),
        ({"dtype": "float64", "classes": 1001, "stride": 1001}, 8),
        ({"dtype": "bfloat16", "stride": 1001}, 14),
    ],
)
def test_how_far_rows_begin_behind_a_boundary(change, first_bytes):
    assert MATRIX._replace(**change).first_bytes == first_bytes


def test_a_class_that_does_not_cover_the_row_is_refused():
    with pytest.raises(ValueError, match=r"^kind must cover 250 vectors a row, got SizeClass\(lanes=4"):
        plan.rows_launch("softmax", MATRIX, MATRIX, 90, sizes.SizeClass(4, 1))


def test_too_many_classes_or_blocks_are_refused():
    with pytest.raises(NotImplementedError, match=r"^logits must have at most 2147483631 classes here, got 2147483632"):
        plan.rows_launch("softmax", MATRIX._replace(classes=plan.MOST_CLASSES + 1, rows=1), MATRIX, 90)
    with pytest.raises(NotImplementedError, match=r"^logits must need at most 2147483647 blocks here, got"):
        plan.rows_launch("softmax", MATRIX._replace(rows=2**33), MATRIX, 90)


@pytest.mark.parametrize("dtype", texts.SCALARS)
def test_rows_with_masses_are_held_as_far_as_registers_go(dtype):
    *held, streamed = sizes.mass_classes(dtype)
    for kind in held:
        assert sizes.mass_class(kind.threads * kind.held, dtype) == kind
    most = held[-1].threads * held[-1].held
    assert most == (4096 if dtype == "float64" else 8192)
    assert sizes.mass_class(most + 1, dtype) == streamed
    logits = plan.Matrix(1024, 5, most + 1, most + 1, dtype)
    launch = plan.masses_launch(logits, (64, "int64"), 0, 0, None, class_weights=0, label_smoothing=0.1, z_loss=0.0)
    assert dict(launch.defines)["CLASSES_HELD"] == "0"


def test_the_grid_has_every_row():
    for rows, grid in ((1, 1), (32, 1), (33, 2)):
        logits = plan.Matrix(1024, rows, 4, 4, "float32")
        assert plan.rows_launch("softmax", logits, logits, 90).grid == grid
    clustered = plan.Matrix(1024, 5, 60_000, 60_000, "float32")
    launch = plan.rows_launch("softmax", clustered, clustered, 90)
    assert launch.grid == 5 * int(dict(launch.defines)["BLOCKS"]) == 5 * launch.cluster
    assert launch.persistent


@pytest.mark.parametrize("kernel", sorted(path.stem for path in Path(plan.__file__).parent.glob("*.cu")))
def test_the_source_needs_no_other_file(kernel):
    """CuPy's cache on disk knows a kernel by its text: a header elsewhere could change unseen."""
    text = texts.source(kernel)
    assert "#include" not in text
    assert "#pragma once" not in text
    assert len(re.findall(r'#line 1 "ptx.cuh"', text)) == 1


def test_each_vector_of_units_has_a_thread():
    for units, lane_bits in ((1, 0), (4, 0), (5, 1), (1000, 8), (1024, 8), (1025, 9)):
        z = plan.Matrix(1024, 10, units, 1028, "float32")
        launch = plan.bias_activation_launch(z, 64, None, "tanh")
        assert launch.arguments[-3] == lane_bits
        assert launch.grid * launch.block >= 10 << lane_bits > (launch.grid - 1) * launch.block
    off = plan.Matrix(1028, 10, 1024, 1028, "float32")
    assert plan.activation_backward_launch(off, off, step=True).arguments[-3] == 9


def words(launch):
    """What the table of a launch says, item by item."""
    table = launch.arguments[0]
    return table.reshape(1).view(np.int64).reshape(table_plan.MOST_ITEMS, -1).tolist()


def test_every_entry_of_a_parameter_has_a_thread():
    parameters = [((64, 128, 192), (65, 129, 193), 256, length) for length in (1, 512, 513)]
    (launch,) = table_plan.update_launches("adamw_rule", parameters, 7, "float64", (0.5,) * 8)
    assert (launch.grid, launch.block) == (4, 256)
    assert [item[-2:] for item in words(launch)[:4]] == [[1, 1], [512, 2], [513, 4], [0, 0]]
    assert words(launch)[1][:-2] == [64, 128, 192, 256, 65, 129, 193]
    assert launch.arguments[1] == 7
    (launch,) = table_plan.update_launches("sgd_rule", [((64,), (64,), 256, 9)], 0, "float32", (0.5,))
    assert words(launch)[0] == [64, 0, 0, 256, 64, 0, 0, 9, 1]
    assert len(launch.arguments) == 4 + table_plan.RULE_NUMBERS


def test_more_arrays_than_a_table_has_room_for_take_several_launches():
    many = table_plan.MOST_ITEMS + 1
    added = table_plan.LossAdded(loss=512)
    first, second = table_plan.penalty_launches([(64, 0, 9)] * many, 1024, 0, 0.5, "float32", added)
    assert (first.grid, second.grid) == (table_plan.MOST_ITEMS, 1)
    assert words(first)[1] == [64, 0, 1024 + 4 * 2, 9, 2]
    assert words(second)[:2] == [[64, 0, 1024 + 4 * many, 9, 1], [0] * 5]
    assert first.arguments[-5:-2] == (512, 1024, 1 + many)
    assert second.arguments[-5:-3] == (0, 0), "the loss is copied once"


def test_a_table_leaves_room_for_the_other_arguments():
    """CUDA gives the arguments of a kernel 4 KiB."""
    (launch,) = table_plan.update_launches("adamw_rule", [((1, 2, 3), (1, 2, 3), 4, 5)], 0, "float64", (0.5,) * 8)
    assert sum(argument.itemsize for argument in launch.arguments) <= 4096


def test_labels_of_every_type_are_described():
    signed = {8: 1, 16: 2, 32: 4, 64: 8}
    for bits, size in signed.items():
        for prefix, sign in (("int", 1), ("uint", -1)):
            launch = plan.loss_launch(MATRIX, (64, f"{prefix}{bits}"), 128, 192, None, 90)
            assert launch.arguments[3] == np.int32(sign * size)


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="cupy is not installed")
def test_the_backend_can_be_imported_where_there_is_no_gpu():
    code = (
        "from xpsoftmax.kernels import OPERATIONS\n"
        "from xpsoftmax.kernels.cuda import launcher\n"
        "print(*(x for x in OPERATIONS if not hasattr(launcher, x)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "softmax_loss_and_logsumexp_rows are_weights\n"  # these have no kernel there


def test_plans_are_made_without_cupy():
    code = "import sys, xpsoftmax.kernels.cuda.plan; print('cupy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
