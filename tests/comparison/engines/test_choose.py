"""Which engine is meant, and what is refused before anything is written."""

import pytest

from torchplug.comparison.engines import Place
from torchplug.errors import MissingExtra, UsageError


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "inline"),
        ({"workers": 1}, "inline"),
        ({"workers": 2}, "pool"),
        ({"engine": "pool"}, "pool"),
        ({"address": "auto"}, "ray"),
        ({"engine": "slurm", "address": "local"}, "slurm"),
    ],
)
def test_the_engine_follows_from_what_is_asked_for(settings, name: str) -> None:
    assert Place(**settings).name == name


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"engine": "rya"}, "did you mean 'ray'"),
        ({"workers": 0}, "at least one process: got 0"),
        ({"engine": "pool", "address": "auto"}, "pool engine has no address"),
        ({"engine": "inline", "options": {"num_gpus": 1}}, "inline engine has no options"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Place(**settings)


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_with_its_extra(
    engine: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else found(name)
    )
    with pytest.raises(MissingExtra, match=rf"needs {package}.*'\.\[{engine}\]'"):
        Place(engine=engine)
