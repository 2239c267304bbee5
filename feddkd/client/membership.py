"""Defines the identity under which a client takes part."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from feddkd.client.held import Held
from feddkd.client.recent import Recent
from feddkd.client.server_config import ServerConfig
from feddkd.client.state_dir import StateDir
from feddkd.client.watch import ClientWatch


@dataclass(frozen=True, slots=True)
class Membership:
    """What a client shows and expects when it joins.

    Attributes:
        instance_id: a secret that is the same in every process of this client; by it the server
            knows a restarted process. By default one that only this object has.
        config: the configuration that the worker was built from; None takes what the server runs
            at the first join.
        state: where the client keeps what its next process needs; None keeps it in memory.
        computes_with: names the worker's own configuration and data; what an earlier process computed
            with other ones is not sent.
        outlives_pause: wait for the next server when this one pauses the run, instead of parting.
        class_names: what it tells of the names of its classes; empty for nothing.
        in_memory: the clients of this process whose models for the next steps are in memory; None for all.
        join_token: lets the client in at its first join, where the server asks for that; a secret.
        watch: hears of the connection.
        on_joined: called with the id of the run each time that the server has taken the client in.
    """

    instance_id: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    config: ServerConfig | None = None
    state: StateDir | None = None
    computes_with: str = ""
    outlives_pause: bool = True
    class_names: tuple[str, ...] = ()
    in_memory: Recent[str, Held] | None = None
    on_joined: Callable[[str], None] = lambda _: None
    watch: ClientWatch = field(default_factory=ClientWatch)
    join_token: str = field(default="", repr=False)

    def take_out(self, client: str, held: Held) -> None:
        """Take in that a client begins an exchange: others may have to make room."""
        if self.in_memory is not None and self.state is not None:
            self.in_memory.use(client, lambda: held)
