"""Study files: what they mean, and where they are refused."""

import dataclasses
from pathlib import Path

import pytest

from torchplug.comparison.arms import prepare_model
from torchplug.comparison.command import check_command
from torchplug.comparison.recipe import Recipe
from torchplug.comparison.session import Inputs
from torchplug.comparison.spec import Comparison, Variant
from torchplug.comparison.studyfile import EngineSettings, load_study
from torchplug.comparison.trial import check_model
from torchplug.errors import TorchplugError
from torchplug.surgery.request import Request

WHOLE = """
task = "segmentation"
metric = "dice"
goal = "max"
margin = 1
controls = ["parameters", "placebo"]
futility = true
seeds = [3, 5, 8]
device = "cpu"
devices = 2

[model]
name = "smp:Unet"
base = "trained"
options = { encoder_name = "resnet18" }

[data]
name = "voc/some/where"
image_size = 64
options = { group = "patient" }

[recipe]
epochs = 3
learning_rate = 1

[budget]
hours = 2

[engine]
name = "ray"
workers = 4
address = "10.0.0.1:6379"
options = { num_gpus = 0.5 }

[[variants]]
module = "cbam"
at = "stage"
options = { reduction = 8 }
start = "paper"
stages = [2, 3]
every = 2

[[variants]]
name = "both"
plugs = ["se:reduction=4", { module = "bam", at = "layer1" }]
"""


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "study.toml").write_text(text)
    return tmp_path / "study.toml"


def test_every_key_arrives_in_the_specification(tmp_path: Path) -> None:
    comparison, settings = load_study(write(tmp_path, WHOLE))
    cbam = Request(
        module="cbam", at="stage", options={"reduction": 8}, start="paper", stages=(2, 3), every=2
    )
    both = (Request.parse("se:reduction=4"), Request.parse("bam@layer1"))
    assert comparison == Comparison(
        model="smp:Unet",
        data="voc/some/where",
        variants=(
            Variant(name="cbam@stage:reduction=8 start=paper stages=2,3 every=2", plugs=(cbam,)),
            Variant(name="both", plugs=both),
        ),
        seeds=(3, 5, 8),
        task="segmentation",
        metric="dice",
        goal="max",
        recipe=Recipe.for_task("segmentation", epochs=3, learning_rate=1.0),
        image_size=64,
        data_options={"group": "patient"},
        model_options={"encoder_name": "resnet18"},
        base="trained",
        margin=1.0,
        controls=("parameters", "placebo"),
        futility=True,
        budget_hours=2.0,
        device="cpu",
        devices=2,
    )
    assert settings == EngineSettings(
        name="ray", workers=4, address="10.0.0.1:6379", options={"num_gpus": 0.5}
    )


def test_engine_settings_decide_no_digest(tmp_path: Path) -> None:
    one, _ = load_study(write(tmp_path, WHOLE))
    text = WHOLE.replace("workers = 4", "workers = 9").replace("10.0.0.1", "10.0.0.2")
    other, settings = load_study(write(tmp_path, text))
    assert settings.workers == 9
    assert one.digest(one.arms[0], 3) == other.digest(other.arms[0], 3)
    text = WHOLE.replace('group = "patient"', 'group = "clinic"')
    other, _ = load_study(write(tmp_path, text))
    assert one.digest(one.arms[0], 3) != other.digest(other.arms[0], 3)


HEAD = 'model = "torchplug:resnet8"\n'


def names_of(tmp_path: Path, text: str) -> list[str]:
    comparison, _ = load_study(write(tmp_path, HEAD + text))
    return [variant.name for variant in comparison.variants]


def test_lists_are_a_grid_with_readable_names(tmp_path: Path) -> None:
    text = '[[variants]]\nmodule = "cbam"\nat = ["bottleneck", "stage"]\noptions.reduction = [4, 8]'
    assert names_of(tmp_path, text) == [
        "cbam@bottleneck:reduction=4",
        "cbam@bottleneck:reduction=8",
        "cbam@stage:reduction=4",
        "cbam@stage:reduction=8",
    ]
    assert names_of(tmp_path, text + '\nname = "mine"')[1] == "mine: at=bottleneck, reduction=8"
    text = '[[variants]]\nmodule = ["se", "gc"]\nat = "stage"\nstages = [[1], [2, 3]]'
    assert names_of(tmp_path, text) == [
        "se@stage stages=1",
        "se@stage stages=2,3",
        "gc@stage stages=1",
        "gc@stage stages=2,3",
    ]
    text = '[[variants]]\nplugs = ["se", { module = "gc", at = ["stage", "block"] }]'
    assert names_of(tmp_path, text) == ["se + gc@stage", "se + gc@block"]


