"""Commands of docs/cluster/ that need neither an account nor a cluster, word for word, in a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "cluster"
MODELS = [
    "nap model export nap-tiny --out ./published/tiny",
    "nap model manifest ./published/tiny",
    "nap model manifest ./published/tiny --check",
    "nap decode --model file://$PWD/published/tiny --steps 33",
]
SECRETS = [
    "scripts/ray-tls.sh ca ./ca",
    "scripts/ray-tls.sh node ./ca ./server nap.nap.svc nap.nap.svc.cluster.local",
    "(umask 077; nap serve --tokens ./tokens.jsonl --new-token me:submit > ./token)",
]


def ours(page: str) -> list[str]:
    """The lines of the fence that this test is named at."""
    text = (PAGES / page).read_text()
    return text.split("<!-- run by: tests/unit/test_page_commands.py -->\n```sh\n")[1].split("```")[0].splitlines()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """`nap` on the PATH, this checkout's scripts in the current folder, a cache of its own."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nap").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nap_runtime.cli "$@"\n')
    (tmp_path / "bin" / "nap").chmod(0o755)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    return os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "runtime"),
        "NAP_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }


def run(commands: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-e"], input="\n".join(commands), cwd=folder, env=environment,
        text=True, capture_output=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_publish_a_model_and_decode_by_its_url(tmp_path: Path, environment: dict[str, str]) -> None:
    assert ours("models.md") == MODELS
    output = run(MODELS, tmp_path, environment)
    (pin,) = set(re.findall(r"^#sha256=([0-9a-f]{64})$", output, re.MULTILINE))
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()] == [pin]


def test_secrets_of_a_kubernetes_cluster(tmp_path: Path, environment: dict[str, str]) -> None:
    """What they make is what the page then puts into secrets, and the token is one of the server's."""
    from nap_runtime.service.access import Tokens

    assert ours("kubernetes.md") == SECRETS
    run(SECRETS, tmp_path, environment)
    for file in ("ca/ca.crt", "ca/ca.key", "server/tls.crt", "server/tls.key", "tokens.jsonl", "token"):
        assert (tmp_path / file).stat().st_size > 0
    for file in ("ca/ca.key", "server/tls.key", "token"):
        assert (tmp_path / file).stat().st_mode & 0o077 == 0
    verify = ["openssl", "verify", "-CAfile", "ca/ca.crt", "-verify_hostname", "nap.nap.svc", "server/tls.crt"]
    subprocess.run(verify, cwd=tmp_path, check=True, capture_output=True)
    assert len(Tokens.read(tmp_path / "tokens.jsonl")) == 1
    assert len((tmp_path / "token").read_text().strip()) >= 43
