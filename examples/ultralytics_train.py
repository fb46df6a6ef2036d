"""A training script of one's own, with ultralytics: what `torchplug compare --command` runs.

    python examples/ultralytics_train.py --data digits/data.yaml --seed 0 --plan plan.json --out out

Ultralytics builds its model anew when training begins, so plugs put into `YOLO(...).model` before
would be lost. Its trainer asks `get_model` for the network: there the plan is applied, before
optimizer, average of weights and checkpoints are made of it.
"""

import argparse

from ultralytics.models.yolo.detect import DetectionTrainer

import torchplug

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="yolov8n.yaml")
parser.add_argument("--data", required=True)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--plan", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--imgsz", type=int, default=64)
parser.add_argument("--batch", type=int, default=8)
arguments = parser.parse_args()


class PluggedTrainer(DetectionTrainer):
    """The detection trainer with plugs in its network."""

    def get_model(self, cfg=None, weights=None, verbose=True):
        model = super().get_model(cfg, weights, verbose)
        torchplug.apply_plan(model, arguments.plan)
        return model


settings = {
    "model": arguments.model,
    "data": arguments.data,
    "epochs": arguments.epochs,
    "imgsz": arguments.imgsz,
    "batch": arguments.batch,
    "seed": arguments.seed,
    "deterministic": True,
    "project": arguments.out,
    "name": "run",
    "exist_ok": True,
    "device": "cpu",
    "workers": 0,
    "amp": False,  # its check downloads a network
    "plots": False,
}
PluggedTrainer(overrides=settings).train()
