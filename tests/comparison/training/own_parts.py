"""What a user brings: a LightningModule and a LightningDataModule, as tutorials write them."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tests.comparison.training.conftest import make_data, make_study
from torchplug.comparison.arms import Study
from torchplug.comparison.training.own import wrap_datamodule
from torchplug.hosts import build_model


class Scans(Dataset[tuple[Tensor, Tensor]]):
    """Images that a user augments with the global generator."""

    def __init__(self, images: Tensor, labels: Tensor, noise: float) -> None:
        self.images, self.labels, self.noise = images.float() / 16 - 0.5, labels, noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        return image + self.noise * torch.randn_like(image), self.labels[index]


class Digits(LightningDataModule):
    num_classes = 10

    def __init__(self, workers: int = 0) -> None:
        super().__init__()
        self.workers = workers

    def setup(self, *_: str) -> None:
        self.data = make_data()

    def _load(self, part: str, *, shuffle: bool = False) -> DataLoader[tuple[Tensor, Tensor]]:
        held = getattr(self.data, part)
        scans = Scans(held.images, held.targets, 0.1 if shuffle else 0.0)
        workers = self.workers if shuffle else 0
        return DataLoader(scans, batch_size=16, shuffle=shuffle, num_workers=workers)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._load("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._load("validation")

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return self._load("test")


class Classifier(LightningModule):
    """Trains with dropout and a schedule of whole epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"anything": nn.ReLU})
        self.net = build_model("torchplug:resnet8", num_classes=10, in_channels=1)
        self.drop = nn.Dropout(0.2)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.drop(self(batch[0])), batch[1])
        self.log("train_loss", loss)
        return loss

    def _look(self, part: str, batch: tuple[Tensor, Tensor]) -> None:
        scores = self(batch[0])
        self.log(f"{part}_acc", (scores.argmax(1) == batch[1]).float().mean())
        self.log(f"{part}_loss", nn.functional.cross_entropy(scores, batch[1]))

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self._look("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], *_: int) -> None:
        self._look("test", batch)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"},
        }


def make_own(metric: str = "test_acc", *, workers: int = 0, epochs: int = 4) -> Study:
    data = wrap_datamodule(Digits(workers))
    return make_study(
        make_model=Classifier, data=data, comparison={"metric": metric}, epochs=epochs
    )
