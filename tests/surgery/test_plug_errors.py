"""Bad input gives one clear error, and the model stays as it was."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from ultralytics import YOLO

import torchplug as tp
from torchplug.surgery.build import KEYWORDS

EXAMPLE = (1, 3, 64, 64)


class InPlaceInput(nn.Module):
    """A module that overwrites what it receives."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


class SavesItsOutput(nn.Module):
    """A module whose last operation needs its own output in backward, and is not the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x * self.scale)


def plug(*args: Any, **kwargs: Any) -> Callable[[nn.Module], object]:
    return lambda model: tp.plug(model, *args, **{"example": EXAMPLE, **kwargs})


CASES = {
    "unknown module": (plug("cbma"), tp.UsageError, "did you mean 'cbam'"),
    "module in capitals": (plug("CBAM"), tp.UsageError, "got 'CBAM'; did you mean 'cbam'"),
    "word of the command line": (
        plug("cbam@stage:reduction=8"),
        tp.UsageError,
        r"plug\(model, 'cbam', 'stage'\)",
    ),
    "typing error in a path": (plug("se", "layre1"), tp.PlugError, "did you mean 'layer1'"),
    "half of a list": (plug("se", ["layer1", "layer9"]), tp.PlugError, "'layer9'"),
    "glob without a match": (plug("se", "conv*9"), tp.PlugError, r"'bottleneck' \(8 sites\)"),
    "module without a map": (plug("se", "fc"), tp.PlugError, "returns one map"),
    "module that runs twice": (plug("se", "layer1.0.relu"), tp.PlugError, "runs 2 times"),
    "unknown option": (plug("se", reductoin=4), tp.UsageError, "did you mean 'reduction'"),
    "impossible option": (plug("se", reduction=999), tp.PlugError, r"layer1.0.bn2 \(channels=64\)"),
    "own module without a place": (plug(nn.Identity), tp.UsageError, "pass at="),
    "instance": (plug(nn.Identity(), "layer1"), tp.UsageError, "pass the class"),
    "changed shape": (
        plug(lambda site: nn.Conv2d(site.channels, 3, 1), "layer1"),
        tp.PlugError,
        r"must keep the map's shape \(1, 64, 16, 16\): got \(1, 3, 16, 16\)",
    ),
    "name of a method": (plug("se", name="half"), tp.UsageError, "an identifier"),
    "stage that is not there": (plug("se", stages=[7]), tp.PlugError, "2 in stage 4"),
    "stages of text": (plug("se", stages="4"), tp.UsageError, r"stages='4'; pass one, or a list"),
    "stages that are no numbers": (plug("se", stages=[1.5]), tp.UsageError, r"stages=\[1\.5\]"),
    "stages that is no list": (plug("se", stages=4.0), tp.UsageError, r"stages=4\.0; pass one"),
    "every nothing": (plug("se", every=0), tp.UsageError, "every counts from 1: got every=0"),
    "every of text": (plug("se", every="2"), tp.UsageError, "every counts from 1: got every='2'"),
    "seed of text": (plug("se", seed="x"), tp.UsageError, "a seed is a whole number: got seed='x'"),
    "misspelled keyword": (plug("se", stage=[4]), tp.UsageError, "did you mean 'stages'"),
    "option of a module that has none": (
        plug(lambda site: nn.Identity(), "stage", colour=1),
        tp.UsageError,
        "takes no options",
    ),
    "option of a class that has none": (
        plug(SavesItsOutput, "stage", colour=1),
        tp.UsageError,
        "got 'colour'; it has none",
    ),
    "start that is not there": (
        plug("se", start="ident"),
        tp.UsageError,
        "one of three words: got 'ident'; choose 'identity' or 'paper', or 'seeded'",
    ),
    "start of a convolution": (plug("se", start="seeded"), tp.UsageError, "'seeded' in the place"),
    "bad example": (plug("se", example="image"), tp.UsageError, "pass the shape"),
    "example that the model refuses": (
        plug("se", example=(1, 5, 64, 64)),
        tp.UsageError,
        r"RuntimeError: .*, from ResNet itself on \(1, 5, 64, 64\); pass the shape",
    ),
    "overwritten by the host": (
        plug(SavesItsOutput, "layer1.0.bn1", start="paper"),
        tp.PlugError,
        "must be able to run backward",
    ),
}


@pytest.mark.parametrize("look", [tp.sites, tp.draw])
def test_looking_at_a_model_with_a_wrong_example_says_whose_error_it_is(
    look: Callable[[nn.Module, object], object],
) -> None:
    with pytest.raises(tp.UsageError, match="the model must run on the example: got RuntimeError"):
        look(torchvision.models.resnet18(), (1, 1, 64, 64))


def fingerprint(model: nn.Module) -> list[object]:
    return [
        *((name, type(module), module.training) for name, module in model.named_modules()),
        *((name, id(tensor)) for name, tensor in model.state_dict(keep_vars=True).items()),
        *(len(module._forward_hooks) for module in model.modules()),
    ]


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_failing_plug_says_why_and_changes_nothing(case: str) -> None:
    call, error, text = CASES[case]
    model = torchvision.models.resnet18()
    before = fingerprint(model)
    with pytest.raises(error, match=text):
        call(model)
    assert fingerprint(model) == before


@pytest.mark.parametrize("key", [None, ["se"], 3, tp.SqueezeExcite])
def test_a_key_that_is_no_text_is_refused(key: Any) -> None:
    with pytest.raises(tp.UsageError, match=r"named by its key: got .*; pass a text such as 'se'"):
        tp.get_card(key)


def test_one_stage_may_stand_alone() -> None:
    alone = tp.plug(torchvision.models.resnet18(), "se", example=EXAMPLE, stages=4)
    listed = tp.plug(torchvision.models.resnet18(), "se", example=EXAMPLE, stages=[4])
    assert alone.paths == listed.paths == ("layer4.0.bn2", "layer4.1.bn2")


def test_the_keywords_that_a_hint_may_name_are_those_of_plug() -> None:
    parameters = list(inspect.signature(tp.plug).parameters)
    assert parameters == ["model", "what", *KEYWORDS, "options"]


def test_a_failing_plug_leaves_earlier_plugs_attached() -> None:
    model = torchvision.models.resnet18()
    tp.plug(model, "se", "layer1.0.bn1", example=EXAMPLE)
    before = fingerprint(model)
    with pytest.raises(tp.PlugError):
        tp.plug(model, SavesItsOutput, "layer1.0.bn1", example=EXAMPLE, start="paper")
    with pytest.raises(tp.PlugError, match="name of its own"):
        tp.plug(model, "se", "layer1.0.bn1", example=EXAMPLE)
    assert fingerprint(model) == before


def test_a_role_without_a_site_lists_the_roles_of_the_model() -> None:
    with pytest.raises(tp.PlugError, match=r"'bottleneck'.*VGG.*'stage' \(\d sites\)"):
        tp.plug(torchvision.models.vgg11(), "se", "bottleneck", example=EXAMPLE)


def test_a_model_without_maps_of_four_axes_says_so() -> None:
    video = torchvision.models.video.r3d_18(num_classes=2)
    with pytest.raises(tp.PlugError, match=r"no module of this one returns a map \(N, C, H, W\)"):
        tp.plug(video, "se", example=(1, 3, 4, 32, 32))


class Front(nn.Module):
    """What ultralytics' YOLO is: a module whose call predicts, with a network inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names = nn.Identity()
        self.network = torchvision.models.resnet18()

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.network.layer1(self.network.conv1(x))]


