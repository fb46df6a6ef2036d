"""The house: who may import whom, how long files and functions may be, what is public."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "torchplug"
FILES = sorted(SOURCE.rglob("*.py"))

# Each part may import the parts named here, and nothing else of torchplug.
ALLOWED: dict[str, set[str]] = {
    "_version": set(),
    "errors": set(),
    "card": {"errors"},
    "nn": {"card", "errors"},
    "kernels": {"card", "errors", "nn"},
}
ALLOWED["modules"] = {"card", "errors", "nn", "kernels"}
ALLOWED["catalog"] = ALLOWED["modules"] | {"modules"}
ALLOWED["surgery"] = ALLOWED["catalog"] | {"catalog", "_version"}
# hosts tell surgery what they know; surgery never asks for one by name
ALLOWED["hosts"] = ALLOWED["surgery"] | {"surgery"}
ALLOWED["analysis"] = ALLOWED["fusion"] = ALLOWED["surgery"] | {"surgery"}
ALLOWED["controls"] = ALLOWED["analysis"] | {"analysis"}
# what a training script imports, where only torch may be installed
ALLOWED["programs"] = ALLOWED["controls"] | {"controls"}
ALLOWED["deployment"] = ALLOWED["fusion"] | {"fusion"}
ALLOWED["comparison"] = ALLOWED["programs"] | {"programs", "hosts", "_version"}
ALLOWED["reporting"] = ALLOWED["comparison"] | {"comparison"}
ALLOWED["cli"] = ALLOWED["reporting"] | {"reporting", "fusion", "deployment"}
ALLOWED["__main__"] = {"cli"}
ALLOWED["__init__"] = {"_version", "catalog", "comparison", "errors", "hosts", "modules"} | {
    "programs",
    "surgery",
}

STANDARD_LIBRARY_ONLY = {"card", "errors", "_version"}
LONGEST_FILE, LONGEST_MODULE_FILE, LONGEST_FUNCTION = 400, 250, 40


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[str]:
    """Every import of a file, those inside functions and type-checking blocks included."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def own_parts(path: Path) -> set[str]:
    names = [name.split(".") for name in imports_of(path)]
    return {parts[1] for parts in names if parts[0] == "torchplug" and len(parts) > 1}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    known = set(ALLOWED)
    for imported in own_parts(path) - {part}:
        assert imported in known, f"{part} imports {imported}, which has no place in the house"
        assert imported in ALLOWED[part], f"{part} must not import {imported}"


def test_no_part_can_reach_itself() -> None:
    def reach(part: str, seen: frozenset[str]) -> None:
        assert part not in seen, f"cycle through {part}"
        for following in ALLOWED[part]:
            reach(following, seen | {part})

    for part in ALLOWED:
        reach(part, frozenset())


def test_no_two_files_import_each_other() -> None:
    names = {
        "torchplug." + ".".join(path.relative_to(SOURCE).with_suffix("").parts): path
        for path in FILES
    }
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    edges = {
        name: {
            target
            for imported in imports_of(path)
            for target in (imported, imported.rpartition(".")[0])
            if target in names and target != name
        }
        for name, path in names.items()
        if name != "torchplug"
    }
    done: set[str] = set()

    def visit(name: str, chain: tuple[str, ...]) -> None:
        # a file may import its package's parts; the package itself only gathers names
        assert name not in chain, f"cycle: {' -> '.join((*chain, name))}"
        if name not in done:
            for target in edges.get(name, set()) - {name.rpartition(".")[0]}:
                visit(target, (*chain, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize("name", sorted(STANDARD_LIBRARY_ONLY))
def test_cards_and_errors_need_the_standard_library_only(name: str) -> None:
    for imported in imports_of(SOURCE / f"{name}.py"):
        top = imported.split(".")[0]
        assert top == "torchplug" or top in sys.stdlib_module_names


def test_importing_torchplug_loads_no_optional_package() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import torchplug;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["torchplug"]


def docstring_lines(tree: ast.Module) -> int:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node)]
    return sum(node.body[0].end_lineno - node.body[0].lineno + 1 for node in nodes)


def card_lines(tree: ast.Module) -> int:
    cards = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CARD"
    ]
    return sum(node.end_lineno - node.lineno + 1 for node in cards)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= LONGEST_FILE
    if part_of(path) == "modules":
        told = docstring_lines(tree) + card_lines(tree)
        assert len(text.splitlines()) - told <= LONGEST_MODULE_FILE
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= LONGEST_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_assert_is_for_tests(path: Path) -> None:
    assert not [node for node in ast.walk(ast.parse(path.read_text())) if type(node) is ast.Assert]


def test_completion_offers_what_is_public() -> None:
    import torchplug

    assert {"plug", "sites", "compare", "SqueezeExcite", "__version__"} <= set(dir(torchplug))
    assert not {"Any", "TYPE_CHECKING"} & set(dir(torchplug))
    for name in dir(torchplug):
        getattr(torchplug, name)


def test_every_module_of_the_catalogue_is_public() -> None:
    import torchplug

    for card in torchplug.cards().values():
        assert getattr(torchplug, card.factory.__name__) is card.factory
