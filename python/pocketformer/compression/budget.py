"""The plan that keeps a model within limits of bytes, memory or time at the least error.

Losses are measured at the output (see sensitivity) and taken to add up. Bytes are not estimated but computed from the
shapes of what is stored: no file is above its budget.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from .calibration import TOKENS as CALIBRATION
from .calibration import Calibration, Samples, parted, takes_tokens
from .channels import Channels
from .dataflow import Dataflow
from .drafts import Drafts, figure, width_of
from .knapsack import cheapest
from .knobs import Knobs, Step, bytes_each, without_pairs
from .limits import Forecast, Limits
from .options import QuantizeOptions
from .pictures import pixels_of_image, sample, takes_images
from .pipeline import WEIGHTS, make_profiler, minify, predicted_bytes
from .plan import Plan
from .precision import Precision
from .profile import Progress, kept_profile
from .prune import MULTIPLE, PruneOptions
from .quantize import Profiler, calibrated_profiler
from .sensitivity import fewer_bits

if TYPE_CHECKING:
    from ..sources.huggingface import Checkpoint

TOKENS = 1024
"""Of the sample on which outputs are compared."""
PICTURES = 8192
"""Rows of the pictures that are made up to plan with, a third of those that a file is rounded with: they are alike."""
ATTEMPTS, SLACK = 8, 1e-4
"""How often a plan is made anew whose bytes are not those that were reckoned with, and what share may be left over."""
MOST_SETTINGS = 20_000
"""Of knobs that are tried together."""


FIGURES: dict[str, tuple[str, str, Callable[[float], str]]] = {
    "file_bytes": ("file", "file of this model", lambda value: f"{value:,.0f} bytes"),
    "memory_bytes": ("memory", "memory that this model runs in", lambda value: f"{value:,.0f} bytes"),
    "seconds": ("latency", "latency of this model", lambda value: f"{1000 * value:.3g} ms"),
}
"""Of what can be limited: what a limit is called, what its least is, and how it is written."""


class Planner:
    """Plans for ``loaded``; what it measured of the model serves every budget.

    ``calibration`` is that of ``compress``. What ``options`` say of single weights or of the table stays as they say.

    Raises ValueError for a model that takes neither token ids nor images.
    """

    def __init__(
        self,
        loaded: Checkpoint,
        weights: str = "int8",
        prune: PruneOptions | None = None,
        options: QuantizeOptions | None = None,
        calibration: Samples | str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        if not takes_tokens(loaded.graph) and not takes_images(loaded.graph):
            raise ValueError(
                "a budget needs inputs to measure on, and this model takes no texts or images; leave it out"
            )
        self.loaded, self.weights = replace(loaded, tokenizer_json=minify(loaded.tokenizer_json)), weights
        self.options, self.prune = options or QuantizeOptions(), prune or PruneOptions()
        self.channels = Channels(loaded.graph)
        # What pictures that are made up leave idle, photos may need: without photos no layer gets narrower.
        self.made_up = takes_images(loaded.graph) and calibration is None
        spaces = {} if self.made_up else self.channels.spaces
        self.spaces = {name: space for name, space in spaces.items() if not space.heads}
        self.full = predicted_bytes(loaded, weights, self.options)  # refuses what cannot be, before any work
        self.profiler, self.sample = self._seen(loaded, calibration)
        self._progress, self._told = progress, 0
        self._knobs: dict[str, list[Step]] = {}
        self._without_pairs: dict[str, list[Step]] = {}
        self._pairs = False  # whether bounded pairs save time
        self._precisions: dict[str, Precision] = {}
        self._levels = self._bit_levels()
        self.options = replace(self.options, bounded_pairs=False)  # plans say of each weight
        self._drafts = Drafts(self.loaded, weights, self.channels, self.options, self._precisions)
        self._seconds: dict[str, float] = {}

    def smallest(self) -> Plan:
        """The plan with every layer at its least width and every weight at its fewest bits; nothing is measured."""
        widths = {name: min(MULTIPLE, space.width) for name, space in self.spaces.items()}
        return self._drafts.plan(widths, {name: levels[-1] for name, levels in self._levels.items()})

    def _quick(self) -> list[Plan]:
        """The plans with every layer at its least width, of which one is the quickest or nearly so: fewer bits are
        quick where weights come from memory, bounded pairs where the machine gains by them."""
        widths = {name: min(MULTIPLE, space.width) for name, space in self.spaces.items()}
        pairs = {name: of for name, levels in self._levels.items() for of in levels if of.bounded_pairs}
        draft = self._drafts.plan
        return [self.smallest(), draft(widths, {}), *([draft(widths, pairs)] if self._pairs else [])]

    def for_budget(self, limit: int) -> Plan:
        """The plan of least predicted error whose file has at most ``limit`` bytes; see :meth:`for_limits`."""
        return self.for_limits(Limits(file_bytes=limit))

    def for_limits(self, limits: Limits) -> Plan:
        """The plan of least predicted error that keeps to all of ``limits``.

        Of a file alone it is the least that there is, but for what bytes are rounded to; of a run, which knobs change
        together, the knob that costs the least error for what it saves is turned first, and what turned out to be more
        than was needed is taken back.

        Raises ValueError, before anything is measured, when no plan keeps to them; the message says what the least is.
        """
        wanted = limits.named()
        if not wanted:
            raise ValueError("no limit was given; give the bytes of a file, memory or a latency")
        graph = self.loaded.graph
        pixels = pixels_of_image(graph) if takes_images(graph) else 0
        forecast = self._drafts.forecast = Forecast(limits, graph.max_length, pixels) if limits.runs else None
        self._seconds = {}
        machine = forecast.machine if forecast and limits.seconds is not None else None
        self._pairs = machine is not None and machine.pairs_peak > machine.int8_peak
        least_plans = self._quick() if machine else [self.smallest()]
        for name, limit in wanted.items():
            what, least_of, written = FIGURES[name]
            least = min(figure(plan, name) for plan in least_plans)
            if least > limit:
                how = f"{MULTIPLE} hidden channels a layer, and little of its quality"
                how = "as wide as it is: for narrower layers give photos as calibration" if self.made_up else how
                given = "the budget" if name == "file_bytes" else f"the {what} allowed"
                raise ValueError(
                    f"{given} is {written(limit)}, but the smallest {least_of} has {written(least)} (fewest bits, "
                    f"{how}); give at least that"
                )
        if forecast is None:
            return self._of_least_error(limits.file_bytes or 0)
        chosen: dict[str, int] = {}
        found: list[dict[str, int]] = []
        while broken := [n for n, limit in wanted.items() if figure(plan := self._chosen(chosen), n) > limit]:
            turns = [turn for turn in self._turns(chosen) if self._saved(chosen, *turn, broken, wanted) > 0]
            if not turns:
                missed = " and ".join(FIGURES[n][2](figure(plan, n)) for n in broken)
                raise ValueError(f"the limits cannot all be kept; the nearest found has {missed}: allow more")
            missing = {n: figure(plan, n) / wanted[n] - 1 for n in broken}
            last = [t for t in turns if all(self._saved(chosen, *t, [n], wanted) >= missing[n] for n in broken)]
            if last:  # one turn would do: the one that costs least, whatever else it saves
                name, step = min(last, key=lambda turn: self._lost(chosen, *turn))
                found.append({**chosen, name: step})
            costs = [self._cost(chosen, name, step, broken, wanted) for name, step in turns]
            name, step = turns[costs.index(min(costs))]
            chosen = {**chosen, name: step}
        found.sort(key=self._error)
        plans = [self._taken_back(steps, wanted) for steps in (chosen, *found[:2])]
        return min((plan for plan in plans if plan is not None), key=lambda plan: plan.error or 0.0)

    def _of_least_error(self, limit: int) -> Plan:
        """The plan for a file of at most ``limit`` bytes: what knobs share is tried together, all else adds up."""
        parts = [self._settings(names) for names in self._tied()]
        choices = [[(size, error) for size, error, _ in part] for part in parts]
        room, found = limit - (figure(self._chosen({}), "file_bytes") - sum(part[0][0] for part in parts)), []
        for _ in range(ATTEMPTS):
            settings = cheapest(choices, room)
            if settings is None:
                break
            chosen = {name: step for part, i in zip(parts, settings, strict=True) for name, step in part[i][2].items()}
            left = limit - figure(self._chosen(chosen), "file_bytes")
            if left >= 0:
                found.append(chosen)
            if 0 <= left <= SLACK * limit:
                break
            room += left
        if not found:  # so near to the least that headers decide
            return self._chosen({name: len(steps) - 1 for name, steps in self.knobs().items()})
        found.sort(key=self._error)
        plans = [self._taken_back(chosen, {"file_bytes": limit}) for chosen in found[:2]]
        return min((plan for plan in plans if plan is not None), key=lambda plan: plan.error or 0.0)

    def _tied(self) -> list[list[str]]:
        """The knobs, those together whose bytes are not the sum of what each saves: a width, and the bits of what holds
        its channels."""
        bits = {name: f"bits of {name}" for name in self._levels}
        parts = [[knob] for knob in self.knobs()]
        for name, space in self.spaces.items():
            held = {
                weight.removesuffix(".weight") for (weight, _), of in self.channels.axes.items() if space.units[0] in of
            }
            together = {f"width of {name}", *(bits[weight] for weight in held if weight in bits)}
            joined = [part for part in parts if together & set(part)]
            if np.prod([float(len(self.knobs()[knob])) for part in joined for knob in part]) <= MOST_SETTINGS:
                parts = [part for part in parts if part not in joined] + [[knob for part in joined for knob in part]]
        return parts

    def _settings(self, names: list[str]) -> list[tuple[float, float, dict[str, int]]]:
        """Bytes and error of all settings of the knobs ``names``, the first being what is there."""
        graph, steps = self.loaded.graph, [self.knobs()[name] for name in names]
        bits = {name.removeprefix("bits of "): place for place, name in enumerate(names) if name.startswith("bits of ")}
        widths = {n.removeprefix("width of "): place for place, n in enumerate(names) if n.startswith("width of ")}
        held = {space: self._axes_of(space) for space in widths}
        params = {*(f"{name}.weight" for name in bits), *(param for axes in held.values() for param, _ in axes)}
        found = []
        for setting in product(*(range(len(of)) for of in steps)):
            total = 0.0
            for param in params:
                shape = np.array(graph.params[param].shape, np.float64)
                for space, place in widths.items():
                    for axis, each in ((axis, each) for (of, axis), each in held[space].items() if of == param):
                        shape[axis] -= each * (self.spaces[space].width - width_of(steps[place][setting[place]]))
                weight = param.removesuffix(".weight")
                precision = steps[bits[weight]][setting[bits[weight]]].value if weight in bits else None
                total += float(shape.prod()) * (
                    bytes_each(precision) if isinstance(precision, Precision) else self._plain(weight)
                )
            error = sum(of[step].error for of, step in zip(steps, setting, strict=True))
            found.append((total, error, {name: step for name, step in zip(names, setting, strict=True) if step}))
        return found

    def _axes_of(self, space: str) -> dict[tuple[str, int], float]:
        """The axes of parameters that hold channels of ``space``, and how many entries go with one of its columns."""
        label, size = self.spaces[space].units[0], self.spaces[space].size
        counts = {axis: float((labels == label).sum()) / size for axis, labels in self.channels.axes.items()}
        return {axis: count for axis, count in counts.items() if count}

    def _plain(self, weight: str) -> float:
        """Bytes of a number of what has no knob: vectors, and weights whose precision is given."""
        precision = self._precisions.get(weight)
        return bytes_each(precision) if precision else 4.0

    def _taken_back(self, chosen: dict[str, int], wanted: Mapping[str, float]) -> Plan | None:
        """The plan of ``chosen`` without what it does not need; None where it does not keep to what is ``wanted``."""

        def kept(plan: Plan) -> bool:
            return all(figure(plan, name) <= limit for name, limit in wanted.items())

        plan = self._chosen(chosen)
        if not kept(plan):
            return None
        for name, step in sorted(chosen.items(), key=lambda item: -self.knobs()[item[0]][item[1]].error):
            if "seconds" not in wanted and not kept(self._chosen({**chosen, name: step - 1})):
                continue  # what is turned back further has more bytes still
            for back in range(step):
                relaxed = {**chosen, name: back}
                candidate = self._chosen(relaxed)
                if kept(candidate):
                    chosen, plan = relaxed, candidate
                    break
        return plan

    def knobs(self) -> dict[str, list[Step]]:
        """What can be turned, from what is there (no error) to the least; measured once."""
        if not self._knobs:
            plain = {"fp32": 4, "fp16": 2}.get(self.weights, 1)
            model = self.loaded.graph, self.channels, self.spaces, self._precisions, self._levels, plain
            knobs = Knobs(*model, self.options, self.prune, self.profiler, self.sample)
            self._knobs = knobs.measured(self._tell)
            self._without_pairs = {name: without_pairs(steps) for name, steps in self._knobs.items()}
        return self._knobs if self._pairs else self._without_pairs

    def _bit_levels(self) -> dict[str, list[Precision]]:
        if self.weights == "fp32":
            return {}
        self._precisions = self.options.precisions(self.loaded.graph, WEIGHTS[self.weights])
        narrowed = {name for space in self.spaces.values() for name in space.readers}
        levels = fewer_bits(self.loaded.graph, self._precisions, self.options.group, narrowed, bounded_pairs=True)
        fixed = replace(self.options, precision={}).precisions(self.loaded.graph, WEIGHTS[self.weights])
        tables = Dataflow(self.loaded.graph).tables if self.options.table_bits else {}
        return {name: of for name, of in levels.items() if fixed[name] == self._precisions[name] and name not in tables}

    def _seen(
        self, loaded: Checkpoint, given: Samples | str | os.PathLike[str] | None
    ) -> tuple[Profiler | None, Calibration]:
        """What runs the model to fit weights, and what outputs are compared on, of which that has seen nothing: a fit
        to the very rows that judge it would look as good as it is not."""
        kept = kept_profile(given)
        seen: Calibration | None
        if given is not None and not kept:
            seen, judged = parted(sample(loaded, given, CALIBRATION, 0), TOKENS)
        else:
            judged = sample(loaded, None, TOKENS, TOKENS, held_out=True)
            own = not kept and self.options.random_tokens > 0
            most = PICTURES if takes_images(loaded.graph) else CALIBRATION
            seen = None if not own else sample(loaded, None, most, self.options.random_tokens, held_out=False)
        if seen is None:
            return make_profiler(loaded, self.options, given), judged
        return calibrated_profiler(loaded.graph, seen), judged

    def _turns(self, chosen: Mapping[str, int]) -> list[tuple[str, int]]:
        return [
            (name, step) for name, steps in self.knobs().items() for step in range(chosen.get(name, 0) + 1, len(steps))
        ]

    def _cost(
        self, chosen: Mapping[str, int], name: str, step: int, broken: list[str], wanted: Mapping[str, float]
    ) -> float:
        """Error for what is saved of the limits that are ``broken``."""
        return self._lost(chosen, name, step) / self._saved(chosen, name, step, broken, wanted)

    def _lost(self, chosen: Mapping[str, int], name: str, step: int) -> float:
        """Error that a turn adds."""
        return self.knobs()[name][step].error - self.knobs()[name][chosen.get(name, 0)].error

    def _saved(
        self, chosen: Mapping[str, int], name: str, step: int, broken: list[str], wanted: Mapping[str, float]
    ) -> float:
        """How much of the ``broken`` limits a turn saves, as a share of each."""
        now, total = chosen.get(name, 0), 0.0
        steps = self.knobs()[name]
        for limited in broken:
            if limited == "seconds":
                total += (self._time(name, now) - self._time(name, step)) / wanted[limited]
            else:
                total += max(steps[step].bytes - steps[now].bytes, 1.0) / wanted[limited]
        return total

    def _error(self, chosen: Mapping[str, int]) -> float:
        return sum(self.knobs()[name][step].error for name, step in chosen.items())

    def _time(self, name: str, step: int) -> float:
        """Seconds of a run with this knob alone turned; those of a width between are interpolated."""
        last = len(self.knobs()[name]) - 1
        if name.startswith("width of ") and 0 < step < last:
            ends = [self.knobs()[name][at].value for at in (0, last)]
            share = (ends[0] - self.knobs()[name][step].value) / (ends[0] - ends[1])  # type: ignore[operator]
            return self._time(name, 0) + share * (self._time(name, last) - self._time(name, 0))
        key = self._alike(name, step) if step else ""
        if key not in self._seconds:
            self._seconds[key] = figure(self._chosen({name: step}), "seconds")
        return self._seconds[key]

    def _alike(self, name: str, step: int) -> str:
        """What is the same for turns that save as much time: those of weights of one shape that read as many rows."""
        graph, weight = self.loaded.graph, name.removeprefix("bits of ")
        if weight == name:
            return f"{name}: {step}"
        read = [graph.domain_of(op["in"]) for op in Dataflow(graph).linears.get(weight, [])]
        return f"{graph.params[f'{weight}.weight'].shape} {read} {self.knobs()[name][step].value}"

    def _chosen(self, chosen: Mapping[str, int]) -> Plan:
        """The plan with the knobs turned to these steps, with what each of them loses."""
        return self._drafts.turned({name: self.knobs()[name][step] for name, step in chosen.items() if step})

    def _tell(self, what: str) -> None:
        self._told += 1
        if self._progress:
            total = sum(len(levels) for levels in self._levels.values()) + len(self.spaces)
            self._progress(what, self._told / (total + 1))
