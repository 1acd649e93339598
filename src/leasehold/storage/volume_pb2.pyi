from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class StatRequest(_message.Message):
    __slots__ = ("repo",)
    REPO_FIELD_NUMBER: _ClassVar[int]
    repo: str
    def __init__(self, repo: _Optional[str] = ...) -> None: ...

class StatResponse(_message.Message):
    __slots__ = ("path", "host", "tier", "busy", "commit", "files", "bytes", "size_bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    host: str
    tier: str
    busy: str
    commit: str
    files: int
    bytes: int
    size_bytes: int
    def __init__(self, path: _Optional[str] = ..., host: _Optional[str] = ..., tier: _Optional[str] = ..., busy: _Optional[str] = ..., commit: _Optional[str] = ..., files: _Optional[int] = ..., bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class SnapshotRequest(_message.Message):
    __slots__ = ("repo", "author", "reason")
    REPO_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    repo: str
    author: str
    reason: str
    def __init__(self, repo: _Optional[str] = ..., author: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SnapshotResponse(_message.Message):
    __slots__ = ("commit", "files", "bytes", "stored")
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    commit: str
    files: int
    bytes: int
    stored: int
    def __init__(self, commit: _Optional[str] = ..., files: _Optional[int] = ..., bytes: _Optional[int] = ..., stored: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("repo", "at", "path")
    REPO_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    repo: str
    at: str
    path: bytes
    def __init__(self, repo: _Optional[str] = ..., at: _Optional[str] = ..., path: _Optional[bytes] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("path", "type", "mode", "size", "mtime_ns", "content")
    PATH_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MTIME_NS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    type: str
    mode: int
    size: int
    mtime_ns: int
    content: bytes
    def __init__(self, path: _Optional[bytes] = ..., type: _Optional[str] = ..., mode: _Optional[int] = ..., size: _Optional[int] = ..., mtime_ns: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...

class ReadRequest(_message.Message):
    __slots__ = ("repo", "at", "path", "offset")
    REPO_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    repo: str
    at: str
    path: bytes
    offset: int
    def __init__(self, repo: _Optional[str] = ..., at: _Optional[str] = ..., path: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...
