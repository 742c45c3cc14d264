"""The page in headless Chromium: it classifies, proves its answers, and refuses what is wrong."""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iformer.config.preprocessing import Preprocessing
from iformer.data.images import read_image
from iformer.data.transforms import eval_transform
from iformer.deploy.export import export_artifact
from iformer.deploy.runner import open_artifact
from iformer.models.detections import SelectionRule
from iformer.models.factory import create_model
from iformer.models.letterbox import content_size, letterbox
from iformer.tasks.export import exportable
from iformer.web.demo import open_demo
from iformer.web.server import Resource
from iformer.web.static import write_page
from tiny.dense import BUILDERS
from tiny.networks import randomize

sweep = pytest.mark.sweep

PHONE = {"width": 390, "height": 844}
SETTLED = "body[data-state=ready], body[data-state=refused], body[data-state=failed]"


@contextmanager
def opened(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """The page, after it loaded its network or failed; an error in its scripts fails the test."""
    context = browser.new_context(viewport=PHONE, **options)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.locator(SETTLED).wait_for(timeout=120_000)
    yield page
    context.close()
    assert errors == []


def state(page: Any) -> str:
    found: str = page.get_attribute("body", "data-state")
    return found


def choose(page: Any, backend: str) -> str:
    """Choose a backend and return the state after it loaded."""
    page.select_option("#backend", backend)
    page.locator(SETTLED).wait_for(timeout=120_000)
    return state(page)


@pytest.fixture
def demo(assets: str, tmp_path: Path) -> Callable[..., Any]:
    return functools.partial(open_demo, on="onnx", folder=tmp_path, assets=assets)


def answer(page: Any) -> list[tuple[str, float]]:
    page.locator("#answer .class").first.wait_for()
    items = page.locator("#answer .class").all()
    return [
        (item.locator(".name").inner_text(), float(item.locator(".share").inner_text()[:-1])) for item in items
    ]


def expected(artifact: Path, picture: Path) -> list[tuple[str, float]]:
    runner = open_artifact(artifact)
    image = eval_transform(runner.info.preprocessing)(read_image(picture))
    shares = 100 * runner(image[None])["logits"].softmax(1)[0]
    return sorted(zip(runner.info.class_names, shares.tolist(), strict=True), key=lambda pair: -pair[1])


@sweep
@pytest.mark.parametrize("kind", ["onnx", "litert"])
def test_a_photograph_and_the_camera(
    kind: str, demo: Any, browser: Any, photographs: list[Path], request: pytest.FixtureRequest
) -> None:
    artifact = request.getfixturevalue(f"tiny_{kind}")
    server = demo(str(artifact))
    with server, opened(browser, server.new_address()) as page:
        assert state(page) == "ready", page.inner_text("#problem")
        assert page.url.endswith(f":{server.port}/")  # the token is out of the address bar
        for photograph in photographs[:2]:
            page.set_input_files("#file", photograph)
            page.wait_for_timeout(500)
            shown, computed = answer(page), expected(artifact, photograph)
            assert [name for name, _ in shown] == [name for name, _ in computed]
            for (_, share), (_, wanted) in zip(shown, computed, strict=True):
                assert share == pytest.approx(wanted, abs=0.11)
        assert page.inner_text("#spoken").startswith(shown[0][0])
        page.click("#camera")
        page.locator("#video").wait_for()
        page.locator("#rate", has_text=re.compile("[0-9]")).wait_for()
        assert page.inner_text("#camera") == "Stop"
        page.click("#camera")
        assert not page.is_visible("#video")
        page.reload()  # the session lasts as long as the tab
        page.locator(SETTLED).wait_for()
        assert state(page) == "ready"


@sweep
def test_backends_agree_or_say_why_not(demo: Any, browser: Any, new_litert: Path) -> None:
    server = demo(str(new_litert))
    with server, opened(browser, server.new_address()) as page:
        assert "computed by the processor" in page.inner_text("#notices")  # SwiftShader
        assert "LiteRT WebGPU (software)" in page.inner_text("#backend")
        assert choose(page, "0 litert-webgpu") == "ready", page.inner_text("#problem")
        assert choose(page, "0 litert-wasm") == "ready", page.inner_text("#problem")


@pytest.fixture(scope="module", params=["detector", "segmenter"])
def dense_onnx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny light detector or segmenter for ONNX Runtime."""
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("dense") / f"{request.param}.onnx"
    export_artifact(exportable(BUILDERS[request.param]()), path, "onnx")
    return path


def in_words(artifact: Path, picture: Path) -> str:
    """What the page says about a picture, computed here."""
    runner = open_artifact(artifact)
    info = runner.info
    with Image.open(picture) as image:
        size = image.height, image.width
    outputs = runner(eval_transform(info.preprocessing)(read_image(picture))[None])
    if info.task == "detect":
        place = letterbox(torch.zeros(3, *size, dtype=torch.uint8), info.preprocessing.size)
        boxes = place.restore(outputs["boxes"][0])
        found = SelectionRule(**info.postprocess).select(boxes, outputs["scores"][0], min_score=0.5)
        names = [info.class_names[label] for label in found["labels"]]
        return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nothing found"
    height, width = (round(side / 4) for side in content_size(size, info.preprocessing.size))
    classes = outputs["logits"][0].argmax(0)[:height, :width].flatten()
    shares = [((classes == kind).float().mean().item(), name) for kind, name in enumerate(info.class_names)]
    return ", ".join(
        f"{name} {round(100 * share)} percent" for share, name in sorted(shares, reverse=True) if share
    )


@sweep
def test_objects_and_areas(demo: Any, browser: Any, dense_onnx: Path, photographs: list[Path]) -> None:
    server = demo(str(dense_onnx))
    with server, opened(browser, server.new_address()) as page:
        assert state(page) == "ready", page.inner_text("#problem")
        for photograph in photographs[:3]:
            page.set_input_files("#file", photograph)
            page.wait_for_timeout(1500)
            assert page.inner_text("#spoken") == in_words(dense_onnx, photograph)
            pixels = "canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data"
            assert page.locator("#overlay").evaluate(f"canvas => {pixels}.some((value) => value > 0)")
        page.click("#camera")
        page.locator("#rate", has_text=re.compile("[0-9]")).wait_for()


@sweep
def test_an_address_is_valid_once(demo: Any, browser: Any, tiny_onnx: Path) -> None:
    server = demo(str(tiny_onnx))
    with server:
        address = server.new_address()
        with opened(browser, address) as page:
            assert state(page) == "ready"
        with opened(browser, address) as page:
            assert state(page) == "failed"
            assert "This address was used before" in page.inner_text("#problem")


@sweep
def test_a_changed_weight_is_refused(demo: Any, browser: Any, tiny_onnx: Path, tmp_path: Path) -> None:
    """By its hash, and by its answers if the hash was changed too."""
    server = demo(str(tiny_onnx))
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tiny_onnx)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(weight).copy()
    values *= 1.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    content = model.SerializeToString()
    server.resources["/networks/0.onnx"] = Resource(content=content)
    with server:
        with opened(browser, server.new_address()) as page:
            assert state(page) == "refused"
            assert "its SHA-256 differs" in page.inner_text("#problem")
        manifest = json.loads(server.resources["/networks.json"].content)
        manifest["artifacts"][0]["sha256"] = hashlib.sha256(content).hexdigest()
        server.resources["/networks.json"] = Resource(content=json.dumps(manifest).encode())
        with opened(browser, server.new_address()) as page:
            assert state(page) == "refused"
            assert "the answers are not those of the computer" in page.inner_text("#problem")
            assert page.is_disabled("#camera")


@sweep
def test_pixels_are_those_of_the_evaluation_transform(demo: Any, browser: Any, tiny_onnx: Path) -> None:
    sizes = [(64, 64), (96, 64), (64, 160)]
    crops = [
        Preprocessing(size=size, crop_pct=0.9, interpolation=interpolation)  # type: ignore[arg-type]
        for size in sizes
        for interpolation in ("bicubic", "bilinear")
    ]
    letterboxes = [Preprocessing(size=size, letterbox=(114, 20, 7)) for size in sizes]
    script = """async ([pixels, width, height, preprocessing]) => {
        const { placement, resample } = await import("/preprocess.js");
        const place = placement(preprocessing, width, height);
        const rgba = Uint8ClampedArray.from(atob(pixels), (character) => character.charCodeAt(0));
        return btoa(String.fromCharCode(...resample(rgba, width, place, preprocessing)));
    }"""
    generator = np.random.default_rng(0)
    server = demo(str(tiny_onnx))
    with server, opened(browser, server.new_address()) as page:
        for preprocessing, (width, height) in itertools.product(
            crops + letterboxes, ((90, 70), (64, 64), (33, 201), (20, 20), (300, 4), (90, 300))
        ):
            rgb = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            rgba = np.concatenate([rgb, np.full((height, width, 1), 255, np.uint8)], axis=2)
            sent = base64.b64encode(rgba.tobytes()).decode()
            found = base64.b64decode(page.evaluate(script, [sent, width, height, preprocessing.to_plain()]))
            wanted = eval_transform(preprocessing)(Image.fromarray(rgb)).permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(np.frombuffer(found, np.uint8).reshape(wanted.shape), wanted)


@sweep
def test_no_request_leaves_the_server(demo: Any, browser: Any, tiny_onnx: Path) -> None:
    server = demo(str(tiny_onnx))
    context = browser.new_context(viewport=PHONE)
    requests: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    with server:
        page = context.new_page()
        page.goto(server.new_address())
        page.locator(SETTLED).wait_for()
        page.click("#camera")
        page.locator("#answer .class").first.wait_for()
    context.close()
    origin = f"http://127.0.0.1:{server.port}/"
    assert len(requests) > 10
    assert [url for url in requests if not url.startswith((origin, f"blob:{origin}"))] == []


@sweep
def test_the_folder_works_from_a_plain_file_server(
    assets: str, browser: Any, tiny_onnx: Path, tmp_path: Path, photographs: list[Path]
) -> None:
    folder = write_page(str(tiny_onnx), tmp_path / "page", assets=assets, licence="CC0")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=tmp_path)) as host:
        threading.Thread(target=host.serve_forever, daemon=True).start()
        with opened(browser, f"http://127.0.0.1:{host.server_port}/page/") as page:
            assert state(page) == "ready", page.inner_text("#problem")
            assert "sends no COOP and COEP headers" in page.inner_text("#notices")
            page.set_input_files("#file", photographs[0])
            assert [name for name, _ in answer(page)] == [name for name, _ in expected(tiny_onnx, photographs[0])]
            page.click("summary")
            assert "CC0" in page.inner_text("#facts")
        network = folder / "networks/0.onnx"
        content = bytearray(network.read_bytes())
        content[len(content) // 2] ^= 1
        network.write_bytes(content)
        with opened(browser, f"http://127.0.0.1:{host.server_port}/page/") as page:
            assert state(page) == "refused"
        host.shutdown()


@sweep
def test_what_is_missing_is_said(demo: Any, browser: Any, tiny_onnx: Path) -> None:
    server = demo(str(tiny_onnx))
    context = browser.new_context(viewport=PHONE)
    context.add_init_script(
        """
        delete Navigator.prototype.gpu;
        navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException("no", "NotAllowedError"));
        """
    )
    with server:
        page = context.new_page()
        page.goto(server.new_address())
        page.locator(SETTLED).wait_for()
        assert "This browser has no WebGPU." in page.inner_text("#notices")
        page.click("#camera")
        page.locator("#problem:not([hidden])").wait_for()
        assert "The camera is blocked for this page." in page.inner_text("#problem")
    context.close()


@sweep
def test_by_keyboard(demo: Any, browser: Any, tiny_onnx: Path) -> None:
    server = demo(str(tiny_onnx))
    with server, opened(browser, server.new_address()) as page:
        reached = []
        for _ in range(5):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert reached == ["camera", "choose", "backend", "threads", "SUMMARY"]
        page.focus("#camera")
        page.keyboard.press("Enter")
        page.locator("#answer .class").first.wait_for()
        names = page.evaluate(
            "[...document.querySelectorAll('button, select, [role]')].map((e) => e.innerText || e.ariaLabel || "
            "e.closest('label')?.innerText || e.id)"
        )
        assert all(names)


@sweep
def test_an_old_operator_set_agrees(demo: Any, browser: Any, tmp_path: Path) -> None:
    """iFormer-T with `--opset 17`; the page compares its answers with those of this machine."""
    pytest.importorskip("onnxscript")
    model: Any = create_model("iformer_t", num_classes=5).eval()
    randomize(model)
    path = tmp_path / "t.onnx"
    export_artifact(exportable(model), path, "onnx", opset=17)
    server = demo(str(path))
    with server, opened(browser, server.new_address()) as page:
        assert state(page) == "ready", page.inner_text("#problem")
        shown = page.inner_text("#equality")
        assert shown == "exact" or float(shown) <= 1e-4
