"""ONNX: export, and running what was exported in ONNX Runtime.

Shape letters: B batch, H and W the image's sides, K classes.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from iformer._version import __version__
from iformer.config.checking import to_plain
from iformer.config.dependencies import require
from iformer.config.preprocessing import Preprocessing
from iformer.data.transforms import Normalize
from iformer.deploy.artifact import ArtifactInfo, file_hash, read_record, staged, weights_hash, write_record
from iformer.deploy.parity import compare
from iformer.errors import UserError
from iformer.models.classifier import Classifier
from iformer.models.folding import fold, is_folded

EXTRA = "onnx"
INPUT, OUTPUT = "image", "logits"


class WithPreprocessing(nn.Module):
    """A network behind its normalisation: uint8 RGB, B x H x W x 3, to logits, B x K.

    B x H x W x 3 is how decoders and cameras hand out images; the one transposition of bytes in the graph
    is cheaper than one in the caller's code.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        std = torch.tensor(preprocessing.std)[:, None, None]
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -torch.tensor(preprocessing.mean)[:, None, None] / std, persistent=False)
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(image.permute(0, 3, 1, 2).float() * self.scale + self.shift)
        return logits


def export_onnx(
    model: Classifier,
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    batch: Literal["dynamic"] | int = "dynamic",
    raw: bool = False,
    images: Sequence[Path] = (),
) -> ArtifactInfo:
    """Write a folded copy of a network as ONNX, with its record beside it, and prove that it is the network.

    The file is loaded in ONNX Runtime and compared with the network before it takes its place: where they
    disagree, nothing is written and what was there stays.

    Args:
        model: a classifier in eval mode, not folded; it is left as it was.
        path: the `.onnx` file; the record is `path` with `.json` added.
        size: height and width of the input; None: those of the network's preprocessing.
        batch: "dynamic" for any number of images in one call, or a fixed number.
        raw: leave normalisation out of the graph: the input is then float32, B x 3 x H x W, normalised.
        images: photographs for the comparison, beside the generated patterns that are always used.

    Raises:
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
        UserError: the network is folded or has no classes, the size or batch is impossible, or the exported
            file does not agree with the network.
        OSError: the file cannot be written.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, extra=EXTRA)
    _check(model, size, batch)
    preprocessing = (
        model.metadata.preprocessing if size is None else replace(model.metadata.preprocessing, size=size)
    )
    with staged(path) as file:
        _write(model, file, preprocessing, batch=batch, raw=raw)
        info = ArtifactInfo(
            runtime="onnx",
            file=path.name,
            sha256=file_hash(file),
            network=model.config.name,
            input_name=INPUT,
            input_dtype="float32" if raw else "uint8",
            input_layout="NCHW" if raw else "NHWC",
            batch=None if batch == "dynamic" else batch,
            preprocessing=preprocessing,
            output_name=OUTPUT,
            task=model.metadata.task,
            class_names=model.metadata.class_names,
            weights_sha256=weights_hash(model),
            versions=_versions(),
        )
        write_record(info, file)
        parity = compare(model, OnnxRunner(file), images)
        parity.require(path)
        info = replace(info, parity=parity.to_plain())
        write_record(info, file)
    return info


class OnnxRunner:
    """An ONNX artifact in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Load an artifact and its record.

        Args:
            threads: threads of ONNX Runtime; 0 lets it take all cores.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            UserError: the file cannot be loaded, or what is written in it is not what its record says.
        """
        runtime = require("onnxruntime", extra=EXTRA)
        self.info = read_record(path)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base class of its errors
            raise UserError(f"{path} cannot be loaded by ONNX Runtime: {error}") from None
        self._check_embedded(path)

    def __call__(self, images_B3HW: Tensor) -> Tensor:
        """uint8 RGB images, B x 3 x H x W, to logits, B x K."""
        fed = self.prepare(images_B3HW)
        if self.info.batch is None:
            return torch.from_numpy(self.run(fed))
        outputs = []
        for chunk in torch.split(fed, self.info.batch):
            missing = self.info.batch - len(chunk)
            padded = torch.cat([chunk, chunk[-1:].expand(missing, *chunk.shape[1:])]) if missing else chunk
            outputs.append(torch.from_numpy(self.run(padded))[: len(chunk)])
        return torch.cat(outputs)

    def prepare(self, images_B3HW: Tensor) -> Tensor:
        """uint8 RGB images, B x 3 x H x W, as the artifact's input."""
        if self.info.input_dtype == "uint8":
            return images_B3HW.permute(0, 2, 3, 1).contiguous()
        normalized: Tensor = Normalize(self.info.preprocessing)(images_B3HW)
        return normalized.contiguous()

    def run(self, fed: Tensor) -> Any:
        """What a benchmark times: the input as `prepare` makes it to logits, a NumPy array of B x K."""
        return self.session.run([self.info.output_name], {self.info.input_name: fed.numpy()})[0]

    def _check_embedded(self, path: Path) -> None:
        embedded = self.session.get_modelmeta().custom_metadata_map
        for key, value in _embedded(self.info.class_names, self.info.preprocessing).items():
            if embedded.get(key) != value:
                raise UserError(f"{path}: {key} inside the file and in its record differ")


