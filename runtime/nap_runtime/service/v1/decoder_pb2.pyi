import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_CANCELLING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
    JOB_STATE_EXPIRED: _ClassVar[JobState]

class JobView(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_VIEW_UNSPECIFIED: _ClassVar[JobView]
    JOB_VIEW_BASIC: _ClassVar[JobView]
    JOB_VIEW_RESULT: _ClassVar[JobView]
    JOB_VIEW_FULL: _ClassVar[JobView]

class ErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_CODE_UNSPECIFIED: _ClassVar[ErrorCode]
    ERROR_CODE_USAGE: _ClassVar[ErrorCode]
    ERROR_CODE_MODEL: _ClassVar[ErrorCode]
    ERROR_CODE_DECODE: _ClassVar[ErrorCode]
    ERROR_CODE_WORKERS_LOST: _ClassVar[ErrorCode]
    ERROR_CODE_DEADLINE_EXCEEDED: _ClassVar[ErrorCode]
    ERROR_CODE_CANCELLED: _ClassVar[ErrorCode]
    ERROR_CODE_INTERNAL: _ClassVar[ErrorCode]

class HeaderStyle(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEADER_STYLE_UNSPECIFIED: _ClassVar[HeaderStyle]
    HEADER_STYLE_NAP: _ClassVar[HeaderStyle]
    HEADER_STYLE_TEXT: _ClassVar[HeaderStyle]

class Layout(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LAYOUT_UNSPECIFIED: _ClassVar[Layout]
    LAYOUT_NAP: _ClassVar[Layout]
    LAYOUT_PLAIN: _ClassVar[Layout]

class Rule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RULE_UNSPECIFIED: _ClassVar[Rule]
    RULE_PARALLEL_FORCED: _ClassVar[Rule]
    RULE_CONFIDENCE: _ClassVar[Rule]
    RULE_LEFT_TO_RIGHT: _ClassVar[Rule]
    RULE_RANDOM: _ClassVar[Rule]
    RULE_BLOCKWISE: _ClassVar[Rule]
    RULE_THRESHOLD: _ClassVar[Rule]
    RULE_FACTOR: _ClassVar[Rule]
    RULE_PROPHET: _ClassVar[Rule]
    RULE_P2: _ClassVar[Rule]

class Scope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCOPE_UNSPECIFIED: _ClassVar[Scope]
    SCOPE_CANVAS: _ClassVar[Scope]
    SCOPE_PATH: _ClassVar[Scope]

class Confidence(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONFIDENCE_UNSPECIFIED: _ClassVar[Confidence]
    CONFIDENCE_MAX_PROB: _ClassVar[Confidence]
    CONFIDENCE_MARGIN: _ClassVar[Confidence]
    CONFIDENCE_ENTROPY: _ClassVar[Confidence]

class Cache(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CACHE_UNSPECIFIED: _ClassVar[Cache]
    CACHE_PREFIX: _ClassVar[Cache]
    CACHE_DUAL: _ClassVar[Cache]
    CACHE_DKV: _ClassVar[Cache]
    CACHE_CLOSED: _ClassVar[Cache]

class SyncMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SYNC_MODE_UNSPECIFIED: _ClassVar[SyncMode]
    SYNC_MODE_EXACT: _ClassVar[SyncMode]
    SYNC_MODE_TOKENS: _ClassVar[SyncMode]
    SYNC_MODE_SHARED: _ClassVar[SyncMode]
    SYNC_MODE_KV: _ClassVar[SyncMode]
    SYNC_MODE_NONE: _ClassVar[SyncMode]
    SYNC_MODE_AUTO: _ClassVar[SyncMode]

class Topology(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOPOLOGY_UNSPECIFIED: _ClassVar[Topology]
    TOPOLOGY_FULL: _ClassVar[Topology]
    TOPOLOGY_HUB: _ClassVar[Topology]
    TOPOLOGY_ISOLATED: _ClassVar[Topology]

class Summary(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUMMARY_UNSPECIFIED: _ClassVar[Summary]
    SUMMARY_GATHER: _ClassVar[Summary]
    SUMMARY_CONSENSUS: _ClassVar[Summary]
    SUMMARY_LIVE: _ClassVar[Summary]

class Commitment(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMMITMENT_UNSPECIFIED: _ClassVar[Commitment]
    COMMITMENT_PROVISIONAL: _ClassVar[Commitment]
    COMMITMENT_COMMITTED: _ClassVar[Commitment]

class DeviceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_STATE_UNSPECIFIED: _ClassVar[DeviceState]
    DEVICE_STATE_IDLE: _ClassVar[DeviceState]
    DEVICE_STATE_BUSY: _ClassVar[DeviceState]
    DEVICE_STATE_SPARE: _ClassVar[DeviceState]
    DEVICE_STATE_LOST: _ClassVar[DeviceState]

class GroupState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GROUP_STATE_UNSPECIFIED: _ClassVar[GroupState]
    GROUP_STATE_STARTING: _ClassVar[GroupState]
    GROUP_STATE_IDLE: _ClassVar[GroupState]
    GROUP_STATE_BUSY: _ClassVar[GroupState]
    GROUP_STATE_RECOVERING: _ClassVar[GroupState]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_CANCELLING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
JOB_STATE_EXPIRED: JobState
JOB_VIEW_UNSPECIFIED: JobView
JOB_VIEW_BASIC: JobView
JOB_VIEW_RESULT: JobView
JOB_VIEW_FULL: JobView
ERROR_CODE_UNSPECIFIED: ErrorCode
ERROR_CODE_USAGE: ErrorCode
ERROR_CODE_MODEL: ErrorCode
ERROR_CODE_DECODE: ErrorCode
ERROR_CODE_WORKERS_LOST: ErrorCode
ERROR_CODE_DEADLINE_EXCEEDED: ErrorCode
ERROR_CODE_CANCELLED: ErrorCode
ERROR_CODE_INTERNAL: ErrorCode
HEADER_STYLE_UNSPECIFIED: HeaderStyle
HEADER_STYLE_NAP: HeaderStyle
HEADER_STYLE_TEXT: HeaderStyle
LAYOUT_UNSPECIFIED: Layout
LAYOUT_NAP: Layout
LAYOUT_PLAIN: Layout
RULE_UNSPECIFIED: Rule
RULE_PARALLEL_FORCED: Rule
RULE_CONFIDENCE: Rule
RULE_LEFT_TO_RIGHT: Rule
RULE_RANDOM: Rule
RULE_BLOCKWISE: Rule
RULE_THRESHOLD: Rule
RULE_FACTOR: Rule
RULE_PROPHET: Rule
RULE_P2: Rule
SCOPE_UNSPECIFIED: Scope
SCOPE_CANVAS: Scope
SCOPE_PATH: Scope
CONFIDENCE_UNSPECIFIED: Confidence
CONFIDENCE_MAX_PROB: Confidence
CONFIDENCE_MARGIN: Confidence
CONFIDENCE_ENTROPY: Confidence
CACHE_UNSPECIFIED: Cache
CACHE_PREFIX: Cache
CACHE_DUAL: Cache
CACHE_DKV: Cache
CACHE_CLOSED: Cache
SYNC_MODE_UNSPECIFIED: SyncMode
SYNC_MODE_EXACT: SyncMode
SYNC_MODE_TOKENS: SyncMode
SYNC_MODE_SHARED: SyncMode
SYNC_MODE_KV: SyncMode
SYNC_MODE_NONE: SyncMode
SYNC_MODE_AUTO: SyncMode
TOPOLOGY_UNSPECIFIED: Topology
TOPOLOGY_FULL: Topology
TOPOLOGY_HUB: Topology
TOPOLOGY_ISOLATED: Topology
SUMMARY_UNSPECIFIED: Summary
SUMMARY_GATHER: Summary
SUMMARY_CONSENSUS: Summary
SUMMARY_LIVE: Summary
COMMITMENT_UNSPECIFIED: Commitment
COMMITMENT_PROVISIONAL: Commitment
COMMITMENT_COMMITTED: Commitment
DEVICE_STATE_UNSPECIFIED: DeviceState
DEVICE_STATE_IDLE: DeviceState
DEVICE_STATE_BUSY: DeviceState
DEVICE_STATE_SPARE: DeviceState
DEVICE_STATE_LOST: DeviceState
GROUP_STATE_UNSPECIFIED: GroupState
GROUP_STATE_STARTING: GroupState
GROUP_STATE_IDLE: GroupState
GROUP_STATE_BUSY: GroupState
GROUP_STATE_RECOVERING: GroupState

class SubmitRequest(_message.Message):
    __slots__ = ("idempotency_key", "spec", "priority", "deadline", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    spec: JobSpec
    priority: int
    deadline: _timestamp_pb2.Timestamp
    labels: _containers.ScalarMap[str, str]
    def __init__(self, idempotency_key: _Optional[str] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., priority: _Optional[int] = ..., deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("job", "existed", "chosen")
    JOB_FIELD_NUMBER: _ClassVar[int]
    EXISTED_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    job: Job
    existed: bool
    chosen: str
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., existed: _Optional[bool] = ..., chosen: _Optional[str] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("job_id", "view")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    view: JobView
    def __init__(self, job_id: _Optional[str] = ..., view: _Optional[_Union[JobView, str]] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "states", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[JobState]
    labels: _containers.ScalarMap[str, str]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[_Union[JobState, str]]] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("job_id", "reason")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    reason: str
    def __init__(self, job_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("job_id", "after_event", "include_provisional")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_EVENT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PROVISIONAL_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    after_event: int
    include_provisional: bool
    def __init__(self, job_id: _Optional[str] = ..., after_event: _Optional[int] = ..., include_provisional: _Optional[bool] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: Event
    def __init__(self, event: _Optional[_Union[Event, _Mapping]] = ...) -> None: ...

class ClusterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClusterResponse(_message.Message):
    __slots__ = ("nodes", "models", "jobs_queued", "jobs_running", "version", "config_version", "delta_version", "groups")
    NODES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    JOBS_QUEUED_FIELD_NUMBER: _ClassVar[int]
    JOBS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_VERSION_FIELD_NUMBER: _ClassVar[int]
    DELTA_VERSION_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[Node]
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    jobs_queued: int
    jobs_running: int
    version: str
    config_version: int
    delta_version: int
    groups: _containers.RepeatedCompositeFieldContainer[Group]
    def __init__(self, nodes: _Optional[_Iterable[_Union[Node, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ..., jobs_queued: _Optional[int] = ..., jobs_running: _Optional[int] = ..., version: _Optional[str] = ..., config_version: _Optional[int] = ..., delta_version: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[Group, _Mapping]]] = ...) -> None: ...

class JobSpec(_message.Message):
    __slots__ = ("prompt", "model", "config", "workers", "id", "gold")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    GOLD_FIELD_NUMBER: _ClassVar[int]
    prompt: Prompt
    model: str
    config: DecodeConfig
    workers: int
    id: str
    gold: str
    def __init__(self, prompt: _Optional[_Union[Prompt, _Mapping]] = ..., model: _Optional[str] = ..., config: _Optional[_Union[DecodeConfig, _Mapping]] = ..., workers: _Optional[int] = ..., id: _Optional[str] = ..., gold: _Optional[str] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: TokenIds
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "idempotency_key", "spec", "priority", "deadline", "labels", "state", "attempt", "last_event", "submitted_at", "started_at", "finished_at", "error", "result", "failures", "step")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    LAST_EVENT_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_AT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    id: str
    idempotency_key: str
    spec: JobSpec
    priority: int
    deadline: _timestamp_pb2.Timestamp
    labels: _containers.ScalarMap[str, str]
    state: JobState
    attempt: int
    last_event: int
    submitted_at: _timestamp_pb2.Timestamp
    started_at: _timestamp_pb2.Timestamp
    finished_at: _timestamp_pb2.Timestamp
    error: JobError
    result: DecodeResult
    failures: int
    step: int
    def __init__(self, id: _Optional[str] = ..., idempotency_key: _Optional[str] = ..., spec: _Optional[_Union[JobSpec, _Mapping]] = ..., priority: _Optional[int] = ..., deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., state: _Optional[_Union[JobState, str]] = ..., attempt: _Optional[int] = ..., last_event: _Optional[int] = ..., submitted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., finished_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., error: _Optional[_Union[JobError, _Mapping]] = ..., result: _Optional[_Union[DecodeResult, _Mapping]] = ..., failures: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class JobError(_message.Message):
    __slots__ = ("code", "message", "field")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    code: ErrorCode
    message: str
    field: str
    def __init__(self, code: _Optional[_Union[ErrorCode, str]] = ..., message: _Optional[str] = ..., field: _Optional[str] = ...) -> None: ...

class DecodeConfig(_message.Message):
    __slots__ = ("version", "layout", "paths", "path_tokens", "summary_tokens", "gen_length", "block_length", "headers", "steps", "rule", "scope", "confidence", "eos_weight", "temperature", "seed", "rule_args", "sync", "control_every", "threshold", "factor", "cfg", "cache", "cache_every")
    class RuleArgsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    PATH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GEN_LENGTH_FIELD_NUMBER: _ClassVar[int]
    BLOCK_LENGTH_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    EOS_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    RULE_ARGS_FIELD_NUMBER: _ClassVar[int]
    SYNC_FIELD_NUMBER: _ClassVar[int]
    CONTROL_EVERY_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    CFG_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    CACHE_EVERY_FIELD_NUMBER: _ClassVar[int]
    version: int
    layout: Layout
    paths: int
    path_tokens: _containers.RepeatedScalarFieldContainer[int]
    summary_tokens: int
    gen_length: int
    block_length: int
    headers: Headers
    steps: int
    rule: Rule
    scope: Scope
    confidence: Confidence
    eos_weight: float
    temperature: float
    seed: int
    rule_args: _containers.ScalarMap[str, str]
    sync: SyncPolicy
    control_every: int
    threshold: float
    factor: float
    cfg: float
    cache: Cache
    cache_every: int
    def __init__(self, version: _Optional[int] = ..., layout: _Optional[_Union[Layout, str]] = ..., paths: _Optional[int] = ..., path_tokens: _Optional[_Iterable[int]] = ..., summary_tokens: _Optional[int] = ..., gen_length: _Optional[int] = ..., block_length: _Optional[int] = ..., headers: _Optional[_Union[Headers, _Mapping]] = ..., steps: _Optional[int] = ..., rule: _Optional[_Union[Rule, str]] = ..., scope: _Optional[_Union[Scope, str]] = ..., confidence: _Optional[_Union[Confidence, str]] = ..., eos_weight: _Optional[float] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., rule_args: _Optional[_Mapping[str, str]] = ..., sync: _Optional[_Union[SyncPolicy, _Mapping]] = ..., control_every: _Optional[int] = ..., threshold: _Optional[float] = ..., factor: _Optional[float] = ..., cfg: _Optional[float] = ..., cache: _Optional[_Union[Cache, str]] = ..., cache_every: _Optional[int] = ...) -> None: ...

class SyncPolicy(_message.Message):
    __slots__ = ("mode", "every", "warmup", "overlap", "topology", "summary", "top", "settle", "overhead")
    MODE_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    WARMUP_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    TOPOLOGY_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    SETTLE_FIELD_NUMBER: _ClassVar[int]
    OVERHEAD_FIELD_NUMBER: _ClassVar[int]
    mode: SyncMode
    every: int
    warmup: int
    overlap: bool
    topology: Topology
    summary: Summary
    top: int
    settle: int
    overhead: float
    def __init__(self, mode: _Optional[_Union[SyncMode, str]] = ..., every: _Optional[int] = ..., warmup: _Optional[int] = ..., overlap: _Optional[bool] = ..., topology: _Optional[_Union[Topology, str]] = ..., summary: _Optional[_Union[Summary, str]] = ..., top: _Optional[int] = ..., settle: _Optional[int] = ..., overhead: _Optional[float] = ...) -> None: ...

class Headers(_message.Message):
    __slots__ = ("style", "texts")
    STYLE_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    style: HeaderStyle
    texts: HeaderTexts
    def __init__(self, style: _Optional[_Union[HeaderStyle, str]] = ..., texts: _Optional[_Union[HeaderTexts, _Mapping]] = ...) -> None: ...

class HeaderTexts(_message.Message):
    __slots__ = ("paths", "summary", "path_ends", "summary_end")
    PATHS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    PATH_ENDS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_END_FIELD_NUMBER: _ClassVar[int]
    paths: _containers.RepeatedScalarFieldContainer[str]
    summary: str
    path_ends: _containers.RepeatedScalarFieldContainer[str]
    summary_end: str
    def __init__(self, paths: _Optional[_Iterable[str]] = ..., summary: _Optional[str] = ..., path_ends: _Optional[_Iterable[str]] = ..., summary_end: _Optional[str] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("number", "time", "attempt", "state_changed", "canvas_laid_out", "canvas_update", "rolled_back", "live_answer", "finished")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    CANVAS_LAID_OUT_FIELD_NUMBER: _ClassVar[int]
    CANVAS_UPDATE_FIELD_NUMBER: _ClassVar[int]
    ROLLED_BACK_FIELD_NUMBER: _ClassVar[int]
    LIVE_ANSWER_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    number: int
    time: _timestamp_pb2.Timestamp
    attempt: int
    state_changed: StateChanged
    canvas_laid_out: CanvasLaidOut
    canvas_update: CanvasUpdate
    rolled_back: RolledBack
    live_answer: LiveAnswer
    finished: Finished
    def __init__(self, number: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempt: _Optional[int] = ..., state_changed: _Optional[_Union[StateChanged, _Mapping]] = ..., canvas_laid_out: _Optional[_Union[CanvasLaidOut, _Mapping]] = ..., canvas_update: _Optional[_Union[CanvasUpdate, _Mapping]] = ..., rolled_back: _Optional[_Union[RolledBack, _Mapping]] = ..., live_answer: _Optional[_Union[LiveAnswer, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class StateChanged(_message.Message):
    __slots__ = ("state", "detail")
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    state: JobState
    detail: str
    def __init__(self, state: _Optional[_Union[JobState, str]] = ..., detail: _Optional[str] = ...) -> None: ...

class CanvasLaidOut(_message.Message):
    __slots__ = ("ids", "prompt", "paths", "summary", "steps", "assignment")
    IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    prompt: Range
    paths: _containers.RepeatedCompositeFieldContainer[Range]
    summary: Range
    steps: int
    assignment: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., prompt: _Optional[_Union[Range, _Mapping]] = ..., paths: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., summary: _Optional[_Union[Range, _Mapping]] = ..., steps: _Optional[int] = ..., assignment: _Optional[_Iterable[int]] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("start", "stop")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class CanvasUpdate(_message.Message):
    __slots__ = ("commitment", "first_step", "last_step", "delta_version", "delta", "texts")
    COMMITMENT_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_FIELD_NUMBER: _ClassVar[int]
    DELTA_VERSION_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    commitment: Commitment
    first_step: int
    last_step: int
    delta_version: int
    delta: bytes
    texts: _containers.RepeatedCompositeFieldContainer[PathText]
    def __init__(self, commitment: _Optional[_Union[Commitment, str]] = ..., first_step: _Optional[int] = ..., last_step: _Optional[int] = ..., delta_version: _Optional[int] = ..., delta: _Optional[bytes] = ..., texts: _Optional[_Iterable[_Union[PathText, _Mapping]]] = ...) -> None: ...

class PathText(_message.Message):
    __slots__ = ("path", "summary", "text")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    path: int
    summary: bool
    text: str
    def __init__(self, path: _Optional[int] = ..., summary: _Optional[bool] = ..., text: _Optional[str] = ...) -> None: ...

class RolledBack(_message.Message):
    __slots__ = ("step", "reason", "assignment")
    STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    step: int
    reason: str
    assignment: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, step: _Optional[int] = ..., reason: _Optional[str] = ..., assignment: _Optional[_Iterable[int]] = ...) -> None: ...

class LiveAnswer(_message.Message):
    __slots__ = ("step", "answer", "summary")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    step: int
    answer: str
    summary: str
    def __init__(self, step: _Optional[int] = ..., answer: _Optional[str] = ..., summary: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class DecodeResult(_message.Message):
    __slots__ = ("answer", "answer_source", "summary", "paths", "tokens", "unknown_words", "correct", "metrics", "resolved_config", "workers", "prompt_tokens", "record_version", "record")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ANSWER_SOURCE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    PATHS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_WORDS_FIELD_NUMBER: _ClassVar[int]
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_CONFIG_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECORD_VERSION_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    answer: str
    answer_source: str
    summary: str
    paths: _containers.RepeatedScalarFieldContainer[str]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    unknown_words: _containers.RepeatedScalarFieldContainer[str]
    correct: bool
    metrics: RunMetrics
    resolved_config: DecodeConfig
    workers: int
    prompt_tokens: int
    record_version: int
    record: bytes
    def __init__(self, answer: _Optional[str] = ..., answer_source: _Optional[str] = ..., summary: _Optional[str] = ..., paths: _Optional[_Iterable[str]] = ..., tokens: _Optional[_Iterable[int]] = ..., unknown_words: _Optional[_Iterable[str]] = ..., correct: _Optional[bool] = ..., metrics: _Optional[_Union[RunMetrics, _Mapping]] = ..., resolved_config: _Optional[_Union[DecodeConfig, _Mapping]] = ..., workers: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., record_version: _Optional[int] = ..., record: _Optional[bytes] = ...) -> None: ...

class RunMetrics(_message.Message):
    __slots__ = ("steps", "nfe_steps", "nfe_critical", "nfe_total", "rows_computed", "tpf", "arness", "useful_tokens_per_second", "first_commit", "total", "sync")
    class ArnessEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STEPS_FIELD_NUMBER: _ClassVar[int]
    NFE_STEPS_FIELD_NUMBER: _ClassVar[int]
    NFE_CRITICAL_FIELD_NUMBER: _ClassVar[int]
    NFE_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ROWS_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    TPF_FIELD_NUMBER: _ClassVar[int]
    ARNESS_FIELD_NUMBER: _ClassVar[int]
    USEFUL_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    FIRST_COMMIT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    SYNC_FIELD_NUMBER: _ClassVar[int]
    steps: int
    nfe_steps: int
    nfe_critical: int
    nfe_total: int
    rows_computed: int
    tpf: float
    arness: _containers.ScalarMap[str, float]
    useful_tokens_per_second: float
    first_commit: _duration_pb2.Duration
    total: _duration_pb2.Duration
    sync: SyncMeters
    def __init__(self, steps: _Optional[int] = ..., nfe_steps: _Optional[int] = ..., nfe_critical: _Optional[int] = ..., nfe_total: _Optional[int] = ..., rows_computed: _Optional[int] = ..., tpf: _Optional[float] = ..., arness: _Optional[_Mapping[str, float]] = ..., useful_tokens_per_second: _Optional[float] = ..., first_commit: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., total: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., sync: _Optional[_Union[SyncMeters, _Mapping]] = ...) -> None: ...

class SyncMeters(_message.Message):
    __slots__ = ("syncs", "payload_bytes", "wire_bytes", "blocked_seconds", "overlapped_seconds", "recompute_seconds", "rows_recomputed", "staleness")
    SYNCS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OVERLAPPED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROWS_RECOMPUTED_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    syncs: int
    payload_bytes: _containers.RepeatedScalarFieldContainer[int]
    wire_bytes: _containers.RepeatedScalarFieldContainer[int]
    blocked_seconds: MeanMax
    overlapped_seconds: MeanMax
    recompute_seconds: MeanMax
    rows_recomputed: int
    staleness: MeanMax
    def __init__(self, syncs: _Optional[int] = ..., payload_bytes: _Optional[_Iterable[int]] = ..., wire_bytes: _Optional[_Iterable[int]] = ..., blocked_seconds: _Optional[_Union[MeanMax, _Mapping]] = ..., overlapped_seconds: _Optional[_Union[MeanMax, _Mapping]] = ..., recompute_seconds: _Optional[_Union[MeanMax, _Mapping]] = ..., rows_recomputed: _Optional[int] = ..., staleness: _Optional[_Union[MeanMax, _Mapping]] = ...) -> None: ...

class MeanMax(_message.Message):
    __slots__ = ("mean", "max")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    mean: float
    max: float
    def __init__(self, mean: _Optional[float] = ..., max: _Optional[float] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("id", "host", "alive", "cpus", "devices")
    ID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    id: str
    host: str
    alive: bool
    cpus: int
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    def __init__(self, id: _Optional[str] = ..., host: _Optional[str] = ..., alive: _Optional[bool] = ..., cpus: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "model", "state", "memory_total_bytes", "memory_used_bytes", "job_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    state: DeviceState
    memory_total_bytes: int
    memory_used_bytes: int
    job_id: str
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., state: _Optional[_Union[DeviceState, str]] = ..., memory_total_bytes: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., job_id: _Optional[str] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("index", "state", "workers", "job_ids", "restarts", "recoveries", "last_recovery", "processes", "hosts", "stragglers")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    JOB_IDS_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    RECOVERIES_FIELD_NUMBER: _ClassVar[int]
    LAST_RECOVERY_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    STRAGGLERS_FIELD_NUMBER: _ClassVar[int]
    index: int
    state: GroupState
    workers: int
    job_ids: _containers.RepeatedScalarFieldContainer[str]
    restarts: int
    recoveries: int
    last_recovery: _duration_pb2.Duration
    processes: _containers.RepeatedScalarFieldContainer[int]
    hosts: _containers.RepeatedScalarFieldContainer[str]
    stragglers: _containers.RepeatedCompositeFieldContainer[Straggler]
    def __init__(self, index: _Optional[int] = ..., state: _Optional[_Union[GroupState, str]] = ..., workers: _Optional[int] = ..., job_ids: _Optional[_Iterable[str]] = ..., restarts: _Optional[int] = ..., recoveries: _Optional[int] = ..., last_recovery: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., processes: _Optional[_Iterable[int]] = ..., hosts: _Optional[_Iterable[str]] = ..., stragglers: _Optional[_Iterable[_Union[Straggler, _Mapping]]] = ...) -> None: ...

class Straggler(_message.Message):
    __slots__ = ("worker", "host", "factor")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    worker: int
    host: str
    factor: float
    def __init__(self, worker: _Optional[int] = ..., host: _Optional[str] = ..., factor: _Optional[float] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "architecture", "parameters", "vocabulary", "max_canvas", "dtype", "weights", "kv")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    MAX_CANVAS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    name: str
    architecture: str
    parameters: int
    vocabulary: int
    max_canvas: int
    dtype: str
    weights: str
    kv: str
    def __init__(self, name: _Optional[str] = ..., architecture: _Optional[str] = ..., parameters: _Optional[int] = ..., vocabulary: _Optional[int] = ..., max_canvas: _Optional[int] = ..., dtype: _Optional[str] = ..., weights: _Optional[str] = ..., kv: _Optional[str] = ...) -> None: ...
