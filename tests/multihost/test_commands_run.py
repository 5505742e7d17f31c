"""Every shell command of the cluster pages is run by a test here, or says what it needs instead.

A fence of shell commands (sh, bash, shell, console or no language; output is fenced as `text`) has a comment on the
line before it, one of

    <!-- run by: tests/multihost/test_ray_up.py -->    a test runs each of its commands, word for word
    <!-- needs: account -->                            somebody's account with a cloud
    <!-- needs: cluster -->                            a Kubernetes cluster, GPUs, or hosts of one's own
    <!-- needs: root -->                               a machine where one may be root, to start these tests

A test runs a command when it takes it from the page (`pages.section(page, heading)`; page and heading stand in the
test as strings), or when the command itself stands in the test.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import NEEDS, ROOT, Fence, fences

FOLDERS = ("docs/cluster", "cluster_configs", "examples/cluster")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("**/*.md"))
EXAMPLE = """
# First

<!-- needs: account -->
```sh
aws configure
```

<!-- run by: tests/a.py -->
```console
$ one \\
    --more
# no heading
output
$ two  # why
```

## Second

```yaml
a: b
```

```
bare
```
"""


def test_what_a_page_says() -> None:
    found = fences(EXAMPLE)
    assert found == [
        Fence(line=5, heading="First", mark="needs: account", commands=("aws configure",)),
        Fence(line=10, heading="First", mark="run by: tests/a.py", commands=("one --more", "two")),
        Fence(line=24, heading="Second", mark="", commands=("bare",)),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_run_or_says_what_it_needs(page: Path) -> None:
    for fence in fences(page.read_text()):
        where = f"{page.relative_to(ROOT)}:{fence.line}"
        kind, _, what = fence.mark.partition(": ")
        assert kind in ("run by", "needs"), f"{where}: no mark before this fence of shell commands"
        if kind == "needs":
            assert what in NEEDS, f"{where}: {what!r} is none of {', '.join(NEEDS)}"
        else:
            assert_run(where, page, ROOT / what, fence)


def assert_run(where: str, page: Path, test: Path, fence: Fence) -> None:
    """The test takes the commands below this heading from this page, or has each of them."""
    assert test.is_file(), f"{where}: there is no {test}"
    source = test.read_text()
    if f'"{page.relative_to(ROOT)}"' in source and f'"{fence.heading}"' in source:
        return
    missing = [command for command in fence.commands if command not in source]
    assert not missing, f"{where}: {test.name} does not run {missing}"
