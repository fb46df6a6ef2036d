"""One driver's work on a run, from the rehearsal to the summary."""

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from torchplug.comparison.arms import Study
from torchplug.comparison.base import TRAINED, pack, read_start, run_base_job, train_once, unpack
from torchplug.comparison.command import check_command, hash_command
from torchplug.comparison.controls import Candidate, find_controls, name_control
from torchplug.comparison.driver import Driver
from torchplug.comparison.engines import Engine, Place, Work
from torchplug.comparison.environment import describe_environment, merge_environments
from torchplug.comparison.inputs import Model, hash_model, make_maker, read_data
from torchplug.comparison.lease import Leases
from torchplug.comparison.progress import OnEvent, Teller
from torchplug.comparison.readback import Record, conclude, read_records, read_timings
from torchplug.comparison.receipts import find_refused, note_receipts
from torchplug.comparison.rehearsal import Rehearsal, rehearse
from torchplug.comparison.result import ComparisonResult, to_json
from torchplug.comparison.spec import Comparison, Control, Variant
from torchplug.comparison.store import SPECIFICATION, Store, read_json, write_json, write_text
from torchplug.comparison.trial_job import run_job

WINNER_CONTROLS: tuple[Control, ...] = ("parameters", "placebo")


@dataclass(frozen=True)
class Inputs:
    """What a process makes the study of."""

    model: Model
    comparison: Comparison
    data: Any = None
    start: bytes | None = None

    def make_study(self, *, check: bool = False) -> Study:
        """Read the data and return the study."""
        comparison = self.comparison
        data = read_data(self.data, comparison, check=check)
        if comparison.command:
            check_command(comparison)
            return Study(comparison, data, _make_nothing)
        start = unpack(self.start) if self.start else read_start(comparison.base)
        return Study(comparison, data, make_maker(self.model, comparison, data), start)

    def hash_model(self, study: Study) -> str:
        """Hash what makes the base, or the files of the program that does."""
        command = self.comparison.command
        return hash_command(command) if command else hash_model(self.model, study)

    def make_work(self, run: Any = run_job) -> Work:
        """Return what another process needs to do the same."""
        specification = self.comparison.to_json()
        folder = str(Path.cwd())
        return Work(_begin, (self.model, specification, self.data, self.start, folder), run)


def _begin(model: Model, specification: str, data: Any, start: bytes | None, folder: str) -> Study:
    """Make the study in a process of its own, where relative paths mean what they mean here."""
    if Path(folder).is_dir():  # Ray runs workers in the folder where its node was started
        os.chdir(folder)
    comparison = Comparison.from_dict(json.loads(specification))
    return Inputs(model, comparison, data, start).make_study()


def _make_nothing() -> nn.Module:
    raise NotImplementedError("a program makes its own model")


