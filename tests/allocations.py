"""Counts the memory that torch holds, from its own allocations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.profiler import ProfilerActivity, profile, record_function

_T = TypeVar("_T")


def peak_bytes(prepare: Callable[[], _T], compute: Callable[[_T], object]) -> int:
    """The most memory that torch holds at a time during `compute`, above what it held when that began."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        prepared = prepare()
        with record_function("compute"):
            result = compute(prepared)
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    (begin,) = (event.start_ns() for event in events if event.name() == "compute")
    held = rest = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":  # an allocation, or with a negative size its end
            held += event.nbytes()
            rest, peak = (held, held) if event.start_ns() < begin else (rest, max(peak, held))
    del result
    return peak - rest