def test_a_list_that_the_module_takes_is_one_value(tmp_path: Path) -> None:
    text = '[[variants]]\nmodule = "aspp"\noptions.rates = {}'
    path = write(tmp_path, HEAD + text.format("[1, 2, 3]"))
    (variant,) = load_study(path)[0].variants
    assert tuple(variant.plugs[0].options["rates"]) == (1, 2, 3)
    assert names_of(tmp_path, text.format("[[1, 2], [3, 4, 5]]")) == [
        "aspp:rates=1,2",
        "aspp:rates=3,4,5",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed = 5", "got 'seed'; did you mean 'seeds'?"),
        ("[recipe]\nepoch = 5", "got 'recipe.epoch'; did you mean 'epochs'"),
        ("[recipe]\nepochs = 'many'", "recipe.epochs is a whole number: got 'many'"),
        ("[data]\nname = 'digits'\nsize = 3", "got 'data.size'"),
        ("[data]\nname = 'digits'\nimage_size = '3'", "data.image_size is a whole number"),
        ("[budget]\nhour = 3", "did you mean 'hours'?"),
        ("[budget]\nhours = -1", "budget.hours is above 0"),
        ("task = 'segment'", "did you mean 'segmentation'?"),
        ("controls = ['placebos']", "controls is a list, each one of"),
        ("margin = '1'", "margin is a number: got '1'"),
        ("futility = 1", "futility is true or false: got 1"),
        ("seeds = 'five'", "seeds is a whole number or a list"),
        ("seeds = 1", "at least 2 seeds"),
        ("engine = {workers = 'two'}", "engine.workers is a whole number"),
        ("engine = 'rya'", "did you mean 'ray'?"),
        ("metric_file = '{out}/m.json:x'", "metric_file belongs to a command"),
        ("variants = 'se'", "variants is a list"),
        ("variants = []", "a comparison needs a variant"),
        ("variants = ['cbma']", "variants[0]: a module is named by its key"),
        ("variants = ['se', 'se']", "variants must differ"),
        ("[[variants]]\nat = 'stage'", "variants[0].module is a text"),
        ("[[variants]]\nmodule = 'se'\nplace = 'stage'", "got 'variants[0].place'"),
        (
            "variants = ['gc', {module = 'se', options = {reduction = 'big'}}]",
            "variants[1].options.reduction is",
        ),
        (
            "[[variants]]\nmodule = 'se'\noptions.reductoin = 2",
            "got 'variants[0].options.reductoin'; did you mean 'reduction'?",
        ),
        (
            "[[variants]]\nmodule = 'se'\noptions.act_layer = 'relu'",
            "variants[0].options.act_layer",
        ),
        ("[[variants]]\nmodule = 'se'\nplugs = ['gc']", "plugs or one module, not both"),
        ("[[variants]]\nplugs = []", "variants[0].plugs is a list"),
        ("[[variants]]\nmodule = 'se'\nstages = 2", "variants[0].stages is a list"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(text: str, says: str, tmp_path: Path) -> None:
    variants = "" if "variants" in text else "variants = ['se']\n"
    with pytest.raises(TorchplugError) as error:
        load_study(write(tmp_path, HEAD + variants + text))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_toml_or_names_no_model_is_refused(tmp_path: Path) -> None:
    for text, says in (("seeds = ", "must be a TOML file"), ("seeds = 5", "names its model")):
        with pytest.raises(TorchplugError, match=says):
            load_study(write(tmp_path, text))
    with pytest.raises(TorchplugError, match="must be a TOML file"):
        load_study(tmp_path / "nothing.toml")


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_can_be_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parents[1])
    comparison, settings = load_study(path)
    assert settings.place.name in {"inline", "pool"}
    study = Inputs(comparison.model, dataclasses.replace(comparison, base="scratch")).make_study()
    if comparison.command:
        check_command(comparison)
        return
    check_model(study, study.make_model())
    if comparison.task == "detection":
        return  # its networks are plugged elsewhere, and take their time
    for arm in comparison.variants:
        plugs = [len(report.plan.plugs) for report in prepare_model(study, arm, 0).reports]
        assert min(plugs) > 0


def test_a_command_needs_no_model_and_its_metric_is_a_place(tmp_path: Path) -> None:
    text = """
command = "python train.py --seed {seed} --plan {plan} --out {out}"
metric = "{out}/metrics.json:map50"
variants = ["se"]
"""
    comparison, _ = load_study(write(tmp_path, text))
    assert (comparison.metric, comparison.metric_file) == ("map50", "{out}/metrics.json:map50")
    with pytest.raises(TorchplugError, match="a command has its own recipe"):
        load_study(write(tmp_path, text + "[recipe]\nepochs = 3"))
