"""`nap model info | make | export | convert | tags | manifest | fetch`."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from nap_runtime.cli import output
from nap_runtime.cli.parser import Parser, natural, positive
from nap_runtime.errors import ModelError, UsageError
from nap_runtime.job import DTYPES

_MAKE = """\
Write a model folder with random weights, for benchmarks and tests.

Shapes: llada-8b, dream-7b, llada-tiny, dream-tiny, nap-tiny. Without a tokenizer prompts become bytes.
"""
_EXPORT = """\
Write a model's weights under the original tensor names of its family, with its tokenizer.
"""
_CONVERT = """\
Make a model of ours from a causal language model, to be adapted to masked diffusion.

SOURCE is a Hugging Face folder (Llama or Qwen2 architecture, safetensors) or a GGUF file. The vocabulary gets the
mask and NAP's tags; until it is adapted, the model predicts the next token only.
"""
_TAGS = """\
Add NAP's tags to a LLaDA or Dream checkpoint, so that it can be trained on NAP data.

SOURCE is the checkpoint's folder. The tags take rows that no token uses yet; weights without tags are hard links.
"""
_MANIFEST = """\
Write the checksums that others fetch this model by, as model.sha256.json in its folder.

Copy the folder to object storage or a shared disk, and give its URL as --model. What is printed pins this content.
"""
_FETCH = """\
Bring a model behind a URL into this host's cache and print where it is; every byte is checked.

  nap model fetch s3://bucket/llada-8b-nap
  nap model fetch 'https://host/models/llada-8b-nap#sha256=DIGEST'        only this content, whatever stands there
