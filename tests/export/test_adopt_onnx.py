"""``cxr-fast adopt`` of ONNX files: the same logits, and class activation maps beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from graphs import outputs  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from others import Headed, export, settled  # noqa: E402

from cxr_fast.cli import main  # noqa: E402
from cxr_fast.config import MiningSettings  # noqa: E402
from cxr_fast.export.adopt import adopt_onnx  # noqa: E402
from cxr_fast.export.metadata import InputContract  # noqa: E402
from cxr_fast.export.scaling import scaling  # noqa: E402
from cxr_fast.onnx_miner import load_onnx_miner  # noqa: E402

NAMES = ("A", "B", "C")
SPELLINGS = (
    "plain",
    "mean",
    "mean, negative axes, squeezed",
    "view, dropout",
    "matmul, bias first",
    "no bias",
    "conv behind",
    "conv before",
    "average of the whole map",
    "flattened, mean",
    "sigmoid",
)
REFUSED = {
    "hidden layer": r"a hidden layer \(Gemm '.*hidden.*'\)\. If it has",
    "max pooling": r"there is max pooling \((Global)?MaxPool",
    "both poolings": r"several poolings side by side \(Concat",
    "attention pooling": r"a product of two computed maps \(attention\) \(MatMul",
    "tokens": r"a mean over other axes than height and width \(ReduceMean",
    "class token": r"one token picked out of many \(a transformer\) \(Gather",
    "layer normalisation": r"a layer normalisation \(.*\) \(LayerNormalization",
    "softmax": r"before its output 'y' there is a softmax \(Softmax",
}


def network(spelling: str, seed: int = 0) -> Headed:
    torch.manual_seed(seed)
    made: Headed = settled(Headed(spelling))
    return made


def adopt(file: Path, **rest: Any) -> Path:
    out = file.with_name("adopted.onnx")
    adopt_onnx(file, out, NAMES, (0.0,), (1.0,), **rest)
    return out


def check(out: Path, made: Headed, count: int = 3, side: int = 32, atol: float = 1e-5) -> None:
    image = torch.randn(count, 3, side, side)
    with torch.no_grad():
        maps = made.body(image)
        logits = made(image)
        cam = torch.einsum("cd,ndhw->nchw", made.weight, maps)
    if made.spelling == "sigmoid":
        logits = logits.logit()
    got = outputs(out.read_bytes(), image=image.numpy())
    assert list(got) == ["logits", "cam"]
    np.testing.assert_allclose(got["logits"], logits, atol=atol)
    np.testing.assert_allclose(got["cam"], cam, atol=atol)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_heads_of_every_spelling(spelling: str, tmp_path: Path) -> None:
    made = network(spelling)
    out = adopt(export(made, tmp_path / "theirs.onnx"))
    for count in (1, 3):
        check(out, made, count)
    onnx.checker.check_model(str(out), full_check=True)
    metadata = load_onnx_miner(out).metadata
    assert metadata.class_names == NAMES
    assert metadata.input == InputContract(False, 3, 32, (0.0,), (1.0,))
    assert metadata.mining == MiningSettings()
    assert metadata.precision == "float32"
    assert metadata.provenance.startswith("Adopted from theirs.onnx (SHA-256 ")


@pytest.mark.parametrize("opset", [11, 13, 18, 20])
def test_opsets(opset: int, tmp_path: Path) -> None:
    made = network("mean", opset)
    out = adopt(export(made, tmp_path / "theirs.onnx", opset=opset))
    check(out, made)
    assert onnx.load(out).opset_import[0].version == opset


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_files_of_the_exporter_by_dynamo(spelling: str, tmp_path: Path) -> None:
    """The one that torch takes by default today."""
    made = network(spelling)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(
        made, (torch.zeros(2, 3, 32, 32),), input_names=["x"], output_names=["y"],
        dynamic_shapes=({0: batch},), dynamo=True, verbose=False,
    )  # fmt: skip
    program.save(str(tmp_path / "theirs.onnx"))
    out = adopt(tmp_path / "theirs.onnx")
    for count in (1, 3):
        check(out, made, count)


def test_logits_keep_their_bits(tmp_path: Path) -> None:
    file = export(network("plain"), tmp_path / "theirs.onnx")
    image = np.random.default_rng(1).random((4, 3, 32, 32), np.float32)
    before = outputs(file.read_bytes(), x=image)["y"]
    np.testing.assert_array_equal(outputs(adopt(file).read_bytes(), image=image)["logits"], before)


def test_half_precision_inside_and_at_the_input(tmp_path: Path) -> None:
    made = network("plain")
    made.half()
    out = adopt(export(made, tmp_path / "theirs.onnx", dtype=torch.float16))
    made.float()
    check(out, made, atol=5e-3)
    assert load_onnx_miner(out).metadata.precision == "float16"
    types = {i.name: i.type.tensor_type.elem_type for i in onnx.load(out).graph.input}
    assert types == {"image": TensorProto.FLOAT}


def by_hand(nodes: list[Any], constants: dict[str, Any], opset: int, ir: int = 10) -> Any:
    """A model of one convolution, and a head of ``nodes`` from features ``f`` to ``y``."""
    rng = np.random.default_rng(2)
    kernel = rng.standard_normal((5, 3, 3, 3)).astype(np.float32)
    body = helper.make_node("Conv", ["image", "kernel"], ["logits"], name="body", pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [body, *nodes],
        "theirs",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in (constants | {"kernel": kernel}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    if ir < 4:  # constants are inputs, too
        for tensor in graph.initializer:
            model.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return model


@pytest.mark.parametrize("opset", [9, 17, 18, 21])
@pytest.mark.parametrize("matrix", ["gemm", "gemm, scaled", "matmul", "transposed", "constant"])
def test_spellings_that_torch_does_not_write(opset: int, matrix: str, tmp_path: Path) -> None:
    """Values that are called as ours are, axes as attribute and input, factors of Gemm, and more."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((3, 5)).astype(np.float32)
    bias = rng.standard_normal(3).astype(np.float32)
    constants: dict[str, Any] = {"b": bias}
    if opset >= 18:
        constants["axes"] = np.array([-2, -1])
        pool = helper.make_node("ReduceMean", ["logits", "axes"], ["cam"], keepdims=0)
    else:
        pool = helper.make_node("ReduceMean", ["logits"], ["cam"], axes=[3, 2], keepdims=0)
    scale = (2.0, 0.5) if matrix == "gemm, scaled" else (1.0, 1.0)
    if matrix.startswith("gemm"):
        constants["w"] = weight.T.copy()
        alpha, beta = scale
        nodes = [helper.make_node("Gemm", ["cam", "w", "b"], ["y"], alpha=alpha, beta=beta)]
    else:
        nodes = [
            helper.make_node("MatMul", ["cam", "w"], ["product"]),
            helper.make_node("Add", ["b", "product"], ["y"]),
        ]
        if matrix == "matmul":
            constants["w"] = weight.T.copy()
        elif matrix == "transposed":
            constants["u"] = weight
            nodes.insert(0, helper.make_node("Transpose", ["u"], ["w"], perm=[1, 0]))
        else:
            held = numpy_helper.from_array(weight.T.copy())
            nodes.insert(0, helper.make_node("Constant", [], ["w"], value=held))
    model = by_hand([pool, *nodes], constants, opset, ir=3 if opset == 9 else 8)
    onnx.save(model, tmp_path / "theirs.onnx")
    got = outputs(
        adopt(tmp_path / "theirs.onnx").read_bytes(),
        image=np.eye(32, dtype=np.float32)[None, None].repeat(3, 1),
    )
    theirs = outputs(
        model.SerializeToString(), image=np.eye(32, dtype=np.float32)[None, None].repeat(3, 1)
    )
    np.testing.assert_allclose(got["logits"], theirs["y"], atol=1e-5)
    pooled = got["cam"].mean((2, 3)) + scale[1] * bias
    np.testing.assert_allclose(pooled, theirs["y"], atol=1e-4)


