"""A training script of one's own, with timm: what `torchplug compare --command` runs.

    python examples/timm_train.py --data folder --seed 0 --plan plan.json --out out

timm's own train.py is not part of its package; this uses what it is made of: `create_model`,
`create_dataset`, `create_loader`, `create_optimizer_v2`, `create_scheduler_v2`.
"""

import argparse
import json
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import random_seed

import torchplug

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet10t")
parser.add_argument("--data", required=True, help="a folder with train/ and validation/")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--plan", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--size", type=int, default=32)
parser.add_argument("--batch", type=int, default=32)
arguments = parser.parse_args()

random_seed(arguments.seed)  # before the model: all arms of one seed start from equal weights
parts = {name: create_dataset("", arguments.data, split=name) for name in ("train", "validation")}
classes = len(parts["train"].reader.class_to_idx)
model = timm.create_model(arguments.model, num_classes=classes)
torchplug.apply_plan(model, arguments.plan)

shape = (3, arguments.size, arguments.size)
options = {"batch_size": arguments.batch, "use_prefetcher": False, "num_workers": 0}
train = create_loader(parts["train"], shape, is_training=True, hflip=0.0, **options)
validation = create_loader(parts["validation"], shape, crop_pct=1.0, **options)
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
scheduler, epochs = create_scheduler_v2(
    optimizer, sched="cosine", num_epochs=arguments.epochs, warmup_epochs=0
)

for epoch in range(epochs):
    model.train()
    for images, labels in train:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    scheduler.step(epoch + 1)

model.eval()
with torch.no_grad():
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in validation)
top1 = 100 * right / len(parts["validation"])
Path(arguments.out, "metrics.json").write_text(json.dumps({"top1": top1}))
print(f"top1={top1:.2f}")
