"""What unit tests share: Triton's interpreter, mended, and a file's tests in a process that interprets."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


def mend_interpreter() -> None:
    """Triton's interpreter as the kernels need it.

    Loops up to a number that the kernel is given fail with NumPy from 2.4 on; bfloat16 is multiplied as integers, and
    numbers are cut off to it, not rounded; a product goes through BLAS, whose rows differ by where they stand, and here
    adds over k, one after another; and a process may run one kernel at a time.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch, cast = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.cast_impl

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def numbers(handle: Any) -> Any:
        if handle.dtype.scalar == tl.bfloat16:
            return (handle.data.astype(np.uint32) << 16).view(np.float32)
        return handle.data.astype(np.float32)

    def converted(self: Any, source: Any, kind: Any) -> Any:
        if (source.dtype.scalar, kind.scalar) == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(numbers(source), tl.float32)
        if (source.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, kind)
        bits = np.ascontiguousarray(source.data).view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return interpreter.TensorHandle(np.where(np.isnan(source.data), np.uint16(0x7FC0), rounded), tl.bfloat16)

    def dot(_: Any, a: Any, b: Any, d: Any, *__: Any) -> Any:
        one, other, out = numbers(a), numbers(b), d.data.copy()
        for k in range(one.shape[1]):
            out += one[:, k : k + 1] * other[k : k + 1]
        return interpreter.TensorHandle(out, d.dtype.scalar)

    interpreter._patch_lang_tensor = patched
    interpreter.InterpreterBuilder.create_dot, interpreter.InterpreterBuilder.cast_impl = dot, converted
    run, one_by_one = interpreter.GridExecutor.__call__, threading.Lock()

    def locked(self: Any, *args: Any, **more: Any) -> None:
        with one_by_one:
            run(self, *args, **more)

    interpreter.GridExecutor.__call__ = locked


@pytest.fixture(scope="session", autouse=True)
def interpreter_is_mended() -> None:
    """Where kernels are interpreted."""
    if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") and not torch.cuda.is_available():
        mend_interpreter()


@pytest.fixture(scope="session")
def interpreted() -> Callable[[str], None]:
    """`(file)` → run its other tests where Triton interprets (it has to know when it is imported); all must pass."""

    def run(file: str) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not test_interpreted", file]
        env, folder = os.environ | {"TRITON_INTERPRET": "1"}, Path(file).resolve().parents[2]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:]
        assert " passed" in done.stdout
        assert "skipped" not in done.stdout.splitlines()[-1]

    return run
