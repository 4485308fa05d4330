"""Multiply-accumulates against numbers that others have published, or that torch's own counter gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pytest_flops import Report, trace
from tests.zoo import weightless

torchvision = pytest.importorskip("torchvision")
models = torchvision.models

# -- torchvision publishes the GMACs of all its weights -----------------------------------------------------


def kind(weights: Any) -> str:
    """ "video.resnet" for the weights of `torchvision.models.video.resnet`."""
    return type(weights).__module__.removeprefix("torchvision.models.")


def every_weights() -> list[Any]:
    """All of torchvision's weights, with the name of the model that they are for."""
    return [(name, each) for name in models.list_models() for each in models.get_model_weights(name)]


def sample(every: list[Any]) -> set[Any]:
    """The cheapest model of every kind, but of detection, which takes a real forward pass."""
    cheapest: dict[str, Any] = {}
    for _, weights in every:
        held = cheapest.setdefault(kind(weights), weights)
        if weights.meta["_ops"] < held.meta["_ops"]:
            cheapest[kind(weights)] = weights
    return {each for each in cheapest.values() if "detection" not in kind(each) or each.meta["_ops"] < 1}


EVERY = every_weights()
SAMPLE = sample(EVERY)
WEIGHTS = [
    pytest.param(name, weights, id=str(weights), marks=() if weights in SAMPLE else pytest.mark.slow)
    for name, weights in EVERY
]

# What torchvision ran is an image of noise, of 512 × 512, through trained weights, which find next to nothing
# in it. Without the weights that is asked for: no box scores more than 2.
EVERY_BOX = {"box_score_thresh": 0.0, "box_nms_thresh": 1.0, "rpn_nms_thresh": 1.0}
"""No score and no overlap drops a box: else the chance of the weights decides how many there are."""
NO_BOXES = {"box_score_thresh": 2.0}
NO_PROPOSALS = {"rpn_score_thresh": 2.0}
ONE_BOX = {"box_detections_per_img": 1}
FOUND: dict[str, dict[str, Any]] = {
    "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1": NO_PROPOSALS,
    "FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1": NO_PROPOSALS,
    "KeypointRCNN_ResNet50_FPN_Weights.COCO_LEGACY": NO_BOXES,
    "KeypointRCNN_ResNet50_FPN_Weights.COCO_V1": ONE_BOX,
    "MaskRCNN_ResNet50_FPN_Weights.COCO_V1": NO_BOXES,
}
FRAMES = {"mvit": 16, "resnet": 16, "s3d": 16, "swin_transformer": 16}


def build(name: str, weights: Any) -> nn.Module:
    """Build the model that the weights are for, on meta where its forward pass allows that."""
    room = kind(weights).partition(".")[0]
    if room == "detection":
        torch.manual_seed(0)
        found = {**(EVERY_BOX if "rcnn" in name else {}), **FOUND.get(str(weights), {})}
        return models.get_model(name, weights=None, weights_backbone=None, **found).eval()
    options: dict[str, Any] = {}
    if "googlenet" in name or "inception" in name:
        options["init_weights"] = False
    if room == "segmentation":
        options["weights_backbone"] = None
        if not name.startswith("lraspp"):
            options["aux_loss"] = True  # the head that helps in training runs in eval mode too
    elif room == "vision_transformer":
        options["image_size"] = height_and_width(weights)[0]
    elif room == "quantization":
        options["quantize"] = False
    return weightless(lambda: models.get_model(name, weights=None, **options))


def height_and_width(weights: Any) -> tuple[int, int]:
    settings = weights.transforms.keywords if hasattr(weights.transforms, "keywords") else {}
    size = settings.get("crop_size", settings.get("resize_size", 512))
    return (size, size) if isinstance(size, int) else tuple(size)


def inputs(weights: Any) -> tuple[Any, ...]:
    height, width = height_and_width(weights)
    room, _, family = kind(weights).partition(".")
    if room == "detection":
        return ([torch.rand(3, 512, 512)],)
    if room == "optical_flow":
        return (torch.empty(1, 3, 512, 512, device="meta"),) * 2
    if room == "video":
        return (torch.empty(1, 3, FRAMES[family], height, width, device="meta"),)
    return (torch.empty(1, 3, height, width, device="meta"),)


@pytest.mark.filterwarnings("ignore:.*quantization.*")  # torch deprecates what torchvision builds with
@pytest.mark.parametrize(("name", "weights"), WEIGHTS)
def test_torchvisions_own_numbers(name: str, weights: Any) -> None:
    report = trace(build(name, weights), inputs(weights))
    assert not report.unsupported
    assert round(report.macs / 1e9, 3) == weights.meta["_ops"]
    assert (report.executed == "real") == kind(weights).startswith("detection")


