"""A foreign client of the gRPC API: it has no proto files, and knows the services by reflection alone.

Usage: grpc_client.py ADDRESS [CA_FILE TOKEN_FILE]. Prints what held, line by line; ends with 1 at the first thing that did not.
"""

import sys
import threading
import time
import uuid

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status


def channel(arguments):
    if len(arguments) == 1:
        return grpc.insecure_channel(arguments[0])
    address, ca_file, token_file = arguments
    with open(ca_file, "rb") as file:
        tls = grpc.ssl_channel_credentials(file.read())
    with open(token_file) as file:
        token = grpc.access_token_call_credentials(file.read().strip())
    return grpc.secure_channel(address, grpc.composite_channel_credentials(tls, token))


class Api:
    """Every service that the server says it has."""

    def __init__(self, channel):
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = DescriptorPool(self.database)

    def message(self, name):
        return GetMessageClass(self.pool.FindMessageTypeByName(name))

    def call(self, service, method, /, deadline=20, **fields):
        found = self.pool.FindServiceByName(service).FindMethodByName(method)
        request = GetMessageClass(found.input_type)(**fields)
        make = self.channel.unary_stream if found.server_streaming else self.channel.unary_unary
        call = make(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(found.output_type).FromString,
        )
        return call(request, timeout=deadline)


def holds(what, condition, found=None):
    if not condition:
        print(f"does not hold: {what}: {found!r}")
        sys.exit(1)
    print(f"holds: {what}")


