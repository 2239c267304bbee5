"""Names the events of the log, with the fields that a program finds them by.

A record of the log has one event. The name and the fields stay the same where the words of the message change.
"""

from __future__ import annotations

from typing import Final

OTHER: Final = "other"

EVENTS: Final = {
    "client_joined": "A client was admitted, for the first time or again.",
    "client_left": "A client left the run by itself.",
    "client_lost": "The stream of a client broke, the server ended it, or a newer one took its place.",
    "client_refused": "A client was not admitted; the reason is what it was told.",
    "reply_missing": "An exchange goes on without the reply of a client.",
    "run_started": "The first round is about to begin.",
    "run_resumed": "Another process goes on with the run.",
    "run_waiting": "The run waits for a while, and nothing is wrong.",
    "run_paused": "The run waits for clients.",
    "run_completed": "All rounds are done, and the final model was delivered.",
    "run_failed": "The run ended with an error.",
    "run_stopped": "A signal ended the run.",
    "round_started": "A round's clients were selected.",
    "round_done": "A round is complete, its evaluation included.",
    "round_failed": "Too few clients answered in an attempt at a round.",
    "exchange_done": "An exchange has its result.",
    "labels_in_doubt": "The labels of a site may be wrong.",
    "outlier_named": "The contributions of a client stood out in several exchanges in a row.",
    "server_unreachable": "At a client: the server does not answer, or refuses for now; it is asked again.",
    "task_failed": "At a client: a computation raised an error.",
    "task_refused": "At a client: it cannot take part in an exchange.",
    "reply_refused": "At a client: the server did not count its reply.",
    "command_failed": "The command ends with an error; `exit_code` and, where it can, `go_on`: the command that goes on.",
    "notice": "What a person is told at the terminal.",
    "stderr_line": "Something else was printed on standard error, by a library or a client process: one line of it.",
    "lines_lost": "Standard error was not read for so long that lines were lost; `lines` says how many.",
    "native_warning": "Python's `warnings` module warned.",
    OTHER: "Anything else; the message says what.",
}
"""What each event means."""

EVENT = "feddkd_event"
FIELDS = "feddkd_fields"
"""Attributes of a log record."""

IS_SHOWN = "feddkd_is_shown"
"""Attribute of a record that a person sees in other words: a handler for people leaves it out."""


def about(event: str, **fields: str | float | None) -> dict[str, object]:
    """Return the `extra` of a log call: its event, and what the event is about.

    Args:
        event: one of `EVENTS`.
        fields: as far as they fit: `run_id`, `client`, `exchange`, `round`, `attempt`, `reason`, and numbers. None is left out.
    """
    assert event in EVENTS, event
    return {EVENT: event, FIELDS: {name: value for name, value in fields.items() if value is not None}}


def about_shown(event: str, **fields: str | float | None) -> dict[str, object]:
    """Return the `extra` of a log call for programs alone: a person sees the event in other words. Otherwise as `about`."""
    return {IS_SHOWN: True, **about(event, **fields)}
