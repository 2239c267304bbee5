"""Takes part in one run of a server, or in one after the other, and tells a person at the site."""

from __future__ import annotations

import logging
from typing import Any

from feddkd.algorithms.own_teacher import OWN_TEACHER
from feddkd.cli.output import LINE_LETTERS, error_console, is_said_in_log, note
from feddkd.cli.site_progress import SiteProgress, in_words
from feddkd.client.membership import Membership
from feddkd.client.own_site import fetch_server_config, site_config, site_worker
from feddkd.client.preflight import check_site, check_writable
from feddkd.client.process import take_part
from feddkd.client.server_config import ServerConfig
from feddkd.client.state_dir import StateDir
from feddkd.client.watch import ClientWatch
from feddkd.client.worker import FINAL_MODEL, Worker
from feddkd.data.class_names import told_names
from feddkd.errors import ConfigError, RefusedError, RunError
from feddkd.log_events import about_shown
from feddkd.text import printable
from feddkd.transport.tls import ClientTls

logger = logging.getLogger(__name__)


class StandingSite:
    """A site whose process may outlive a run."""

    def __init__(
        self,
        address: str,
        state: StateDir,
        own: dict[str, Any],
        partition_index: int | None,
        tls: ClientTls | None,
        retry_for_s: float | None,
        join_token: str = "",
        watch: ClientWatch | None = None,
    ) -> None:
        """Prepare; the server is not asked yet.

        Args:
            address: HOST:PORT of the server.
            own: the site's own tables.
            partition_index: the slice of a shared data set; None for all of the site's data.
            retry_for_s: seconds to keep trying a server that does not answer; None for ever.
            join_token: lets the site in at its first join; empty where the server asks for none.
            watch: hears of connection and work.
        """
        self._address = address
        self._state = state
        self._own = own
        self._partition_index = partition_index
        self._tls = tls
        self._retry_for_s = retry_for_s
        self._join_token = join_token
        self._watch = watch or ClientWatch()
        self._has_joined = False

    def take_part(self) -> None:
        """Take part in the run that the server has.

        Raises:
            ConfigError: the site's data or model, or the server's configuration, cannot be used.
            TransportError: the server cannot be reached, or refuses this site.
            RunError: the run ended early, or the site has no final model.
        """
        self._take_part_in(self._next_run(""))

    def take_part_for_ever(self) -> None:
        """Take part in one run after the other; each is checked before it is joined.

        What is wrong with a later run, or ends it, is said, and the site waits for the next one.

        Raises:
            FedDKDError: as `take_part`, before the first run is joined, and where the server cannot be reached.
        """
        over = ""
        while True:
            run = self._next_run(over)
            try:
                self._take_part_in(run)
            except (ConfigError, RefusedError, RunError) as error:
                if not self._has_joined:
                    raise
                self._tell(str(error))
            over = run.run_id
            self._tell("waiting for the next run of the server")

    def _next_run(self, over: str) -> ServerConfig:
        return fetch_server_config(self._address, self._tls, self._retry_for_s, over)

    def _take_part_in(self, run: ServerConfig) -> None:
        """Take part in one run, after a check of what it asks of this site."""
        client_id = self._state.client_id
        worker = site_worker(site_config(run.config, self._own), self._state, self._partition_index)
        check_site(worker.site)
        check_writable(self._state.path)
        self._tell(_examples(worker))
        self._watch.has_examples(worker.counts)
        own_teacher = worker.site.own_teacher
        progress = SiteProgress(worker, run.config, self._tell, teaches=own_teacher is not None, watch=self._watch)
        if own_teacher is not None:
            self._tell(f"trains {own_teacher.name}, which stays here, and teaches {run.config.model.name} with it")

        def joined(run_id: str) -> None:
            self._has_joined = True
            progress.joined(run_id)

        membership = Membership(
            self._state.instance_id,
            run,
            self._state,
            worker.fingerprint,
            class_names=told_names(worker.class_names, worker.site.config.data.class_names),
            on_joined=joined,
            join_token=self._join_token,
            watch=self._watch,
        )
        memberships = {client_id: membership}
        farewell = take_part(self._address, {client_id: progress}, tls=self._tls, retry_for_s=self._retry_for_s, memberships=memberships)
        if not farewell.completed:
            raise RunError(f"the run ended early: {farewell.reason}")
        if not worker.has_final_model(farewell.run_id):
            raise RunError(f"{farewell.reason}, but this client did not get or could not keep the final model")
        self._tell(f"{farewell.reason}{in_words(progress.final, progress.metric, '; final ')}")
        if progress.model_sha256:
            self._tell(f"model sha256 {progress.model_sha256}")
        self._tell(f"the final model is in {self._state.path / FINAL_MODEL}.safetensors")
        if self._state.label(OWN_TEACHER) == farewell.run_id:
            self._tell(f"the site's own network is in {self._state.path / OWN_TEACHER}.safetensors")

    def _tell(self, line: str) -> None:
        """Say a line to a person at the terminal, and to the log file."""
        shown = printable(f"{self._state.client_id}: {line}", LINE_LETTERS)
        if not is_said_in_log():
            note(error_console(), shown)
        logger.info("%s", shown, extra=about_shown("notice", client=self._state.client_id))


def _examples(worker: Worker) -> str:
    """Say how many examples a site has for what."""
    counts = worker.counts
    without = f", {counts.unlabelled} without a label" if counts.unlabelled else ""
    return f"{counts.labelled} examples to train on{without}, {len(worker.site.held_out)} held out"
