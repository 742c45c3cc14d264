"""Tables and figures of the docs that are made from records of CPUs; `tables.py` writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from machine_records import at, fullest, of_fullest, records, seen_on, spread

from iformer.tables import markdown_table

_SIZES = ("iformer_t", "iformer_s", "iformer_m", "iformer_l")
_RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch", "litert": "LiteRT"}
"""The runtimes with INT8; ncnn is beside them."""


def short(network: str) -> str:
    """`iformer_m` as M, `iformer_m, batch 8` as M, batch 8."""
    name, *settings = network.removeprefix("iformer_").split(", ")
    return ", ".join((name.upper(), *settings))


def _table(columns: list[str], rows: list[list[str]], record: str) -> str:
    return f"{markdown_table(columns, rows)}\n\nSeen on {seen_on(record)}."


def _eager() -> str:
    forms = ("timm fused", "timm fused, channels-last", "iformer, not folded", "iformer folded")

    def cell(*place: str) -> str:
        milliseconds = of_fullest("inference", at(*place, "median_ms"))
        return f"{milliseconds:.1f} ms, {spread('inference', at(*place, 'speedup over timm fused'))}"

    further = [case for case in fullest("inference") if ", " in case]  # of other threads and batches
    rows = [[short(case), *(cell(case, form) for form in forms)] for case in (*_SIZES, *further)]
    return _table(["network", *(form.replace("iformer", "iFormer") for form in forms)], rows, "inference")


def _over_timm(network: str, runtime: str) -> str:
    return spread("runtimes", at(network, runtime, "ours", "times_as_fast"))


def _int8_over_fp32(network: str, runtime: str) -> str:
    def ratio(found: Any) -> float:
        fp32, int8 = (at(network, runtime, label, "median_ms")(found) for label in ("ours", "ours, int8"))
        return fp32 / int8

    return spread("runtimes", ratio)


def _milliseconds(network: str, runtime: str) -> str:
    labels = ("timm, fused", "ours", *(("ours, int8",) if runtime in _RUNTIMES else ()))
    return ", ".join(f"{of_fullest('runtimes', at(network, runtime, label, 'median_ms')):.1f}" for label in labels)


def _runtimes() -> str:
    rows = [
        [
            short(network),
            *(f"{_over_timm(network, runtime)}, {_int8_over_fp32(network, runtime)}" for runtime in _RUNTIMES),
            _over_timm(network, "ncnn"),
        ]
        for network in _SIZES
    ]
    rows.append(
        ["M, ms: timm, ours, INT8", *(_milliseconds("iformer_m", runtime) for runtime in (*_RUNTIMES, "ncnn"))]
    )
    return _table(["network", *_RUNTIMES.values(), "ncnn"], rows, "runtimes")


def _predict() -> str:
    rows = []
    for network in ("iformer_t", "iformer_m"):
        name = f"predict_rate_{network}"
        rates = [of_fullest(name, at(f"{what}_images_per_second")) for what in ("bare", "predict")]
        rows.append([short(network), *(f"{rate:.0f}" for rate in rates), spread(name, at("share_of_bare_rate"))])
    columns = ["network", "bare network, images/s", "predict, images/s", "share"]
    return _table(columns, rows, "predict_rate_iformer_m")


def _training_step() -> str:
    steps = {
        "plain fp32 NCHW": "plain: fp32, NCHW, AdamW",
        "iformer fp32": "fp32: channels-last, fused AdamW, running average included",
        "iformer auto": "default: bf16 autocast and the gradient below too",
    }
    rows = [
        [
            title,
            f"{of_fullest('training_step', at('steps', step, 'images_per_second')):.0f}",
            spread("training_step", at("steps", step, "speedup over plain")),
        ]
        for step, title in steps.items()
    ]
    return _table(["step", "images/s", "ratio"], rows, "training_step")


def _training_over_timm(network: str, part: str) -> str:
    return spread("training_loop", at(network, part, "speedup over timm"))


def _training_loop() -> str:
    rows = []
    for network in ("iformer_t", "iformer_m"):
        cells = []
        for part in ("step", "loop"):
            timm, ours = (
                of_fullest("training_loop", at(network, part, f"{side} images/s")) for side in ("timm", "iformer")
            )
            cells += [f"{timm:.1f}, {ours:.1f} images/s", _training_over_timm(network, part)]
        wait = of_fullest("training_loop", at(network, "loop", "share of time waiting for data", "iformer"))
        rows.append([short(network), *cells, f"{100 * wait:.1f} %"])
    columns = ["network", "step: timm, ours", "ratio", "loop, data included: timm, ours", "ratio"]
    return _table([*columns, "ours waits for data"], rows, "training_loop")


def _large_images() -> str:
    name, released = "high_resolution", ("hybrid, released", "chunked, released")
    forms = ("plain", *released, "chunked, paper text", "chunked, no global block")

    def row(runtime: str, title: str, size: str) -> list[str]:
        place = (runtime, size)
        peaks = {
            form: f"{of_fullest(name, at(*place, form, 'peak_mib')):.0f} MiB" for form in ("timm fused", *forms)
        }
        timm = f"{of_fullest(name, at(*place, 'timm fused', 'median_ms')):.0f} ms, {peaks['timm fused']}"
        return [
            size,
            title,
            timm,
            *(f"{spread(name, at(*place, form, 'share of time'))}, {peaks[form]}" for form in forms),
        ]

    rows = [
        row(runtime, title, size)
        for runtime, title in (("pytorch", "PyTorch"), ("onnxruntime", "ONNX Runtime"))
        for size in ("512", "1024", "2048")
    ]
    return _table(["pixels", "runtime", "timm", *forms], rows, name)


def _paper_ratios() -> str:
    rows = []
    for pair, claim in records("paper_ratios")[-1]["figures"].items():
        size = "" if claim["size"] == 224 else f" at {claim['size']} pixels"
        here = spread("paper_ratios", at(pair, "ratio"), unit="")
        rows.append([f"{pair}{size} ({claim['source']})", f"{claim['paper_ratio']:.2f}", here])
    return _table(["pair", "iPhone 13 (paper)", "here"], rows, "paper_ratios")


def _depthwise() -> str:
    where, layers = "192 x 14 x 14", ("3 x 3", "5 x 5", "7 x 7", "7 x 7 split")
    rows = [
        [
            title,
            *(f"{1e3 * of_fullest('depthwise', at(runtime, where, layer, 'median_ms')):.0f}" for layer in layers),
        ]
        for runtime, title in (_RUNTIMES | {"ncnn": "ncnn"}).items()
    ]
    return _table(["us by kernel", *(layer.replace("split", "in parts") for layer in layers)], rows, "depthwise")


def _light() -> str:
    rows = [
        [
            network,
            f"{of_fullest('light', at('320', network, 'million parameters')):.2f} M",
            f"{of_fullest('light', at('320', network, 'median_ms')):.1f}",
            spread("light", at("320", network, "times the backbone")),
        ]
        for network in ("backbone", "light detector", "light segmenter", "Mask R-CNN", "Semantic FPN")
    ]
    return _table(["network", "parameters in training", "ms", "to the backbone alone"], rows, "light")


def _start_up() -> str:
    verbs = ("iformer --help", "iformer info", "import torch, torchvision, timm", "iformer predict PHOTO")
    peaks = ("predict", "predict, 64 photographs", "eval", "export to ONNX")
    times = [f"{of_fullest('start_up', at('seconds', verb, 'median_ms')) / 1e3:.2f} s" for verb in verbs]
    ratio = spread("start_up", at("predict as a multiple of the imports"))
    rows = [
        *(
            [verb if "PHOTO" not in verb else f"{verb}, {ratio} of the imports", time, ""]
            for verb, time in zip(verbs, times, strict=True)
        ),
        *(
            [f"{verb}, iFormer-M", "", f"{of_fullest('start_up', at('peak MiB of iFormer-M', verb)):.0f} MiB"]
            for verb in peaks
        ),
    ]
    return _table(["process", "from start to end", "peak memory"], rows, "start_up")


TABLES: dict[str, Callable[[], str]] = {
    "eager": _eager,
    "runtimes": _runtimes,
    "depthwise": _depthwise,
    "light": _light,
    "predict": _predict,
    "start-up": _start_up,
    "training-step": _training_step,
    "training-loop": _training_loop,
    "large-images": _large_images,
    "paper-ratios": _paper_ratios,
}

FIGURES: dict[str, Callable[[], str]] = {
    "int8-over-fp32": lambda: ", ".join(_int8_over_fp32("iformer_m", runtime) for runtime in _RUNTIMES),
    "export-over-timm": lambda: ", ".join(_over_timm("iformer_m", runtime) for runtime in (*_RUNTIMES, "ncnn")),
    "training-over-timm": lambda: _training_over_timm("iformer_m", "loop"),
    "exports-seen": lambda: seen_on("runtimes"),
    "training-seen": lambda: seen_on("training_loop"),
}