def test_weights_beside_the_file(tmp_path: Path) -> None:
    made = network("plain")
    model = onnx.load(export(made, tmp_path / "whole.onnx"))
    onnx.save(
        model, tmp_path / "theirs.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    check(adopt(tmp_path / "theirs.onnx"), made)
    (tmp_path / "w").unlink()
    (tmp_path / "adopted.onnx").unlink()
    with pytest.raises(ValueError, match=r"beside the files of its weights .* cannot be read"):
        adopt(tmp_path / "theirs.onnx")


@pytest.mark.parametrize("spelling", REFUSED)
def test_other_heads_are_refused_by_name(spelling: str, tmp_path: Path) -> None:
    file = export(network(spelling), tmp_path / "theirs.onnx")
    with pytest.raises(ValueError, match=REFUSED[spelling]) as told:
        adopt(file)
    assert "train the network with such a layer" in str(told.value)
    assert not (tmp_path / "adopted.onnx").exists()


def test_a_mean_of_less_than_the_map_is_found_out(tmp_path: Path) -> None:
    file = export(network("part of the map"), tmp_path / "theirs.onnx")
    with pytest.raises(ValueError, match=r"must be the mean of its class activation maps .* differ"):
        adopt(file)


def test_names_point_at_what_is_not_found(tmp_path: Path) -> None:
    made = network("softmax")
    file = export(made, tmp_path / "theirs.onnx")
    nodes = {n.op_type: n for n in onnx.load(file).graph.node}
    out = adopt(file, head=nodes["Gemm"].name)
    made.spelling = "plain"
    check(out, made)
    out.unlink()
    check(adopt(file, head=nodes["Gemm"].output[0], features=nodes["Relu"].output[0]), made)
    out.unlink()
    with pytest.raises(ValueError, match=r"--head must name a node or a value .* called 'nowhere'"):
        adopt(file, head="nowhere")
    # Features of another layer: of other channels, and of as many that are not what is averaged.
    convolutions = [n.name for n in onnx.load(file).graph.node if n.op_type == "Conv"]
    with pytest.raises(ValueError, match=r"cannot be run with class activation maps.*belongs together"):
        adopt(file, head=nodes["Gemm"].name, features=convolutions[0])
    with pytest.raises(ValueError, match=r"is not what the linear layer takes the mean of"):
        adopt(file, head=nodes["Gemm"].name, features=convolutions[-1])


def test_what_the_file_leaves_open_must_be_given(tmp_path: Path) -> None:
    made = network("plain")
    open_size = export(made, tmp_path / "a.onnx", axes={2: "h", 3: "w"})
    with pytest.raises(ValueError, match=r"leaves it open .*give --size"):
        adopt(open_size)
    out = adopt(open_size, size=48)
    check(out, made, side=48)
    assert load_onnx_miner(out).metadata.input.size == 48
    out.unlink()
    fixed = export(made, tmp_path / "b.onnx")
    with pytest.raises(ValueError, match=r"exported for images .*but --size is 64; leave it out"):
        adopt(fixed, size=64)
    with pytest.raises(ValueError, match=r"but --channels is 1; leave it out"):
        adopt(fixed, channels=1)
    with pytest.raises(ValueError, match=r"takes 2 images at a time.*dynamic batch"):
        adopt(export(made, tmp_path / "c.onnx", batch=False))
    with pytest.raises(ValueError, match=r"gives 3 logits, so that --classes must be 3 names"):
        adopt_onnx(fixed, out, ("A",), (0.0,), (1.0,))
    out.write_bytes(b"")
    with pytest.raises(FileExistsError, match="exists and is not written over"):
        adopt(fixed)


@pytest.mark.parametrize("content", [b"", b"\x08", b"not a model at all", b"\x08\x07" * 40])
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "theirs.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"theirs\.onnx must be an ONNX file"):
        adopt(tmp_path / "theirs.onnx")


def test_a_circle_of_values_ends(tmp_path: Path) -> None:
    circle = [
        helper.make_node("Identity", ["p"], ["y"]),
        helper.make_node("Identity", ["q"], ["p"]),
        helper.make_node("Identity", ["p"], ["q"]),
    ]
    onnx.save(by_hand(circle, {}, 17), tmp_path / "theirs.onnx")
    with pytest.raises(ValueError, match=r"operators stand in order, but Identity .'y',. does not"):
        adopt(tmp_path / "theirs.onnx")


def test_operators_of_one_runtime(tmp_path: Path) -> None:
    model = by_hand([helper.make_node("FusedConv", ["logits"], ["y"], domain="com.x")], {}, 17)
    model.opset_import.append(helper.make_opsetid("com.x", 1))
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(ValueError, match=r"standard operators only, but has FusedConv"):
        adopt(tmp_path / "theirs.onnx")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (((0.0, 1.0), None, None), ((0.0,), (1.0,))),
        (((-1024.0, 1024.0), None, None), ((0.5,), (1 / 2048,))),
        ((None, (0.4,), (0.2,)), ((0.4,), (0.2,))),
        (((0.0, 255.0), (102.0,), (51.0,)), ((0.4,), (0.2,))),
        ((None, None, None), None),
    ],
)
def test_scaling(given: Any, expected: Any) -> None:
    pixels, mean, std = given
    found = scaling(*given)
    assert found == (expected and tuple(pytest.approx(part) for part in expected))
    if found:
        low, high = pixels or (0.0, 1.0)
        for grey in (0.0, 0.3, 1.0):
            p = low + grey * (high - low)
            wanted = (p - (mean or (0.0,))[0]) / (std or (1.0,))[0]
            assert (grey - found[0][0]) / found[1][0] == pytest.approx(wanted)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["adopt", *(str(a) for a in arguments)])