def test_a_front_of_a_network_is_named_with_the_network_inside() -> None:
    with pytest.raises(tp.UsageError, match=r"got Front, a front .* such as model\.network"):
        tp.plug(Front(), "se", example=EXAMPLE)
    with pytest.raises(tp.UsageError, match=r"got YOLO, .* such as model\.model"):
        tp.sites(YOLO("yolov8n.yaml"), EXAMPLE)


def test_an_identity_start_makes_an_in_place_host_safe() -> None:
    model = torchvision.models.resnet18()
    assert tp.plug(model, SavesItsOutput, "layer1.0.bn1", example=EXAMPLE).max_difference == 0


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda m: torch.jit.trace(m, torch.rand(EXAMPLE))]
)
@pytest.mark.filterwarnings("ignore")
def test_a_wrapped_host_is_refused(wrap: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(tp.PlugError, match="plug the"):
        tp.plug(wrap(torchvision.models.resnet18().eval()), "se", example=EXAMPLE)


def test_a_plan_for_another_model_names_the_first_difference() -> None:
    plan = tp.plug(torchvision.models.resnet18(), "se", example=EXAMPLE).plan
    other = torchvision.models.resnet50()
    with pytest.raises(tp.PlugError, match=r"needs a bottleneck of 64 channels at layer1\.0\.bn2"):
        tp.plug(other, plan, example=EXAMPLE)
    assert not tp.find_plugs(other)


def test_a_plan_takes_nothing_beside_it() -> None:
    plan = tp.plug(torchvision.models.resnet18(), "se", example=EXAMPLE).plan
    with pytest.raises(tp.UsageError, match="at, reduction"):
        tp.plug(torchvision.models.resnet18(), plan, "stage", example=EXAMPLE, reduction=4)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1, "plugs": [{}]}'])
