"""Says how a run ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from feddkd.cli.output import error_console, note, say, say_fields, working
from feddkd.cli.report import PAGE, report_of
from feddkd.cli.words import counted_examples, listed, megabytes, size
from feddkd.config.main_metric import title_of
from feddkd.text import shown_score
from feddkd.traffic import DIRECTIONS


def finish_with_summary(summary: dict[str, Any], out: Path, *, report: bool, as_json: bool) -> None:
    """The end of a run: its numbers, and the page with its pictures if one is wanted."""
    if as_json:
        say(json.dumps(summary))
    else:
        print_summary(summary, out)
    if report:
        with working("drawing the report"):
            page = report_of([out], out / PAGE)
        if as_json:
            note(error_console(), f"report: {page}")
        else:
            say_fields([("report", page)])


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """The numbers of a run, for a person."""
    rows = [
        (
            "bytes on the wire",
            f"{megabytes(summary['total_wire_bytes_down'])} down, {megabytes(summary['total_wire_bytes_up'])} up",
        ),
        (
            "time",
            f"{summary['seconds']:.1f} s for {summary['rounds']} round{'s' if summary['rounds'] > 1 else ''}",
        ),
        ("model sha256", summary["model_sha256"]),
        ("record", f"{out}/"),
    ]
    rounds_missed, not_delivered = summary["rounds_missed"], summary["not_delivered"]
    if rounds_missed:
        missed = [f"{client} in {count}" for client, count in sorted(rounds_missed.items(), key=lambda item: -item[1])]
        rows.insert(2, ("clients missing", f"{listed(missed)} of {summary['rounds']} rounds"))
    rows[1:1] = _encoded_rows(summary)
    rows += _label_rows(summary)
    if not_delivered:
        rows.append(
            (
                "model not at",
                listed([f"{client} ({reason})" for client, reason in not_delivered.items()]),
            )
        )
    if summary["stopped"]:
        rows.insert(0, ("stopped early", summary["stopped"]))
    say_fields([*_score_rows(summary), *rows])


def _score_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """How good the final model is: the metric that decides, and then the others."""
    metric, final = summary["metric"], summary["final_score"]
    if final is None:
        return []
    rows = [(f"final {title_of(metric)}", f"{shown_score(metric, final)} {_which(summary)}")]
    others = {name: value for name, value in summary["scores"].items() if name not in (metric, "loss") and value is not None}
    if others:
        rows.append(("other metrics", ", ".join(f"{title_of(name)} {shown_score(name, value)}" for name, value in others.items())))
    return rows


def _which(summary: dict[str, Any]) -> str:
    """Which round is delivered, if not the last, and how good the best one is."""
    if summary["delivered_round"] != summary["rounds"]:
        return f"(of round {summary['delivered_round']}, the best of {summary['rounds']})"
    return f"(best {shown_score(summary['metric'], summary['best_score'])})"


def _encoded_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for each exchange that had a codec, and one for the snapshots; none where everything was sent as it is."""
    rows: list[tuple[str, str]] = []
    for exchange, counts in summary["exchanges"].items():
        parts = [
            f"{direction} {_against(counts[f'payload_bytes_{direction}'], counts[f'dense_bytes_{direction}'])}"
            for direction in DIRECTIONS
            if counts[f"payload_bytes_{direction}"] != counts[f"dense_bytes_{direction}"]
        ]
        if parts:
            rows.append((" " if rows else "encoded", f"{exchange}: {', '.join(parts)}"))
    if summary["snapshot_bytes_down"]:
        rows.append(("whole models down", f"{size(summary['snapshot_bytes_down'])} to clients that lacked the one before"))
    return rows


def _label_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """How many examples had no label, and which sites' labels or contributions may be wrong; nothing where there is nothing to say."""
    rows = []
    labelled, unlabelled = (sum(counts[kind] for counts in summary["examples"].values()) for kind in ("labelled", "unlabelled"))
    if unlabelled:
        rows.append(("examples", counted_examples(labelled, unlabelled)))
    doubtful = [
        f"{client} (its teacher contradicts {doubt['disagreement']:.0%}, the median site's {doubt['median']:.0%})"
        for client, doubt in summary["doubtful_labels"].items()
    ]
    if doubtful:
        rows.append(("labels in doubt", listed(doubtful)))
    outliers = [f"{client} (since round {number})" for client, number in summary["outliers"].items()]
    if outliers:
        rows.append(("outliers", f"{listed(outliers)}: contributions far longer than those of others, or far from them"))
    return rows


def _against(encoded_bytes: int, dense_bytes: int) -> str:
    ratio = f" ({dense_bytes / encoded_bytes:.1f} times less)" if encoded_bytes else ""
    return f"{size(encoded_bytes)} instead of {size(dense_bytes)}{ratio}"
