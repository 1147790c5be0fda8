"""A collector of OpenTelemetry traces that is not of this project: gRPC by Python, messages by the opentelemetry-proto package.

Usage: collector.py PORT FILE. Writes each span that it is sent as a JSON object on a line of FILE.
"""

import json
import sys
import threading
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2


def value(any_value):
    kind = any_value.WhichOneof("value")
    return getattr(any_value, kind) if kind else None


def attributes(pairs):
    return {pair.key: str(value(pair.value)) for pair in pairs}


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, file):
        self.file = file
        self.lock = threading.Lock()

    def Export(self, request, context):
        lines = []
        for of_resource in request.resource_spans:
            resource = attributes(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    lines.append({
                        "name": span.name,
                        "trace": span.trace_id.hex(),
                        "span": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "kind": trace_pb2.Span.SpanKind.Name(span.kind),
                        "start": span.start_time_unix_nano,
                        "end": span.end_time_unix_nano,
                        "error": span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
                        "attributes": attributes(span.attributes),
                        "events": [event.name for event in span.events],
                        "links": [link.trace_id.hex() for link in span.links],
                        "resource": resource,
                    })
        with self.lock:
            for line in lines:
                self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        return trace_service_pb2.ExportTraceServiceResponse()


def main(port, path):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    with open(path, "a") as file:
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(file), server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        server.wait_for_termination()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
