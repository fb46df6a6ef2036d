"""Context modules: published sizes, training, heads of other code, and what they refuse."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchplug as tp

LINEAR = {"hidden_channels": 512, "align_corners": False}


@pytest.mark.parametrize(
    ("build", "published"),
    [
        (lambda **o: tp.ASPP(2048, 256, **o), 15_535_104),  # torchvision
        (lambda **o: tp.ASPP(960, 256, **o), 7_457_792),
        # mmsegmentation's heads without their classifiers of 19 classes
        (lambda **o: tp.ASPP(2048, 512, kernel_size=3, **o), 42_221_075 - 512 * 19 - 19),
        (lambda **o: tp.PyramidPooling(2048, 512, **LINEAR, **o), 23_083_539 - 512 * 19 - 19),
        (lambda **o: tp.PyramidPooling(2048, None, **o), 4_198_400),  # the authors' module
        # what yolov3-spp has and yolov3 has not
        (lambda **o: tp.SpatialPyramidPooling(512, 512, reduction=None, **o), 1_049_600),
        (lambda **o: tp.RFB(512, 512, variant="small", **o), 1_502_016),
        (lambda **o: tp.RFB(512, 512, variant="mobile_small", **o), 653_632),
        (lambda **o: tp.RFB(1024, 512, variant="extended", **o), 5_545_472),  # RFBNet-E's layers
        (lambda **o: tp.RFB(256, 256, variant="extended_c", **o), 310_752),
        (lambda **o: tp.SSH(512, 512, **o), 2_212_608),  # M2 and M3
        (lambda **o: tp.SSH(512, 256, context_only=True, **o), 1_032_704),
        (lambda **o: tp.SSH(128, 256, **o), 332_160),  # M1
        (lambda **o: tp.SSH(64, 64, norm_layer=nn.BatchNorm2d, **o), 34_752),  # RetinaFace
        (lambda **o: tp.SSH(256, 256, norm_layer=nn.BatchNorm2d, **o), 553_728),
    ],
)
def test_parameters_are_the_published_ones(build: object, published: int) -> None:
    module = build(device="meta")
    assert sum(p.numel() for p in module.parameters()) == published


def plain_pyramid(module: tp.PyramidPooling, x: Tensor) -> Tensor:
    parts = [x]
    for bins, branch in zip(module.bins, module.branches, strict=True):
        pool = F.adaptive_max_pool2d if module.pool == "max" else F.adaptive_avg_pool2d
        small = branch(pool(x, bins))
        parts.append(F.interpolate(small, x.shape[2:], mode="bilinear", align_corners=True))
    return module.project(torch.cat(parts, 1))


def plain_aspp(module: tp.ASPP, x: Tensor) -> Tensor:
    image = module.image(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[2:])
    return module.project(torch.cat([image, *(branch(x) for branch in module.branches)], 1))


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize(
    ("factory", "plain"),
    [
        (tp.PyramidPooling, plain_pyramid),
        (partial(tp.PyramidPooling, pool="max"), plain_pyramid),
        (tp.ASPP, plain_aspp),
    ],
)
def test_training_equals_that_of_the_plain_concatenation(
    factory: type[nn.Module], plain: object, kernel_size: int
) -> None:
    module = factory(8, 6, kernel_size=kernel_size, dropout=0.0, dtype=torch.float64)
    x = torch.randn(3, 8, 7, 9, dtype=torch.float64)
    cotangent = torch.randn(3, 6, 7, 9, dtype=torch.float64)
    results = []
    for function in (module, partial(plain, module)):
        output = function(x)
        loss = (output * cotangent).sum()
        results.append([output, *torch.autograd.grad(loss, [*module.parameters()])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("factory", [tp.ASPP, tp.PyramidPooling])
def test_batch_norm_after_a_pool_refuses_to_train_on_one_image(factory: type[nn.Module]) -> None:
    x = torch.randn(1, 8, 5, 5)
    with pytest.raises(ValueError, match=r"needs 2 images in training.*norm_layer="):
        factory(8, 6)(x)
    assert factory(8, 6).eval()(x).isfinite().all()
    assert factory(8, 6, norm_layer=partial(nn.GroupNorm, 1))(x).isfinite().all()


def test_the_authors_whole_pspnet_head_is_read_without_its_classifier() -> None:
    ours = tp.PyramidPooling(8, 5)
    renames = {"project.conv": "cls.0", "project.norm": "cls.1"}
    for index, (kind, number) in product(range(4), [("conv", 1), ("norm", 2)]):
        renames[f"branches.{index}.{kind}"] = f"ppm.features.{index}.{number}"
    theirs = {"cls.4.weight": torch.zeros(3, 5, 1, 1)}
    for name, tensor in ours.state_dict().items():
        layer, _, ending = name.rpartition(".")
        theirs[f"{renames[layer]}.{ending}"] = tensor
    ours.load_state_dict(tp.convert_state_dict(theirs, "ppm", source="official"))


def test_a_cascade_of_pools_equals_windows_of_any_odd_sizes() -> None:
    x = torch.randn(2, 3, 6, 17)
    sizes = (3, 5, 11, 13)
    got = tp.SpatialPyramidPooling(3, None, kernel_sizes=sizes, reduction=None)(x)
    expected = [x, *(F.max_pool2d(x, size, 1, size // 2) for size in sizes)]
    assert torch.equal(got, torch.cat(expected, 1))


@pytest.mark.parametrize(
    "variant", ["standard", "small", "mobile", "mobile_small", "extended", "extended_c"]
)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_form_of_rfb_takes_a_stride(variant: str, stride: int) -> None:
    block = tp.RFB(16, 16, variant=variant, stride=stride).eval()
    assert (
        block(torch.randn(1, 16, 10, 13)).shape[2:] == torch.empty(10, 13)[::stride, ::stride].shape
    )


def test_a_semantic_embedding_needs_a_map_for_each_level() -> None:
    branch = tp.SemanticEmbedding(4, (6, 8))
    with pytest.raises(ValueError, match=r"one for each of high_channels: got 1 for .*\(6, 8\)"):
        branch(torch.randn(1, 4, 6, 6), torch.randn(1, 6, 3, 3))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: tp.ASPP(8, None), "out_channels=None and hidden_channels=None; pass one"),
        (lambda: tp.ASPP(8, 4, rates=(6, 0)), r"rates\[1\] must be at least 1"),
        (lambda: tp.ASPP(8, 4, atrous="depthwise"), "atrous is one of 'dense', 'separable'"),
        (lambda: tp.ASPP(8, 4, kernel_size=2), "kernel_size must be odd"),
        (lambda: tp.PyramidPooling(8, 4, bins=()), "bins are sides of one grid or more"),
        (lambda: tp.PyramidPooling(8, 4, pool="maximum"), "pool is one of 'average', 'max': got"),
        (lambda: tp.PyramidPooling(8, 0), "out_channels must be at least 1"),
        (lambda: tp.SpatialPyramidPooling(8, 4, kernel_sizes=(9, 5)), "rise from more than 1"),
        (lambda: tp.SpatialPyramidPooling(8, 4, kernel_sizes=(1,)), "rise from more than 1"),
        (
            lambda: tp.SpatialPyramidPooling(8, 4, kernel_sizes=(4,)),
            r"kernel_sizes\[0\] must be odd",
        ),
        (lambda: tp.SpatialPyramidPooling(8, 4, order="first"), "order is one of 'map_first'"),
        (lambda: tp.RFB(16, 4, rates=(1, 3)), r"3 branches .*; pass \(2, 3, 5\)"),
        (
            lambda: tp.RFB(16, 4, variant="extended", rates=(1, 3, 5)),
            r"extended form has 4 branches .*; pass \(1, 3, 5, 7\)",
        ),
        (lambda: tp.RFB(16, 4, variant="tiny"), "variant is one of 'standard', 'small'"),
        (lambda: tp.RFB(16, 4, stride=0), "stride must be at least 1"),
        (lambda: tp.RFB(15, 4, variant="small"), "at least 4 hidden channels"),
        (lambda: tp.SSH(8, 6), "multiple of 4: got out_channels=6; pass 8"),
        (lambda: tp.SSH(8, 5, context_only=True), "multiple of 2: got out_channels=5; pass 6"),
        (lambda: tp.SemanticEmbedding(4, ()), "number of high_channels must be at least 1"),
        (lambda: tp.SemanticEmbedding(4, (6, 0)), r"high_channels\[1\] must be at least 1"),
    ],
)
def test_impossible_options_are_refused(build: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build()
