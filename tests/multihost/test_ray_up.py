"""From three fresh hosts to decoded problems, trained models and a server: the commands of docs/cluster/on-prem.md.

What is real: `ray up` with the local provider, over ssh, to hosts with addresses, processes, homes and folders of their
own; token authentication and TLS; the project's wheel, built and installed on each host by the setup commands; the
processes of decodes and trainings, which talk over gloo between the hosts. What is not: the hosts share a kernel and
its processors; and they have the packages of other projects already (see `image.py`), because they reach no index.

The tests stand in the order of the page and share its cluster. `make hosts` runs them; the default suite leaves
them out.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest
from hosts import missing
from rayup import Site, answers, site

PAGE = "docs/cluster/on-prem.md"
JOBS = "examples/cluster/README.md"
WHY_NOT = missing("rsync", "openssl")
needs_hosts = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")
# Minutes of two cores: `make hosts` runs them. The time is for processors that other work shares.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
QUESTION = "A shirt costs $50 and is on sale for 20% off. What is the final price?"


@pytest.fixture(scope="module")
def here() -> Iterator[Site]:
    """The site, once it has run the two commands."""
    with site() as made:
        fresh = made.hosts[0].run("ls -A ~ | grep -v nap-env").stdout.split()
        assert set(fresh) <= {".ssh", ".pyenv", ".local", ".cache"}  # and perhaps this Python, where it is in the home
        made.first = made.follow(PAGE, "Two commands")
        yield made
        print("\n" + "\n".join(f"{seconds:6.1f} s  {what}" for what, seconds in made.times))


@needs_hosts
def test_two_commands_from_fresh_hosts_to_a_decoded_problem(here: Site) -> None:
    assert "3 of 3 hosts: 10.77.0.1 10.77.0.2 10.77.0.3" in here.first
    assert re.search(r"answer +40 +\(correct\)", here.first)


@needs_hosts
def test_one_path_on_each_host_gives_the_ids_of_one_device(here: Site) -> None:
    alone = answers(here.shell(f"nap decode '{QUESTION}' --dtype float64 --json", what="decode, one device"))
    line = f"nap decode '\\''{QUESTION}'\\'' --address auto --workers 3 --placement spread --dtype float64 --json"
    spread = answers(here.shell(f"ray exec cluster_configs/on-prem.yaml '{line}'", what="decode, exact, three hosts"))
    assert {worker["host"] for worker in spread[0]["workers"]} == {"node0", "node1", "node2"}
    assert len(spread[0]["sync"]) > 0
    assert [spread[0][key] for key in ("tokens", "answer", "paths")] == [
        alone[0][key] for key in ("tokens", "answer", "paths")
    ]
    # Which step committed which id where, and nothing about who did it.
    bare = [[(step, at, token) for step, _, at, token, _ in one[0]["order"]] for one in (spread, alone)]
    assert sorted(bare[0]) == sorted(bare[1])


@needs_hosts
def test_a_decode_as_a_job(here: Site) -> None:
    out = here.follow(PAGE, "Jobs")
    assert re.search(r"Job 'raysubmit_\w+' succeeded", out)
    assert "answer    40  (correct)" in out
    assert "JobStatus.SUCCEEDED" in out


@needs_hosts
def test_a_file_of_questions_as_a_job_from_another_machine(here: Site) -> None:
    out = here.follow(PAGE, "Jobs from your own machine")
    assert re.search(r"Job 'raysubmit_\w+' succeeded", out)
    assert [one["answer"] for one in answers(out)] == ["40", "24"]


@needs_hosts
def test_an_evaluation_a_study_and_a_training_as_jobs(here: Site) -> None:
    if not here.exports:
        here.follow(PAGE, "Jobs from your own machine")
    out = here.follow(JOBS, "Evaluations, studies, trainings")
    assert len(re.findall(r"Job 'raysubmit_\w+' succeeded", out)) == 2
    assert (here.mnt / "quick" / "runs.csv").read_text().count("\n") > 5
    assert "2 ranks on 2 hosts" in out
    trained(here, "run")


@needs_hosts
def test_a_job_that_brings_its_code(here: Site) -> None:
    if not here.exports:
        here.follow(PAGE, "Jobs from your own machine")
    marked = here.person.home / "nap" / "runtime" / "nap_runtime" / "__init__.py"
    marked.write_text(re.sub('__version__ = "(.*)"', r'__version__ = "\1+mine"', marked.read_text()))
    assert "+mine" in marked.read_text()
    out = here.follow(JOBS, "What workers need")
    assert re.search(r"Job 'raysubmit_\w+' succeeded", out)
    assert "answer    40  (correct)" in out
    line = 'python -c "import nap_runtime; print(nap_runtime.__version__, nap_runtime.__file__)"'
    env = "--runtime-env examples/cluster/runtime-env.yaml"
    out = here.shell("\n".join([*here.exports, f"ray job submit {env} -- {line}"]), what="whose code runs")
    assert re.search(r"\+mine .*/py_modules_files/", out)


@needs_hosts
def test_without_the_token_nothing_is_taken(here: Site) -> None:
    head = here.hosts[0].run
    refused = head("RAY_AUTH_MODE=disabled ray job submit -- touch /tmp/ran", check=False)
    assert refused.returncode
    assert "Unauthenticated" in refused.stdout + refused.stderr
    assert not (here.hosts[0].tmp / "ran").exists()


# Begins to talk HTTP/2 to the head's GCS, with or without this host's certificate; prints how much comes back.
GREET = """
import pathlib, socket, ssl, sys
secrets = pathlib.Path.home() / ".ray"
context = ssl.create_default_context(cafile=secrets / "ca.crt")
context.set_alpn_protocols(["h2"])
if sys.argv[1] == "certificate":
    context.load_cert_chain(secrets / "tls.crt", secrets / "tls.key")
