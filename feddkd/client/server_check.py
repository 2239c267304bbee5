"""Decides whether a client works for a server: by the run, the configuration and the model of its manifest."""

from __future__ import annotations

from feddkd.client.fence import Fence
from feddkd.client.server_config import ServerConfig
from feddkd.client.state_dir import StateDir
from feddkd.errors import ProtocolError, RefusedError, SchemaError, UnreachableError
from feddkd.tensors import Schema
from feddkd.text import printable
from feddkd.transport.payload import schema_from_message
from feddkd.transport.pb import federation_pb2 as pb


class ServerCheck:
    """Compares every manifest with the client's settings and model, and with the servers that it has seen."""

    def __init__(self, address: str, config: ServerConfig | None, schemas: tuple[Schema, Schema], state: StateDir | None = None) -> None:
        """Prepare to check.

        Args:
            address: of the server, for messages.
            config: what the client was built from; None takes what the server runs first.
            schemas: of what the client computes with: the model, and the constants.
            state: where it is kept which servers were seen; by default in memory.

        Raises:
            StateError: the state directory cannot be read.
        """
        self._address = address
        self._config = config
        self._model, self._constants = schemas
        self._fence = Fence(state)

    def check(self, manifest: pb.Manifest) -> None:
        """Refuse to work for a server that was replaced, or to compute with settings that are not the server's.

        Raises:
            UnreachableError: another server has taken over the run.
            RefusedError: the settings are others.
        """
        try:
            self._fence.admit(manifest.run_id, manifest.incarnation)
        except UnreachableError as error:
            raise UnreachableError(f"server {self._address}: {error}") from None
        if self._config is None:
            self._config = ServerConfig(manifest.config_toml)
        difference = self._config.difference(manifest.config_toml)
        if difference is not None:
            raise RefusedError(f"server {self._address}: it runs another configuration now ({difference}); start this client again")
        try:
            _check_model(schema_from_message(manifest.model), self._model)
            schema_from_message(manifest.constants).check_same(self._constants)
        except ProtocolError as error:
            raise RefusedError(f"this client's model is not the server's: {printable(str(error))}") from None


def _check_model(servers: Schema, own: Schema) -> None:
    """Compare a client's model with the server's. Raises SchemaError for other tensors, or others that are trained."""
    servers.check_same(own)
    for spec in own.specs:
        if spec.trainable != servers.by_name[spec.name].trainable:
            here, there = ("trained", "not") if spec.trainable else ("not trained", "it is")
            raise SchemaError(f"tensor {spec.name!r} is {here} here, and {there} at the server")
