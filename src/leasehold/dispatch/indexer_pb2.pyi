from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TaskError(_message.Message):
    __slots__ = ("msg", "type")
    MSG_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    msg: str
    type: str
    def __init__(self, msg: _Optional[str] = ..., type: _Optional[str] = ...) -> None: ...

class TaskRequest(_message.Message):
    __slots__ = ("version", "id", "type", "payload", "timeout_ms", "attempt", "credit", "more")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    version: str
    id: str
    type: str
    payload: bytes
    timeout_ms: int
    attempt: int
    credit: int
    more: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, version: _Optional[str] = ..., id: _Optional[str] = ..., type: _Optional[str] = ..., payload: _Optional[bytes] = ..., timeout_ms: _Optional[int] = ..., attempt: _Optional[int] = ..., credit: _Optional[int] = ..., more: _Optional[_Iterable[bytes]] = ..., **kwargs) -> None: ...

class TaskResponse(_message.Message):
    __slots__ = ("version", "id", "type", "order", "final", "error", "payload", "more")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    version: str
    id: str
    type: str
    order: int
    final: bool
    error: TaskError
    payload: bytes
    more: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, version: _Optional[str] = ..., id: _Optional[str] = ..., type: _Optional[str] = ..., order: _Optional[int] = ..., final: _Optional[bool] = ..., error: _Optional[_Union[TaskError, _Mapping]] = ..., payload: _Optional[bytes] = ..., more: _Optional[_Iterable[bytes]] = ...) -> None: ...
