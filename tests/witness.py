"""What a process sees, written down as it happens: a line of JSON each, which outlives a `kill -9`.

{"saw": "work", "exchange": [run, round, attempt, name, step]}
{"saw": "computed", "exchange": [...], "sha256": "..."}
{"saw": "receipt", "exchange": [...], "verdict": "OK"}
{"saw": "farewell", "completed": true, "reason": "..."}
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feddkd.client import agent
from feddkd.client.worker import Worker
from feddkd.exchange import ExchangeId, Reply, Task
from feddkd.failpoints import Plan
from feddkd.transport.messages import id_from_message
from feddkd.transport.pb import federation_pb2 as pb

Tell = Callable[..., None]


def watch(history: Path, *, visits: bool) -> None:
    """Write down what this process sees, until it ends.

    Args:
        visits: also the failpoints that it comes to.
    """
    descriptor = os.open(history, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def tell(saw: str, **what: object) -> None:
        os.write(descriptor, (json.dumps({"saw": saw, **what}) + "\n").encode())

    watched: list[tuple[Any, str, Callable[..., Any]]] = [
        (agent, "parse_response", _telling_of_messages),
        (Worker, "carry_out", _telling_of_replies),
    ]
    if visits:
        watched.append((Plan, "visit", _telling_of_failpoints))
    for owner, name, telling in watched:
        setattr(owner, name, telling(getattr(owner, name), tell))


def _telling_of_messages(parse: Callable[[bytes], pb.ParticipateResponse], tell: Tell) -> Callable[[bytes], pb.ParticipateResponse]:
    def parse_and_tell(message: bytes) -> pb.ParticipateResponse:
        response = parse(message)
        match response.WhichOneof("message"):
            case "work":
                tell("work", exchange=_key(id_from_message(response.work.id)))
            case "receipt":
                verdict = pb.Verdict.Name(response.receipt.verdict).removeprefix("VERDICT_")
                tell("receipt", exchange=_key(id_from_message(response.receipt.id)), verdict=verdict)
            case "farewell":
                tell("farewell", completed=response.farewell.completed, reason=response.farewell.reason)
        return response

    return parse_and_tell


def _telling_of_replies(carry_out: Callable[[Worker, Task], Reply], tell: Tell) -> Callable[[Worker, Task], Reply]:
    def carry_out_and_tell(worker: Worker, task: Task) -> Reply:
        reply = carry_out(worker, task)
        sha256 = reply.contribution.sha256() if reply.contribution is not None else None
        tell("computed", exchange=_key(task.id), sha256=sha256)
        return reply

    return carry_out_and_tell


def _telling_of_failpoints(visit: Callable[[Plan, str], None], tell: Tell) -> Callable[[Plan, str], None]:
    def tell_and_visit(plan: Plan, name: str) -> None:
        tell("failpoint", name=name)
        visit(plan, name)

    return tell_and_visit


def _key(exchange: ExchangeId) -> list[Any]:
    return [exchange.run_id, exchange.round, exchange.attempt, exchange.name, exchange.step]
