"""A real deployment, told to a real OTLP/HTTP receiver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from leasehold.model.market import LeaseId
from leasehold.model.spans import trace_id


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """The address of a collector, and the resource spans it was sent."""
    received: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            received.extend(ExportTraceServiceRequest.FromString(body).resource_spans)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Nothing is said."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
    server.shutdown()
    serving.join()
    server.server_close()


def test_a_deployment_is_one_trace(collector: tuple[str, list[Any]]) -> None:
    """From the order to the first byte, with the times of the timeline, under the lease's own id.

    What is still queued is sent when the provider ends, so nothing has to be waited for."""
    endpoint, received = collector
    done = subprocess.run(
        [sys.executable, "-m", "leasehold", "demo", "--once", "--json"],
        env={**os.environ, "LEASEHOLD_TRACES__ENDPOINT": endpoint},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    spans = [s for told in received for scope in told.scope_spans for s in scope.spans]
    (root,) = [span for span in spans if not span.parent_span_id]
    assert root.name == "order"
    attributes = {a.key: a.value.string_value for a in root.attributes}
    lease = LeaseId.parse(attributes["leasehold.lease"])
    assert {span.trace_id for span in spans} == {trace_id(lease).to_bytes(16, "big")}
    steps = [span for span in spans if span.parent_span_id]
    assert {span.parent_span_id for span in steps} == {root.span_id}
    names = [span.name for span in sorted(steps, key=lambda s: s.end_time_unix_nano)]
    assert names[0] == "bid"
    assert set(names[1:]) - {"accept"} >= {"lease", "manifest"}  # either may come first
    assert names[-4:] == ["image", "volume", "run", "first byte"]
    told = {step["name"]: step for step in result["timeline"]}
    assert root.end_time_unix_nano / 1e9 == pytest.approx(told["healthy"]["at"], abs=0.002)
    whole = (root.end_time_unix_nano - root.start_time_unix_nano) / 1e6
    assert 0 < whole <= told["healthy"]["ms"]  # the tenant's clock began before the order was seen
    resource = {a.key: a.value.string_value for a in received[0].resource.attributes}
    assert resource["service.name"] == "leasehold"
    assert resource["service.instance.id"] == lease.provider
