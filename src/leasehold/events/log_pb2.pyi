from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Entity(_message.Message):
    __slots__ = ("kind", "id")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    kind: str
    id: str
    def __init__(self, kind: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class NewEvent(_message.Message):
    __slots__ = ("id", "type", "data")
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    id: str
    type: str
    data: bytes
    def __init__(self, id: _Optional[str] = ..., type: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("seq", "entity", "id", "parent", "type", "data", "at")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    seq: int
    entity: Entity
    id: str
    parent: str
    type: str
    data: bytes
    at: float
    def __init__(self, seq: _Optional[int] = ..., entity: _Optional[_Union[Entity, _Mapping]] = ..., id: _Optional[str] = ..., parent: _Optional[str] = ..., type: _Optional[str] = ..., data: _Optional[bytes] = ..., at: _Optional[float] = ...) -> None: ...

class Timer(_message.Message):
    __slots__ = ("name", "due_at", "was")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DUE_AT_FIELD_NUMBER: _ClassVar[int]
    WAS_FIELD_NUMBER: _ClassVar[int]
    name: str
    due_at: float
    was: float
    def __init__(self, name: _Optional[str] = ..., due_at: _Optional[float] = ..., was: _Optional[float] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("activity", "tail", "state", "seq")
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    activity: str
    tail: str
    state: bytes
    seq: int
    def __init__(self, activity: _Optional[str] = ..., tail: _Optional[str] = ..., state: _Optional[bytes] = ..., seq: _Optional[int] = ...) -> None: ...

class AppendRequest(_message.Message):
    __slots__ = ("entity", "parent", "events", "timers", "checkpoint", "epoch")
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    TIMERS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    entity: Entity
    parent: str
    events: _containers.RepeatedCompositeFieldContainer[NewEvent]
    timers: _containers.RepeatedCompositeFieldContainer[Timer]
    checkpoint: Checkpoint
    epoch: int
    def __init__(self, entity: _Optional[_Union[Entity, _Mapping]] = ..., parent: _Optional[str] = ..., events: _Optional[_Iterable[_Union[NewEvent, _Mapping]]] = ..., timers: _Optional[_Iterable[_Union[Timer, _Mapping]]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., epoch: _Optional[int] = ...) -> None: ...

class AppendResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("entity", "after", "watch")
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    WATCH_FIELD_NUMBER: _ClassVar[int]
    entity: Entity
    after: str
    watch: bool
    def __init__(self, entity: _Optional[_Union[Entity, _Mapping]] = ..., after: _Optional[str] = ..., watch: _Optional[bool] = ...) -> None: ...

class WatchMessage(_message.Message):
    __slots__ = ("event", "will_block", "tail")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    WILL_BLOCK_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    event: Event
    will_block: bool
    tail: str
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ..., will_block: _Optional[bool] = ..., tail: _Optional[str] = ...) -> None: ...

class ReadAllRequest(_message.Message):
    __slots__ = ("after_seq",)
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    after_seq: int
    def __init__(self, after_seq: _Optional[int] = ...) -> None: ...

class SignalsRequest(_message.Message):
    __slots__ = ("after_seq",)
    AFTER_SEQ_FIELD_NUMBER: _ClassVar[int]
    after_seq: int
    def __init__(self, after_seq: _Optional[int] = ...) -> None: ...

class SignalMessage(_message.Message):
    __slots__ = ("subscribed", "entity", "head", "seq")
    SUBSCRIBED_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    subscribed: bool
    entity: Entity
    head: str
    seq: int
    def __init__(self, subscribed: _Optional[bool] = ..., entity: _Optional[_Union[Entity, _Mapping]] = ..., head: _Optional[str] = ..., seq: _Optional[int] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ("head", "last_seq", "entities", "changed", "due_timers", "next_timer", "checkpoints")
    class Entities(_message.Message):
        __slots__ = ("kind", "prefix")
        KIND_FIELD_NUMBER: _ClassVar[int]
        PREFIX_FIELD_NUMBER: _ClassVar[int]
        kind: str
        prefix: str
        def __init__(self, kind: _Optional[str] = ..., prefix: _Optional[str] = ...) -> None: ...
    class DueTimers(_message.Message):
        __slots__ = ("until", "limit")
        UNTIL_FIELD_NUMBER: _ClassVar[int]
        LIMIT_FIELD_NUMBER: _ClassVar[int]
        until: float
        limit: int
        def __init__(self, until: _Optional[float] = ..., limit: _Optional[int] = ...) -> None: ...
    class NextTimer(_message.Message):
        __slots__ = ("after",)
        AFTER_FIELD_NUMBER: _ClassVar[int]
        after: float
        def __init__(self, after: _Optional[float] = ...) -> None: ...
    HEAD_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    DUE_TIMERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_TIMER_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    head: Entity
    last_seq: bool
    entities: QueryRequest.Entities
    changed: int
    due_timers: QueryRequest.DueTimers
    next_timer: QueryRequest.NextTimer
    checkpoints: str
    def __init__(self, head: _Optional[_Union[Entity, _Mapping]] = ..., last_seq: _Optional[bool] = ..., entities: _Optional[_Union[QueryRequest.Entities, _Mapping]] = ..., changed: _Optional[int] = ..., due_timers: _Optional[_Union[QueryRequest.DueTimers, _Mapping]] = ..., next_timer: _Optional[_Union[QueryRequest.NextTimer, _Mapping]] = ..., checkpoints: _Optional[str] = ...) -> None: ...

class QueryResponse(_message.Message):
    __slots__ = ("rows",)
    class Row(_message.Message):
        __slots__ = ("entity", "text", "seq", "time", "checkpoint")
        ENTITY_FIELD_NUMBER: _ClassVar[int]
        TEXT_FIELD_NUMBER: _ClassVar[int]
        SEQ_FIELD_NUMBER: _ClassVar[int]
        TIME_FIELD_NUMBER: _ClassVar[int]
        CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
        entity: Entity
        text: str
        seq: int
        time: float
        checkpoint: Checkpoint
        def __init__(self, entity: _Optional[_Union[Entity, _Mapping]] = ..., text: _Optional[str] = ..., seq: _Optional[int] = ..., time: _Optional[float] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ...) -> None: ...
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[QueryResponse.Row]
    def __init__(self, rows: _Optional[_Iterable[_Union[QueryResponse.Row, _Mapping]]] = ...) -> None: ...

class TrimRequest(_message.Message):
    __slots__ = ("entity", "keep_from")
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    KEEP_FROM_FIELD_NUMBER: _ClassVar[int]
    entity: Entity
    keep_from: str
    def __init__(self, entity: _Optional[_Union[Entity, _Mapping]] = ..., keep_from: _Optional[str] = ...) -> None: ...

class TrimResponse(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...
