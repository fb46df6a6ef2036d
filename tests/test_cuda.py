"""On a GPU: plugs live where their host lives, and start as the identity there too."""

import pytest
import torch
import torchvision

import torchplug as tp

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]


@pytest.mark.parametrize("key", ["se", "cbam", "gc", "bam", "nl", "scse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_is_bit_equal_at_the_start_on_a_gpu(key: str, dtype: torch.dtype) -> None:
    model = torchvision.models.resnet18().to("cuda", dtype).eval()
    report = tp.plug(model, key, example=(1, 3, 64, 64))
    assert report.max_difference == 0
    for _, _, plug in tp.find_plugs(model):
        assert {(p.device.type, p.dtype) for p in plug.parameters()} == {("cuda", dtype)}


@pytest.mark.parametrize("key", sorted(tp.cards()))
def test_modules_compute_on_a_gpu_what_they_compute_on_the_cpu(key: str) -> None:
    card = tp.get_card(key)
    sample = card.samples[0]
    module = card.factory(*sample.args, dtype=torch.float64).eval()
    shapes = (sample.shape, *sample.other_shapes)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    expected = module(*inputs)
    output = module.cuda()(*(x.cuda() for x in inputs)).cpu()
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
