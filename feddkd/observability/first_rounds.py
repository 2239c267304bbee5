"""Reads the first rounds of a record as the record of a shorter run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from feddkd.config import MainMetric
from feddkd.exchange import DELIVER
from feddkd.observability.record_lines import ExchangeLine, RoundLine, Summary
from feddkd.observability.run_folder import RunFolder


def first_rounds(run: RunFolder, rounds: int) -> RunFolder:
    """Return the record that the run would have left had it ended after so many rounds.

    The delivery of the final model is part of it, at what the longer run paid for it. The hash of
    the model is not: the model after these rounds was not kept.

    Args:
        run: a finished run of an algorithm whose rounds do not depend on their number.
        rounds: at most as many as the run has.
    """
    if rounds == len(run.rounds):
        return run
    kept = [line for line in run.exchanges if line.exchange != DELIVER and line.round <= rounds]
    delivered = [line.model_copy(update={"round": rounds}) for line in run.exchanges if line.exchange == DELIVER]
    lines = [*run.rounds[: rounds - 1], _with_delivery(run.rounds[rounds - 1], delivered)]
    return replace(
        run,
        config=run.config.model_copy(update={"rounds": rounds}),
        rounds=lines,
        exchanges=[*kept, *delivered],
        summary=run.summary and _summary(run.summary, lines, run.metric),
    )


def _with_delivery(last: RoundLine, delivered: Sequence[ExchangeLine]) -> RoundLine:
    """The last round, whose bytes include the delivery."""
    down, up = sum(line.wire_bytes_down for line in delivered), sum(line.wire_bytes_up for line in delivered)
    return last.model_copy(
        update={
            "wire_bytes_down": last.wire_bytes_down + down,
            "wire_bytes_up": last.wire_bytes_up + up,
            "cumulative_wire_bytes": last.cumulative_wire_bytes + down + up,
        }
    )


def _summary(whole: Summary, lines: Sequence[RoundLine], metric: MainMetric) -> Summary:
    """What the rounds add up to, beside what does not depend on their number."""
    accuracy = [line.accuracy for line in lines if line.accuracy is not None]
    scores = [score for line in lines if (score := line.score(metric.name)) is not None]
    return Summary(
        algorithm=whole.algorithm,
        rounds=len(lines),
        final_accuracy=accuracy[-1] if accuracy else None,
        best_accuracy=max(accuracy, default=None),
        metric=metric.name,
        final_score=scores[-1] if scores else None,
        best_score=metric.best(scores),
        scores=next((line.scores for line in reversed(lines) if line.scores), {}),
        total_wire_bytes_down=sum(line.wire_bytes_down for line in lines) + whole.other_wire_bytes_down,
        total_wire_bytes_up=sum(line.wire_bytes_up for line in lines) + whole.other_wire_bytes_up,
        other_wire_bytes_down=whole.other_wire_bytes_down,
        other_wire_bytes_up=whole.other_wire_bytes_up,
        gradient_evaluations=sum(line.gradient_evaluations or 0 for line in lines),
        seconds=sum(line.seconds for line in lines),
        seed=whole.seed,
        examples=whole.examples,
        versions=whole.versions,
        cpu_capability=whole.cpu_capability,
    )
