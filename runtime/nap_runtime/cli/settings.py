"""`Settings`: a resolved decode as one flat mapping, which `--print-config` writes and `--config` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from nap_runtime import yaml_files
from nap_runtime.auto import AutoSync
from nap_runtime.errors import UsageError
from nap_runtime.job import DEVICES, DTYPES, CompileMode, DecodeConfig, SyncPolicy, at_least, check_compile, one_of
from nap_runtime.numerics import Numerics, check_numerics, check_sync
from nap_runtime.policy import Placement, placement_for
from nap_runtime.storage import Storage, Stored

if TYPE_CHECKING:
    from nap_runtime.models.loading import ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that decides a decode but the prompt.

    Args:
        config: how to decode.
        model: a bundled model's name, a checkpoint folder or a model's URL.
        workers: W; 1 runs in this process, more through Ray, or with `simulate` as threads of this process.
        device, dtype: where and in what precision.
        compile: whether steps are compiled, or captured in CUDA graphs too.
        numerics: whether bits may depend on what is computed together (`nap_runtime.numerics`).
        weights, kv: numbers of the layers' matrices, and of keys and values (`Storage`).
        batch_size: canvases decoded together, prompts' lengths rounding up to one multiple of `bucket` (None: 32).
        address: a Ray cluster that runs already (None: a local one is started).
        placement: on which of its hosts (None: as the sync asks for, `stands`).
        auto: a sync that is yet to be chosen; until then `config.sync` stands in for it.

    Raises:
        UsageError: a value is wrong, or the others leave it unused.
    """

    config: DecodeConfig = field(default_factory=DecodeConfig)
    model: str = "nap-tiny"
    workers: int = 1
    simulate: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    compile: CompileMode = "none"
    numerics: Numerics = "fast"
    weights: Stored = "native"
    kv: Stored = "native"
    batch_size: int = 1
    bucket: int | None = None
    address: str | None = None
    placement: Placement | None = None
    auto: AutoSync | None = None

    def __post_init__(self) -> None:
        one_of("device", self.device, DEVICES)
        one_of("dtype", self.dtype, DTYPES)
        check_compile(self.compile, device=self.device, simulated=self.simulate)
        at_least("workers", self.workers, 1)
        at_least("batch_size", self.batch_size, 1)
        self._check_numbers()
        if not isinstance(self.model, str) or not isinstance(self.simulate, bool):
            name = "simulate" if isinstance(self.model, str) else "model"
            raise UsageError(f"{name}: {getattr(self, name)!r} is not of its type", field=name)
        if not self.model:
            raise UsageError("model: it is empty; give a checkpoint folder or nap-tiny", field="model")
        if self.simulate and self.workers == 1:
            raise UsageError("simulate: one worker needs no simulation; give --workers too", field="simulate")
        if self.address is not None and not self.on_ray:
            raise UsageError("address: only several workers run on Ray; give --workers too", field="address")
        if self.placement is not None:
            one_of("placement", self.placement, get_args(Placement))
            if not self.on_ray:
                text = "placement: only several workers run on Ray; give --workers too"
                raise UsageError(text, field="placement")
        paths = self.config.n_paths
        known = self.config.layout == "plain" or self.config.paths is not None  # else it is the model's
        if known and self.workers > paths:
            text = f"workers: {self.workers} workers for {paths} paths; use at most {paths}"
            raise UsageError(text, field="workers")

    def _check_numbers(self) -> None:
        self.storage.check(device=self.device, dtype=self.dtype)
        how = {"compile": self.compile, "device": self.device, "dtype": self.dtype}
        check_numerics(self.numerics, **how, storage=self.storage)
        check_sync(self.numerics, self.config.sync)
        if self.bucket is not None:
            at_least("bucket", self.bucket, 1)
            if self.batch_size == 1:
                raise UsageError("bucket: one canvas makes no batch; give --batch-size too", field="bucket")

    @property
    def storage(self) -> Storage:
        """How workers hold numbers."""
        return Storage(weights=self.weights, kv=self.kv)

    @property
    def on_ray(self) -> bool:
        """Whether the workers are Ray actors."""
        return self.workers > 1 and not self.simulate

    @property
    def stands(self) -> Placement:
        """Where the workers stand, the default applied; before a sync is chosen by measuring, `pack`."""
        return self.placement or ("pack" if self.auto is not None else placement_for(self.config.sync.mode))

    @property
    def model_folder(self) -> Path | None:
        """The model as a path; None where it is a bundled model's name or a URL."""
        return None if self.model == "nap-tiny" or "://" in self.model else Path(self.model).expanduser()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Settings:
        """Build from keys of both `DecodeConfig` and this class.

        Raises:
            UsageError: a key is unknown or a value wrong.
        """
        own = {f.name for f in fields(cls)} - {"config", "auto"}
        known = own | set(_AUTO) | {f.name for f in fields(DecodeConfig)}
        for key in values:
            if key not in known:
                raise UsageError(f"{key}: unknown key; known are {', '.join(sorted(known))}", field=str(key))
        auto = _asked(values)
        given = {key: value for key, value in values.items() if key not in own and key not in _AUTO}
        if auto is not None:
            auto.check_cache(given.get("layout"), given.get("cache"))
        config = DecodeConfig.from_mapping(given if auto is None else {**given, "sync": auto.stand_in()})
        return cls(config=config, auto=auto, **{key: value for key, value in values.items() if key in own})

    def to_mapping(self) -> dict[str, Any]:
        """Plain values; `from_mapping` is its inverse."""
        assert self.auto is None, "a sync is yet to be chosen"
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("config", "auto")}
        return {**own, **self.config.to_mapping()}

    def resolved(self, card: ModelCard) -> Settings:
        """The same with the model's defaults written out."""
        from nap_runtime.models.prompting import DecodeDefaults, resolve

        return replace(self, config=resolve(self.config, DecodeDefaults.of(card.path)))


_AUTO = ("link", "overhead")


def _asked(values: Mapping[str, Any]) -> AutoSync | None:
    """The sync that is to be chosen; None where a mode is given."""
    sync = values.get("sync")
    own = {key: values[key] for key in _AUTO if values.get(key) is not None}
    if isinstance(sync, Mapping) and sync.get("mode") == "auto":
        return AutoSync.from_mapping(sync, own)
    for key in own:
        raise UsageError(f"{key}: only sync 'auto' uses it; leave it out", field=key)
    return None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` put over it; `sync` key by key."""
    merged = {**base, **over}
    sync = (base.get("sync"), over.get("sync"))
    if all(isinstance(part, Mapping) for part in sync):
        merged["sync"] = {**base["sync"], **over["sync"]}
    return merged


def read_yaml(file: Path) -> dict[str, Any]:
    """A mapping from a YAML file; unknown keys are found by `Settings.from_mapping`.

    Raises:
        UsageError: it cannot be read, or holds no mapping.
    """
    values = yaml_files.read_yaml(file, field="config")
    if not isinstance(values, dict):
        raise UsageError(f"config: {file}: not a mapping of keys to values", field="config")
    return values


def to_yaml(values: Mapping[str, Any]) -> str:
    """Keys in their own order, one a line; lists in one line."""
    import yaml

    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=None, width=110))


def sync_keys() -> tuple[str, ...]:
    """Keys of the nested `sync` mapping."""
    return tuple(f.name for f in fields(SyncPolicy))
