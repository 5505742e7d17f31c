"""YAML that people write, read strictly: a key that stands twice is an error, and 1e-4 is a number."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from nap_runtime.errors import UsageError

# YAML 1.1, which PyYAML reads, takes 1e-4 for a text and wants 1.0e-4; YAML 1.2 has no such trap.
_FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")


def read_yaml(file: Path, *, field: str | None = None) -> Any:
    """What a YAML file holds, in plain types.

    Args:
        field: the option or key that names the file, for the error.

    Raises:
        UsageError: it cannot be read, is no YAML, or has a key twice; file and line are named.
    """
    import yaml

    where = f"{field}: {file}" if field else str(file)
    try:
        return yaml.load(file.read_text(encoding="utf-8"), _loader())
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}", field=field) from error
    except yaml.composer.ComposerError as error:
        raise UsageError(f"{where}: {error.problem}{_line(error)}", field=field) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: not YAML{_line(error)}", field=field) from error


def yaml_value(text: str) -> Any:
    """One value as a file would hold it: a number, a truth value, a list, a text.

    Raises:
        ValueError: it is no YAML.
    """
    import yaml

    try:
        return yaml.load(text, _loader())
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{text!r} is not YAML") from error


def _line(error: BaseException) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f" at line {mark.line + 1}"


@cache
def _loader() -> Any:
    import yaml

    class Strict(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                    continue
                if key.value in seen:
                    problem = f"key '{key.value}' stands twice, again"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                seen.add(key.value)
            return node

    Strict.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
    return Strict
