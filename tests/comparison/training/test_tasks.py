"""Losses and metrics, against numbers computed by hand or by plain loops."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchplug as tp
from tests.comparison.training.conftest import make_data, make_study
from torchplug.comparison.recipe import Recipe
from torchplug.comparison.tasks.base import read_outputs
from torchplug.comparison.tasks.choose import check_model, get_task
from torchplug.comparison.tasks.segmentation import compute_dice_loss
from torchplug.comparison.trial import check_model as check_trial

CPU = torch.device("cpu")


class Constant(nn.Module):
    """Returns what it was given, whatever it sees."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, _: Any) -> Any:
        return self.output


def test_accuracy_by_hand() -> None:
    meter = get_task("classification").make_meter(("a", "b", "c"), CPU)
    meter.update(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), [4, 5, 6])
    meter.update(torch.tensor([0]), torch.tensor([1]), [7])
    score = meter.compute()
    assert score.metrics == {"accuracy": 50.0}
    assert score.classes == {"a": 50.0, "b": 50.0}  # c does not occur
    assert score.errors == (5, 7)


def overlaps(predicted: Any, asked: Any, classes: int) -> dict[int, float]:
    """Intersection over union a class, with loops over pixels."""
    found = {}
    for index in range(classes):
        both = either = 0
        for p, m in zip(predicted.ravel(), asked.ravel(), strict=True):
            if m == 255:
                continue
            both += int(p == index and m == index)
            either += int(p == index or m == index)
        if either:
            found[index] = 100 * both / either
    return found


def test_miou_and_dice_against_loops() -> None:
    random = np.random.RandomState(0)
    predicted, masks = random.randint(0, 3, (4, 5, 6)), random.randint(0, 3, (4, 5, 6))
    masks[0, :2] = 255
    masks[3] = 255
    meter = get_task("segmentation").make_meter(("a", "b", "c", "never"), CPU)
    for start in (0, 2):
        rows = slice(start, start + 2)
        batch = torch.from_numpy(predicted[rows]), torch.from_numpy(masks[rows])
        meter.update(*batch, range(start, start + 2))
    score = meter.compute()
    expected = overlaps(predicted, masks, 4)
    assert list(expected) == [0, 1, 2]
    assert score.metrics["miou"] == pytest.approx(np.mean(list(expected.values())))
    assert list(score.classes.values()) == pytest.approx(list(expected.values()))
    dice = [200 * j / (100 + j) for j in expected.values()]
    assert score.metrics["dice"] == pytest.approx(np.mean(dice))
    images = [
        np.mean(list(overlaps(*pair, 4).values()))
        for pair in zip(predicted[:3], masks[:3], strict=True)
    ]
    assert score.items == pytest.approx([*images, 100.0])


def test_dice_by_counting() -> None:
    meter = get_task("segmentation").make_meter(("a", "b"), CPU)
    meter.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 1]]]), [0])
    # a: one hit, one false, none missed: 2/3; b: two hits, none false, one missed: 4/5
    assert meter.compute().metrics["dice"] == pytest.approx(100 * (2 / 3 + 4 / 5) / 2)


def box(*corners: float) -> torch.Tensor:
    return torch.tensor([corners])


def test_average_precision_by_hand() -> None:
    target = {"boxes": box(0, 0, 10, 10), "labels": torch.tensor([1])}
    # 9 x 10 of 10 x 10 pixels: found at overlaps from 0.5 to 0.9, missed at 0.95
    answer = {"boxes": box(0, 0, 9, 10), "labels": torch.tensor([1]), "scores": torch.ones(1)}
    meter = get_task("detection").make_meter(("a", "b"), CPU)
    meter.update([answer], [target], [0])
    score = meter.compute()
    assert score.metrics == pytest.approx({"map": 90.0, "map50": 100.0}, abs=1e-4)
    assert score.classes == pytest.approx({"b": 90.0}, abs=1e-4)
    wrong = get_task("detection").make_meter(("a", "b"), CPU)
    wrong.update([{**answer, "labels": torch.tensor([0])}], [target], [0])
    assert wrong.compute().metrics == {"map": 0.0, "map50": 0.0}


