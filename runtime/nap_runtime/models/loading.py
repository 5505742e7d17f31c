"""Load and save denoisers: a folder with config.json, safetensors and, maybe, a tokenizer.

A model is named by a folder, a bundled name, or a URL that ``models/remote.py`` fetches into a local cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nap_runtime.errors import ModelError
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.parts import Part, checkpoint_parts, ignorable
from nap_runtime.models.remote import Reference, fetch, is_remote, reference_of
from nap_runtime.models.tokenizer import Tokenizer, load_tokenizer
from nap_runtime.models.transformer import DiffusionTransformer
from nap_runtime.models.weights import (
    DEFAULT_SHARD_BYTES,
    check_tensors,
    fingerprint,
    open_weights,
    read_part,
    staged_folder,
    write_weights,
)
from nap_runtime.storage import Storage

BUNDLED = {"nap-tiny": Path(__file__).parent / "nap_tiny"}


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What can be known of a checkpoint without reading its weights: all that a coordinator needs.

    ``fingerprint`` tells checkpoints apart whatever folder they lie in; ``tokenizer`` is None when
    the folder has none (random weights), and callers then work with ids. ``source`` is the pinned URL
    of a fetched model, else empty.
    """

    name: str
    path: Path
    config: ModelConfig
    tokenizer: Tokenizer | None
    fingerprint: str
    source: str = ""

    def stored(self, storage: Storage) -> ModelCard:
        """The card of the same model held otherwise: it decodes other ids, so it has another fingerprint."""
        return replace(self, fingerprint=self.fingerprint + storage.marks)

    @property
    def reference(self) -> str:
        """What processes on other hosts load the same model by: a bundled name, a pinned URL, or an absolute path."""
        bundled = BUNDLED.get(self.name) == self.path
        return self.source or (self.name if bundled else str(self.path.resolve()))


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A denoiser ready to run, and its card."""

    card: ModelCard
    model: DiffusionTransformer

    @property
    def config(self) -> ModelConfig:
        """Shape and special ids."""
        return self.card.config

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer, if it has one."""
        return self.card.tokenizer


def resolve_model(path_or_name: str | Path) -> Path:
    """The folder of a bundled name, of a path, or of a URL (fetched if need be); ModelError if there is none."""
    if is_remote(path_or_name):
        return fetch(str(path_or_name))
    bundled = BUNDLED.get(str(path_or_name))
    path = bundled or Path(path_or_name).expanduser()
    if path.is_dir():
        return path
    if bundled:
        raise ModelError(f"the bundled model {path_or_name!r} is not installed ({path}): reinstall nap-runtime")
    known = ", ".join(BUNDLED)
    raise ModelError(f"model {str(path_or_name)!r} is no folder: give a checkpoint folder, a URL or {known}")


def read_card(path_or_name: str | Path) -> ModelCard:
    """Everything about a checkpoint but its weights, which are only checked to be there in full.

    Anything wrong with the folder is a ModelError that names the file, the tensor and the mend.
    """
    path = resolve_model(path_or_name)
    config = ModelConfig.from_dir(path)
    check_tensors(path, checkpoint_parts(config), ignorable(config))
    return ModelCard(
        name=_name_of(path_or_name, path),
        source=reference_of(str(path_or_name), path) if is_remote(path_or_name) else "",
        path=path,
        config=config,
        tokenizer=load_tokenizer(path, mask_id=config.mask_id),
        fingerprint=fingerprint(path),
    )


def _name_of(path_or_name: str | Path, path: Path) -> str:
    text = str(path_or_name)
    if is_remote(text):
        return Reference.parse(text).name
    return text if text in BUNDLED else path.resolve().name


def load_weights(
    card: ModelCard,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    trainable: bool = False,
) -> DiffusionTransformer:
    """Read a checkpoint tensor by tensor into ``dtype`` on ``device``; no second copy is held.

    The model is in eval mode and its weights take gradients only if ``trainable``. Damaged files
    raise ModelError.
    """
    by_file = check_tensors(card.path, checkpoint_parts(card.config), ignorable(card.config))
    model = DiffusionTransformer(card.config, dtype=dtype, device=device)
    params = dict(model.named_parameters())
    for file, parts in by_file.items():
        with open_weights(file) as opened, torch.no_grad():
            for part in parts:
                part_view(params, part).copy_(read_part(opened, file, part))
    return model.requires_grad_(trainable).eval()


def load_model(
    path_or_name: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    trainable: bool = False,
) -> LoadedModel:
    """Card and weights of a folder or a bundled model's name; see ``read_card`` and ``load_weights``."""
    card = read_card(path_or_name)
    return LoadedModel(card, load_weights(card, dtype=dtype, device=device, trainable=trainable))


def save_model(
    model: DiffusionTransformer,
    config: ModelConfig,
    path: str | Path,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write config.json and the weights, in the model's dtype, under the family's original names.

    The folder appears, or changes, only after everything is written (see ``staged_folder``). Files
    of an existing folder that are no weights, such as a tokenizer, stay.
    """
    params = dict(model.named_parameters())
    dtype = next(iter(params.values())).dtype
    with staged_folder(Path(path)) as staged:
        write_weights(
            staged,
            checkpoint_parts(config),
            lambda part: part_view(params, part),
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
        )
        config.to_json(staged)


def part_view(params: dict[str, torch.nn.Parameter], part: Part) -> Tensor:
    """The rows of the parameter that one checkpoint tensor holds."""
    return params[part.param].detach()[part.start : part.start + part.shape[0]]
