"""Answers a scrape of Prometheus."""

from __future__ import annotations

import gzip
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from feddkd.observability.web import Request, Response

GZIP_LEVEL = 1
"""A scrape is small, and the run needs the time."""


def scrape(registry: CollectorRegistry, request: Request) -> Response:
    """Return all metrics, or those that `name[]` names, in the format and the encoding that are asked for."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    names = request.query.get("name[]")
    body = encode(registry.restricted_registry(names) if names else registry)
    if gzip_accepted(request.headers.get("accept-encoding", "")):
        return Response(HTTPStatus.OK, content_type, gzip.compress(body, GZIP_LEVEL), {"Content-Encoding": "gzip"})
    return Response(HTTPStatus.OK, content_type, body)
