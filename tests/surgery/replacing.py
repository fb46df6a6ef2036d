"""Hosts and helpers of the tests of modules in the place of others."""

from collections.abc import Callable

import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import nn

import torchplug as tp

EXAMPLE = (2, 3, 64, 64)
CONVS = ["acnet", "dwconv", "mixconv", "sk", "splat"]


def is_dense3x3(path: str, module: nn.Module) -> bool:
    is_conv = isinstance(module, nn.Conv2d) and ".torchplug." not in path
    return is_conv and module.kernel_size == (3, 3) and module.groups == 1


def has_even_width(path: str, module: nn.Module) -> bool:
    return is_dense3x3(path, module) and module.in_channels % 2 == 0


def unet() -> nn.Module:
    return smp.Unet("resnet18", encoder_weights=None)


HOSTS: dict[str, Callable[[], nn.Module]] = {
    "torchvision-resnet18": torchvision.models.resnet18,
    "timm-resnet26d": lambda: timm.create_model("resnet26d"),
}


def draw(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape or EXAMPLE, generator=torch.Generator().manual_seed(seed))


def fingerprint(model: nn.Module) -> list[object]:
    return [
        *((name, type(module), module.training) for name, module in model.named_modules()),
        *((name, id(value)) for name, value in model.state_dict(keep_vars=True).items()),
        *((name, value.requires_grad) for name, value in model.named_parameters()),
        *(value.clone().numpy().tobytes() for value in model.state_dict().values()),
        *(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        *(sorted(vars(module)) for module in model.modules()),
    ]


def wake(model: nn.Module) -> nn.Module:
    """Make every plug and every norm count."""
    generator = torch.Generator().manual_seed(7)
    for _, _, plug in tp.find_plugs(model):
        for weight in plug.parameters():
            if weight.ndim == 1:
                nn.init.uniform_(weight, 0.5, 1.0, generator=generator)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.copy_(0.1 * torch.randn(norm.num_features, generator=generator))
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
    return model


def assert_close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


def make_small(key: str, start: str = "identity") -> nn.Module:
    """Return a resnet18 with awake plugs in the place of two convolutions."""
    model = torchvision.models.resnet18().eval()
    places = ["layer1.0.conv1", "layer2.0.conv1"]  # the second has stride 2
    at = None if key == "blazeblock" else places
    tp.plug(model, key, at, example=EXAMPLE, start=start)
    return wake(model)


def step(model: nn.Module, steps: int = 1) -> set[str]:
    """Train for some steps; return the names of the parameters that moved."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = model(draw(4, 3, 64, 64))
        outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
        sum(output.square().mean() for output in outputs).backward()
        optimizer.step()
    after = dict(model.named_parameters())
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def awake_unet() -> nn.Module:
    model = unet().eval()
    tp.plug(model, "seb", example=EXAMPLE)
    return wake(model)