plain = socket.create_connection(("10.77.0.1", 6379), 5)
with context.wrap_socket(plain, server_hostname="10.77.0.1") as tls:
    try:
        print(len(tls.recv(1000)))
    except ssl.SSLError:
        print(0)
"""


@needs_hosts
def test_without_a_certificate_nobody_talks_to_ray(here: Site) -> None:
    answers_to = {
        who: int(here.hosts[1].run(["python3", "-c", GREET, who]).stdout) for who in ("certificate", "nobody")
    }
    assert answers_to["certificate"] > 0
    assert answers_to["nobody"] == 0


@needs_hosts
def test_a_training_on_two_hosts_through_ray(here: Site) -> None:
    out = here.follow(PAGE, "Training through Ray")
    assert re.search(r"Job 'raysubmit_\w+' succeeded", out)
    trained(here, "by-ray")
    assert "2 ranks on 2 hosts" in out


@needs_hosts
@pytest.mark.skipif(missing("pdsh") is not None, reason=missing("pdsh") or "")
def test_a_training_on_two_hosts_through_the_deepspeed_launcher(here: Site) -> None:
    out = here.follow(PAGE, "Training through the deepspeed launcher")
    trained(here, "by-hostfile")
    assert {"10.77.0.1:", "10.77.0.2:"} <= set(re.findall(r"^10\.77\.0\.\d:", out, re.MULTILINE))


def trained(here: Site, name: str) -> None:
    """The run in /mnt/NAME has ten steps and a model."""
    folder = here.mnt / name
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert steps[-1]["step"] == 10
    assert (folder / "model" / "model.safetensors").stat().st_size > 100_000


@needs_hosts
def test_a_server_on_the_head_and_a_job_from_another_machine(here: Site) -> None:
    out = here.follow(PAGE, "Serving")
    assert out.split()[-1] == "40"
    with pytest.raises(AssertionError, match="token"):
        here.shell(
            "nap submit --server 10.77.0.1:50051 --ca ~/nap-ca.crt --patience 1 --wait 'A question'", what="no token"
        )


@needs_hosts
def test_setting_a_host_up_again_keeps_its_secrets(here: Site) -> None:
    secrets = here.hosts[0].home / ".ray"
    before = [(secrets / name).read_bytes() for name in ("auth_token", "ca.key", "ca.crt")]
    here.hosts[0].run("sh ~/nap-runtime/cluster_configs/host.sh head", timeout=120)
    assert [(secrets / name).read_bytes() for name in ("auth_token", "ca.key", "ca.crt")] == before
    assert (here.hosts[0].home / ".profile").read_text().count("shell.sh") == 1
    assert {path.stat().st_mode & 0o77 for path in secrets.iterdir() if path.suffix != ".crt"} == {0}
    assert not (here.hosts[1].home / ".ray" / "ca.key").exists()
    assert (here.hosts[1].home / ".ray" / "auth_token").read_bytes() == before[0]


@needs_hosts
def test_ray_down_stops_the_head(here: Site) -> None:
    here.follow(PAGE, "Stop")
    processes = here.hosts[0].run(["ps", "-eo", "args"]).stdout
    assert "gcs_server" not in processes
    assert "raylet" not in processes


@needs_hosts
def test_workers_leave_after_the_head(here: Site) -> None:
    here.follow(PAGE, "Stop")  # once more does no harm
    deadline = time.monotonic() + 120
    began = time.monotonic()
    while time.monotonic() < deadline:
        left = [host for host in here.hosts[1:] if "raylet" in host.run(["ps", "-eo", "args"]).stdout]
        if not left:
            break
        time.sleep(1)
    here.times.append(("workers leave after ray down", time.monotonic() - began))
    assert not left