def reason_of(call):
    """The reason and the facts of the error that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        for detail in rpc_status.from_call(error).details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                return error.code().name, info.domain, info.reason
        return error.code().name, "", ""
    return "OK", "", ""


def services(api):
    names = set(api.database.get_services())
    wanted = {
        "basalt.v1.Admin",
        "basalt.v1.Resources",
        "basalt.v1.StorageClasses",
        "basalt.v1.Quotas",
        "basalt.v1.Pools",
        "basalt.v1.Events",
        "google.longrunning.Operations",
        "grpc.health.v1.Health",
    }
    holds("reflection names the services", wanted <= names, names)
    # The asked node may hear of a leader a moment later than the others.
    until(lambda: api.call("grpc.health.v1.Health", "Check", **{"service": "basalt.v1.Admin"}).status == 1, None)
    holds("the health service says SERVING", True)


def classes_and_quotas(api):
    classes = "basalt.v1.StorageClasses"
    qos = {"iops_max": 5000}
    made = api.call(classes, "CreateStorageClass", storage_class_id="fast", storage_class={"qos": qos})
    holds("a class is created", made.name == "storageClasses/fast" and made.qos.iops_max == 5000, made)
    mask = {"paths": ["qos.iops_burst", "description"]}
    wanted = {"name": made.name, "description": "quick", "qos": {"iops_burst": 9000}, "etag": made.etag}
    after = api.call(classes, "UpdateStorageClass", storage_class=wanted, update_mask=mask)
    kept = (after.qos.iops_max, after.qos.iops_burst, after.description) == (5000, 9000, "quick")
    holds("a field mask changes what it names and nothing else", kept, after)
    stale = reason_of(lambda: api.call(classes, "UpdateStorageClass", storage_class=wanted, update_mask=mask))
    holds("a stale etag is ABORTED", stale == ("ABORTED", "basalt", "ETAG_MISMATCH"), stale)
    mask = {"paths": ["colour"]}
    wrong = reason_of(lambda: api.call(classes, "UpdateStorageClass", storage_class=wanted, update_mask=mask))
    holds("an unknown path is INVALID_ARGUMENT", wrong == ("INVALID_ARGUMENT", "basalt", "INVALID_FIELD"), wrong)
    quota = {"selector": {"team": "a"}, "max_volumes": 3}
    api.call("basalt.v1.Quotas", "CreateQuota", quota_id="team-a", quota=quota)


def volumes(api):
    admin = "basalt.v1.Admin"
    request = dict(size_bytes=1 << 26, labels={"team": "a"}, storage_class="storageClasses/fast")
    once = dict(request, volume_id="a1", request_id=str(uuid.uuid4()))
    first = api.call(admin, "CreateVolume", **once)
    again = api.call(admin, "CreateVolume", **once)
    holds("a request id takes effect once", first.id == again.id and first == again, (first, again))
    holds("the bounds of its class hold for a volume", first.effective_qos.iops_max == 5000, first)
    other = reason_of(lambda: api.call(admin, "CreateVolume", **dict(once, size_bytes=1 << 27)))
    reused = ("INVALID_ARGUMENT", "basalt", "REQUEST_ID_REUSED")
    holds("the same id with another body is refused", other == reused, other)
    dry = api.call(admin, "CreateVolume", validate_only=True, volume_id="dry", **request)
    gone = reason_of(lambda: api.call(admin, "GetVolume", name=dry.name))
    holds("what is only validated is not there", gone == ("NOT_FOUND", "basalt", "VOLUME_NOT_FOUND"), gone)
    for name in ("a2", "a3"):
        api.call(admin, "CreateVolume", **dict(request, volume_id=name, size_bytes=1 << 27))
    full = reason_of(lambda: api.call(admin, "CreateVolume", **dict(request, volume_id="a4")))
    holds("a quota holds", full == ("RESOURCE_EXHAUSTED", "basalt", "QUOTA_EXCEEDED"), full)
    names, token = [], ""
    filtered = dict(filter='labels.team = "a" AND size_bytes > 67108864', order_by="name desc", page_size=1)
    while True:
        page = api.call(admin, "ListVolumes", page_token=token, **filtered)
        names += [volume.name for volume in page.volumes]
        token = page.next_page_token
        if not token:
            break
        wrong = reason_of(lambda: api.call(admin, "ListVolumes", page_token=token, page_size=1))
        holds("a token belongs to its list", wrong[0] == "INVALID_ARGUMENT", wrong)
    holds("a filter, an order and pages", names == ["volumes/a3", "volumes/a2"], names)


def watch(api):
    """What is told of snapshots and their operations while they are taken and deleted."""
    told, synced = [], threading.Event()
    stream = api.call("basalt.v1.Resources", "Watch", deadline=60, name="volumes/a1")

    def take():
        try:
            for answer in stream:
                kind = answer.WhichOneof("what")
                if kind == "synced":
                    synced.set()
                told.append((kind, answer))
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.CANCELLED:
                told.append(("failed", error))

    threading.Thread(target=take, daemon=True).start()
    holds("a watch tells all that is there", synced.wait(20), told)
    before = [kind for kind, _ in told]
    holds("what is there comes before what changes", before == ["changed", "synced"], told)
    admin = "basalt.v1.Admin"
    api.call(admin, "CreateSnapshot", parent="volumes/a1", snapshot_id="monday", wait_ms=10000)
    api.call(admin, "DeleteSnapshot", name="volumes/a1/snapshots/monday", wait_ms=10000)
    until(lambda: any(kind == "deleted" and a.deleted.endswith("/monday") for kind, a in told), told)
    states = [a.changed.snapshot.state for kind, a in told if kind == "changed" and a.changed.HasField("snapshot")]
    holds("a watch tells states in their order", states == sorted(states), states)
    stream.cancel()
    old = api.call("basalt.v1.Resources", "Watch", deadline=20, name="volumes/a1", from_revision=told[-1][1].revision)
    api.call(admin, "UpdateVolume", volume={"name": "volumes/a1", "labels": {"team": "a", "env": "dev"}})
    next_one = next(iter(old))
    holds("a watch goes on where it stopped", next_one.changed.volume.labels["env"] == "dev", next_one)
    old.cancel()


def until(condition, found):
    deadline = time.monotonic() + 20
    while not condition():
        holds("in time", time.monotonic() < deadline, found)
        time.sleep(0.02)


def operations(api):
    service = "google.longrunning.Operations"
    deleted = 'metadata.verb = "delete" AND metadata.target = "volumes/a1/snapshots/monday"'
    page = api.call(service, "ListOperations", filter=deleted)
    holds("an operation is kept when it has ended", len(page.operations) == 1, page)
    waited = api.call(service, "WaitOperation", name=page.operations[0].name, timeout={"seconds": 10})
    metadata = api.message("basalt.v1.OperationMetadata")()
    holds("it has its metadata", waited.metadata.Unpack(metadata) and metadata.verb == "delete", waited)
    holds("it has a response", waited.done and waited.WhichOneof("result") == "response", waited)
    none = reason_of(lambda: api.call(service, "GetOperation", name="operations/1"))
    holds("there is no such operation", none == ("NOT_FOUND", "basalt", "OPERATION_NOT_FOUND"), none)


def documents(api):
    wanted = [
        {"storage_class": {"name": "storageClasses/slow", "qos": {"iops_max": 100}}},
        {"volume": {"name": "volumes/b1", "size_bytes": 1 << 26, "storage_class": "storageClasses/slow"}},
        {"volume": {"name": "volumes/a1", "size_bytes": 4096}},
    ]
    actions = lambda answer: [applied.action for applied in answer.applied]
    plan = api.call("basalt.v1.Resources", "Apply", resources=wanted, plan=True)
    gone = reason_of(lambda: api.call("basalt.v1.Admin", "GetVolume", name="volumes/b1"))
    holds("a plan changes nothing", gone[0] == "NOT_FOUND", gone)
    done = api.call("basalt.v1.Resources", "Apply", resources=wanted)
    holds("what is done is what was planned", plan == done and actions(done) == [2, 2, 4], (plan, done))
    holds("what is refused says why", done.applied[2].reason == "VOLUME_SHRINKS", done)
    again = api.call("basalt.v1.Resources", "Apply", resources=wanted)
    holds("the same again changes nothing", actions(again) == [1, 1, 4], again)


def events(api):
    page = api.call("basalt.v1.Events", "ListEvents", filter='reason = VOLUME_CREATED', page_size=2)
    targets = [event.target for event in page.events]
    holds("events come newest first", targets == ["volumes/b1", "volumes/a3"], page)
    pool = api.call("basalt.v1.Pools", "GetPool", name="pools/default")
    holds("the pool counts its volumes", pool.provisioned_bytes == (1 << 28) + (1 << 27), pool)


def main():
    api = Api(channel(sys.argv[1:]))
    for part in (services, classes_and_quotas, volumes, watch, operations, documents, events):
        part(api)


main()
