"""One process of a distributed training: started twice by ``test_frameworks``, no test itself."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torchvision
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import torchplug as tp

WORLD = 2


def make_model() -> nn.Module:
    """A plugged resnet18 whose base is frozen: the same in every process."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4)
    tp.plug(model, "se", example=(2, 3, 32, 32), start="paper")
    # the formula without its norm: statistics of half a batch differ from those of all of it
    tp.plug(model, "cbam", "stage", norm_layer=None, example=(2, 3, 32, 32))
    tp.freeze_base(model)
    return model.train()


def draw(rank: int) -> tuple[Tensor, Tensor]:
    """The images and classes of one process."""
    generator = torch.Generator().manual_seed(rank)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    return images, torch.randint(4, (2,), generator=generator)


def train(model: nn.Module, parameters: list[nn.Parameter], batch: tuple[Tensor, Tensor]) -> None:
    """Two steps on one batch."""
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()


def run_ddp(rank: int) -> dict[str, Tensor]:
    """Train under DDP and return the state of this process."""
    model = make_model()
    wrapped = DistributedDataParallel(model)
    train(wrapped, tp.plug_parameters(wrapped), draw(rank))
    return model.state_dict()


def run_fsdp(rank: int) -> dict[str, Tensor]:
    """Train under FSDP2, blocks and root sharded, and return the gathered state."""
    model = make_model()
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            fully_shard(block)
    fully_shard(model)
    assert all(isinstance(p, DTensor) for p in tp.plug_parameters(model))
    train(model, tp.plug_parameters(model), draw(rank))
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in model.state_dict().items()
    }


def main(kind: str, rank: int, folder: Path) -> None:
    """Run one process and leave its state in ``folder``."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store-{kind}"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    state = {"ddp": run_ddp, "fsdp": run_fsdp}[kind](rank)
    torch.save(state, folder / f"{kind}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
