"""Mining by an exported model: ONNX Runtime for the network, ``cxr_fast.runtime`` for the rest.

``cxr-fast export`` wrote the file, and ``cxr_fast.export.metadata`` says what is in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cxr_fast import runtime
from cxr_fast.config import LEAST_DEVIATION, MiningSettings
from cxr_fast.export.metadata import IMAGE, IMAGE_SIZE, ExportMetadata, from_properties
from cxr_fast.machine import cores
from cxr_fast.rows import MinedBatch, Network, levels_of, peaks_of

# What ``--device`` may name, in the order in which ``auto`` tries them.
_PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
# Those that compute on a processor, each call on the thread that makes it.
_ON_PROCESSOR = ("openvino", "cpu")


@dataclass(frozen=True)
class OnnxMiner:
    """An exported model in a session of ONNX Runtime; threads may share it. See ``BatchMiner``."""

    session: Any
    metadata: ExportMetadata
    device: str
    precision: str

    @property
    def network(self) -> Network:
        """See ``BatchMiner``."""
        size = self.metadata.input.size
        assert size is not None
        return Network(
            self.metadata.class_names,
            size,
            self.metadata.mining,
            self.precision,
            self.device,
            {"onnxruntime": onnxruntime.__version__},
        )

    @property
    def where(self) -> str:
        """See ``BatchMiner``: the provider that runs the network."""
        return f"{self.device} ({_PROVIDERS[self.device]} of onnxruntime {onnxruntime.__version__})"

    @property
    def reads_inline(self) -> bool:
        """See ``BatchMiner``."""
        return self.device in _ON_PROCESSOR

    @contextmanager
    def in_threads(self) -> Iterator[Callable[[], None]]:
        """See ``BatchMiner``: the session was made for threads that call it."""
        yield lambda: None

    def empty(self, batch_size: int) -> NDArray[np.float32]:
        """See ``BatchMiner``."""
        size = self.network.input_size
        return np.zeros((batch_size, size, size), np.float32)

    def mine_batch(
        self, images: NDArray[np.float32], image_sizes: NDArray[np.float64], heatmaps: bool
    ) -> MinedBatch:
        """See ``BatchMiner``."""
        logits, cam = self.session.run(["logits", "cam"], {"image": self.normalised(images)})
        result = _mine(cam, self.metadata.mining, image_sizes, threads=1 if self.reads_inline else 0)
        with np.errstate(over="ignore"):
            probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
        return MinedBatch(
            probability,
            *result.found,
            *peaks_of(result.heatmap),
            levels_of(result.heatmap) if heatmaps else None,
            levels_of(result.cam) if heatmaps else None,
            result.mined.erased_at if heatmaps else None,
            np.logical_not(np.isnan(result.mined.extent).any((1, 2, 3))),
            lambda: result,
        )

    def normalised(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images [N, S, S] in [0, 1] -> [N, 1 or 3, S, S], as ``models.normalise`` does it."""
        contract = self.metadata.input
        if contract.standardise:
            mean = images.mean((1, 2), dtype=np.float64)[:, None, None, None]
            std = images.std((1, 2), dtype=np.float64)[:, None, None, None].clip(min=LEAST_DEVIATION)
        else:
            mean, std = (np.array(v)[:, None, None] for v in (contract.mean, contract.std))
        normalised: NDArray[np.float32] = images[:, None] - mean.astype(np.float32)
        normalised /= std.astype(np.float32)
        return np.ascontiguousarray(
            np.broadcast_to(normalised, (len(images), contract.channels, *images.shape[1:]))
        )


def _mine(
    cam: NDArray[np.float32], s: MiningSettings, image_sizes: NDArray[np.float64], threads: int
) -> runtime.MiningResult:
    rules = {"steps": s.steps, "threshold": s.cam_threshold, "connectivity": s.connectivity}
    common: dict[str, Any] = rules | {"mode": s.mode, "upsample": s.upsample, "threads": threads}
    if s.select == "regions":
        return runtime.mine_regions(cam, image_size=image_sizes, **common)
    return runtime.mine_cam(
        cam,
        image_size=image_sizes,
        thresholds=s.thresholds,
        select=s.select,
        max_boxes=s.max_boxes,
        max_overlap=s.max_overlap,
        **common,
    )


