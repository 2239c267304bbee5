"""What docs/deploy.md says of an upgrade: sites first, since a site takes an older server's configuration and no newer one's."""

from __future__ import annotations

import tomllib

import pytest
import tomli_w

from feddkd.client.server_config import ServerConfig
from feddkd.config import Config
from feddkd.errors import ConfigError

TEXT = Config.load().shared_toml()
TABLES = [name for name, table in tomllib.loads(TEXT).items() if isinstance(table, dict)]


@pytest.mark.parametrize("name", TABLES)
def test_a_site_takes_the_configuration_of_a_server_that_does_not_have_a_key_yet(name: str) -> None:
    document = tomllib.loads(TEXT)
    optional = [key for key in document[name] if key != "name"]
    for key in optional:
        older = {**document, name: {other: value for other, value in document[name].items() if other != key}}
        assert ServerConfig(tomli_w.dumps(older)).config is not None


@pytest.mark.parametrize("name", TABLES)
def test_a_site_refuses_the_configuration_of_a_server_that_has_a_key_more(name: str) -> None:
    document = tomllib.loads(TEXT)
    newer = {**document, name: {**document[name], "key_of_a_newer_version": 1}}
    with pytest.raises(ConfigError, match=r"unknown key '.*key_of_a_newer_version'"):
        _ = ServerConfig(tomli_w.dumps(newer)).config
