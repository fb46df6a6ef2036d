"""A plugged model goes through what users do with models: each framework for real."""

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import onnxruntime
import pytest
import timm
import torch
import torchvision
from sklearn.datasets import load_digits
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from ultralytics import YOLO

import torchplug as tp
from tests.surgery import distributed
from torchplug.hosts import build_model

SHAPE = (2, 3, 64, 64)


def draw(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def make_yolo() -> nn.Module:
    """A yolov8n whose maps have the size of a trained one's: fresh, they fade to nothing."""
    model = YOLO("yolov8n.yaml").model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model(draw())
    return model


HOSTS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=4),
    "regnety_002": lambda: timm.create_model("regnety_002", num_classes=4),
    "yolov8n": make_yolo,
}


def make(host: str, start: str = "paper") -> tuple[nn.Module, nn.Module]:
    """A base and its plugged copy: an SE before each residual add and at each end of a stage."""
    torch.manual_seed(0)
    base = HOSTS[host]().eval()
    run(base, draw())  # a detector keeps its anchors from the first run, in that run's type
    model = copy.deepcopy(base)
    tp.plug(model, "se", example=SHAPE, start=start)
    tp.plug(model, "se", "stage", name="last", reduction=4, example=SHAPE, start=start)
    return base, model


def run(model: nn.Module, x: Tensor) -> Tensor:
    """The first tensor of the output: a detector returns several."""
    output = model(x)
    while not isinstance(output, Tensor):
        output = output[0]
    return output


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    weights = tp.plug_parameters(model)
    return list(torch.autograd.grad(run(model, x).square().mean(), weights))


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_compiled_in_one_graph_forward_and_backward(host: str) -> None:
    base, model = make(host)
    x = draw()
    expected, wanted = run(model, x), gradients(model, x)
    assert not torch.equal(expected, run(base, x))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, x), expected, rtol=1e-4, atol=1e-4)
    found = torch.autograd.grad(run(compiled, x).square().mean(), tp.plug_parameters(model))
    torch.testing.assert_close(list(found), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("host", "strict"),
    [("resnet18", True), ("regnety_002", False), ("yolov8n", False), ("yolov8n", True)],
)
def test_exported_programs_compute_the_same(host: str, strict: bool) -> None:
    base, model = make(host)
    assert not torch.allclose(run(base, draw()), run(model, draw()), rtol=1e-2, atol=1e-2)
    program = torch.export.export(model, (draw(),), strict=strict).module()
    torch.testing.assert_close(run(program, draw()), run(model, draw()), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("host", ["regnety_002", "yolov8n"])
def test_onnx_computes_the_same(host: str) -> None:
    base, model = make(host)
    file = io.BytesIO()
    torch.onnx.export(model, (draw(),), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    output = session.run(None, {session.get_inputs()[0].name: draw().numpy()})[0]
    expected = run(model, draw())
    torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-3, atol=1e-3)
    assert not numpy.allclose(output, run(base, draw()).detach(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_copies_and_files_of_the_whole_model_keep_the_plugs(host: str) -> None:
    _, model = make(host)
    expected = run(model, draw())
    assert torch.equal(run(copy.deepcopy(model), draw()), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(run(loaded, draw()), expected)
    assert len(tp.find_plugs(loaded)) == len(tp.find_plugs(model))
    assert tp.check(loaded, SHAPE).ok


def test_another_process_loads_a_frozen_plugged_model(tmp_path: Path) -> None:
    _, model = make("regnety_002")
    tp.freeze_base(model)
    torch.save(model, tmp_path / "model.pt")
    torch.save((draw(), run(model, draw())), tmp_path / "pair.pt")
    code = (
        "import sys, torch;"
        "model = torch.load(f'{sys.argv[1]}/model.pt', weights_only=False);"
        "x, y = torch.load(f'{sys.argv[1]}/pair.pt');"
        "assert torch.equal(model(x), y);"
        "import torchplug as tp;"
        "assert tp.check(model, x).ok and not model.train().stem.bn.training;"
        "assert tp.unfreeze_base(model).tensors"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two processes of DDP and two of FSDP2 left their states."""
    folder = tmp_path_factory.mktemp("distributed")
    for kind in ("ddp", "fsdp"):
        processes = [
            subprocess.Popen([sys.executable, distributed.__file__, kind, str(rank), str(folder)])
            for rank in range(distributed.WORLD)
        ]
        try:
            assert [process.wait(120) for process in processes] == [0, 0]
        finally:
            for process in processes:
                process.kill()
    return folder


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_the_plugs_as_one_does(kind: str, trained: Path) -> None:
    model = distributed.make_model()
    before = copy.deepcopy(model.state_dict())
    batches = [distributed.draw(rank) for rank in range(distributed.WORLD)]
    batch = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    distributed.train(model, tp.plug_parameters(model), batch)
    first, second = (torch.load(trained / f"{kind}-{rank}.pt") for rank in (0, 1))
    assert set(first) == set(before)
    for name, value in before.items():
        assert torch.equal(first[name], second[name]), name
        if ".torchplug." in name:
            torch.testing.assert_close(first[name], model.state_dict()[name])
        else:
            assert torch.equal(first[name], value), name
    moved = [name for name in before if not torch.equal(first[name], before[name])]
    assert {name.partition(".torchplug.")[2].partition(".")[0] for name in moved} == {"se", "cbam"}


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_autocast_computes_the_base_at_an_identity_start_and_trains(host: str) -> None:
    base, model = make(host, start="identity")
    with torch.autocast("cpu", torch.bfloat16):
        output = run(model, draw())
        assert torch.equal(output, run(base, draw()))
        found = gradients(model, draw())
    assert all(grad.dtype == torch.float32 and bool(grad.isfinite().all()) for grad in found)
    assert any(bool(grad.any()) for grad in found)


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_channels_last_computes_the_same(host: str) -> None:
    _, model = make(host)
    expected = run(model, draw())
    model.to(memory_format=torch.channels_last)
    output = run(model, draw().to(memory_format=torch.channels_last))
    torch.testing.assert_close(output, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("host", ["resnet18", "regnety_002"])
def test_a_host_that_checkpoints_its_blocks_gives_the_same_gradients(host: str) -> None:
    model = timm.create_model(host, num_classes=4).eval()
    tp.plug(model, "se", example=SHAPE, start="paper")
    tp.plug(model, "se", "stage", name="last", reduction=4, example=SHAPE, start="paper")
    wanted = gradients(model, draw())
    calls = []
    plug = next(plug for _, name, plug in tp.find_plugs(model) if name == "se")
    plug.register_forward_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing(True)
    model.train()
    for module in model.modules():  # statistics of the batch would differ from the run above
        module.training = isinstance(module, type(model)) or not isinstance(module, nn.BatchNorm2d)
    found = gradients(model, draw())
    assert len(calls) == 2  # forward, and again in backward: it was checkpointed
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


class Checkpointing(nn.Module):
    """A host that runs each of its blocks under a checkpoint."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(2)]
        self.blocks = nn.ModuleList(blocks)
        self.reentrant: bool | None = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


@pytest.mark.filterwarnings("ignore:None of the inputs")  # plugging runs without gradients
@pytest.mark.parametrize("reentrant", [False, True])
def test_both_kinds_of_checkpoint_give_the_same_gradients(reentrant: bool) -> None:
    def backward() -> list[Tensor | None]:  # the reentrant kind works with backward() alone
        model.zero_grad()
        model(draw((2, 3, 8, 8))).square().mean().backward()
        return [p.grad.clone() for p in tp.plug_parameters(model)]

    model = Checkpointing(reentrant=reentrant)
    tp.plug(
        model, "cbam", ["blocks.0", "blocks.1.0"], reduction=2, example=(2, 3, 8, 8), start="paper"
    )
    found = backward()
    model.reentrant = None
    torch.testing.assert_close(found, backward())


@pytest.mark.parametrize(
    "average",
    [lambda model: ModelEmaV3(model, decay=0.5), AveragedModel],
    ids=["ModelEmaV3", "AveragedModel"],
)
def test_moving_averages_follow_the_plugs(average: Callable[[nn.Module], nn.Module]) -> None:
    _, model = make("resnet18")
    slow = average(model)
    update = getattr(slow, "update_parameters", None) or slow.update
    update(model)
    old = [p.detach().clone() for p in tp.plug_parameters(model)]
    with torch.no_grad():
        for p in tp.plug_parameters(model):
            p.add_(1)
    update(model)
    averaged = tp.plug_parameters(slow.module)
    assert len(averaged) == len(old)
    for value, start in zip(averaged, old, strict=True):
        torch.testing.assert_close(value, start + 0.5)
    assert tp.check(slow.module, SHAPE).ok


def test_an_optimizer_made_after_plugging_trains_base_and_plugs() -> None:
    _, model = make("resnet18")
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.01)
    assert tp.check(model, SHAPE, optimizer=optimizer).ok
    before = copy.deepcopy(model.state_dict())
    run(model, draw()).square().mean().backward()
    optimizer.step()
    stuck = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert not [name for name in stuck if not name.endswith("bias")]


def test_functional_call_takes_weights_of_plugs() -> None:
    _, model = make("resnet18")
    shifted = {name: value + 1 for name, value in tp.named_plug_parameters(model)}
    expected = run(model, draw())
    found = functional_call(model, shifted, (draw(),))
    assert torch.equal(run(model, draw()), expected)
    assert not torch.equal(found, expected)
    model.load_state_dict(shifted, strict=False)
    assert torch.equal(found, run(model, draw()))


class LowRank(nn.Module):
    """What adapter libraries do: wrap a layer and make small layers of its own type."""

    def __init__(self, layer: nn.Conv2d, rank: int = 2) -> None:
        super().__init__()
        kind = type(layer)
        self.base_layer = layer
        self.down = kind(layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding)
        self.up = kind(rank, layer.out_channels, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def test_an_adapter_wraps_a_plugged_layer() -> None:
    model = torchvision.models.resnet18(num_classes=4).eval()
    tp.plug(model, "se", "layer1.0.conv1", example=SHAPE, start="paper")
    expected = run(model, draw())
    model.layer1[0].conv1 = LowRank(model.layer1[0].conv1)
    assert torch.equal(run(model, draw()), expected)
    assert type(model.layer1[0].conv1.up) is nn.Conv2d  # a plain one, without plugs
    assert len(tp.find_plugs(model)) == 1


class Digits:
    """The 8x8 digits of scikit-learn, and a small network trained on them for a short while."""

    def __init__(self) -> None:
        data = load_digits()
        images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
        labels = torch.from_numpy(data.target)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        train, test = order[:1200], order[1200:]
        self.train, self.test = (images[train], labels[train]), (images[test], labels[test])
        torch.manual_seed(0)
        self.base = build_model("torchplug:resnet8", num_classes=10, in_channels=1)
        self.fit(self.base, list(self.base.parameters()), 2)

    def fit(self, model: nn.Module, weights: list[nn.Parameter], epochs: int) -> float:
        """Train, and return the mean loss of the last epoch."""
        optimizer = torch.optim.Adam(weights, lr=2e-3)
        generator = torch.Generator().manual_seed(1)
        for _ in range(epochs):
            losses = []
            for batch in torch.randperm(1200, generator=generator).split(60):
                optimizer.zero_grad()
                images, labels = self.train[0][batch], self.train[1][batch]
                loss = nn.functional.cross_entropy(model.train()(images), labels)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return sum(losses) / len(losses)

    @torch.no_grad()
    def score(self, model: nn.Module) -> tuple[float, float]:
        """Accuracy and loss on the test images."""
        output = model.eval()(self.test[0])
        right = output.argmax(1) == self.test[1]
        loss = nn.functional.cross_entropy(output, self.test[1])
        return right.float().mean().item(), loss.item()


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def test_fine_tuning_from_an_identity_start_loses_nothing_and_learns(digits: Digits) -> None:
    model = copy.deepcopy(digits.base)
    tp.plug(model, "se", example=(1, 1, 8, 8))
    before = digits.score(digits.base)
    assert digits.score(model) == before
    assert before[0] > 0.8

    frozen = copy.deepcopy(model)
    tp.freeze_base(frozen)
    first = digits.fit(frozen, tp.plug_parameters(frozen), 1)
    assert digits.fit(frozen, tp.plug_parameters(frozen), 3) < first
    with tp.disabled(frozen):
        assert digits.score(frozen) == before  # the base below is untouched

    digits.fit(model, list(model.parameters()), 2)
    assert digits.score(model)[1] < before[1]
    assert tp.check(model, (1, 1, 8, 8)).difference > 0


def test_a_paper_start_costs_what_the_base_had_learned(digits: Digits) -> None:
    before = digits.score(digits.base)
    for key in ("se", "cbam", "scse"):
        model = copy.deepcopy(digits.base)
        report = tp.plug(model, key, example=(1, 1, 8, 8), start="paper")
        accuracy, loss = digits.score(model)
        print(  # noqa: T201 - the drop that the docs tell of
            f"{key}: accuracy {before[0]:.3f} -> {accuracy:.3f}, loss {before[1]:.3f} -> {loss:.3f}"
        )
        assert report.max_difference > 0
        assert loss > before[1]
