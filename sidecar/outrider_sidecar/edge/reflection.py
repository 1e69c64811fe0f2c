"""What reflection tells of the services a sidecar serves itself: the Agent API, its own service, health, reflection.

Always holds: answers are made of a pool of our own, so that what else is loaded in the process is not shown; a file
comes with all it imports, itself first. Loaded by the first reflection call, because it loads protobuf.

Deliberately not here: services of agents (calls that name an agent reach the agent's own reflection), extensions
(there are none), streams and framing (`own_services`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from google.protobuf import duration_pb2, message_factory, struct_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from outrider_sidecar.core import errors
from outrider_sidecar.edge.own_services import SERVICES
from outrider_sidecar.payloads import native_contract, sidecar_contract

HEALTH_FILE = "grpc/health/v1/health.proto"
_TYPES = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "int32": FieldDescriptorProto.TYPE_INT32,
}
_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


@lru_cache(maxsize=64)
def answer(package: str, message: bytes) -> bytes:
    """The ServerReflectionResponse to a ServerReflectionRequest of this version (`grpc.reflection.v1`, say)."""
    request_type, response_type = _messages(package)
    try:
        request = request_type.FromString(message)
    except DecodeError:
        request = request_type()
    response = response_type(valid_host=request.host, original_request=request)
    kind = request.WhichOneof("message_request")
    asked: Any = getattr(request, kind) if kind else ""
    try:
        if kind == "list_services":
            for name in SERVICES:
                response.list_services_response.service.add(name=name)
        elif kind == "file_by_filename":
            _put_files(response, _pool().FindFileByName(asked))
        elif kind == "file_containing_symbol":
            _put_files(response, _pool().FindFileContainingSymbol(asked))
        elif kind == "all_extension_numbers_of_type":
            response.all_extension_numbers_response.base_type_name = _pool().FindMessageTypeByName(asked).full_name
        elif kind == "file_containing_extension":
            raise KeyError("there are no extensions here")
        else:
            response.error_response.error_code = errors.INVALID_ARGUMENT
            response.error_response.error_message = "the request asks for nothing that is known here"
    except KeyError:
        response.error_response.error_code = errors.NOT_FOUND
        response.error_response.error_message = f"{str(asked).strip()[:200]!r} is not known to this sidecar"
    return response.SerializeToString()


def _put_files(response: Any, first: FileDescriptor) -> None:
    """A file and all it imports, each once."""
    files, seen = [first], {first.name}
    for file in files:
        response.file_descriptor_response.file_descriptor_proto.append(file.serialized_pb)
        for imported in file.dependencies:
            if imported.name not in seen:
                seen.add(imported.name)
                files.append(imported)


@lru_cache(maxsize=1)
def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    for imported in (duration_pb2, struct_pb2):
        pool.AddSerializedFile(imported.DESCRIPTOR.serialized_pb)
    for contract in (native_contract(), *sidecar_contract()):
        pool.AddSerializedFile(contract)
    for file in (_health_file(), _reflection_file("grpc.reflection.v1"), _reflection_file("grpc.reflection.v1alpha")):
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@lru_cache(maxsize=2)
def _messages(package: str) -> tuple[Any, Any]:
    """The request's and the response's class."""
    names = (f"{package}.ServerReflectionRequest", f"{package}.ServerReflectionResponse")
    request, response = [message_factory.GetMessageClass(_pool().FindMessageTypeByName(name)) for name in names]
    return request, response


# -- the files, as github.com/grpc/grpc-proto has them -----------------------------------------------------------------


def _health_file() -> FileDescriptorProto:
    file = FileDescriptorProto(name=HEALTH_FILE, package="grpc.health.v1", syntax="proto3")
    _message(file, "HealthCheckRequest", "service:1:string")
    response = _message(file, "HealthCheckResponse")
    response.field.add(
        name="status",
        number=1,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
        type=FieldDescriptorProto.TYPE_ENUM,
        type_name=".grpc.health.v1.HealthCheckResponse.ServingStatus",
    )
    enum = response.enum_type.add(name="ServingStatus")
    for number, name in enumerate(_STATUSES):
        enum.value.add(name=name, number=number)
    _message(file, "HealthListRequest")
    listed = _message(file, "HealthListResponse", "statuses:1:*HealthListResponse.StatusesEntry")
    entry = listed.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    _fields(entry, "grpc.health.v1", "key:1:string", "value:2:HealthCheckResponse")
    service = file.service.add(name="Health")
    for method, of in (("Check", "Check"), ("List", "List"), ("Watch", "Check")):
        service.method.add(
            name=method,
            input_type=f".grpc.health.v1.Health{of}Request",
            output_type=f".grpc.health.v1.Health{of}Response",
            server_streaming=True if method == "Watch" else None,
        )
    return file


def _reflection_file(package: str) -> FileDescriptorProto:
    file = FileDescriptorProto(name=f"{package.replace('.', '/')}/reflection.proto", package=package, syntax="proto3")
    request = _message(
        file,
        "ServerReflectionRequest",
        "host:1:string",
        "file_by_filename:3:|string",
        "file_containing_symbol:4:|string",
        "file_containing_extension:5:|ExtensionRequest",
        "all_extension_numbers_of_type:6:|string",
        "list_services:7:|string",
    )
    request.oneof_decl.add(name="message_request")
    _message(file, "ExtensionRequest", "containing_type:1:string", "extension_number:2:int32")
    response = _message(
        file,
        "ServerReflectionResponse",
        "valid_host:1:string",
        "original_request:2:ServerReflectionRequest",
        "file_descriptor_response:4:|FileDescriptorResponse",
        "all_extension_numbers_response:5:|ExtensionNumberResponse",
        "list_services_response:6:|ListServiceResponse",
        "error_response:7:|ErrorResponse",
    )
    response.oneof_decl.add(name="message_response")
    _message(file, "FileDescriptorResponse", "file_descriptor_proto:1:*bytes")
    _message(file, "ExtensionNumberResponse", "base_type_name:1:string", "extension_number:2:*int32")
    _message(file, "ListServiceResponse", "service:1:*ServiceResponse")
    _message(file, "ServiceResponse", "name:1:string")
    _message(file, "ErrorResponse", "error_code:1:int32", "error_message:2:string")
    file.service.add(name="ServerReflection").method.add(
        name="ServerReflectionInfo",
        input_type=f".{package}.ServerReflectionRequest",
        output_type=f".{package}.ServerReflectionResponse",
        client_streaming=True,
        server_streaming=True,
    )
    return file


def _message(file: FileDescriptorProto, name: str, *fields: str) -> DescriptorProto:
    message = file.message_type.add(name=name)
    _fields(message, file.package, *fields)
    return message


def _fields(message: DescriptorProto, package: str, *fields: str) -> None:
    """Fields written `name:number:type`; `*` before the type: repeated; `|`: one of the message's only oneof."""
    for text in fields:
        name, number, kind = text.split(":")
        repeated = kind.startswith("*")
        field = message.field.add(name=name, number=int(number))
        field.label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
        if kind.startswith("|"):
            field.oneof_index = 0
        plain = kind.lstrip("*|")
        field.type = _TYPES.get(plain, FieldDescriptorProto.TYPE_MESSAGE)
        if plain not in _TYPES:
            field.type_name = f".{package}.{plain}"