def test_a_file_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(tp.UsageError, match=r"Plan\.to_json"):
        tp.Plan.from_json(text)


def test_a_plan_names_catalogue_modules_only() -> None:
    model = torchvision.models.resnet18()
    plan = tp.plug(model, SavesItsOutput, "layer1", example=EXAMPLE).plan
    with pytest.raises(tp.UsageError, match="named by its key"):
        tp.plug(torchvision.models.resnet18(), plan, example=EXAMPLE)


class Liar(nn.Module):
    """A module that claims to start as the identity and does not."""

    identity_at_start = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 1.001))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_a_module_that_only_claims_to_start_as_the_identity_is_caught() -> None:
    model = torchvision.models.resnet18()
    before = fingerprint(model)
    with pytest.raises(tp.PlugError, match="must equal the base's bit for bit"):
        tp.plug(model, Liar, "bottleneck", example=EXAMPLE)
    assert fingerprint(model) == before


def test_a_host_that_bypasses_the_plug_is_caught() -> None:
    model = torchvision.models.resnet18()
    norm = model.layer1[0].bn1
    norm.forward = partial(nn.BatchNorm2d.forward, norm)  # as a tool that patches instances does
    before = fingerprint(model)
    with pytest.raises(tp.PlugError, match=r"0 runs of the plug at layer1\.0\.bn1"):
        tp.plug(model, "se", "layer1.0.bn1", example=EXAMPLE)
    assert fingerprint(model) == before


def test_a_module_whose_place_the_model_does_not_have_says_so() -> None:
    model = torchvision.models.resnet18()
    before = fingerprint(model)
    with pytest.raises(tp.PlugError, match=r"role 'pyramid' .* needs at least one site"):
        tp.plug(model, "ssh", example=EXAMPLE)
    with pytest.raises(tp.PlugError, match="this model has no decoder module"):
        tp.plug(model, "seb", example=EXAMPLE)
    assert fingerprint(model) == before


def test_unplug_of_an_unknown_name_is_refused() -> None:
    model = torchvision.models.resnet18()
    tp.plug(model, "se", example=EXAMPLE)
    with pytest.raises(tp.PlugError, match="'es'; did you mean 'se'"):
        tp.unplug(model, "es")


def test_a_module_that_overwrites_its_input_is_caught() -> None:
    model = torchvision.models.resnet18()
    with pytest.raises(tp.PlugError):
        tp.plug(model, lambda _: InPlaceInput(), "bottleneck", name="inplace", example=EXAMPLE)
    assert not tp.find_plugs(model)