"""
_DEFAULT_DTYPE = "bfloat16"


def register(root: Parser) -> None:
    """Add the commands."""
    group = root.command("model", "Look at model folders and make them.")
    info = group.command("info", "Print what a model folder holds; weights are not read.", _info)
    info.add_argument("model", metavar="nap-tiny|PATH|URL")
    info.add_argument("--json", action="store_true", help="one JSON object (default: a table)")
    make = group.command("make", _MAKE, _make)
    make.add_argument("--shape", required=True, metavar="SHAPE", help="see above (required)")
    make.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder without a model (required)")
    make.add_argument("--seed", type=natural, default=0, metavar="S", help="of the weights (default: 0)")
    _add_dtype(make, f"precision to store (default: {_DEFAULT_DTYPE})")
    export = group.command("export", _EXPORT, _export)
    export.add_argument("model", metavar="nap-tiny|PATH|URL")
    export.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder without a model (required)")
    _add_dtype(export, "precision to store (default: as stored)")
    convert = group.command("convert", _CONVERT, _convert)
    convert.add_argument("source", type=Path, metavar="SOURCE")
    convert.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder without a model (required)")
    convert.add_argument("--mask-token", metavar="TOKEN", help="name of the mask (default: <mask>)")
    convert.add_argument("--shifted", action="store_true", help="row i - 1 predicts position i (default: row i)")
    convert.add_argument("--max-positions", type=positive, metavar="N", help="context of the model (default: 1024)")
    _add_dtype(convert, f"precision to store (default: {_DEFAULT_DTYPE})")
    tags = group.command("tags", _TAGS, _tags)
    tags.add_argument("source", type=Path, metavar="SOURCE")
    tags.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder without a model (required)")
    manifest = group.command("manifest", _MANIFEST, _manifest)
    manifest.add_argument("folder", type=Path, metavar="PATH")
    manifest.add_argument("--check", action="store_true", help="compare with the one that is there (default: write)")
    group.command("fetch", _FETCH, _fetch).add_argument("model", metavar="URL")


def _add_dtype(parser: Parser, text: str) -> None:
    parser.add_argument("--dtype", metavar="|".join(DTYPES), help=text)


def _dtype(name: str) -> Any:
    """A torch dtype."""
    if name not in (*DTYPES, "float16"):
        raise UsageError(f"dtype: unknown value '{name}'; use one of {', '.join(DTYPES)}", field="dtype")
    import torch

    return getattr(torch, name)


def _info(args: argparse.Namespace) -> int:
    from nap_runtime.models.inspection import describe

    facts = describe(args.model)
    if "json" in args:
        print(output.dumps(facts))
        return 0
    print(output.align([(key, _text(key, value)) for key, value in facts.items()]))
    return 0


def _text(key: str, value: Any) -> str:
    if key == "files":
        return ", ".join(f"{name} ({output.size_text(size)})" for name, size in value.items())
    if key == "params":
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return (", ".join(value) or "none") if isinstance(value, list) else str(value)


def _make(args: argparse.Namespace) -> int:
    from nap_runtime.models.shapes import make_model_dir

    dtype = _dtype(getattr(args, "dtype", _DEFAULT_DTYPE))
    config = make_model_dir(args.shape, args.out, seed=args.seed, dtype=dtype)
    print(f"{args.out}: {args.shape}, {config.n_params:,} random weights")
    return 0


def _export(args: argparse.Namespace) -> int:
    if (args.out / "config.json").exists():
        raise UsageError(f"out: {args.out} already holds a model; choose another folder", field="out")
    from nap_runtime.models.inspection import describe
    from nap_runtime.models.loading import load_model, save_model
    from nap_runtime.models.manifest import Manifest
    from nap_runtime.models.tokenizer import copy_tokenizer

    stored = str(describe(args.model)["dtype"]).split("+")[-1]
    loaded = load_model(args.model, dtype=_dtype(getattr(args, "dtype", stored)))
    save_model(loaded.model, loaded.config, args.out)
    copied = copy_tokenizer(loaded.card.path, args.out)
    defaults = loaded.card.path / "decode.json"
    if defaults.is_file():
        shutil.copyfile(defaults, args.out / defaults.name)
    Manifest.of(args.out).write(args.out)
    words = f"tokenizer {', '.join(copied)}" if copied else "no tokenizer"
    print(f"{args.out}: {loaded.config.family}, {loaded.config.n_params:,} weights, {words}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from nap_trainer.adapt.convert import convert, describe_types

    options = {name: getattr(args, name) for name in ("mask_token", "shifted", "max_positions") if name in args}
    config, note = convert(args.source, args.out, dtype=_dtype(getattr(args, "dtype", _DEFAULT_DTYPE)), **options)
    kind = "shifted" if config.shifted_logits else "unshifted"
    print(f"{args.out}: {config.n_params:,} weights from {note.source} ({describe_types(note.stored)}), {kind} logits")
    print(
        f"vocabulary {note.vocabulary[0]} -> {note.vocabulary[1]}, {len(note.added)} new tokens, mask {config.mask_id}"
    )
    return 0


def _tags(args: argparse.Namespace) -> int:
    from nap_trainer.adapt.tags import add_tags

    config, note = add_tags(args.source, args.out)
    ids = f"ids {min(note.added.values())} to {max(note.added.values())}"
    rows = f"{note.rows[0]} rows" if note.rows[0] == note.rows[1] else f"{note.rows[0]} -> {note.rows[1]} rows"
    print(f"{args.out}: {config.family}, {len(note.added)} tags as {ids}, {rows} of the vocabulary")
    return 0


def _manifest(args: argparse.Namespace) -> int:
    from nap_runtime.models.manifest import MANIFEST_NAME, Manifest

    if not args.folder.is_dir():
        raise UsageError(f"folder: {args.folder} is no folder; give a checkpoint folder")
    if "check" in args:
        manifest = Manifest.parse((args.folder / MANIFEST_NAME).read_bytes(), str(args.folder / MANIFEST_NAME))
        damaged = manifest.damaged(args.folder)
        if damaged:
            raise ModelError(f"{args.folder / damaged[0]} is not what {MANIFEST_NAME} says ({len(damaged)} damaged)")
    else:
        manifest = Manifest.of(args.folder)
        manifest.write(args.folder)
    print(f"{args.folder}: {len(manifest.files)} files, {output.size_text(manifest.size)}")
    print(f"#sha256={manifest.digest}")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from nap_runtime.models.remote import fetch, is_remote, reference_of

    if not is_remote(args.model):
        raise UsageError(f"model: {args.model} is no URL; folders are used where they are")
    folder = fetch(args.model, thorough=True)
    print(f"{folder}\n{reference_of(args.model, folder)}")
    return 0
