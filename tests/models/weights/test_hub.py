"""Released weights, fetched by the real client of huggingface_hub from a local stand-in of the hub."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from huggingface_hub import constants
from safetensors.torch import save
from torch import nn

import iformer
from iformer.config.preprocessing import Preprocessing
from iformer.config.segmenter import SegmenterConfig
from iformer.config.variants import network_config
from iformer.errors import UnknownNameError, UserError, WeightsError
from iformer.models.factory import build, create_model
from iformer.models.segmenter import Segmenter
from iformer.models.weights import hub
from iformer.models.weights.checkpoint import save as save_network
from iformer.models.weights.dialects import to_timm
from tiny.hub import NEWEST, OLDER, REPO, Hub, running_hub
from tiny.networks import tiny_config


@pytest.fixture(scope="module")
def released_files() -> dict[str, bytes]:
    config = network_config("iformer_t")
    files = {}
    for seed, commit in enumerate((NEWEST, OLDER)):
        torch.manual_seed(seed)
        tensors = {key: value.clone() for key, value in to_timm(build(config).state_dict(), config).items()}
        files[commit] = save(tensors, {"format": "pt"})
    return files


@pytest.fixture
def server(released_files: dict[str, bytes], tmp_path: Path) -> Iterator[Hub]:
    with running_hub(released_files, tmp_path / "cache") as running:
        yield running


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(WeightsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(model: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


def test_released_weights_and_what_is_known_of_them(server: Hub) -> None:
    model = create_model("iformer_t", pretrained=True)
    torch.manual_seed(0)
    assert same(model, build(network_config("iformer_t")))
    assert model.training
    metadata = model.metadata
    assert len(metadata.class_names) == 1000
    assert metadata.metrics == {"top1": 74.05, "top5": 92.20}
    assert metadata.provenance["hub_repo"] == REPO
    assert metadata.provenance["hub_revision"] == NEWEST
    assert metadata.preprocessing.size == (224, 224)
    assert metadata.preprocessing.interpolation == "bicubic"
    assert metadata.preprocessing.crop_pct == 0.875


def test_a_revision_is_pinned(server: Hub) -> None:
    torch.manual_seed(1)
    older = build(network_config("iformer_t"))
    for revision in (OLDER, "v1"):
        model = create_model("iformer_t", pretrained=True, revision=revision)
        assert same(model, older)
        assert model.metadata.provenance["hub_revision"] == OLDER
    assert not any("/main/" in asked for asked in server.asked)
    with pytest.raises(UserError, match="revision"):
        create_model("iformer_t", revision=OLDER)


def test_a_second_time_needs_no_network(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.fetch_released("iformer_t")
    downloads = [asked for asked in server.asked if asked.startswith("GET")]
    assert len(downloads) == 1
    assert hub.fetch_released("iformer_t") == first
    assert [asked for asked in server.asked if asked.startswith("GET")] == downloads
    asked = len(server.asked)
    assert hub.fetch_released("iformer_t", NEWEST) == first
    assert len(server.asked) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch_released("iformer_t") == first
    assert hub.fetch_released("iformer_t", NEWEST) == first
    assert len(server.asked) == asked


def test_offline_and_not_in_the_cache(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = message_of(lambda: hub.fetch_released("iformer_t"))
    assert "HF_HUB_OFFLINE" in message
    assert REPO in message
    assert "give a local copy of its model.safetensors in place of the name" in message
    assert server.asked == []


def test_a_repository_revision_or_file_that_is_not_there(server: Hub) -> None:
    message = message_of(lambda: create_model("iformer_s", pretrained=True))
    assert "timm/iformer_s.in1k" in message
    assert "no such repository" in message
    assert "it has no revision nowhere" in message_of(lambda: hub.fetch_released("iformer_t", "nowhere"))
    other = hub.HubFile(repo=REPO, file="other.safetensors")
    assert "it has no file other.safetensors" in message_of(lambda: hub.fetch(other))
    server.files = {OLDER: server.files[OLDER]}
    message = message_of(lambda: hub.fetch_released("iformer_t"))
    assert "it has no revision main; check the name" in message


def test_a_server_that_fails_or_hangs_up(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.status = 500
    assert "500" in message_of(lambda: hub.fetch_released("iformer_t"))
    server.status = 403
    assert "403" in message_of(lambda: hub.fetch_released("iformer_t"))
    server.status, server.cut_short = None, True
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits before it tries again
    assert "closed connection" in message_of(lambda: hub.fetch_released("iformer_t"))
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


def test_a_server_that_sends_more_than_it_announced(server: Hub, tmp_path: Path) -> None:
    server.endless = True
    server.others["me/small"] = {"model.safetensors": bytes(1000)}
    message = message_of(lambda: hub.fetch(hub.HubFile(repo="me/small")))
    assert "the server sends more than the 1,000 bytes that it announced" in message
    assert not list((tmp_path / "cache").rglob("blobs/*"))


@pytest.mark.parametrize("change", ["emptied", "one bit"])
@pytest.mark.parametrize("revision", [None, NEWEST])
def test_a_damaged_file_in_the_cache_is_downloaded_again(
    change: str, revision: str | None, server: Hub, released_files: dict[str, bytes]
) -> None:
    path = hub.fetch_released("iformer_t", revision)
    assert path.read_bytes() == released_files[NEWEST]
    content = bytearray(released_files[NEWEST])
    content[-1000] ^= 1
    path.write_bytes(b"" if change == "emptied" else content)
    assert hub.fetch_released("iformer_t", revision).read_bytes() == released_files[NEWEST]
    downloads = [asked for asked in server.asked if asked.startswith("GET")]
    assert len(downloads) == 2
    hub.fetch_released("iformer_t", revision)
    assert [asked for asked in server.asked if asked.startswith("GET")] == downloads


def test_a_damaged_file_in_the_cache_without_a_connection(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fetch_released("iformer_t").write_bytes(b"damaged")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = message_of(lambda: hub.fetch_released("iformer_t"))
    assert "its copy in the cache is damaged: HF_HUB_OFFLINE is set" in message
    assert "or try again with a connection" in message


def test_a_server_whose_file_has_another_hash_than_it_states(server: Hub) -> None:
    server.etag = f'"{"0" * 64}"'
    message = message_of(lambda: hub.fetch_released("iformer_t"))
    assert "does not have the SHA-256 that it states" in message


def test_a_wait_for_the_download_of_another_process_is_said(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.fetch_released("iformer_t").resolve().unlink()
    (lock,) = (tmp_path / "cache").rglob("*.lock")
    monkeypatch.setattr(hub, "_NOTE_SECONDS", 0.1)
    monkeypatch.setattr(hub, "MAX_SILENCE_SECONDS", 1.0)
    with FileLock(lock):
        message = message_of(lambda: hub.fetch_released("iformer_t"))
    assert "no progress after" in message
    assert "another process may be downloading it" in capfd.readouterr().err


def test_a_server_that_tells_the_client_to_wait_for_a_day(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_SILENCE_SECONDS", 0.2)
    server.retry_after = 100_000
    message = message_of(lambda: hub.fetch_released("iformer_t"))
    assert "no progress after 0.2 s; give a local copy of its model.safetensors" in message


def test_an_answer_that_is_not_that_of_a_hub(server: Hub) -> None:
    server.headers = False
    message = message_of(lambda: hub.fetch_released("iformer_t"))
    assert "the answer is not that of a hub" in message
    assert "no file" not in message


@pytest.mark.parametrize("etag", ['"../../../outside"', '"/outside"', '""', "a\x1bb"])
def test_an_etag_that_is_no_file_name_is_refused(server: Hub, tmp_path: Path, etag: str) -> None:
    server.etag = etag
    assert "its commit or ETag is malformed" in message_of(lambda: hub.fetch_released("iformer_t"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_cache_that_is_a_file(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    message = message_of(lambda: hub.fetch_released("iformer_t"))
    assert "its cache cannot be used" in message
    assert "set HF_HOME to a folder" in message


def test_a_revision_that_is_too_long_for_the_cache(server: Hub) -> None:
    server.others["me/small"] = {"model.safetensors": bytes(1000)}
    message = message_of(lambda: hub.fetch(hub.HubFile(repo="me/small", revision="b" * 250)))
    assert "its name is too long for the cache; name a commit" in message


@pytest.mark.parametrize(
    "revision",
    ["../../../../keep.txt", "..", "a/../../b", "/keep.txt", "a//b", "a\\..\\b", "~", "a\x1bb", "", "-a"],
)
def test_a_revision_that_is_no_name_writes_nothing(server: Hub, tmp_path: Path, revision: str) -> None:
    server.others["me/small"] = {"model.safetensors": bytes(1000)}
    (tmp_path / "keep.txt").write_text("precious")
    message = message_of(lambda: hub.fetch(hub.HubFile(repo="me/small", revision=revision)))
    assert "expected the name of a commit, tag or branch" in message
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["keep.txt"]
    assert (tmp_path / "keep.txt").read_text() == "precious"
    assert not server.asked


def test_names_of_revisions(server: Hub) -> None:
    server.others["me/small"] = {"model.safetensors": bytes(1000)}
    for revision in ("v1.0", "refs/pr/12", "feature/a_b-c+d", "1.0.0-rc.1"):
        assert hub.fetch(hub.HubFile(repo="me/small", revision=revision)).read_bytes() == bytes(1000)


def test_names_that_cannot_be_on_the_hub() -> None:
    for name in ("hf-hub:-/-", "hf-hub:a/b//etc/passwd", "hf-hub:a/b/../c", "hf-hub:a", "hf-hub:a/b@"):
        message = message_of(lambda: iformer.load(name))  # noqa: B023
        assert f"'{name}' is not a name on the hub" in message or name == "hf-hub:-/-"
        assert "is not a name on the hub; expected hf-hub:USER/NAME" in message
    long = message_of(lambda: hub.parse_hub_name("hf-hub:" + "a" * 5000))
    assert len(long) < 400


def test_other_spellings_of_a_name_on_the_hub_lead_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("https://huggingface.co/ann/one", "https://hf.co/ann/one/tree/main", "HF-HUB:ann/one"):
        assert message_of(lambda: iformer.load(name)) == f"{name} is an address; give the name hf-hub:ann/one"  # noqa: B023
    message = message_of(lambda: iformer.load("ann/one"))
    assert "ann/one does not exist" in message
    assert message.endswith("; a network on the Hugging Face hub is hf-hub:ann/one")
    assert "hub" not in message_of(lambda: iformer.load("runs/one.safetensors"))


def test_an_endpoint_that_cannot_be_reached(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        started = time.monotonic()
        message = message_of(lambda: create_model("iformer_t", pretrained=True))
        assert time.monotonic() - started < 5
    assert "refused" in message
    assert "give a local copy of its model.safetensors in place of the name" in message


def test_a_network_that_was_never_released(server: Hub) -> None:
    message = message_of(lambda: create_model("iformer_l2", pretrained=True))
    assert "no released weights of iformer_l2" in message
    assert "iformer_l2_distilled" in message
    assert server.asked == []
    with pytest.raises(UnknownNameError, match="did you mean iformer_t"):
        hub.fetch_released("iformer_tt")


def test_fine_tuning_and_features_from_released_weights(server: Hub) -> None:
    message = message_of(lambda: create_model("iformer_t", num_classes=10, pretrained=True))
    assert REPO in message
    assert "1,000 classes, the network one of 10; pass reset_head=True" in message
    model = create_model("iformer_t", num_classes=10, pretrained=True, reset_head=True)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert model.metadata.class_names == ()
    assert model.metadata.provenance["hub_repo"] == REPO
    features = create_model("iformer_t", pretrained=True, features_only=True, out_indices=(1, 3))
    assert [x.shape[1] for x in features(torch.randn(1, 3, 64, 64))] == [64, 256]


def test_the_environment_variables_of_the_hub(server: Hub, tmp_path: Path) -> None:
    """In a process of its own, since the client reads them when it is imported."""
    code = (
        "from iformer.models.weights.hub import fetch_released; "
        "print(fetch_released('iformer_t', 'v1').parent.name)"
    )
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "other")}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == OLDER
    assert list((tmp_path / "other").rglob("model.safetensors"))


# ------------------------------------------------------------------------------------- other repositories


def test_a_checkpoint_of_any_task_on_the_hub(server: Hub, tmp_path: Path) -> None:
    config = SegmenterConfig(backbone=tiny_config(num_classes=0), num_classes=2, fpn_channels=8, head_channels=32)
    segmenter = Segmenter(config)
    save_network(segmenter, tmp_path / "net.safetensors", class_names=("sky", "road"))
    server.others["me/road"] = {"model.safetensors": (tmp_path / "net.safetensors").read_bytes()}
    loaded = iformer.load("hf-hub:me/road")
    assert type(loaded) is Segmenter
    assert loaded.metadata.class_names == ("sky", "road")
    assert loaded.metadata.provenance["hub_repo"] == "me/road"
    assert all(map(torch.equal, loaded.state_dict().values(), segmenter.state_dict().values()))


def test_a_fine_tuned_network_of_timm_brings_its_preprocessing_and_classes(server: Hub) -> None:
    config = network_config("iformer_t").with_options(num_classes=2)
    weights = to_timm(build(config).state_dict(), config)
    described = {
        "architecture": "iformer_t",
        "num_classes": 2,
        "label_names": ["ham", "spam"],
        "pretrained_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "input_size": [3, 192, 160],
            "crop_pct": 0.95,
            "interpolation": "bilinear",
        },
    }
    files = {"model.safetensors": save(dict(weights)), "config.json": json.dumps(described).encode()}
    server.others["me/mail"] = files
    metadata = iformer.load("hf-hub:me/mail@main").metadata
    assert metadata.class_names == ("ham", "spam")
    assert metadata.preprocessing == Preprocessing(
        size=(192, 160), crop_pct=0.95, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    for damaged in (b"{", b"[]", b'{"pretrained_cfg": {"mean": [0.5]}}', b'{"pretrained_cfg": {"crop_pct": "x"}}'):
        server.others[f"me/mail{len(damaged)}"] = {**files, "config.json": damaged}
        message = message_of(lambda: iformer.load(f"hf-hub:me/mail{len(damaged)}"))  # noqa: B023
        assert "its config.json is invalid" in message
    del files["config.json"]
    server.others["me/plain"] = files
    assert iformer.load("hf-hub:me/plain").metadata.preprocessing == Preprocessing()


def test_a_named_file_and_the_entry_in_it(server: Hub, tmp_path: Path) -> None:
    config = network_config("iformer_t").with_options(num_classes=2)
    state = build(config).state_dict()
    torch.save({"ema": state, "model": {key: value + 1 for key, value in state.items()}}, tmp_path / "a.pth")
    server.others["me/files"] = {"weights/a.pth": (tmp_path / "a.pth").read_bytes()}
    loaded = iformer.load("hf-hub:me/files/weights/a.pth", entry="ema")
    assert all(map(torch.equal, loaded.state_dict().values(), state.values()))
    assert "it has no file model.safetensors" in message_of(lambda: iformer.load("hf-hub:me/files"))
    assert "there is no such repository" in message_of(lambda: iformer.load("hf-hub:me/none"))


def test_released_weights_by_their_name_on_the_hub(server: Hub) -> None:
    by_size = iformer.load("iformer_t")
    for name in (f"hf-hub:{REPO}", REPO, "iformer_t.in1k"):
        loaded = iformer.load(name)
        assert loaded.metadata == by_size.metadata
        assert loaded.metadata.class_names[0] == "tench"
    assert iformer.load(f"hf-hub:{REPO}@v1").metadata.provenance["hub_revision"] == OLDER
