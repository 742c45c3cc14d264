"""The paper's peers: every network has timm's name or a reason, and timm's network is the paper's."""

from __future__ import annotations

import pytest
import timm

from iformer.bench.subjects import merged, timm_network
from iformer.models.complexity import count_macs, count_parameters
from iformer_paper.peers import Peer, peers

IN_TIMM = [peer for peer in peers() if peer.timm_name is not None]
FAST = ("mobilenetv3_large_075", "ghostnetv3_100", "shvit_s1", "swin_tiny_patch4_window7_224")


def test_every_network_has_a_name_in_timm_or_a_reason() -> None:
    assert len(peers()) == len({peer.label for peer in peers()}) == 74
    assert len(IN_TIMM) == len({peer.label for peer in IN_TIMM}) == 51
    assert all(peer.timm_name or peer.reason for peer in peers())
    assert {peer.timm_name for peer in IN_TIMM} <= set(timm.list_models())
    assert [peer.label for peer in IN_TIMM if peer.reason] == ["EfficientFormer-L1", "EfficientFormer-L3"]
    assert {peer.reason for peer in peers() if not peer.timm_name} == {
        "not in timm",
        "not in timm but in torchvision",
    }


@pytest.mark.parametrize(
    "name",
    [
        "shufflenet",
        "sbcformer",
        "mod_",
        "mobile_former",
        "mobilevig",
        "repnext",
        "edgevit",
        "emo_",
        "cmt_",
        "cas_vit",
    ],
)
def test_what_timm_lacks_is_not_there_under_a_similar_name(name: str) -> None:
    assert not timm.list_models(f"*{name}*")


@pytest.mark.parametrize("peer", IN_TIMM, ids=lambda peer: peer.label)
def test_a_count_far_from_the_print_has_a_note(peer: Peer) -> None:
    pairs = ((peer.params_m, peer.timm_params_m), (peer.gmacs, peer.timm_gmacs))
    far = [
        counted / printed - 1
        for printed, counted in pairs
        # the print has one or two digits
        if printed is not None and counted is not None and abs(counted - printed) > max(0.055 * printed, 0.05)
    ]
    assert not far or peer.note


def _check_counts(peer: Peer) -> None:
    size = (peer.side, peer.side)
    network = timm_network(str(peer.timm_name), size if not peer.reason else (224, 224))
    if peer.merged:
        network = merged(network)
    assert peer.timm_params_m == pytest.approx(count_parameters(network) / 1e6, abs=6e-4)
    if peer.timm_gmacs is not None:
        assert peer.timm_gmacs == pytest.approx(count_macs(network, size) / 1e9, rel=0.005)
    elif not peer.reason:
        assert count_macs(network, size) > 0  # the network takes the paper's size


@pytest.mark.parametrize("name", FAST)
def test_the_counts_are_those_of_timms_network(name: str) -> None:
    _check_counts(next(peer for peer in IN_TIMM if peer.timm_name == name))


@pytest.mark.full
@pytest.mark.parametrize(
    "peer", [peer for peer in IN_TIMM if peer.timm_name not in FAST], ids=lambda peer: peer.label
)
def test_the_counts_are_those_of_timms_other_networks(peer: Peer) -> None:
    _check_counts(peer)


def test_the_first_row_of_a_network_counts() -> None:
    by_label = {peer.label: peer for peer in peers()}
    fastvit, efficientformer = by_label["FastViT-SA12"], by_label["EfficientFormerV2-S2"]
    assert (fastvit.side, fastvit.latency_ms, fastvit.top1, fastvit.distilled_top1) == (256, 1.5, (80.6,), (81.9,))
    assert (efficientformer.top1, efficientformer.distilled_top1) == ((), (81.6, 82.0))
    assert by_label["CMT-Ti"].latency_ms is None