def test_the_list_is_whole() -> None:
    rooms = {kind(weights).partition(".")[0] for _, weights in EVERY}
    assert {"resnet", "segmentation", "video", "detection", "optical_flow", "quantization"} <= rooms
    assert len(EVERY) >= 160
    assert 30 <= len(SAMPLE) <= 45


# -- torch.utils.flop_counter counts matrix products, convolutions and attention ----------------------------


def theirs(model: nn.Module, *args: Any) -> int:
    """Count by torch's counter, with gradients on: without, its module tracker breaks on timm's cait, pit."""
    with FlopCounterMode(display=False) as counter:
        model(*args)
    return int(counter.get_total_flops())


def agreed(model: nn.Module, *args: Any) -> Report:
    report = trace(model, args)
    assert not report.unsupported
    assert report.macs > 0
    assert 2 * report.macs == theirs(model, *args)
    return report


# A small model of each of timm's architectures
TIMM = """
    beit_base_patch16_224 halonet26t mobileone_s0 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
    convnext_atto cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_s cspnext_tiny davit_tiny
    deepseek_vit_412m deit_tiny_patch16_224 densenet264d dla34 dpn68 edgenext_xx_small efficientformer_l1
    efficientformerv2_s0 tinynet_a efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224
    fasternet_t0 fastvit_s12 focalnet_tiny_lrf gcvit_xxtiny gemma4_vit_167m ghostnet_050 hardcorenas_a
    hgnet_tiny hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_s inception_next_atto
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_384_s8 lowformer_b0 mambaout_femto
    maxvit_pico_rw_256 caformer_s18 gmlp_ti16_224 mobilenetv3_small_050 mobilenetv5_300m mobilevit_xxs
    mvitv2_tiny naflexvit_base_patch16_siglip nasnetalarge nest_tiny nextvit_small nf_seresnet26 pit_xs_224
    pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnety_040_sgn repghostnet_050 repvit_m0_9
    res2net50_26w_4s resnest26d resnet18 resnetv2_18 rexnet_100 selecsls42 legacy_senet154 sequencer2d_s
    shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_s3_tiny_224 swinv2_tiny_window8_256
    swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_l twins_svt_small vgg11 visformer_tiny
    vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224 samvit_base_patch16
    vitamin_small_224 volo_d1_224 ese_vovnet19b_slim legacy_xception xception41 xcit_nano_12_p8_224
"""
TIMM_SAMPLE = "cait_xxs24_224 convnext_atto maxvit_pico_rw_256 pit_xs_224 resnet18 swinv2_cr_tiny_224"
MADE_FOR_REAL = {"vit_tiny_r_s16_p8_224", "vitamin_small_224"}  # run a part of themselves to learn its shape
ARCHITECTURES = [
    pytest.param(name, marks=() if name in TIMM_SAMPLE.split() else pytest.mark.slow) for name in TIMM.split()
]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore::UserWarning")  # timm and torch.meshgrid, of what they deprecate
def test_timm_counts_twice_the_macs(name: str) -> None:
    timm = pytest.importorskip("timm")
    if name in MADE_FOR_REAL:
        model = timm.create_model(name).to("meta").eval()
    else:
        model = weightless(lambda: timm.create_model(name))
    agreed(model, torch.empty(2, *model.default_cfg["input_size"], device="meta"))


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


class Product(nn.Module):
    """A model that is one function of its inputs."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


# Where torch's counter is not right: (model, inputs, the products that the maths names, what it does instead)
DISAGREEMENTS: dict[str, tuple[nn.Module, tuple[Tensor, ...], int, str]] = {
    "mv": (Product(torch.mv), (meta(3, 5), meta(5)), 3 * 5, "has no formula"),
    "dot": (Product(torch.dot), (meta(7), meta(7)), 7, "has no formula"),
    "complex": (
        Product(torch.mm),
        (meta(3, 5).to(torch.complex64), meta(5, 7).to(torch.complex64)),
        4 * 3 * 5 * 7,
        "takes a complex product for a real one",
    ),
    "LSTM on the CPU": (
        nn.LSTM(5, 7).eval(),
        (torch.zeros(3, 2, 5),),
        3 * 2 * 4 * 7 * (5 + 7),
        "sees the product with the inputs, not those with the state",
    ),
}


@pytest.mark.parametrize(("model", "args", "macs", "why"), DISAGREEMENTS.values(), ids=DISAGREEMENTS)
def test_where_torchs_counter_is_not_right(
    model: nn.Module, args: tuple[Tensor, ...], macs: int, why: str
) -> None:
    assert trace(model, args).macs == macs
    assert theirs(model, *args) != 2 * macs, f"torch's counter no longer {why}: take it out of the list"
