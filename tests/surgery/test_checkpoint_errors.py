"""Damaged, hostile and misplaced files: one clear error, and the model as it was."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import torchplug as tp
from tests.surgery.plug_files import Parts, forge, hash_state, snapshot, write
from torchplug.hosts import build_model
from torchplug.surgery import plugfile

EXAMPLE = (1, 3, 32, 32)
Change = Callable[[Parts], object]


@pytest.fixture(scope="module")
def saved() -> bytes:
    """A file of a small model: two SE plugs at the ends of stages, one CBAM, random weights."""
    import tempfile

    model = build()
    tp.plug(model, "se", "stage", stages=[1, 2], example=EXAMPLE, start="paper")
    tp.plug(model, "cbam", "layer3.bn2", example=EXAMPLE)
    with tempfile.TemporaryDirectory() as folder:
        return tp.save(model, Path(folder, "x")).read_bytes()


def build() -> nn.Module:
    torch.manual_seed(0)
    return build_model("torchplug:resnet8").eval()


def check_refused(data: bytes, folder: Path, text: str, **options: Any) -> str:
    """Loading must fail with a three-part error and leave the model alone."""
    model = build()
    before = snapshot(model)
    with pytest.raises((tp.UsageError, tp.PlugError), match=text) as caught:
        tp.load(model, write(folder / "x.safetensors", data), **options)
    assert snapshot(model) == before
    message = str(caught.value)
    assert ": got " in message
    assert "; " in message
    return message


def edit(field: str, value: Any) -> Change:
    return lambda parts: parts.plugs[0].__setitem__(field, value)


def rename_weight(parts: Parts) -> None:
    parts.tensors["layer1.torchplug.se.x"] = parts.tensors.pop(first(parts))


def first(parts: Parts) -> str:
    return min(parts.tensors)


FORGED: dict[str, tuple[Change, str]] = {
    "module of nobody": (edit("module", "os:system"), r"'os:system'; pass factories="),
    "unknown key": (edit("module", "sse"), "got 'sse'; did you mean .*'se'"),
    "module that is no text": (edit("module", ["se"]), "module of plug 0 must be a text"),
    "path that is not there": (edit("path", "layer9"), "no place|does not describe"),
    "path of an attribute": (edit("path", "__class__"), "does not describe"),
    "path upwards": (edit("path", "../layer1"), "does not describe"),
    "path within a plug": (edit("path", "layer1.torchplug.se"), "does not describe"),
    "empty path": (edit("path", ""), "path of plug 0 must be a text"),
    "name of an attribute": (edit("name", "__class__"), "an identifier"),
    "name with dots": (edit("name", "a.b"), "an identifier"),
    "name of a method": (edit("name", "forward"), "an identifier"),
    "unknown option": (edit("options", {"reductoin": 4}), "did you mean 'reduction'"),
    "option of a wrong kind": (edit("options", {"reduction": "wide"}), "must be buildable"),
    "impossible option": (edit("options", {"reduction": 0}), "must be buildable"),
    "nested option": (edit("options", {"reduction": {"a": 1}}), "options of plug 0 must be"),
    "huge option": (edit("options", {"reduction": 10**9}), "options of plug 0 must be"),
    "device as an option": (edit("options", {"device": "meta"}), "without device and dtype"),
    "options that are a list": (edit("options", []), "options of plug 0 must be"),
    "negative channels": (edit("channels", -1), "channels of plug 0 must be"),
    "huge channels": (edit("channels", 10**9), "channels of plug 0 must be"),
    "true as channels": (edit("channels", True), "channels of plug 0 must be"),
    "other channels": (edit("channels", 60_000), r"must be a tensor, torch\.float32 of shape"),
    "flat shape": (edit("shape", [1, 2]), "shape of plug 0 must be"),
    "huge shape": (edit("shape", [1, 16, 10**8, 10**8]), "shape of plug 0 must be"),
    "shape of a huge map": (edit("shape", [1, 64, 60_000, 60_000]), "fits in memory"),
    "unknown start": (edit("start", "now"), "start of plug 0 must be"),
    "unknown field": (edit("run", "rm"), "unexpected keyword argument 'run'"),
    "missing field": (lambda parts: parts.plugs[0].pop("path"), "missing"),
    "plug that is a text": (
        lambda parts: parts.plugs.__setitem__(0, "se"),
        "plug 0 is str",
    ),
    "same plug twice": (
        lambda parts: parts.plugs.append(parts.plugs[0]),
        "two plugs are called 'se'",
    ),
    "too many plugs": (
        lambda parts: parts.content["plan"].update(plugs=parts.plugs * 5000),
        "at most 10000",
    ),
    "no plugs": (lambda parts: parts.content["plan"].update(plugs=[]), "tensors of its plugs only"),
    "plan of a later format": (
        lambda parts: parts.content["plan"].update(format=2),
        "only format 1 is known",
    ),
    "file of a later format": (
        lambda parts: parts.content.update(format=2),
        "format 2 is unknown to torchplug",
    ),
    "no plan": (lambda parts: parts.content.pop("plan"), "KeyError: 'plan'"),
    "no base": (lambda parts: parts.content.pop("base"), "KeyError: 'base'"),
    "extra tensor": (
        lambda parts: parts.tensors.update({"layer1.conv1.weight": torch.zeros(1)}),
        r"tensors of its plugs only: got layer1\.conv1\.weight",
    ),
    "missing tensor": (
        lambda parts: parts.tensors.pop(first(parts)),
        "must be a tensor.* got none",
    ),
    "renamed tensor": (rename_weight, "must be a tensor.* got none"),
    "wrong type": (
        lambda parts: parts.tensors.update({first(parts): parts.tensors[first(parts)].half()}),
        r"torch\.float32 of shape .*: got torch\.float16",
    ),
    "integers for weights": (
        lambda parts: parts.tensors.update({first(parts): parts.tensors[first(parts)].int()}),
        r"torch\.float32 of shape .*: got torch\.int32",
    ),
    "wrong shape": (
        lambda parts: parts.tensors.update({first(parts): parts.tensors[first(parts)][None]}),
        "must be a tensor",
    ),
    "base of another class": (
        lambda parts: parts.content["base"]["classes"].update({"layer3.bn2": "GroupNorm"}),
        r"a BatchNorm2d at layer3\.bn2, where the file has a GroupNorm",
    ),
    "base with another tensor": (
        lambda parts: parts.content["base"]["tensors"].update({"head.weight": [3]}),
        r"no tensor head\.weight, which the file's base has",
    ),
    "base without a tensor": (
        lambda parts: parts.content["base"]["tensors"].pop("layer2.conv1.weight"),
        r"a tensor layer2\.conv1\.weight, which the file's base does not have",
    ),
    "base of another shape": (
        lambda parts: parts.content["base"]["tensors"].update({"layer2.conv1.weight": [1]}),
        r"layer2\.conv1\.weight of shape \(\d.*\), where the file's base has \(1,\)",
    ),
}


@pytest.mark.parametrize("case", sorted(FORGED))
def test_a_forged_file_is_refused(case: str, saved: bytes, tmp_path: Path) -> None:
    change, text = FORGED[case]
    check_refused(forge(saved, change), tmp_path, text)


def header_of(saved: bytes) -> dict[str, Any]:
    length = int.from_bytes(saved[:8], "little")
    return json.loads(saved[8 : 8 + length])


def with_header(saved: bytes, text: str) -> bytes:
    length = int.from_bytes(saved[:8], "little")
    return len(text).to_bytes(8, "little") + text.encode() + saved[8 + length :]


def with_entries(saved: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    listed = header_of(saved)
    content = listed.pop("__metadata__")[plugfile.CONTENT]
    change(listed)
    length = int.from_bytes(saved[:8], "little")
    return plugfile.make_header(content, listed) + saved[8 + length :]


def entry(listed: dict[str, Any]) -> dict[str, Any]:
    return listed[min(listed)]


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "ends before its header"),
    "seven bytes": (lambda data: data[:7], "ends before its header"),
    "half a header": (lambda data: data[:100], "ends within its header"),
    "half the weights": (lambda data: data[:-10], "the tensors need .* and the file has"),
    "bytes after the end": (lambda data: data + b"\0", "the tensors need .* and the file has"),
    "huge header": (
        lambda data: (2**40).to_bytes(8, "little") + data[8:],
        r"claims 1,099,511,627,776 bytes, more than 10,000,000",
    ),
    "largest header": (
        lambda data: plugfile.LARGEST_HEADER.to_bytes(8, "little") + data[8:],
        "ends within its header",
    ),
    "no header": (lambda data: bytes(8) + data[8:], "ends before its header"),
    "a pickle": (lambda _: b"\x80\x02cos\nsystem\nq\x00." * 9, "claims"),
    "no text": (lambda data: data[:8] + b"\xff" * (len(data) - 8), "UnicodeDecodeError"),
    "no json": (lambda data: with_header(data, "{" * 5), "JSONDecodeError"),
    "deep json": (lambda data: with_header(data, "[" * 10**5), "deeper than 16 levels"),
    "a list": (lambda data: with_header(data, "[]"), "TypeError"),
    "same key twice": (
        lambda data: with_header(data, '{"__metadata__":{},"__metadata__":{}}'),
        "the key '__metadata__' is there twice",
    ),
    "no number": (lambda data: with_header(data, '{"a": NaN}'), "NaN is no number of JSON"),
    "long number": (lambda data: with_header(data, '{"a": ' + "9" * 10**5 + "}"), "ValueError"),
    "weights without a plan": (
        lambda data: with_header(
            data, json.dumps({k: v for k, v in header_of(data).items() if k[0] != "_"})
        ),
        "the header has no plan: these are other weights",
    ),
    "metadata that is a text": (
        lambda data: with_header(data, json.dumps({"__metadata__": "torchplug"})),
        "AttributeError|TypeError|tensors need",
    ),
    "unknown type": (
        lambda data: with_entries(data, lambda listed: entry(listed).update(dtype="F128")),
        "unknown type 'F128'",
    ),
    "shape of another size": (
        lambda data: with_entries(data, lambda listed: entry(listed).update(shape=[3])),
        "which its shape does not need",
    ),
    "negative shape": (
        lambda data: with_entries(data, lambda listed: entry(listed).update(shape=[-1, -1])),
        "no natural numbers",
    ),
    "overlap": (
        lambda data: with_entries(
            data,
            lambda listed: [
                item.update(data_offsets=[0, item["data_offsets"][1] - item["data_offsets"][0]])
                for item in listed.values()
            ],
        ),
        "begins at byte 0",
    ),
    "extra field": (
        lambda data: with_entries(data, lambda listed: entry(listed).update(run="x")),
        "has the fields",
    ),
    "changed weight": (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "not as they were written"),
    "changed plan": (lambda data: data.replace(b"layer3.bn2", b"layer3.bn1"), "not as it was"),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_a_broken_file_is_refused(case: str, saved: bytes, tmp_path: Path) -> None:
    change, text = BROKEN[case]
    check_refused(change(saved), tmp_path, text)


def offsets(size: int, count: int, header: int) -> list[int]:
    """Places all over a file, most of them in its header, where a change means something."""
    inside = range(0, header, max(header // count, 1))
    after = range(header, size, max((size - header) // (count // 4), 1))
    return sorted({*range(16), *inside, *after, size - 1})


def test_no_damage_goes_unnoticed(saved: bytes, tmp_path: Path) -> None:
    model, path = build(), tmp_path / "x.safetensors"
    fresh = snapshot(model)
    tp.load(model, write(path, saved))
    expected = hash_state(model)
    tp.unplug(model)
    header = 8 + int.from_bytes(saved[:8], "little")
    refused = 0
    for place in offsets(len(saved), 400, header):
        flipped = bytearray(saved)
        flipped[place] ^= 1 << (place % 8)
        for data in (bytes(flipped), saved[:place]):
            try:
                tp.load(model, write(path, data))
            except (tp.UsageError, tp.PlugError):
                refused += 1
            else:  # a space of the padding, say
                assert hash_state(model) == expected
                tp.unplug(model)
            assert snapshot(model) == fresh, f"at byte {place}"
    assert refused > 800


def test_weights_that_are_not_numbers_are_nobodys_business(saved: bytes, tmp_path: Path) -> None:
    def spoil(parts: Parts) -> None:
        parts.tensors[first(parts)].fill_(float("nan"))

    model = build()
    tp.load(model, write(tmp_path / "x", forge(saved, spoil)))
    assert any(p.isnan().any() for p in model.parameters())


def test_nothing_of_a_file_is_imported(saved: bytes, tmp_path: Path) -> None:
    marker = tmp_path / "run"
    (tmp_path / "hostile.py").write_text(f"open({str(marker)!r}, 'w')\nclass Gate: pass\n")
    path = write(tmp_path / "x", forge(saved, edit("module", "hostile:Gate")))
    code = (
        "import sys, torchplug as tp; from torchplug.hosts import build_model\n"
        "try: tp.load(build_model('torchplug:resnet8'), sys.argv[1])\n"
        "except tp.UsageError as error: print(error)\n"
    )
    search = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'hostile:Gate'; pass factories=" in done.stdout
    assert not marker.exists()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (torchvision.models.resnet18, "a Sequential at layer1, where .* a BasicBlock"),
        (lambda: build_model("torchplug:resnet8", num_classes=3), r"fc\.weight of shape \(3, "),
        (lambda: build_model("torchplug:resnet8", in_channels=1), r"conv1\.weight of shape"),
        (nn.Identity, "no module at"),
    ],
)
def test_another_model_is_refused_by_its_first_difference(
    make: Callable[[], nn.Module], text: str, saved: bytes, tmp_path: Path
) -> None:
    model = make()
    before = snapshot(model)
    with pytest.raises(tp.PlugError, match=text):
        tp.load(model, write(tmp_path / "x", saved))
    assert snapshot(model) == before


def test_a_second_load_into_one_model_is_refused(saved: bytes, tmp_path: Path) -> None:
    model = build()
    tp.load(model, write(tmp_path / "x", saved))
    before = snapshot(model)
    with pytest.raises(tp.PlugError, match="a second 'se'"):
        tp.load(model, tmp_path / "x")
    assert snapshot(model) == before


def test_an_example_finds_a_place_that_never_runs(saved: bytes, tmp_path: Path) -> None:
    model = build()
    model.layer3.bn2.forward = model.layer3.bn2.__class__(64).forward  # patched by a tool
    before = snapshot(model)
    with pytest.raises(tp.PlugError, match=r"0 runs of the plug at layer3\.bn2"):
        tp.load(model, write(tmp_path / "x", saved), example=EXAMPLE)
    assert snapshot(model) == before


def test_an_example_that_the_model_refuses_is_named(saved: bytes, tmp_path: Path) -> None:
    text = "the model must run on the example: got RuntimeError"
    check_refused(saved, tmp_path, text, example=(1, 5, 32, 32))


class Narrow(nn.Module):
    """A module of the user's own that fits the map of its plan and no other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_a_plug_that_fails_on_the_example_is_taken_out_again(tmp_path: Path) -> None:
    model = build()
    at = next(s.path for s in tp.sites(model, EXAMPLE).with_role("block") if s.size == (8, 8))
    tp.plug(model, lambda site: Narrow(site.channels), at, name="narrow", example=EXAMPLE)
    path = tp.save(model, tmp_path / "x")
    name = tp.Plan.from_json(json.dumps(Parts(path.read_bytes()).content["plan"])).plugs[0].module
    fresh = build()
    before = snapshot(fresh)
    factories = {name: lambda site: Narrow(site.channels)}
    with pytest.raises(tp.PlugError, match="must run on the example: got RuntimeError"):
        tp.load(fresh, path, example=(1, 3, 64, 64), factories=factories)
    assert snapshot(fresh) == before
    tp.load(fresh, path, example=EXAMPLE, factories=factories)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tp.UsageError, match="a file of plugs must be readable"):
        tp.load(build(), tmp_path / "nothing.safetensors")
    with pytest.raises(tp.UsageError, match="a folder or a device of this name"):
        tp.load(build(), tmp_path)


@pytest.mark.parametrize("model", [None, nn.DataParallel(nn.Identity())])
def test_what_is_no_host_is_refused(model: Any, saved: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "x", saved)
    for call in (lambda: tp.load(model, path), lambda: tp.save(model, path)):
        with pytest.raises((tp.UsageError, tp.PlugError), match="a host"):
            call()
    assert path.read_bytes() == saved


def test_a_plan_of_text_is_read_as_strictly(saved: bytes) -> None:
    content = Parts(saved).content["plan"]
    assert tp.Plan.from_json(json.dumps(content)).seed == 0
    text = json.dumps(content)
    for bad in (
        text.replace('"seed": 0', '"seed": 0, "seed": 1'),
        text.replace('"seed": 0', '"seed": true'),
        text.replace('"seed": 0', '"seed": NaN'),
        text.replace('"seed": 0', '"seed": ' + "[" * 50),
    ):
        with pytest.raises(tp.UsageError, match=r"Plan\.to_json"):
            tp.Plan.from_json(bad)
