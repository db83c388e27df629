from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLIENT: _ClassVar[Role]
    EVALUATOR: _ClassVar[Role]

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAIN: _ClassVar[Kind]
    SURVEY: _ClassVar[Kind]
    EVALUATE: _ClassVar[Kind]
CLIENT: Role
EVALUATOR: Role
TRAIN: Kind
SURVEY: Kind
EVALUATE: Kind

class Signature(_message.Message):
    __slots__ = ("nonce", "signature")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    signature: bytes
    def __init__(self, nonce: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("token", "csr")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    token: str
    csr: str
    def __init__(self, token: _Optional[str] = ..., csr: _Optional[str] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("certificate", "authority")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    certificate: str
    authority: str
    def __init__(self, certificate: _Optional[str] = ..., authority: _Optional[str] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("run", "role", "number", "examples", "own_training", "signature")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    OWN_TRAINING_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    run: str
    role: Role
    number: int
    examples: int
    own_training: bool
    signature: Signature
    def __init__(self, run: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., number: _Optional[int] = ..., examples: _Optional[int] = ..., own_training: _Optional[bool] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("run", "number", "settings", "refused")
    RUN_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    run: str
    number: int
    settings: str
    refused: str
    def __init__(self, run: _Optional[str] = ..., number: _Optional[int] = ..., settings: _Optional[str] = ..., refused: _Optional[str] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("id", "size", "chunks", "inline")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    size: int
    chunks: _containers.RepeatedScalarFieldContainer[bytes]
    inline: bytes
    def __init__(self, id: _Optional[bytes] = ..., size: _Optional[int] = ..., chunks: _Optional[_Iterable[bytes]] = ..., inline: _Optional[bytes] = ...) -> None: ...

class PollRequest(_message.Message):
    __slots__ = ("run", "wait_seconds")
    RUN_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    run: str
    wait_seconds: float
    def __init__(self, run: _Optional[str] = ..., wait_seconds: _Optional[float] = ...) -> None: ...

class PollReply(_message.Message):
    __slots__ = ("state", "task", "message")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        WAIT: _ClassVar[PollReply.State]
        TASK: _ClassVar[PollReply.State]
        OVER: _ClassVar[PollReply.State]
    WAIT: PollReply.State
    TASK: PollReply.State
    OVER: PollReply.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    state: PollReply.State
    task: Task
    message: str
    def __init__(self, state: _Optional[_Union[PollReply.State, str]] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., message: _Optional[str] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("id", "kind", "round", "ask", "local", "seconds")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: Kind
    round: int
    ask: Blob
    local: str
    seconds: float
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[Kind, str]] = ..., round: _Optional[int] = ..., ask: _Optional[_Union[Blob, _Mapping]] = ..., local: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class FetchChunkRequest(_message.Message):
    __slots__ = ("run", "task", "index")
    RUN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    run: str
    task: str
    index: int
    def __init__(self, run: _Optional[str] = ..., task: _Optional[str] = ..., index: _Optional[int] = ...) -> None: ...

class FetchChunkReply(_message.Message):
    __slots__ = ("content",)
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    def __init__(self, content: _Optional[bytes] = ...) -> None: ...

class PushChunkRequest(_message.Message):
    __slots__ = ("run", "task", "index", "content", "signature")
    RUN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    run: str
    task: str
    index: int
    content: bytes
    signature: Signature
    def __init__(self, run: _Optional[str] = ..., task: _Optional[str] = ..., index: _Optional[int] = ..., content: _Optional[bytes] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ...) -> None: ...

class PushChunkReply(_message.Message):
    __slots__ = ("known",)
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    known: bool
    def __init__(self, known: _Optional[bool] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("run", "task", "round", "update", "signature")
    RUN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    run: str
    task: str
    round: int
    update: Blob
    signature: Signature
    def __init__(self, run: _Optional[str] = ..., task: _Optional[str] = ..., round: _Optional[int] = ..., update: _Optional[_Union[Blob, _Mapping]] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ...) -> None: ...

class CommitReply(_message.Message):
    __slots__ = ("verdict", "missing", "reason")
    class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACCEPTED: _ClassVar[CommitReply.Verdict]
        INCOMPLETE: _ClassVar[CommitReply.Verdict]
        REFUSED: _ClassVar[CommitReply.Verdict]
        LATE: _ClassVar[CommitReply.Verdict]
    ACCEPTED: CommitReply.Verdict
    INCOMPLETE: CommitReply.Verdict
    REFUSED: CommitReply.Verdict
    LATE: CommitReply.Verdict
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    verdict: CommitReply.Verdict
    missing: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    def __init__(self, verdict: _Optional[_Union[CommitReply.Verdict, str]] = ..., missing: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ...) -> None: ...

class FailRequest(_message.Message):
    __slots__ = ("run", "task", "round", "reason", "signature")
    RUN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    run: str
    task: str
    round: int
    reason: str
    signature: Signature
    def __init__(self, run: _Optional[str] = ..., task: _Optional[str] = ..., round: _Optional[int] = ..., reason: _Optional[str] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ...) -> None: ...

class FailReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("run", "task")
    RUN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    run: str
    task: str
    def __init__(self, run: _Optional[str] = ..., task: _Optional[str] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("wanted",)
    WANTED_FIELD_NUMBER: _ClassVar[int]
    wanted: bool
    def __init__(self, wanted: _Optional[bool] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("run", "phase", "round", "rounds", "clients", "expected", "message")
    RUN_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    run: str
    phase: str
    round: int
    rounds: int
    clients: int
    expected: int
    message: str
    def __init__(self, run: _Optional[str] = ..., phase: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., clients: _Optional[int] = ..., expected: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...
