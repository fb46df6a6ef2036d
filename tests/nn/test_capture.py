"""Export and compilation are told apart."""

import pytest
import torch
from torch import Tensor, nn

from torchplug.nn import is_exporting


class Telling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if is_exporting() else x


def test_a_compiled_program_is_not_an_exported_one() -> None:
    torch._dynamo.reset()
    x = torch.zeros(1)
    assert torch.compile(Telling(), fullgraph=True, backend="eager")(x) == 0
    assert Telling()(x) == 0


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_knows(strict: bool) -> None:
    x = torch.zeros(1)
    assert torch.export.export(Telling(), (x,), strict=strict).module()(x) == 1
