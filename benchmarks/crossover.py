"""``python -m benchmarks.crossover``: from which size on maps are worth walking over in pieces."""

import time

import torch

from torchplug import get_card
from torchplug.kernels import eager

SHAPES = (
    (2, 64, 16, 16),
    (2, 64, 32, 32),
    (8, 512, 7, 7),
    (8, 256, 14, 14),
    (8, 128, 28, 28),
    (8, 64, 56, 56),
)
NEVER = 1 << 62


def compare_sizes(key: str, shape: tuple[int, ...], rounds: int = 25) -> float:
    """Return the time of a training step by pieces over that of the plain operators."""
    torch.manual_seed(0)
    module, x = get_card(key).factory(shape[1]).train(), torch.randn(shape, requires_grad=True)
    gradient = torch.randn(shape)
    best = {0: float("inf"), NEVER: float("inf")}
    for _ in range(rounds):
        for smallest in best:
            eager.SMALLEST = smallest
            module.zero_grad()
            x.grad = None
            start = time.perf_counter()
            module(x).backward(gradient)
            best[smallest] = min(best[smallest], time.perf_counter() - start)
    return best[0] / best[NEVER]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for key in ("se", "gc", "cbam"):
        for shape in SHAPES:
            size = torch.Size(shape).numel()
            print(f"{key:5} {'x'.join(map(str, shape)):14} {size:9,} elements", end="  ")
            print(f"pieces / plain {compare_sizes(key, shape):.2f}", flush=True)
