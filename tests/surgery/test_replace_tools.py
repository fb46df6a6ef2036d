"""What folding, merging, copying, compiling and exporting do to modules in the place of others."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import torchplug as tp
from tests.surgery.replacing import (
    EXAMPLE,
    assert_close,
    awake_unet,
    draw,
    fingerprint,
    make_small,
    wake,
)

WAYS = [("acnet", "identity"), ("sk", "identity"), ("dwconv", "seeded"), ("blazeblock", "identity")]


@pytest.mark.parametrize(
    ("key", "start"), [("acnet", "identity"), ("sk", "identity"), ("dwconv", "seeded")]
)
def test_a_norm_that_a_tool_folds_in_reaches_the_replacement(key: str, start: str) -> None:
    model = make_small(key, start)
    expected = model(draw())
    for block in (model.layer1[0], model.layer2[0]):
        block.conv1 = fuse_conv_bn_eval(block.conv1, block.bn1)
        block.bn1 = nn.Identity()
    assert_close(model(draw()), expected)
    assert_close(pickle.loads(pickle.dumps(model))(draw()), expected)


@pytest.mark.parametrize(
    ("key", "start"), [("acnet", "identity"), ("sk", "identity"), ("dwconv", "seeded")]
)
def test_the_fuse_of_ultralytics_keeps_replacements(key: str, start: str) -> None:
    yolo = pytest.importorskip("ultralytics").YOLO("yolov8n.yaml").model.eval()
    x = draw(1, 3, 64, 64)
    tp.plug(yolo, key, "model.*.cv1.conv", example=x, start=start)
    wake(yolo)
    expected = yolo(x)[0]
    yolo.fuse(verbose=False)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in yolo.model[2].cv1.children())
    assert_close(yolo(x)[0], expected)


def test_assigning_a_checkpoint_is_not_taken_for_a_folded_norm() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)).eval()
    tp.plug(model, "sk", "0", example=(1, 4, 8, 8))
    wake(model)
    expected = model(draw(1, 4, 8, 8))
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert torch.equal(model(draw(1, 4, 8, 8)), expected)
    trained = {"0.weight": model[0].weight + 0.01, "0.bias": model[0].bias + 1}
    model.load_state_dict(trained, assign=True, strict=False)
    assert model[0].torchplug.sk.scale is None


def test_a_norm_over_a_kernel_of_zeros_cannot_be_folded() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)).eval()
    tp.plug(model, "acnet", "0", example=(1, 4, 8, 8))
    model[0].weight.data[2] = 0
    with pytest.raises(tp.PlugError, match="a kernel of zeros; call unplug or merge_plugs"):
        fuse_conv_bn_eval(model[0], model[1])


def test_merged_asymmetric_convolutions_compute_the_same() -> None:
    model = make_small("acnet")
    expected, base = model(draw()), torchvision.models.resnet18()
    assert tp.merge_plugs(model) == 2
    assert not tp.find_plugs(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in base.modules()]
    biases = 64 + 128
    assert sum(p.numel() for p in model.parameters()) == 11_689_512 + biases
    assert_close(model(draw()), expected)


def test_merging_works_after_a_fuse_and_for_mixed_convolutions() -> None:
    model = make_small("acnet")
    expected = model(draw())
    block = model.layer1[0]
    block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()
    tp.merge_plugs(model)
    assert_close(model(draw()), expected)

    mixed = make_small("mixconv", "paper")
    expected = mixed(draw())
    assert tp.merge_plugs(mixed) == 2
    assert mixed.layer1[0].conv1.kernel_size == (7, 7)
    assert_close(mixed(draw()), expected)


def test_a_merged_model_is_stored_as_a_plain_state_dict(tmp_path: Path) -> None:
    model = make_small("acnet")
    tp.merge_plugs(model)
    with pytest.raises(
        tp.PlugError, match="got a ResNet with 2 plugs merged into its own weights; store them with"
    ):
        tp.save(model, tmp_path / "plugs.safetensors")
    assert not list(tmp_path.iterdir())
    torch.save(model.state_dict(), tmp_path / "merged.pt")
    again = make_small("acnet")  # plugged and merged alike, as the error says
    tp.merge_plugs(again)
    again.load_state_dict(torch.load(tmp_path / "merged.pt", weights_only=True))
    assert torch.equal(again(draw()), model(draw()))


def test_merging_in_training_mode_changes_nothing() -> None:
    model = make_small("acnet").train()
    before = fingerprint(model)
    with pytest.raises(tp.UsageError, match="in training mode"):
        tp.merge_plugs(model)
    assert fingerprint(model) == before


@pytest.mark.parametrize(("key", "start"), [*WAYS, ("seb", "identity")])
@pytest.mark.filterwarnings("ignore")
def test_copies_compilers_and_exporters_keep_replacements(key: str, start: str) -> None:
    model, x = make_small(key, start) if key != "seb" else awake_unet(), draw()
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), expected)
    compiled(x).sum().backward()
    for strict in (False, True):
        program = torch.export.export(model, (x,), strict=strict)
        assert_close(program.module()(x), expected)
    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(output), expected, 1e-4)


def test_another_process_unpickles_replacements(tmp_path: Path) -> None:
    models = [make_small(key, start) for key, start in WAYS] + [awake_unet()]
    torch.save((models, draw(), [model(draw()) for model in models]), tmp_path / "models.pt")
    code = (
        "import sys, torch;"
        "models, x, outputs = torch.load(sys.argv[1], weights_only=False);"
        "pairs = [(m(x), y) for m, y in zip(models, outputs, strict=True)];"
        "assert all((a - b).abs().max() <= 1e-5 * b.abs().max() for a, b in pairs)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "models.pt")], check=True)


@pytest.mark.parametrize("key", ["acnet", "sk", "splat"])
def test_half_precision_and_channels_last_work(key: str) -> None:
    model, x = make_small(key), draw()
    expected = model(x)
    last = model.to(memory_format=torch.channels_last)
    assert_close(last(x.to(memory_format=torch.channels_last)), expected, 1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(model(x)).all()


def test_distributed_training_finds_no_weight_unused(tmp_path: Path) -> None:
    model = torchvision.models.resnet18(num_classes=4).train()
    tp.plug(model, "dwconv", "layer?.*.conv2", example=EXAMPLE, start="seeded")
    tp.plug(model, "sk", "layer?.*.conv1", example=EXAMPLE)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):  # a weight without a gradient fails in the second
            wrapped(draw(4, 3, 64, 64)).square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
