"""Processes that are forked from one that has imported everything: they start in milliseconds instead of seconds."""

from __future__ import annotations

import multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "feddkd.cli",
        "feddkd.client.own_site",
        "feddkd.client.process",
        "feddkd.engines.grpc",
        "feddkd.engines.simulation",
        "feddkd.scheduler.rounds",
        "torch._dynamo",
    ]
)
