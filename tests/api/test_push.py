"""Model cards, and networks pushed to a local stand-in of the hub by the real client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import iformer
from iformer.cli.main import main
from iformer.config.metadata import Metadata
from iformer.errors import UserError, WeightsError
from iformer.tasks.model_card import model_card
from tiny.hub import NEWEST, TOKEN, Handler, Hub, running_hub
from tiny.networks import labelled_classifier


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_hub({}, tmp_path / "cache") as running:
        yield running


def metadata() -> Metadata:
    return Metadata(
        class_names=("rose", "tulip | red", "poppy"),
        metrics={"top1": 91.25, "loss": 0.31, "images": 80, "macro": {"f1": 90.0}},
        provenance={
            "data": {"name": "/home/ann/flowers", "train_images": 320, "val_images": 80},
            "recipe": {"name": "finetune", "size": 224, "lr": 0.001},
            "versions": {"torch": "2.14.1"},
            "epoch": 20,
        },
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a last and a best network."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("recipe: {}\n")
    (folder / "mistakes.png").write_bytes(b"a photograph")
    model = labelled_classifier()
    iformer.save(model, folder / "last.safetensors", metrics={"top1": 50.0})
    iformer.save(model, folder / "best.safetensors", metrics={"top1": 60.0})
    return folder


def test_the_card_is_one_that_the_hub_reads() -> None:
    card = ModelCard(model_card(metadata(), name="iformer_t", parameters=2_890_000))
    assert card.data.library_name == "iformer"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.model_name == "iformer_t"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results or ()}
    assert results == {"top1": 91.25, "loss": 0.31}
    text = card.text
    assert "2.89 M parameters, 3 classes, inputs of 224 x 224 pixels. top-1: **91.25 %**" in text
    assert "| training images | 320 |" in text
    assert r"`tulip \| red`" in text
    assert "/home/ann" not in card.content
    assert "hf-hub:USER/NAME" in text


def test_the_card_says_that_a_selected_epoch_flatters() -> None:
    known = metadata()
    text = "weights of epoch 20 of"
    known.provenance["recipe"]["epochs"] = 20
    assert text not in model_card(known, name="iformer_t", parameters=1)
    known.provenance["recipe"]["epochs"] = 30
    assert f"{text} 30. If they were selected" in model_card(known, name="iformer_t", parameters=1)


def test_the_card_names_the_checkpoint_and_the_precision_of_its_numbers() -> None:
    known = metadata()
    known.provenance["recipe"]["epochs"] = 30
    known.provenance["metrics_precision"] = "bf16"
    best = model_card(known, name="iformer_t", parameters=1, checkpoint="best.safetensors")
    assert "epoch 20 of 30 (`best.safetensors` of the run). They were selected by the validation metric" in best
    assert "top-1: **91.25 %**, in bf16." in best
    assert "| on the validation images, in bf16 |" in best
    last = model_card(known, name="iformer_t", parameters=1, checkpoint="last.safetensors")
    assert "weights at the end of training, of epoch 20 of 30 (`last.safetensors` of the run)" in last
    assert "selected" not in last


def test_the_card_of_a_network_of_which_nothing_is_known() -> None:
    card = ModelCard(model_card(Metadata(task="detect"), name="iformer_m", parameters=9_000_000))
    assert card.data.pipeline_tag == "object-detection"
    assert card.data.eval_results is None
    assert "## Metrics" not in card.text
    assert "## Classes" not in card.text


def test_the_card_of_several_labels() -> None:
    several = Metadata(class_names=("a", "b"), multi_label=True, metrics={"map": 80.0, "threshold": 0.3})
    card = ModelCard(model_card(several, name="iformer_t", parameters=1, repo="ann/tags"))
    assert card.data.tags == ["iformer", "multi-label"]
    assert "mAP: **80.00 %**" in card.text
    assert "apply a sigmoid to each logit; a class whose probability is at least 0.3 is a label" in card.text
    assert "| map | 80.00 % |\n| threshold | 0.3 |" in card.text
    assert 'iformer.load("hf-hub:ann/tags")' in card.text


def test_a_pushed_run_is_read_back(hub: Hub, run: Path) -> None:
    pushed = iformer.push(run, "ann/flowers")
    assert (pushed.name, pushed.commit) == ("hf-hub:ann/flowers", NEWEST)
    assert hub.others["ann/flowers"].keys() == {"model.safetensors", "README.md"}, "photographs stay here"
    assert ModelCard(hub.others["ann/flowers"]["README.md"].decode()).data.model_name == "flowers"
    here, there = iformer.load(run), iformer.load("hf-hub:ann/flowers")
    assert all(map(torch.equal, here.state_dict().values(), there.state_dict().values()))
    assert there.metadata.class_names == here.metadata.class_names
    assert there.metadata.metrics == {"top1": 60.0}
    assert there.metadata.provenance["hub_repo"] == "ann/flowers"


def test_the_card_of_a_backbone_says_how_to_train_from_it(hub: Hub, tmp_path: Path) -> None:
    model = labelled_classifier()
    model.reset_classifier(0)
    iformer.save(model, tmp_path / "backbone.safetensors", class_names=(), metrics={"cosine": 61.5})
    iformer.push(tmp_path / "backbone.safetensors", "ann/start")
    card = ModelCard(hub.others["ann/start"]["README.md"].decode())
    assert card.data.pipeline_tag is None
    assert "cosine similarity: **61.50 %**" in card.text
    assert "iformer train --data FOLDER --model hf-hub:ann/start" in card.text
    assert "iformer predict" not in card.text


def test_the_verb_pushes_the_last_network(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "ann/flowers", "--last", "--private", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["files"] == ["model.safetensors", "README.md"]
    assert iformer.load(printed["name"]).metadata.metrics == {"top1": 50.0}


def test_a_public_repository_does_not_become_private_and_gets_nothing(hub: Hub, run: Path) -> None:
    iformer.push(run, "ann/hidden", private=True)
    assert hub.private == {"ann/hidden"}
    iformer.push(run, "ann/hidden", private=True)
    iformer.push(run, "ann/flowers")
    before, posted = dict(hub.others["ann/flowers"]), len(hub.posted)
    with pytest.raises(
        WeightsError, match=r"--private is set, but the repository exists and is public; .* Nothing"
    ) as e:
        iformer.push(run, "ann/flowers", private=True, last=True)
    assert "\n" not in str(e.value)
    assert (hub.others["ann/flowers"], len(hub.posted)) == (before, posted)


def test_a_card_edited_by_hand_is_kept(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = hub.others["ann/flowers"] = {}
    iformer.push(run, "ann/flowers")
    pushed = iformer.push(run, "ann/flowers", licence="apache-2.0", last=True)
    card = ModelCard(files["README.md"].decode())
    assert not pushed.card_kept
    assert card.data.license == "apache-2.0"
    assert "the licence apache-2.0" in card.text
    files["README.md"] = edited = files["README.md"].replace(b"# ann/flowers", b"# My flowers")
    assert main(["push", str(run), "ann/flowers"]) == 0
    printed = capsys.readouterr()
    assert "pushed model.safetensors to" in printed.out
    assert "README.md on the hub was edited by hand, so it was kept; --overwrite-card" in printed.err
    assert files["README.md"] == edited
    iformer.push(run, "ann/flowers", overwrite_card=True)
    assert b"My flowers" not in files["README.md"]
    with pytest.raises(UserError, match="--licence is 'Apache 2'; expected"):
        iformer.push(run, "ann/flowers", licence="Apache 2")


@pytest.mark.parametrize("answer", [[1, 2], None, "hello", {}])
def test_an_answer_that_is_no_hubs_is_named(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    reply = Handler.reply
    monkeypatch.setattr(Handler, "reply", lambda handler, _: reply(handler, answer))
    with pytest.raises(WeightsError, match="the answer is not that of a hub; a proxy or a login page"):
        iformer.push(run, "ann/flowers")


@pytest.mark.parametrize("ignored", [["model.safetensors"], ["README.md"], ["model.safetensors", "README.md"]])
def test_nothing_is_pushed_to_a_repository_whose_gitignore_matches_a_file(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str], ignored: list[str]
) -> None:
    hub.ignored = ignored
    assert main(["push", str(run), "ann/flowers"]) == 1
    printed = capsys.readouterr()
    assert f"the hub ignores {', '.join(ignored)}: the repository's .gitignore names such files" in printed.err
    assert printed.out == ""
    assert hub.others == {"ann/flowers": {}}


def test_an_answer_about_another_large_file_is_no_hubs(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    hub.upload_mode = "lfs"
    with pytest.raises(WeightsError, match="the answer is not that of a hub; a proxy or a login page"):
        iformer.push(run, "ann/flowers")
    assert hub.others == {"ann/flowers": {}}


def test_what_the_hub_refuses_is_one_line(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(WeightsError, match=r"cannot push to ann/flowers .* log in with: hf auth login$"):
        iformer.push(run, "ann/flowers")
    monkeypatch.setenv("HF_TOKEN", "hf_tökén")
    with pytest.raises(WeightsError, match=r"characters outside ASCII; see HF_TOKEN and HF_ENDPOINT$"):
        iformer.push(run, "ann/flowers")
    assert hub.others == {}
    hub.others["ann/flowers"] = {}
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(WeightsError, match=r"cannot push to ann/flowers .* log in with: hf auth login$"):
        iformer.push(run, "ann/flowers")
    with pytest.raises(WeightsError, match="'flowers' is not a name on the hub; expected USER/NAME"):
        iformer.push(run, "flowers")
    with pytest.raises(UserError, match="--last needs a run folder"):
        iformer.push(run / "last.safetensors", "ann/flowers", last=True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"cannot push to ann/flowers at http://127\.0\.0\.1:9"):
        iformer.push(run, "ann/flowers")