def test_labels_of_a_detector_are_moved_past_the_background() -> None:
    seen = []

    class Detector(nn.Module):
        def forward(self, _: Any, targets: Any = None) -> Any:
            seen.append(targets)
            if targets is not None:
                return {"one": torch.tensor(1.0), "two": torch.tensor([0.5])}
            answer = {"boxes": box(0, 0, 1, 1), "labels": torch.tensor([3])}
            return [{**answer, "scores": torch.ones(1)}]

    task, model = get_task("detection"), Detector()
    target = {"boxes": box(0, 0, 2, 2), "labels": torch.tensor([2])}
    loss = task.compute_loss(model, torch.zeros(1, 1, 4, 4), [target], Recipe())
    assert loss.item() == 1.5
    assert seen[0][0]["labels"].tolist() == [3]
    assert target["labels"].tolist() == [2]
    assert task.predict(model, torch.zeros(1, 1, 4, 4), None)[0]["labels"].tolist() == [2]
    assert task.count_outputs(10) == 11


@pytest.mark.parametrize(
    "wrap",
    [
        lambda scores: scores,
        lambda scores: {"out": scores},
        lambda scores: {"logits": scores},
        lambda scores: SimpleNamespace(logits=scores),
    ],
)
def test_outputs_of_all_kinds_are_read(wrap: Any) -> None:
    scores = torch.rand(2, 3)
    assert read_outputs(wrap(scores)).scores is scores


def test_auxiliary_heads_count_four_tenths_in_training() -> None:
    main, extra = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 2, 2)
    masks = torch.randint(0, 3, (2, 8, 8))
    masks[0, 0] = 255
    model = Constant({"out": main, "aux": extra})
    loss = get_task("segmentation").compute_loss(model, None, masks.byte(), Recipe())
    parts = [
        nn.functional.cross_entropy(
            nn.functional.interpolate(scores, (8, 8), mode="bilinear"), masks, ignore_index=255
        )
        for scores in (main, extra)
    ]
    assert loss.item() == pytest.approx((parts[0] + 0.4 * parts[1]).item())


def test_a_batch_without_an_asked_pixel_has_no_loss() -> None:
    model = Constant(torch.rand(1, 3, 4, 4))
    masks = torch.full((1, 4, 4), 255)
    recipe = Recipe.for_task("segmentation")
    assert get_task("segmentation").compute_loss(model, None, masks, recipe).item() == 0


def test_the_dice_loss_by_loops() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 4, 3, 3, generator=draw)
    masks = torch.arange(18).reshape(2, 3, 3) % 3  # three classes occur in every draw
    masks[0, 0] = 255
    shares = scores.softmax(1)
    terms = []
    for index in range(3):  # the fourth class does not occur
        hits = total = 0.0
        for image in range(2):
            for row in range(3):
                for column in range(3):
                    asked = int(masks[image, row, column])
                    if asked != 255:
                        share = float(shares[image, index, row, column])
                        hits += share * (asked == index)
                        total += share + (asked == index)
        terms.append(1 - 2 * hits / total)
    expected = sum(terms) / 3
    assert compute_dice_loss(scores, masks).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("task", "model", "error"),
    [
        ("classification", Constant(torch.zeros(1, 9)), r"\(N, 10\).*\(1, 9\)"),
        ("classification", Constant([1]), "got a list"),
        ("segmentation", Constant(torch.zeros(1, 11)), r"\(N, 11, H, W\).*\(1, 11\)"),
        ("segmentation", Constant({"masks": 1}), "a mapping with 'masks'"),
        ("detection", Constant(torch.zeros(1, 10)), "boxes, labels and scores.*a Tensor"),
    ],
)
def test_a_model_of_another_task_is_refused(task: str, model: nn.Module, error: str) -> None:
    with pytest.raises(tp.UsageError, match=error):
        check_model(get_task(task), model, make_data(task), Recipe())


def test_a_detector_without_room_for_the_background_is_refused() -> None:
    model = tp.hosts.build_model("torchplug:fcos8", num_classes=10, in_channels=1)
    with pytest.raises(tp.UsageError, match="num_classes=11"):
        check_model(get_task("detection"), model, make_data("detection"), Recipe())


def test_what_a_task_does_not_have_is_refused() -> None:
    study = make_study("segmentation", augment="trivial")
    with pytest.raises(tp.UsageError, match="segmentation has its augmentations: got 'trivial'"):
        check_trial(study, study.make_model())
    study = make_study(comparison={"metric": "miou"})
    with pytest.raises(tp.UsageError, match="classification has its metrics: got 'miou'"):
        check_trial(study, study.make_model())
    with pytest.raises(tp.UsageError, match="did you mean 'segmentation'"):
        get_task("segmentatoin")


def test_a_look_at_a_model_leaves_it_alone() -> None:
    study = make_study("detection")
    model = study.make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_trial(study, model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