def _check(model: Classifier, size: tuple[int, int] | None, batch: Literal["dynamic"] | int) -> None:
    if not isinstance(model, Classifier) or model.num_classes == 0:
        raise UserError("export takes a classifier with one class or more")
    if is_folded(model):
        raise UserError("export folds the network itself; give it the network before folding")
    if size is not None and min(size) < 32:
        raise UserError(f"size is {size[0]} x {size[1]}; the networks take sides of 32 pixels or more")
    if batch != "dynamic" and batch < 1:
        raise UserError(f"batch is {batch}; expected 'dynamic' or a whole number of 1 or more")


def _write(
    model: Classifier, path: Path, preprocessing: Preprocessing, *, batch: Literal["dynamic"] | int, raw: bool
) -> None:
    onnx = require("onnx", extra=EXTRA)
    folded = copy.deepcopy(fold(model)).cpu()
    height, width = preprocessing.size
    channels = model.config.in_chans
    # with an example of one image the exporter would freeze the batch at 1
    count = 2 if batch == "dynamic" else batch
    if raw:
        graph: nn.Module = folded
        example = torch.zeros(count, channels, height, width)
    else:
        graph = WithPreprocessing(folded, preprocessing)
        example = torch.zeros(count, height, width, channels, dtype=torch.uint8)
    dynamic = ({0: torch.export.Dim("batch", min=1)},) if batch == "dynamic" else None
    with warnings.catch_warnings(), _quiet("torch.onnx"), _quiet("onnxscript"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.eval(),
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=dynamic,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _forget_this_machine(proto)
    proto.producer_name, proto.producer_version = "iformer", __version__
    embedded = _embedded(model.metadata.class_names, preprocessing)
    onnx.helper.set_model_props(proto, {**embedded, "network": model.config.name, "task": model.metadata.task})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def _embedded(class_names: Sequence[str], preprocessing: Preprocessing) -> dict[str, str]:
    """What the ONNX file itself carries, so that it is complete without its record."""
    return {
        "class_names": json.dumps(list(class_names), ensure_ascii=False),
        "preprocessing": json.dumps(to_plain(preprocessing)),
    }


def _forget_this_machine(proto: Any) -> None:
    """Drop the exporter's notes (stack traces with paths of this machine) from every part of the graph."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""


class _quiet:  # noqa: N801 - reads as a statement
    """Keep a library's logger from telling the user what is not for the user."""

    def __init__(self, logger: str) -> None:
        self.logger = logging.getLogger(logger)

    def __enter__(self) -> None:
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)


def _versions() -> dict[str, str]:
    names = ("onnx", "onnxscript", "onnxruntime")
    return {"iformer": __version__, "torch": torch.__version__} | {
        name: require(name, extra=EXTRA).__version__ for name in names
    }
