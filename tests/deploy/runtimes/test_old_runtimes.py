"""A file with `--opset 17` in ONNX Runtime 1.16 and in OpenCV's DNN module, in an environment of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iformer.data.images import read_image
from iformer.data.transforms import eval_transform
from iformer.deploy.export import export_artifact
from iformer.deploy.runner import open_artifact
from iformer.models.factory import create_model
from iformer.tasks.export import exportable
from tiny.networks import randomize

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

pytestmark = pytest.mark.full

PACKAGES = ("numpy==1.26.4", "onnxruntime==1.16.3", "opencv-python-headless==4.10.0.84")
"""The newest of each that has wheels for Python 3.11 and works with NumPy 1."""

SCRIPT = """
import sys
import numpy as np

runtime, artifact, pixels, answer = sys.argv[1:]
image = np.load(pixels)  # uint8 1 x H x W x 3
if runtime == "onnxruntime":
    import onnxruntime
    assert onnxruntime.__version__ == "1.16.3"
    session = onnxruntime.InferenceSession(artifact, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": image})
else:
    import cv2
    network = cv2.dnn.readNetFromONNX(artifact)
    network.setInput(image.astype(np.float32), "image")
    logits = network.forward("logits")
np.save(answer, logits)
"""


def run(command: list[Any]) -> None:
    """Run a command; a failure is the test's, with the last lines that the command wrote."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.fail(f"{command[0]} failed with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")


@pytest.fixture(scope="session")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with `PACKAGES`; the tests fail where it cannot be made."""
    version = (3, 11)
    base = sys.executable if sys.version_info[:2] == version else shutil.which("python3.11")
    if base is None:
        pytest.fail("onnxruntime 1.16 has no wheels for this Python; put a python3.11 with venv on the PATH")
    folder = tmp_path_factory.mktemp("old") / "environment"
    run([base, "-m", "venv", folder])
    python = folder / "bin" / "python"
    run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary=:all:",
            *PACKAGES,
        ]
    )
    return python


@pytest.fixture(scope="module", params=["iformer_t", "iformer_m"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A network with random weights and statistics, and its artifact in operator set 17."""
    model: Any = create_model(request.param).eval()
    randomize(model)
    path = tmp_path_factory.mktemp("opset17") / f"{request.param}.onnx"
    export_artifact(exportable(model), path, "onnx", batch=1, opset=17)
    return model, path


@pytest.mark.parametrize("runtime", ["onnxruntime", "opencv"])
def test_an_old_runtime_agrees(
    runtime: str, exported: tuple[Any, Path], old_python: Path, photographs: list[Path], tmp_path: Path
) -> None:
    model, artifact = exported
    runner = open_artifact(artifact, threads=1)
    image = eval_transform(model.metadata.preprocessing)(read_image(photographs[0]))
    expected = runner(image[None])["logits"].numpy()
    np.save(tmp_path / "pixels.npy", image[None].permute(0, 2, 3, 1).contiguous().numpy())
    (tmp_path / "run.py").write_text(SCRIPT)
    run([old_python, tmp_path / "run.py", runtime, artifact, tmp_path / "pixels.npy", tmp_path / "logits.npy"])
    found = np.load(tmp_path / "logits.npy")
    assert found.shape == expected.shape
    assert np.abs(expected - expected.mean()).max() > 0.1
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert found.argmax() == expected.argmax()
