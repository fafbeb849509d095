"""The numpy module: the same numbers as ``cxr_fast.ops``, in any thread, any process, without torch."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from cxr_fast import runtime

torch = pytest.importorskip("torch")
ops = pytest.importorskip("cxr_fast.ops")

Arrays = list[np.ndarray]


def smooth(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(shape)
    blurred = ndimage.gaussian_filter(noise, (0,) * (len(shape) - 2) + (1.5, 1.5))
    return (blurred / blurred.std()).astype(np.float32)


def flatten(value: Any) -> Iterator[np.ndarray]:
    """Every array of a result, nested tuples and tensors included."""
    if isinstance(value, tuple):
        for entry in value:
            yield from flatten(entry)
    else:
        yield np.asarray(value)


def assert_same(ours: Any, expected: Any) -> None:
    for a, b in zip(flatten(ours), flatten(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def tensor(value: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(value))


# ---- equality with ops ----

WEIGHT = np.random.default_rng(1).standard_normal((5, 37)).astype(np.float32)
BIAS = np.linspace(-1, 1, 5, dtype=np.float32)
SETTINGS: dict[str, Any] = {
    "steps": 4,
    "threshold": 0.4,
    "connectivity": 4,
    "mode": "raw",
    "image_size": (700, 900),
    "thresholds": (0.3, 0.6),
    "select": "peak",
    "max_boxes": 4,
    "max_overlap": 0.25,
    "upsample": 2,
}


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
@pytest.mark.parametrize("shape", [(3, 37, 24, 20), (2, 37, 1, 1), (1, 37, 65, 33)])
def test_every_function_equals_ops(shape: tuple[int, ...], threads: int) -> None:
    features = smooth(shape)
    cam = runtime.cam(features, WEIGHT, threads=threads)
    assert_same(cam, ops.cam(tensor(features), tensor(WEIGHT)))
    t = tensor(cam)

    mined = runtime.mine_attention(cam, 3, 0.4, 4, threads=threads)
    assert_same(mined, ops.mine_attention(t, 3, 0.4, 4))
    before = ops.mine_attention(t, 2).erased_at
    more = runtime.mine_attention(cam, 2, erased_at=before.numpy(), first_step=3, threads=threads)
    assert_same(more, ops.mine_attention(t, 2, erased_at=before, first_step=3))

    on_torch = ops.MinedAttention(*map(tensor, mined))
    for mode in ("normalized", "raw"):
        for maps in (cam, np.stack([cam, -cam, cam[..., ::-1]])):
            heatmap = runtime.aggregate_heatmap(maps, mined, mode, threads=threads)
            assert_same(heatmap, ops.aggregate_heatmap(tensor(maps), on_torch, mode))
    logits = runtime.masked_gap(cam, mined.erased_at, 5, threads=threads)
    assert_same(logits, ops.masked_gap(t, on_torch.erased_at, 5))

    sizes = np.arange(2 * shape[0]).reshape(-1, 2) + 100
    for select, size, torch_size in (
        ("components", (640, 480), (640, 480)),
        ("peak", sizes, tensor(sizes)),
    ):
        found = runtime.heatmap_boxes(heatmap, size, (0.3, 0.7), select, 5, 0.3, 3, 4, threads)
        expected = ops.heatmap_boxes(tensor(heatmap), torch_size, (0.3, 0.7), select, 5, 0.3, 3, 4)
        assert_same(found, expected)
    labels = runtime.label_components(cam > 0, 4, threads=threads)
    assert_same(labels, ops.label_components(t > 0, 4))

    for settings in ({}, SETTINGS):
        ours = runtime.mine_cam(cam, BIAS, **settings, threads=threads)
        assert_same(ours, ops.mine_cam(t, tensor(BIAS), **settings))
        assert_same(runtime.attention_mining(features, WEIGHT, BIAS, **settings, threads=threads), ours)
        assert_same(
            runtime.attention_mining(features, WEIGHT, **settings, threads=threads),
            ops.attention_mining(tensor(features), tensor(WEIGHT), **settings),
        )


def test_result_types_have_the_names_of_ops() -> None:
    result = runtime.attention_mining(smooth((1, 37, 8, 8)), WEIGHT)
    theirs = ops.attention_mining(tensor(smooth((1, 37, 8, 8))), tensor(WEIGHT))
    for ours, expected in (
        (result, theirs),
        (result.mined, theirs.mined),
        (result.found, theirs.found),
    ):
        assert type(ours).__name__ == type(expected).__name__
        assert ours._fields == expected._fields


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_dtypes(dtype: type) -> None:
    features = smooth((2, 37, 17, 19)).astype(dtype)
    for weight in (WEIGHT, WEIGHT.astype(dtype)):
        assert_same(runtime.cam(features, weight), ops.cam(tensor(features), tensor(weight)))
    maps = features[:, :5]
    single = maps.astype(np.float32)
    bias = BIAS.astype(dtype)
    assert_same(runtime.mine_cam(maps, bias), runtime.mine_cam(single, bias))
    mined = runtime.mine_attention(maps)
    assert_same(mined, ops.mine_attention(tensor(maps)))
    assert_same(runtime.aggregate_heatmap(maps, mined), runtime.aggregate_heatmap(single, mined))
    assert_same(runtime.masked_gap(maps, mined.erased_at), runtime.masked_gap(single, mined.erased_at))
    assert_same(runtime.heatmap_boxes(maps), ops.heatmap_boxes(tensor(maps)))


VIEWS = {
    "transposed": lambda a: a.swapaxes(-1, -2),
    "backwards": lambda a: a[..., ::-1, ::-1],
    "every other": lambda a: a[..., ::2, 1::3],
    "Fortran": lambda a: np.asfortranarray(a),
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views(view: str) -> None:
    features = VIEWS[view](smooth((4, 37, 20, 22)))
    dense = features.copy()
    result = runtime.attention_mining(features, WEIGHT[:, ::-1])
    assert_same(result, runtime.attention_mining(dense, WEIGHT[:, ::-1].copy()))
    cam, copy = features[:, :3], dense[:, :3].copy()
    mined = runtime.mine_attention(copy)
    turned = runtime.MinedAttention(np.asfortranarray(mined.erased_at), np.asfortranarray(mined.extent))
    assert_same(runtime.mine_attention(cam), mined)
    assert_same(
        runtime.mine_attention(cam, erased_at=turned.erased_at, first_step=4),
        runtime.mine_attention(copy, erased_at=mined.erased_at, first_step=4),
    )
    heatmap = runtime.aggregate_heatmap(copy, mined)
    assert_same(runtime.aggregate_heatmap(cam, turned), heatmap)
    assert_same(runtime.masked_gap(cam, turned.erased_at), runtime.masked_gap(copy, mined.erased_at))
    assert_same(runtime.heatmap_boxes(cam), runtime.heatmap_boxes(copy))
    assert_same(runtime.label_components(cam > 0), runtime.label_components(copy > 0))


def test_empty() -> None:
    for shape, weight in (
        ((0, 37, 4, 4), WEIGHT),
        ((2, 37, 4, 4), WEIGHT[:0]),
        ((2, 0, 4, 4), WEIGHT[:, :0]),
    ):
        # Not torch.from_numpy, which gives an empty array strides of 0.
        expected = ops.attention_mining(torch.zeros(shape), tensor(weight))
        assert_same(runtime.attention_mining(np.zeros(shape, np.float32), weight), expected)
    assert runtime.label_components(np.zeros((0, 3, 3), bool)).shape == (0, 3, 3)


# ---- refusals ----

CAM, ERASED = np.zeros((1, 2, 3, 3), np.float32), np.zeros((1, 2, 3, 3), np.uint8)
MINED = runtime.MinedAttention(ERASED, np.zeros((1, 2, 3, 2), np.float32))


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("cam", (CAM.astype(int), CAM[0, 0]), TypeError, "features must be float16, float32 or"),
        ("cam", (CAM.astype(">f4"), CAM[0, 0]), TypeError, "but is >f4; convert it first"),
        ("cam", (CAM, CAM[0, 0]), ValueError, r"weight must have one column .*\[C, 2\].*\(3, 3\)"),
        ("cam", (CAM[0], CAM[0, 0]), ValueError, r"features must have the 4 dimensions \[N, D, H, W\]"),
        ("mine_attention", (CAM > 0,), TypeError, "cam must be float16, .*, but is bool"),
        ("mine_attention", (CAM, 256), ValueError, "steps must be from 1 to 255"),
        ("mine_attention", (CAM, 3, 1.0), ValueError, "threshold must be above 0 and below 1"),
        ("mine_attention", (CAM, 3, 0.5, 5), ValueError, "connectivity must be 4"),
        ("mine_attention", (CAM, 3, 0.5, 8, CAM), TypeError, "erased_at must be uint8, but is float32"),
        ("mine_attention", (CAM, 3, 0.5, 8, ERASED[0]), ValueError, r"erased_at must have shape"),
        ("mine_attention", (CAM, 9, 0.5, 8, ERASED, 250), ValueError, "end at 258; run fewer"),
        ("masked_gap", (CAM, ERASED, 0), ValueError, "steps must be from 1 to 255, but is 0"),
        ("masked_gap", (CAM, ERASED[:, :1]), ValueError, "to go with cam"),
        ("aggregate_heatmap", (CAM, MINED, "sum"), ValueError, "mode must be 'normalized' or 'raw'"),
        ("aggregate_heatmap", (CAM[0], MINED), ValueError, "cam must have shape .* go with mined"),
        ("aggregate_heatmap", (CAM, MINED._replace(erased_at=CAM)), TypeError, "mined.erased_at must"),
        ("aggregate_heatmap", (CAM, MINED._replace(extent=CAM)), ValueError, "mined.extent must have"),
        ("heatmap_boxes", (CAM, (3,)), ValueError, "image_size must be"),
        ("heatmap_boxes", (CAM, np.ones((2, 2))), ValueError, r"\[1, 2\].*\(2, 2\)"),
        ("heatmap_boxes", (CAM, (3, 3), 0.5), ValueError, r"write \(0.5,\)"),
        ("heatmap_boxes", (CAM, (3, 3), (0.5,), "top"), ValueError, "select must be"),
        ("label_components", (ERASED,), TypeError, "mask must be bool, but is uint8"),
        ("label_components", (ERASED[0, 0, 0] > 0,), ValueError, r"\[\.\.\., H, W\]"),
        ("label_components", (ERASED > 0, 3), ValueError, "connectivity must be 4"),
        ("mine_cam", (CAM, BIAS), ValueError, r"bias must have shape \(2,\).*\(5,\)"),
        ("mine_cam", (CAM, None, 3, 0.5, 8, "max"), ValueError, "mode must be"),
        ("attention_mining", (CAM, CAM[0, 0]), ValueError, "weight must have one column"),
    ],
)
def test_refusals(name: str, arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(runtime, name)(*arguments)


@pytest.mark.parametrize(
    ("threads", "error"), [(-1, ValueError), (4097, ValueError), (1.0, TypeError), (None, TypeError)]
)
def test_refusals_of_threads(threads: Any, error: type[Exception]) -> None:
    weight = np.zeros((3, 2), np.float32)
    for name, arguments in {
        "cam": (CAM, weight),
        "mine_attention": (CAM,),
        "masked_gap": (CAM, ERASED),
        "aggregate_heatmap": (CAM, MINED),
        "heatmap_boxes": (CAM,),
        "label_components": (ERASED > 0,),
        "mine_cam": (CAM,),
        "attention_mining": (CAM, weight),
    }.items():
        with pytest.raises(error, match="threads must be"):
            getattr(runtime, name)(*arguments, threads=threads)


# ---- processes and threads ----


def mine(seed: int, threads: int) -> Arrays:
    """Large enough that several threads have something to do."""
    features = smooth((6, 37, 48, 48), seed)
    return list(flatten(runtime.attention_mining(features, WEIGHT, BIAS, threads=threads)))


def _mine_in_child(queue: Any, seed: int) -> None:
    queue.put(mine(seed, 3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_it_survives_a_fork() -> None:
    """A forked child has none of its parent's threads, and makes its own."""
    expected = mine(7, 3)  # the parent's threads exist from here on
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_mine_in_child, args=(queue, 7)) for _ in range(2)]
    for child in children:
        child.start()
    try:
        for _ in children:
            assert_same(tuple(queue.get(timeout=30)), tuple(expected))
        for child in children:
            child.join(timeout=30)
            assert child.exitcode == 0
    finally:
        for child in children:
            if child.is_alive():
                child.kill()
    assert_same(tuple(mine(7, 3)), tuple(expected))


