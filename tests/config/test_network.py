"""Configs are checked once, where they are built: every invalid field is named with its value."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iformer.config.metadata import Metadata
from iformer.config.network import ATTENTION_OPERATORS, AttentionConfig, NetworkConfig, StageConfig, WindowConfig
from iformer.config.preprocessing import Preprocessing
from iformer.config.variants import VARIANTS, list_models, network_config, release
from iformer.errors import ConfigError, UnknownNameError

MAXIMUM = 64

OPTIONS = {
    "shma": {
        "modulation": st.sampled_from(["value", "output"]),
        "activation": st.sampled_from(["sigmoid", "silu"]),
        "norm_placement": st.sampled_from(["post_bn", "pre_ln"]),
    },
    "sha": {},
    "mha": {"head_dim": st.sampled_from([1, 2])},
    "shvit": {"channel_share": st.sampled_from([0.5, 1.0]), "concat": st.booleans()},
}
attention_configs = st.one_of(
    *(
        st.builds(
            AttentionConfig,
            operator=st.just(operator),
            reduction=st.sampled_from([1, 2, 4]),
            ffn_expansion_ratio=st.floats(0.5, 4),
            position_encoding=st.booleans(),
            **options,
        )
        for operator, options in OPTIONS.items()
    )
)
stage_configs = st.builds(
    StageConfig,
    channels=st.integers(1, MAXIMUM).map(lambda n: 8 * n),
    pattern=st.lists(
        st.tuples(st.sampled_from(["conv", "attention"]), st.integers(1, 3)), min_size=1, max_size=3
    ).map(tuple),
    conv_kernel_size=st.sampled_from([3, 5, 7]),
    conv_expansion_ratio=st.floats(0.5, 4),
    expanded_kernel_size=st.sampled_from([None, 3, 7]),
    attention=attention_configs,
)
network_configs = st.builds(
    NetworkConfig,
    name=st.text(max_size=8),
    stages=st.tuples(*[stage_configs] * 4),
    in_chans=st.integers(1, 8),
    num_classes=st.integers(0, 2000),
    distillation=st.booleans(),
    drop_path_rate=st.floats(0, 0.9),
    layer_scale_init=st.none() | st.floats(1e-8, 1),
    stem=st.sampled_from(["conv", "patch"]),
    stem_kernel_size=st.sampled_from([3, 5]),
    downsample=st.sampled_from(["overlapping", "patch"]),
)


@given(network_configs)
def test_round_trip_through_json(config: NetworkConfig) -> None:
    assert NetworkConfig.from_plain(json.loads(json.dumps(config.to_plain()))) == config


def test_every_operator_and_option_is_drawn() -> None:
    """An operator with a new row has to be added to the strategies above."""
    assert {name: set(row.options) for name, row in ATTENTION_OPERATORS.items()} == {
        name: set(options) for name, options in OPTIONS.items()
    }


def test_configs_of_older_versions_describe_the_released_network() -> None:
    """Checkpoints in circulation tell of the first fields only."""
    plain = network_config("iformer_m").to_plain()
    for name in ("stem", "stem_kernel_size", "downsample", "norm"):
        del plain[name]
    for stage in plain["stages"]:
        del stage["expanded_kernel_size"], stage["windows"]
        kept = ("reduction", "modulation", "ffn_expansion_ratio", "position_encoding")
        stage["attention"] = {name: stage["attention"][name] for name in kept}
    assert NetworkConfig.from_plain(plain) == network_config("iformer_m")


INVALID_VALUES = {
    AttentionConfig: {
        "operator": ["linear", "SHMA", None, 1],
        "activation": ["relu", None],
        "norm_placement": ["pre_bn", None],
        "head_dim": [0, 32.0, "32", 16],
        "channel_share": [0, 1.5, "1", 0.5],
        "concat": [1, "yes", True],
        "reduction": [0, -1, 2.0, "2", True],
        "modulation": ["before", None, 1],
        "ffn_expansion_ratio": [0, -1.0, "3"],
        "position_encoding": [1, "yes", None],
    },
    StageConfig: {
        "channels": [0, -8, 8.0, "8"],
        "pattern": [(), (("conv", 0),), (("conv", -1),), (("pool", 1),), [("conv", 1)], "conv", (("conv", 1, 2),)],
        "conv_kernel_size": [0, 2, -3, 3.0],
        "conv_expansion_ratio": [0, -1, "4"],
        "expanded_kernel_size": [0, 4, -3, "7"],
        "attention": [None, {}, "shma"],
        "windows": ["hybrid", 16, WindowConfig()],
    },
    NetworkConfig: {
        "name": [1, None],
        "stages": [(), None, "four"],
        "in_chans": [0, -1, 1.5],
        "num_classes": [-1, 2.5, "10"],
        "distillation": ["no", 0, None],
        "drop_path_rate": [-0.1, 1.0, 2, "0.1"],
        "layer_scale_init": [0, -1e-6, "1e-6"],
        "stem": ["pool", None],
        "stem_kernel_size": [0, 4, "5"],
        "downsample": ["pool", 2],
        "norm": ["group", "layer", None],
    },
    WindowConfig: {
        "window_size": [1, 16.0, None],
        "channel_chunks": [0, "16"],
        "global_blocks": [-1, None],
        "padded_tokens": ["cropped", None],
    },
    Preprocessing: {
        "size": [(0, 224), (224,), 224, (224, "224")],
        "crop_pct": [0, 1.1, "1"],
        "interpolation": ["nearest", None],
        "mean": [(), 0.5, ("a",)],
        "std": [(0.1, 0.2), (0.0, 0.1, 0.1), (-1.0, 1.0, 1.0)],
        "value_range": [(4095, 0), (1, 1), (0,), 4095, (0, 1e300)],
        "letterbox": [(0, 0), (0, 0, 256), (0.5, 0.5, 0.5), 0, True],
    },
    Metadata: {
        "task": ["", None],
        "class_names": [("a", "a"), "ab", (1, 2)],
        "multi_label": [None, 1],
        "preprocessing": [None, {}],
        "metrics": [None, 1],
        "provenance": ["here", None],
    },
}
VALID = {
    AttentionConfig: AttentionConfig(),
    StageConfig: StageConfig(channels=8, pattern=(("conv", 1),)),
    NetworkConfig: network_config("iformer_t"),
    WindowConfig: WindowConfig(),
    Preprocessing: Preprocessing(),
    Metadata: Metadata(),
}


def test_every_field_is_covered() -> None:
    for cls, fields in INVALID_VALUES.items():
        assert set(fields) == {field.name for field in dataclasses.fields(cls)}, cls


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (cls, field, value)
        for cls, fields in INVALID_VALUES.items()
        for field, values in fields.items()
        for value in values
    ],
)
def test_an_invalid_field_is_named_with_its_value(cls: type, field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(VALID[cls], **{field: value})
    message = str(caught.value)
    assert f"{cls.__name__}.{field} is {value!r}; expected " in message
    assert "\n" not in message


@given(st.sampled_from(sorted(VALID, key=lambda cls: cls.__name__)), st.text(min_size=1))
def test_an_unknown_field_is_named(cls: type, name: str) -> None:
    plain = VALID[cls].to_plain() if hasattr(VALID[cls], "to_plain") else dataclasses.asdict(VALID[cls])
    if name in plain:
        return
    from iformer.config.checking import from_plain

    with pytest.raises(ConfigError, match="has no field"):
        from_plain(cls, plain | {name: 1})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match="NetworkConfig needs name, stages"):
        NetworkConfig.from_plain({})


def test_channels_that_the_reduction_does_not_divide() -> None:
    with pytest.raises(
        ConfigError, match=r"StageConfig.channels is 9; expected a multiple of attention.reduction \(2\)"
    ):
        StageConfig(channels=9, pattern=(("attention", 1),))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"operator": "mha", "head_dim": 16},
            r"a multiple of attention.reduction x attention.head_dim \(2 x 16\)",
        ),
        ({"operator": "shvit", "channel_share": 0.25}, r"attention.channel_share \(0.25\) is a multiple of"),
    ],
)
def test_channels_that_the_operator_does_not_divide(options: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=f"StageConfig.channels is 20; expected .*{expected}"):
        StageConfig(channels=20, pattern=(("attention", 1),), attention=AttentionConfig(**options))


def test_options_that_the_operator_does_not_read_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"AttentionConfig.modulation is 'output'; .*'sha' has no such option"):
        AttentionConfig(operator="sha", modulation="output")


def test_a_conv_network_may_have_layer_norms() -> None:
    stages = tuple(StageConfig(channels=8, pattern=(("conv", 1),)) for _ in range(4))
    config = NetworkConfig(name="plain", stages=stages, stem="patch", downsample="patch", norm="layer")
    assert NetworkConfig.from_plain(config.to_plain()) == config


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("iformer_m_distiled", "iformer_m_distilled"), ("iformer-t", "iformer_t"), ("iformer_xl", "iformer_l")],
)
def test_unknown_name_suggests_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown model '{wrong}'; did you mean .*{nearest}"):
        network_config(wrong)


def test_every_named_network_is_a_valid_config() -> None:
    assert len(list_models()) == 2 * len(VARIANTS) >= 12
    for name in list_models():
        config = network_config(name)
        assert config.name == name
        assert config.distillation == name.endswith("_distilled")
    assert release("iformer_l2") is None
    assert release("iformer_l2_distilled").top1 == 83.85
