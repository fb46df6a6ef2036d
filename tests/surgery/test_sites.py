"""Places are found where the architectures' papers put them."""

import pytest
import timm
import torch
import torchvision
from torch import nn

import torchplug as tp

EXAMPLE = (1, 3, 64, 64)
BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def make(library: str, name: str) -> nn.Module:
    return torchvision.models.get_model(name) if library == "tv" else timm.create_model(name)


@pytest.mark.parametrize("library", ["tv", "timm"])
@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_every_residual_block_of_a_resnet_is_found(library: str, name: str) -> None:
    sites = tp.sites(make(library, name), EXAMPLE)
    last_norm = "bn2" if name == "resnet18" else "bn3"
    expected = [
        (f"layer{stage}.{block}", stage)
        for stage, blocks in enumerate(BLOCKS[name], start=1)
        for block in range(blocks)
    ]
    branches = [(site.path, site.stage) for site in sites.with_role("bottleneck")]
    assert branches == [(f"{path}.{last_norm}", stage) for path, stage in expected]
    assert [(site.path, site.stage) for site in sites.with_role("block")] == expected


@pytest.mark.parametrize("library", ["tv", "timm"])
def test_stages_and_backbone_end_of_a_resnet_are_found(library: str) -> None:
    sites = tp.sites(make(library, "resnet50"), EXAMPLE)
    stages = [
        (site.path, site.anchor, site.stage, site.channels, site.size, site.stride)
        for site in sites.with_role("stage")
    ]
    assert stages == [
        ("layer1", "layer1.2", 1, 256, (16, 16), 4),
        ("layer2", "layer2.3", 2, 512, (8, 8), 8),
        ("layer3", "layer3.5", 3, 1024, (4, 4), 16),
        ("layer4", "layer4.2", 4, 2048, (2, 2), 32),
    ]
    assert [site.path for site in sites.with_role("backbone_end")] == ["layer4"]


@pytest.mark.parametrize(
    ("name", "blocks"), [("regnety_008", 14), ("convnext_atto", 12), ("efficientnet_b0", 9)]
)
def test_other_families_are_read_by_the_same_mechanism(name: str, blocks: int) -> None:
    model = timm.create_model(name)
    sites = tp.sites(model, EXAMPLE)
    assert sites.roles["bottleneck"] == blocks
    widths = [entry["num_chs"] for entry in model.feature_info]
    assert [site.channels for site in sites.with_role("stage")][:3] == widths[-4:-1]


def test_sites_leaves_the_model_as_it_was() -> None:
    model = torchvision.models.resnet18().train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()

    tp.sites(model, EXAMPLE)

    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_table_names_every_site() -> None:
    sites = tp.sites(torchvision.models.resnet18(), EXAMPLE)
    lines = str(sites).splitlines()
    assert lines[0].split() == [
        "role",
        "path",
        "stage",
        "channels",
        "stride",
        "H",
        "x",
        "W",
        "kernel",
        "runs",
        "kind",
        "anchor",
        "source",
    ]
    assert len(lines) == len(sites) + 1
    first = "bottleneck layer1.0.bn2 1 64 4 16 x 16 - 1 module - trace"
    assert lines[1].split() == first.split()
    assert repr(sites) == str(sites)
    assert sites.rows()[0]["path"] == "layer1.0.bn2"


def test_an_example_may_be_a_tensor_or_the_arguments() -> None:
    model = torchvision.models.resnet18()
    ids = [site.id for site in tp.sites(model, EXAMPLE)]
    assert [site.id for site in tp.sites(model, torch.rand(EXAMPLE))] == ids
    assert [site.id for site in tp.sites(model, (torch.rand(EXAMPLE),))] == ids
    assert [site.id for site in tp.sites(model, {"x": torch.rand(EXAMPLE)})] == ids


def test_a_merge_of_two_inputs_is_no_residual_block() -> None:
    class Merge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.left(a) + self.right(b)

    sites = tp.sites(Merge(), (torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)))
    assert sites.roles["bottleneck"] == 0


def test_every_3x3_convolution_that_ran_once_is_found() -> None:
    model = timm.create_model("mobilenetv3_small_050")
    expected = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    ]
    sites = tp.sites(model, EXAMPLE).with_role("conv3x3")
    assert [site.path for site in sites] == expected
    assert {site.kernel for site in sites} == {(3, 3)}


def test_a_3x3_convolution_that_does_not_run_or_runs_twice_is_no_site() -> None:
    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.twice, self.never = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.twice(self.twice(self.once(x)))

    assert [site.id for site in tp.sites(Host(), EXAMPLE).with_role("conv3x3")] == ["conv3x3:once"]


class UpAndDown(nn.Module):
    """Two levels down, two up: modules carry upsampling and merges, and scores are resized."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.up, self.cat = nn.Upsample(scale_factor=2), Cat()
        self.score, self.resize = nn.Conv2d(16, 4, 1), nn.Upsample(scale_factor=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = self.one(x)
        low = self.two(high)
        return self.resize(self.score(self.cat([high, self.up(low)])))


class Cat(nn.Module):
    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(maps, 1)


def test_upsampled_maps_and_their_merges_are_found_and_resized_scores_are_not() -> None:
    sites = tp.sites(UpAndDown(), EXAMPLE)
    assert [site.path for site in sites.with_role("upsample")] == ["up"]
    assert [site.path for site in sites.with_role("merge")] == ["cat"]
    assert sites.roles["bottleneck"] == 0


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0"])
def test_parallel_branches_that_fold_into_one_kernel_are_no_residual_blocks(name: str) -> None:
    assert tp.sites(timm.create_model(name), EXAMPLE).roles["bottleneck"] == 0


@pytest.mark.parametrize(("name", "blocks"), [("fastvit_t8", 10), ("repvit_m0_9", 26)])
def test_beside_foldable_branches_the_real_blocks_are_found(name: str, blocks: int) -> None:
    assert tp.sites(timm.create_model(name), EXAMPLE).roles["bottleneck"] == blocks


def test_channels_last_hosts_are_seen_as_such() -> None:
    """A transformer's map (N, H, W, C) must not pass for one with H channels."""
    model = timm.create_model("swin_tiny_patch4_window7_224")
    found = tp.sites(model, (1, 3, 224, 224))
    assert {site.layout for site in found if site.role in {"stage", "block"}} == {"NHWC"}
    assert [site.channels for site in found.with_role("stage")] == [96, 192, 384, 768]


@pytest.mark.parametrize("name", ["dla34", "dla60"])
def test_blocks_that_get_their_shortcut_as_an_argument_are_found(name: str) -> None:
    model = timm.create_model(name)
    kinds = {"DlaBasic", "DlaBottleneck"}
    blocks = [path for path, module in model.named_modules() if type(module).__name__ in kinds]
    assert {site.path for site in tp.sites(model, EXAMPLE).with_role("block")} == set(blocks)


def test_two_convolutions_in_a_row_are_a_branch_even_without_an_activation() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.two(self.one(x))

    assert [site.path for site in tp.sites(Linear(), EXAMPLE).with_role("bottleneck")] == ["two"]