def test_calls_from_many_threads() -> None:
    expected = {seed: mine(seed, 1) for seed in range(4)}
    wrong: list[Any] = []

    def repeat(seed: int) -> None:
        try:
            for attempt in range(6):
                assert_same(tuple(mine(seed, 1 + attempt % 4)), tuple(expected[seed]))
        except BaseException as error:  # an assertion in a thread is seen by nobody else
            wrong.append(error)

    callers = [threading.Thread(target=repeat, args=(seed,), daemon=True) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
        assert not caller.is_alive(), "a deadlock"
    assert not wrong


ALONE = """
import os, sys
sys.modules["torch"] = None  # importing torch raises from here on
import numpy as np
from cxr_fast import runtime

def threads():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0

before = threads()
features = np.random.default_rng(0).standard_normal((8, 16, 64, 64)).astype(np.float32)
weight = np.ones((9, 16), np.float32)
one = runtime.attention_mining(features, weight, threads=1)
runtime.label_components(features > 0, threads=1)
print(threads() - before)
three = runtime.attention_mining(features, weight, threads=3)
print(threads() - before)
runtime.attention_mining(features, weight, threads=2)
print(threads() - before)
assert np.array_equal(one.found.boxes, three.found.boxes)
assert sys.modules["torch"] is None
"""


def test_without_torch_and_without_threads() -> None:
    """One thread is the caller's; three are two more, which are kept."""
    output = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60, check=False
    )
    assert output.returncode == 0, output.stderr
    started = [int(line) for line in output.stdout.split()]
    assert started == ([0, 2, 2] if os.path.isdir("/proc/self/task") else [0, 0, 0])