def load_onnx_miner(path: str | Path, precision: str = "auto", device: str = "auto") -> OnnxMiner:
    """Open a file that ``cxr-fast export --form cam`` wrote, on one device.

    ``device`` is cpu, openvino, cuda, tensorrt, or auto: the first of tensorrt, cuda, openvino, cpu
    that this onnxruntime has and that can be begun here; which one it is, ``where`` says.
    ``precision`` is the file's own, but for openvino, which computes any file in float32 or in
    bfloat16: with ``auto`` in bfloat16 where the processor multiplies it.

    Raises ValueError, in a sentence, for a file that is damaged, is not ours, or is of another form,
    for a device that is not there, and for another precision than the file's.
    """
    if device not in ("auto", *_PROVIDERS):
        raise ValueError(
            f"the device of an ONNX model must be auto, {', '.join(_PROVIDERS)}, but is {device!r}"
        )
    there = [name for name, provider in _PROVIDERS.items() if provider in _available()]
    if device != "auto" and device not in there:
        raise ValueError(
            f"the device {device} was asked for, but the onnxruntime {onnxruntime.__version__} that is "
            f"installed has {', '.join(there)}; install onnxruntime-gpu for tensorrt and cuda, "
            "onnxruntime-openvino for openvino (only one of them, and without onnxruntime beside it), "
            "or leave --device out"
        )
    session, chosen = _begin(str(path), there if device == "auto" else [device], precision)
    metadata = from_properties(session.get_modelmeta().custom_metadata_map)
    _check_shapes(path, session, metadata)
    if metadata.form != "cam" or metadata.input.raw or metadata.input.size is None:
        raise ValueError(
            f"{path} must give class activation maps of images of one size, which are then mined here, "
            f"but is of --form {metadata.form}"
            + (", --raw-input" if metadata.input.raw else "")
            + (", --size dynamic" if metadata.input.size is None and not metadata.input.raw else "")
            + "; export the model with --form cam alone"
        )
    computed = openvino_precision(precision) if chosen == "openvino" else metadata.precision
    if precision not in ("auto", computed):
        raise ValueError(
            f"{path} was exported in {metadata.precision}, but --precision is {precision}; leave it "
            f"out, or export the model with --dtype {precision}"
        )
    return OnnxMiner(session, metadata, chosen, computed)


def _check_shapes(path: str | Path, session: Any, metadata: ExportMetadata) -> None:
    """Hold the graph to its metadata, which somebody may have changed without it."""
    contract, classes = metadata.input, len(metadata.class_names)
    of = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    fits = set(of) == {IMAGE, *metadata.outputs, *({IMAGE_SIZE} & set(of))} and (
        of["logits"][1] == classes and (contract.raw or of[IMAGE][1] == contract.channels)
    )
    if not fits:
        shapes = ", ".join(f"{name} {shape}" for name, shape in of.items())
        raise ValueError(
            f"the metadata of {path} names {classes} classes, images of {contract.channels} channels "
            f"and the outputs {', '.join(metadata.outputs)}, but its graph has {shapes}; one of the "
            "two was changed: export the model again"
        )


def _why_not(path: str, said: str) -> str:
    """What to do about a file that onnxruntime does not open, of which ``said`` is its complaint."""
    version = onnxruntime.__version__
    if "xternal" in said and ("tensor" in said or "nitializer" in said):
        beside = re.search(r'path does not exist: "([^"]+)"', said)
        named = f", {beside[1]}," if beside else ""
        return (
            f"{path} keeps weights in a file beside it{named} which is missing or cut short; put that "
            "file there, whole, or export the model again"
        )
    if "opset" in said:
        last = re.search(r"till opset (\d+)", said)
        return (
            f"{path} is of an opset that onnxruntime {version} does not run"
            + (f" (its last is {last[1]})" if last else "")
            + "; upgrade onnxruntime, or export the model again with a lower --opset"
        )
    if "INVALID_PROTOBUF" in said or "No graph was found" in said:
        return f"{path} is no ONNX file, or a damaged one; copy it again, or export the model again"
    reason = said.splitlines()[0].rpartition("failed:")[2]
    return (
        f"{path} must be an ONNX file that onnxruntime {version} runs, but it says: {reason:.300}. "
        "Export the model again, or upgrade onnxruntime"
    )


def _available() -> Sequence[str]:
    available: list[str] = onnxruntime.get_available_providers()
    return available


def openvino_precision(precision: str) -> str:
    """What openvino computes in: bfloat16 where it is asked for, or by ``auto`` where that is quick."""
    multiplies = {"avx512_bf16", "amx_bf16"} & set(_processor_flags())
    return "bfloat16" if precision == "bfloat16" or (precision == "auto" and multiplies) else "float32"


def _processor_flags() -> Sequence[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return ()
    return next((line.split() for line in lines if line.startswith("flags")), [])


def _openvino_options(precision: str) -> dict[str, str]:
    """A stream for each thread that calls, as the packed networks of torch have it, and the precision.

    One thread's calls would otherwise wait for those of the other.
    """
    count = str(cores())
    hint = {"bfloat16": "bf16", "float32": "f32"}[openvino_precision(precision)]
    names = {"NUM_STREAMS": count, "INFERENCE_NUM_THREADS": count, "INFERENCE_PRECISION_HINT": hint}
    return {"device_type": "CPU", "load_config": json.dumps({"CPU": names})}


def _begin(path: str, devices: Sequence[str], precision: str) -> tuple[Any, str]:
    """A session on the first of the devices that can be begun."""
    for device in devices:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, too
        if device in _ON_PROCESSOR:
            # Each thread of the pipeline runs the network for itself.
            options.intra_op_num_threads = options.inter_op_num_threads = 1
        provider = _PROVIDERS[device]
        # Behind it the processor, for what the provider has no kernel of.
        providers = list(dict.fromkeys([provider, _PROVIDERS["cpu"]]))
        own = _openvino_options(precision) if device == "openvino" else {}
        settings = [own if name == provider else {} for name in providers]
        try:
            session = onnxruntime.InferenceSession(path, options, providers, settings)
        except Exception as error:  # onnxruntime's own classes, which have no base of their own
            raise ValueError(_why_not(path, str(error))) from error
        # Where a provider's libraries are missing, onnxruntime goes on without it and without a word.
        if session.get_providers()[0] == provider:
            return session, device
    raise ValueError(
        f"none of the devices {', '.join(devices)} could be begun here, though onnxruntime has them: "
        "drivers or libraries are missing; use --device cpu"
    )
