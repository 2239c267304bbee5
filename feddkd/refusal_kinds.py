"""Says why a server refuses calls, in a few kinds: for metrics, the log and the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Kind = Literal["identity", "token", "certificate", "session", "taken", "full", "version", "invalid"]

KINDS: Mapping[Kind, str] = {
    "identity": "the id may not join, or the certificate is for another one",
    "token": "the join token",
    "certificate": "it is revoked, does not hold now, or cannot be read",
    "session": "a stream of no session",
    "taken": "another process has the id",
    "full": "there is no room",
    "version": "of the protocol",
    "invalid": "anything else",
}
"""All kinds, and what each means."""
