"""Sites at any operation that a run showed, by the text that names it: ``layer4.0!relu#1``."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

from torchplug.errors import PlugError, explain, nearest
from torchplug.surgery.op_anchor import OpPoint, family, parse_anchor
from torchplug.surgery.select import compile_glob
from torchplug.surgery.sites import Site
from torchplug.surgery.trace import Call, Trace, Value


@dataclass(frozen=True, repr=False)
class Operations:
    """The operations of a traced model.

    Args:
        trace: of one forward.
        paths: of all modules of the model.
        make: turns a map and the text of its place into a site.
    """

    trace: Trace
    paths: tuple[str, ...]
    make: Callable[[Value, str], Site]

    def find(self, text: str) -> list[Site]:
        """Return the site at this operation of each module whose path the text matches.

        Raises:
            PlugError: if there is none, naming the operations that there are.
        """
        point = parse_anchor(text)
        if point is None:
            return []
        point = replace(point, op=family(point.op))
        modules = compile_glob(point.path)
        matching = [path for path in self.paths if modules.fullmatch(path)]
        paths = [path for path in matching if self.trace.runs[path] == 1]
        places = [replace(point, path=path) for path in paths]
        values = [self._value_at(place) for place in places]
        pairs = zip(values, places, strict=True)
        sites = [self.make(value, str(place)) for value, place in pairs if value is not None]
        if not sites:
            raise PlugError(self._explain_nothing(point, matching, places))
        return sites

    def _calls_in(self, path: str) -> dict[str, list[Value]]:
        """What each operation returned while a module ran, as plugs at operations count it."""
        found: dict[str, list[Value]] = defaultdict(list)
        for value in self.trace.values:
            made = value.alone and len(value.shape) == 4 and value.op not in {"input", "constant"}
            if made and value.is_inside(Call(path, 1)):
                found[family(value.op)].append(value)
        return found

    def _value_at(self, point: OpPoint) -> Value | None:
        results = self._calls_in(point.path)[point.op][point.call :][:1]
        for result in results:
            value: Value | None = result
            if point.operand is not None:
                value = dict(enumerate(result.operands)).get(point.operand)
            if value is not None and value.is_map:
                return value
        return None

    def _explain_nothing(self, point: OpPoint, matching: list[str], places: list[OpPoint]) -> str:
        if not matching:
            rule = "a place at an operation names the module that runs it before the !"
            return explain(rule, repr(str(point)), nearest(point.path, self.paths))
        if not places:
            runs = self.trace.runs[matching[0]]
            rule = "a place at an operation names a module that runs once in a forward"
            fix = "name the operation in the module around it"
            return explain(rule, f"{matching[0]!r}, which runs {runs} times", fix)
        path = places[0].path
        whose = repr(path) if path else "the model"
        rule = f"a place at an operation of {whose} names a map that it makes or receives there"
        return explain(rule, repr(str(places[0])), f"name one of {self._describe(path, point)}")

    def _describe(self, path: str, point: OpPoint) -> str:
        """The calls of each operation on maps; for a wrong operand those of the right call."""
        calls = self._calls_in(path)
        results = [value for value in calls[point.op][point.call :][:1] if value.is_map]
        if results:
            operands = enumerate(results[0].operands)
            maps = [index for index, value in operands if value is not None and value.is_map]
            name = f"{point.op}#{point.call}"
            return ", ".join([f"!{name}", *(f"!{name}.{index}" for index in maps)])
        found = {
            op: [index for index, value in enumerate(values) if value.is_map]
            for op, values in calls.items()
        }
        return ", ".join(f"!{op}#{_span(kept)}" for op, kept in found.items() if kept)


def _span(numbers: list[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}…{numbers[-1]}"