@dataclass
class Session:
    """One driver's work on a run."""

    study: Study
    inputs: Inputs
    store: Store
    place: Place
    on_event: OnEvent
    missing: list[Candidate] = field(default_factory=list)
    """Controls that were asked for and do not exist, each with the reason."""

    @property
    def comparison(self) -> Comparison:
        """What is compared."""
        return self.study.comparison

    def run(self) -> ComparisonResult:
        """Rehearse, then run what is missing, then the controls of winners."""
        hours = self.comparison.budget_hours
        deadline = math.inf if hours is None else time.monotonic() + 3600 * hours
        asked = self._find_controls(self.comparison.variants, self.comparison.controls)
        arms = (*self.comparison.arms, *asked)
        rehearsal = self._rehearse(arms)
        self.store.root.mkdir(parents=True, exist_ok=True)
        with Leases(self.store.root) as leases:
            with leases.locked():
                # another driver may have begun meanwhile
                self.store.check(self.comparison, self.study.data.digest)
                self._write_head()
            arms = self._write_arms(leases, arms, rehearsal)
            teller = Teller(self.on_event, self.comparison.recipe.epochs)
            self._bring_base(leases, teller)
            digest = self.study.data.digest
            driver = Driver(self.comparison, digest, self.store, leases, teller, deadline)
            return self._run_phases(driver, arms)

    def _run_phases(self, driver: Driver, arms: tuple[Variant, ...]) -> ComparisonResult:
        engine: Engine | None = None
        try:
            driver.plan(arms)
            if driver.has_work:
                engine = self._make_engine(driver.leases, driver.teller)
                driver.run(engine)
            result = self._conclude(driver, arms)
            more = () if driver.out_of_time else self._control_winners(driver, result, arms)
            if more:
                arms = (*arms, *more)
                driver.plan(more, message=f"{len(more)} controls of provisional winners")
                if driver.has_work:
                    engine = engine or self._make_engine(driver.leases, driver.teller)
                    driver.run(engine)
                result = self._conclude(driver, arms)
        finally:
            if engine is not None:
                engine.stop()
        write_text(self.store.root / "summary.json", to_json(result))
        driver.teller.tell("over", message=str(self.store.root))
        return result

    def _make_engine(self, leases: Leases, teller: Teller, run: Any = run_job) -> Engine:
        work = self.inputs.make_work(run)
        if self.place.is_inline:
            study = self.study
            work = Work(lambda: study, (), run)
        return self.place.make_engine(
            work,
            lambda job, epoch: teller.tell("epoch", job.name, epoch=epoch),
            root=self.store.root,
            owner=leases.owner,
            device=self.comparison.device,
            devices=self.comparison.devices,
        )

    def _bring_base(self, leases: Leases, teller: Teller) -> None:
        """Let every arm start from a baseline that is trained once, if that was asked for."""
        if self.comparison.base != TRAINED:
            return
        weights = train_once(
            self.study,
            self.store,
            leases,
            lambda: self._make_engine(leases, teller, run_base_job),
        )
        self.study = dataclasses.replace(self.study, start=weights)
        self.inputs = dataclasses.replace(self.inputs, start=pack(weights))

    def _conclude(self, driver: Driver, arms: tuple[Variant, ...]) -> ComparisonResult:
        comparison, store = self.comparison, self.store
        stopped = driver.explain_stops(arms)
        write_json(store.root / "stopped.json", stopped)
        records: Iterable[Record] = read_records(store, comparison, arms)
        if comparison.command:
            arms, records = self._drop_refused(arms, tuple(records))
            note_receipts(store, comparison, arms)
        self._write_missing()
        timings = read_timings(store, comparison, arms)
        costs = read_json(store.root / "costs.json")
        return conclude(store, comparison, arms, records, driver.known, timings, costs, stopped)

    def _drop_refused(
        self, arms: tuple[Variant, ...], records: Sequence[Record]
    ) -> tuple[tuple[Variant, ...], Sequence[Record]]:
        """Leave out the controls that the program could not make; they are missing, not broken."""
        refused = find_refused(arms, records)
        for arm in arms:
            if arm.name in refused and arm.control is not None:
                self.missing.append(Candidate(arm.control, arm.of, None, refused[arm.name]))
        left = tuple(arm for arm in arms if arm.name not in refused)
        return left, [record for record in records if record["variant"] not in refused]

    def _control_winners(
        self, driver: Driver, result: ComparisonResult, arms: tuple[Variant, ...]
    ) -> tuple[Variant, ...]:
        """Rehearse and write down the controls that provisional winners do not have yet."""
        winners = [arm for arm in arms if arm.name in result.winners]
        kinds = [kind for kind in WINNER_CONTROLS if kind not in self.comparison.controls]
        more = self._find_controls(winners, kinds)
        self._write_missing()
        if not more:
            return ()
        return self._write_arms(driver.leases, more, self._rehearse(more))

    def _find_controls(
        self, variants: Sequence[Variant], kinds: Sequence[Control]
    ) -> tuple[Variant, ...]:
        """Return the controls; widths that were found before are not searched again."""
        known = {(arm.control, arm.of): arm for arm in self.store.read_arms() or ()}
        arms: list[Variant] = []
        for variant in variants:
            there = [known.get((kind, variant.name)) for kind in kinds]
            new = [kind for kind, arm in zip(kinds, there, strict=True) if arm is None]
            candidates = find_controls(self.study, [variant], new)
            self.missing += [each for each in candidates if each.arm is None]
            found = [each.arm for each in candidates]
            arms += [arm for arm in (*there, *found) if arm is not None]
        return tuple(arms)

    def _rehearse(self, arms: tuple[Variant, ...]) -> Rehearsal:
        return rehearse(self.study, arms, read_json(self.store.root / "costs.json") or {})

    def _write_head(self) -> None:
        store, data = self.store, self.study.data
        store.sweep(store.root)
        write_text(store.root / SPECIFICATION, self.comparison.to_json())
        parts = [getattr(data, part, ()) for part in ("train", "validation", "test")]
        described = {
            "name": data.name,
            "digest": data.digest,
            "classes": list(data.classes),
            "samples": [len(part) for part in parts],
            "notes": list(getattr(data, "notes", ())),
        }
        write_json(store.root / "data.json", described)
        path = store.root / "environment.json"
        now = describe_environment(self.comparison.device)
        write_json(path, merge_environments(read_json(path), now))

    def _write_missing(self) -> None:
        """Write which controls do not exist, and why, in ``missing.json``."""
        path = self.store.root / "missing.json"
        reasons = {name_control(each.kind, each.of): each.reason for each in self.missing}
        known = {**(read_json(path) or {}), **reasons}
        arms = {arm.name for arm in self.store.read_arms() or ()} - set(reasons)
        write_json(path, {name: reason for name, reason in known.items() if name not in arms})

    def _write_arms(
        self, leases: Leases, arms: tuple[Variant, ...], rehearsal: Rehearsal
    ) -> tuple[Variant, ...]:
        """Write what is known of these arms, and return them as the first driver wrote them."""
        store = self.store
        with leases.locked():
            old = store.read_arms() or ()
            first = {arm.name: arm for arm in old}
            store.write_arms((*old, *(arm for arm in arms if arm.name not in first)))
            path = store.root / "costs.json"
            write_json(path, {**rehearsal.costs, **(read_json(path) or {})})
            for arm in arms:
                if arm.name in rehearsal.plans and arm.plugs:
                    write_text(store.plan_path(arm), rehearsal.plans[arm.name].to_json())
        return tuple(first.get(arm.name, arm) for arm in arms)