WITHOUT_TORCH = """
import sys
for name in ("torch", "safetensors"):
    sys.modules[name] = None
from cxr_fast.cli import main
main(sys.argv[1:])
"""


def test_a_process_without_torch_adopts_the_same_bytes(tmp_path: Path) -> None:
    file = export(network("mean"), tmp_path / "theirs.onnx")
    here = adopt(file).read_bytes()
    out = tmp_path / "elsewhere.onnx"
    arguments = ["adopt", str(file), "--out", str(out), "--classes", "A,B,C", "--range", "0,1"]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], check=True, timeout=120)
    assert out.read_bytes() == here


def test_the_command(tmp_path: Path) -> None:
    file = export(network("plain"), tmp_path / "theirs.onnx")
    (tmp_path / "names.txt").write_text("A\nPleural effusion\n\nC\n")
    out = tmp_path / "model.onnx"
    done = run(
        file, "--out", out, "--classes", tmp_path / "names.txt", "--range", "0,255", "--steps", 2,
        "--threshold", 0.5, "--upsample", 4,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.output == f"classes  A, Pleural effusion, C\nwritten  {out}\n"
    metadata = load_onnx_miner(out).metadata
    assert metadata.class_names == ("A", "Pleural effusion", "C")
    assert metadata.input.std == (1 / 255,)
    assert metadata.mining == MiningSettings(steps=2, thresholds=(0.5,), upsample=4)
    for arguments, said in (
        ((file, "--out", tmp_path / "m.onnx", "--range", "0,1"), "give their names with --classes"),
        ((file, "--out", tmp_path / "m.onnx", "--classes", "A,B,C"), "how its images are scaled"),
        ((file, "--out", tmp_path / "m.pt", "--classes", "A,B,C"), "let --out end in .onnx"),
        ((file, "--out", tmp_path / "m.onnx", "--from", "timm"), "are for files of weights"),
        (
            (file, "--out", tmp_path / "m.onnx", "--range", "0,1", "--classes", "finding," * 60),
            "--classes must be 3 names, but they are 61",
        ),
        ((file, "--out", tmp_path / "m.onnx", "--mean", "1"), "--mean and --std go together"),
        ((file, "--out", tmp_path / "m.onnx", "--range", "1,0"), "LOW below HIGH"),
        ((file, "--out", tmp_path / "m.onnx", "--range", "1"), "must be 2 numbers"),
        ((tmp_path / "x.onnx", "--out", tmp_path / "m.onnx"), "there is no such file"),
    ):
        refused = run(*arguments)
        assert refused.exit_code != 0
        assert said in refused.output.replace("\n", " ")
