"""What `gpu-run` judges: the goals, and the figures that each of them is about."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_subject import FULL_BATCH

Report = dict[str, Any]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """A limit for some figures of one part, and for which models it is meant.

    rows: the figures that are judged, by name, from the part's result.
    limit: the largest figure that meets the goal, or the smallest if it is `at_least`.
    form: how a figure is printed.
    """

    words: str
    part: str
    rows: Callable[[Figures], dict[str, float]]
    limit: float
    form: str
    at_least: bool = False
    models: tuple[str, ...] = ("8b", "0.6b", "tiny")
    on_cpu: bool = False

    def verdict(self, report: Report) -> dict[str, Any]:
        """The figure that is farthest from the goal, whether all meet it, and those that do not.

        `met` is None if it cannot be judged; then `reason` says why.
        """
        part = report["parts"].get(self.part, {"left_out": f"{self.part!r} was not run"})
        reason, rows = None, {}
        if not (self.on_cpu or report["device"].startswith("cuda")):
            reason = "needs a GPU"
        elif report["model"] not in self.models:
            reason = f"needs --model {' or '.join(self.models)}"
        elif "result" not in part:
            reason = part.get("left_out", f"{self.part!r} failed")
        else:
            rows = self.rows(part["result"])
            reason = None if rows else "there is no such figure"
        missed = {name: value for name, value in rows.items() if not self._meets(value)}
        farthest = min if self.at_least else max
        return {
            "measured": farthest(rows.values(), default=None),
            "met": None if reason else not missed,
            "missed": missed,
            "reason": reason,
        }

    def _meets(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit  # NaN does not


def _gaps(agreement: Figures) -> dict[str, float]:
    return dict(agreement)


def _added_by_capture(capture: Figures) -> dict[str, float]:
    """Of the kernels that a run takes, where the device and not the host is the limit."""
    rows = {}
    for shape, figures in capture.items():
        num_texts, length = map(int, shape.split("x"))
        if num_texts * length >= FULL_BATCH:
            rows[f"{shape} {figures['default']}"] = figures["shares"][figures["default"]]
    return rows


def _shares_of_kernels(kernels: Figures) -> dict[str, float]:
    """Of the kernels that a run takes, and of those that failed."""
    failed = {f"{name}: {row['failed']}": 0.0 for name, row in kernels.items() if "failed" in row}
    return failed | {
        name: row["roofline_share"] for name, row in kernels.items() if row.get("default")
    }


def _waits_by_line(waits: Figures) -> dict[str, float]:
    return waits["lines"] or {"no line": 0}


def _speed(run: Figures) -> dict[str, float]:
    return {f"{run['texts']} texts": run["ratio"]}


GOALS = (
    Goal(
        "states as in output_hidden_states, but for 1e-5",
        part="agreement",
        rows=_gaps,
        limit=1e-5,
        form=".1e",
        on_cpu=True,
    ),
    Goal(
        "capture, at most 1 % of an 8B forward pass",
        part="capture",
        rows=_added_by_capture,
        limit=0.01,
        form="+.2%",
        models=("8b",),
    ),
    Goal(
        "kernels, at least 90 % of a copy or a product",
        part="kernels",
        rows=_shares_of_kernels,
        limit=0.9,
        form=".0%",
        at_least=True,
    ),
    Goal(
        "waits of the host in a batch, none",
        part="host waits",
        rows=_waits_by_line,
        limit=0,
        form=".0f",
    ),
    Goal(
        "whole run, at least 5x as fast as output_hidden_states",
        part="whole run",
        rows=_speed,
        limit=5.0,
        form=".2f",
        at_least=True,
        models=("8b", "0.6b"),
    ),
)


def verdicts(report: Report) -> dict[str, dict[str, Any]]:
    """The verdict on each goal."""
    return {goal.words: goal.verdict(report) for goal in GOALS}


def lines_of(report: Report) -> list[str]:
    """The verdicts as a table: below a goal that is missed, the rows that miss it."""
    lines = []
    for goal in GOALS:
        verdict = report["goals"][goal.words]
        measured = verdict["measured"]
        value = "" if measured is None else format(measured, goal.form)
        word = {True: "met", False: "MISSED by:", None: f"not judged: {verdict['reason']}"}
        lines.append(f"goal: {goal.words:<56}{value:>10}  {word[verdict['met']]}")
        for name, figure in verdict["missed"].items():
            lines.append(f"  {name:<70}  {format(figure, goal.form)}")
    return lines
