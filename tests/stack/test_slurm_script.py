"""The `sbatch` script without Slurm: what a linter says, and what it would ask of container programs that cannot be had here.

Stand-ins for srun and apptainer only write down how they were called and stay until they are stopped; tests/cluster has the real Slurm.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import forms
import pytest
from gateways import KEYS, Door, Upstream, build_image, free_port, image_name

from engineroom.catalog import Catalog

ROOT = Path(__file__).parents[2]
DIGEST = "registry.example/team/engineroom@sha256:" + "ab" * 32
STAY = 'trap "exit 0" TERM; sleep 60 & wait'
SRUN = f"""#!/bin/bash
if [[ $1 == --help ]]; then echo "$SRUN_HELP"; exit; fi
printf '%s\\n' "$@" >"$RECORD/new.$$" && mv "$RECORD/new.$$" "$RECORD/srun.$(ls "$RECORD" | grep -c srun)" # whole, or not there
export SLURM_NODEID=0 SLURM_STEP_NUM_NODES=1
if [[ "$*" == *--container-image=* ]]; then
    mkdir -p "$ENGINEROOM_TMP/engineroom-7-0"
    echo -n ready >"$ENGINEROOM_TMP/engineroom-7-0/launch-$LAUNCH_PORT.state"
    if [[ "$*" != *--overlap* ]]; then echo $$ >"$ENGINEROOM_CACHE/jobs/7/pid"; fi # the launcher's, not the page's
    trap 'exit 0' USR1
    {STAY}
fi
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""
APPTAINER = f"""#!/bin/bash
number=$(ls "$RECORD" | grep -c apptainer)
env >"$RECORD/env.$number"
printf '%s\\n' "$@" >"$RECORD/new.$$" && mv "$RECORD/new.$$" "$RECORD/apptainer.$number"
if [[ $1 == pull ]]; then
    if [[ $4 == *${{BROKEN:-nothing}}* ]]; then exit "$BROKEN_STATUS"; fi
    touch "$3"
    exit
fi
for word in "$@"; do if [[ $word == --bind=*:/tmp ]]; then word=${{word#--bind=}}; echo -n ready >"${{word%:/tmp}}/launch-$LAUNCH_PORT.state"; fi; done
{STAY}
"""
LAUNCH = '#!/bin/sh\necho "$LAUNCH_MODEL"\n'
ID = "#!/bin/sh\necho 1000\n"  # an ordinary user, whoever runs the tests
# The gateway's container is a real one.
DOCKER = f"""#!/bin/bash
env >"$RECORD/env.$$"
printf '%s\\n' "$@" >"$RECORD/new.$$" && mv "$RECORD/new.$$" "$RECORD/docker.$$" # page and gateway are started at once
if [[ "$*" == *-gateway* ]]; then exec {shutil.which("docker")} "$@"; fi
if [[ $1 != run ]]; then exit; fi
for word in "$@"; do if [[ $word == --volume=*:/tmp ]]; then word=${{word#--volume=}}; echo -n ready >"${{word%:/tmp}}/launch-$LAUNCH_PORT.state"; fi; done
{STAY}
"""


def script(stack: str, **options: object) -> str:
    """A stack's script, with its images by digest."""
    (text,) = forms.render(Catalog(ROOT), stack, "slurm", **options).values()
    return text


@pytest.mark.parametrize(
    ("stack", "gateway"),
    [("demo-cpu", False), ("demo-cpu", True), ("demo-cpu-two-nodes", True), ("r1-7b-v100", False), ("r1-32b-v100", True)],
)
def test_shellcheck_has_nothing_to_say(stack: str, gateway: bool, tmp_path: Path) -> None:
    """With and without GPUs, on one node and on several, with and without the gateway."""
    file = tmp_path / "job.sh"
    file.write_text(script(stack, models="/data/models", node_selector={"partition": "gpu"}, gateway=gateway))
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or "shellcheck"

    result = subprocess.run([shellcheck, file], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout


def test_what_users_give_is_one_word(tmp_path: Path) -> None:
    """Options end up in the script as they are, and nothing in them runs."""
    hostile = f"/data/$(touch {tmp_path}/x)`touch {tmp_path}/x`'s}}; \"models"
    head = script("demo-cpu", models=hostile).split("# --- The stack")[0]

    result = subprocess.run(
        ["bash", "-c", f'{head}\nprintf %s "$MODELS"'],
        env={"SLURM_JOB_ID": "7", "HOME": "/"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.stdout == hostile, result.stderr
    assert not (tmp_path / "x").exists()


def settings(folder: Path, **env: str) -> dict[str, str]:
    """The environment of a job whose programs are stand-ins, which are made."""
    for made in ("record", "bin", "tmp"):
        (folder / made).mkdir()
    for name, text in (("srun", SRUN), ("apptainer", APPTAINER), ("docker", DOCKER), ("launch", LAUNCH), ("id", ID)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return {
        "PATH": f"{folder}/bin:/usr/bin:/bin", "HOME": str(folder), "RECORD": str(folder / "record"), "ENGINEROOM_CACHE": str(folder / "cache"),
        "ENGINEROOM_TMP": str(folder / "tmp"), "ENGINEROOM_IMAGE": DIGEST, "WEBUI_IMAGE": "ghcr.io/open-webui/open-webui:v1", "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "gnode10",
        "SLURM_CPUS_PER_TASK": "4", "CUDA_VISIBLE_DEVICES": "2", "PYTHONPATH": "/home/x", "SRUN_HELP": "", "MODELS": "/data/models", **env,
    }  # fmt: skip


def to_the_end(text: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A script that ends by itself."""
    return subprocess.run(["bash"], input=text, env=env, capture_output=True, text=True, check=False, timeout=60)


class Run:
    """A script that runs on stand-ins until it is ready."""

    def __init__(self, folder: Path, stack: str, *, gateway: bool = False, calls: int = 2, **env: str) -> None:
        self.record, self.cache = folder / "record", folder / "cache"
        file = folder / "job.sh"
        file.write_text(script(stack, gateway=gateway))
        self.log = folder / "log"
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                ["bash", str(file)], env=settings(folder, **env), stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while not re.search(r"ssh -N -L 3000", self.log.read_text()) or len(self.calls("srun")) < calls:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def calls(self, program: str) -> list[list[str]]:
        """The command lines of a program, in order."""
        return [file.read_text().splitlines() for file in sorted(self.record.glob(f"{program}.*"))]

    def end(self) -> int:
        """Stop it as the end of its time does; its status."""
        self.process.send_signal(signal.SIGUSR1)
        return self.process.wait(timeout=30)


@pytest.fixture
def no_gateway_left() -> Iterator[None]:
    """A job that is killed takes nothing of Docker's with it."""
    yield
    subprocess.run(["docker", "rm", "--force", "--volumes", "engineroom-7-gateway"], capture_output=True, check=False)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[list[Run]]:
    """Runs of a test; killed afterwards with all that they started."""
    runs: list[Run] = []
    yield runs
    for each in runs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(each.process.pid, signal.SIGKILL)


def test_apptainer(run: list[Run], tmp_path: Path) -> None:
    """Fetched once, by digest; a clean environment with the stack's settings in it; GPUs, caches and models bound."""
    run.append(made := Run(tmp_path, "r1-7b-v100"))
    deadline = time.monotonic() + 30
    while len(made.calls("apptainer")) < 4:
        assert time.monotonic() < deadline, made.log.read_text()
        time.sleep(0.1)

    pull, engine, pull_page, page = made.calls("apptainer")
    around_page = (made.record / "env.2").read_text().splitlines()  # what its pull sees

    sif = made.cache / "images" / f"{re.sub('[^A-Za-z0-9._-]', '-', DIGEST)}.sif"
    assert f"container: apptainer ({tmp_path}/bin/apptainer)" in made.log.read_text()
    assert pull == ["pull", "--force", f"{sif}.7", f"docker://{DIGEST}"]
    assert engine == [
        "run", "--cleanenv", "--no-mount", "cwd,tmp", f"--bind={tmp_path}/tmp/engineroom-7-0:/tmp", "--bind=/data/models:/models:ro",
        f"--home={made.cache}:/cache", "--pwd=/cache", "--nv", str(sif),
    ]  # fmt: skip
    given = dict(line.split("=", 1) for line in (made.record / "env.1").read_text().splitlines() if line.startswith("APPTAINERENV_"))
    assert given["APPTAINERENV_LAUNCH_MODEL_NAME"] == "r1-7b"
    assert given["APPTAINERENV_SLURM_NODEID"] == "0"
    assert given["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == "2"
    assert "APPTAINERENV_PYTHONPATH" not in given
    assert pull_page[-1] == "docker://ghcr.io/open-webui/open-webui:v1"
    assert f"HOME={tmp_path}" in around_page  # the page's own settings would hide the registry's key and the proxy
    assert "NO_PROXY=*" not in around_page
    assert page[:5] == ["run", "--cleanenv", "--no-mount", "cwd,tmp", f"--bind={made.cache}/page/r1-7b-v100:/app/backend/data"]
    assert (made.record / "env.3").read_text().count(f"APPTAINERENV_OPENAI_API_BASE_URLS=http://127.0.0.1:{20000 + 7 * 12 + 10}/v1") == 1
    assert made.end() == 0
    assert not any((tmp_path / "tmp").iterdir())
    assert not any((made.cache / "jobs").iterdir())


@pytest.mark.parametrize("status", ["1", "0"], ids=["fails", "leaves nothing"])
def test_an_image_that_cannot_be_fetched(status: str, tmp_path: Path) -> None:
    """The job ends with 69 and the image's name, and no launcher is started without one."""
    result = to_the_end(script("r1-7b-v100"), settings(tmp_path, BROKEN="engineroom", BROKEN_STATUS=status))

    assert result.returncode == 69, result.stderr
    assert f"{DIGEST} is not in {tmp_path}/cache/images, and could not be fetched" in result.stderr
    assert not list((tmp_path / "record").glob("srun.*"))


def test_a_page_that_cannot_be_fetched(run: list[Run], tmp_path: Path) -> None:
    """The log says so, and the API goes on."""
    run.append(made := Run(tmp_path, "r1-7b-v100", calls=1, BROKEN="open-webui", BROKEN_STATUS="1"))
    deadline = time.monotonic() + 30
    while "no page: ghcr.io/open-webui/open-webui:v1 is not in" not in made.log.read_text():
        assert time.monotonic() < deadline, made.log.read_text()
        time.sleep(0.1)

    assert len(made.calls("srun")) == 1
    assert made.end() == 0


@pytest.mark.parametrize("name", ["MODELS", "ENGINEROOM_CACHE", "ENGINEROOM_TMP"])
@pytest.mark.parametrize("last", ["my models", "a:b", "a,b"])
def test_folders_that_cannot_be_mounted(name: str, last: str, tmp_path: Path) -> None:
    """Mounts are words of host:container, with Pyxis between commas: the job ends with 78 and what to change, and makes nothing."""
    result = to_the_end(script("r1-7b-v100"), settings(tmp_path, BROKEN="engineroom", BROKEN_STATUS="1", **{name: f"{tmp_path}/{last}"}))

    assert result.returncode == 78
    assert f"{name} is '{tmp_path}/{last}'" in result.stderr
    assert not list((tmp_path / "record").iterdir())


@pytest.mark.parametrize("models", ["/data/my models", "/data/a&b", ""])
def test_models_without_a_container(models: str, tmp_path: Path) -> None:
    """Nothing is mounted at /models, so the launcher is told of the folder itself."""
    text = script("demo-cpu", models="/data/default", model="/models/mine")

    result = to_the_end(text, settings(tmp_path, ENGINEROOM_CONTAINER="none", MODELS=models))

    assert result.returncode == 0, result.stderr
    assert f"\n{models or '/data/default'}/mine\n" in result.stdout


def test_docker_keeps_the_registry_s_key(run: list[Run], tmp_path: Path) -> None:
    """Docker's own client looks for it in HOME, which is /tmp in the page."""
    run.append(made := Run(tmp_path, "r1-7b-v100", ENGINEROOM_CONTAINER="docker", SLURM_JOB_GPUS="0"))
    deadline = time.monotonic() + 30
    while not (page := [file for file in made.record.glob("docker.*") if "engineroom-7-page" in file.read_text()]):
        assert time.monotonic() < deadline, made.log.read_text()
        time.sleep(0.1)

    around = (made.record / f"env{page[0].suffix}").read_text().splitlines()

    assert {"HOME=/tmp", f"DOCKER_CONFIG={tmp_path}/.docker"} <= set(around)
    assert "--env=DOCKER_CONFIG" not in page[0].read_text()
    assert made.end() == 0


def test_older_bash() -> None:
    """Bash before 4.4 refuses an empty array under `set -u`: none that may be empty is used without a guard."""
    text = script("r1-32b-v100", gateway=True)
    empty = re.findall(r"^ *(\w+)=\(\)$", text, re.MULTILINE)

    assert empty == ["pyxis"]
    for name in empty:
        assert f'"${{{name}[@]}}"' not in text.replace(f'${{{name}[@]+"${{{name}[@]}}"}}', "")


def test_pyxis(run: list[Run], tmp_path: Path) -> None:
    """Chosen before all others; its flags go on srun, in Enroot's spelling of a digest, and the token's file is inside."""
    run.append(made := Run(tmp_path, "r1-32b-v100", SRUN_HELP="      --container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH"))
    token = made.cache / "jobs/7/cluster_token"
    mode = token.stat().st_mode & 0o777

    engine, page = made.calls("srun")

    assert "container: pyxis (srun has Pyxis' --container-image)" in made.log.read_text()
    assert mode == 0o600
    assert "--container-image=registry.example#team/engineroom:sha256:" + "ab" * 32 in engine
    assert f"--container-mounts={made.cache}:/cache,{tmp_path}/tmp:{tmp_path}/tmp,/data/models:/models:ro" in engine
    assert {"--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=4", "--no-container-mount-home", "--container-readonly"} <= set(engine)
    assert "LAUNCH_CLUSTER_TOKEN_FILE" in next(word for word in engine if word.startswith("--container-env=")).split("=")[1].split(",")
    assert engine[-2:] == ["bash", "/cache/jobs/7/node.sh"]
    assert {"--overlap", "--nodes=1", "--nodelist=gnode10", "--gres=none"} <= set(page)
    assert "--container-image=ghcr.io#open-webui/open-webui:v1" in page
    assert "PORT" in next(word for word in page if word.startswith("--container-env=")).split("=")[1].split(",")
    assert token.read_text() not in "".join("".join(call) for call in made.calls("srun"))
    assert made.end() == 0
    assert not any((made.cache / "jobs").iterdir())


@pytest.mark.containers
def test_the_gateway(no_gateway_left: None, run: list[Run], tmp_path: Path) -> None:
    """With Docker it runs for real beside the engine: the keys' file and the job's ports are its own, and nothing of it stays."""
    build_image()
    engine, port = Upstream(20000 + 7 * 12 + 10), free_port()
    (tmp_path / "keys").write_text(f"alice:{KEYS['alice']}\n")
    (tmp_path / "cache/gateway/gnode10").mkdir(parents=True)
    (tmp_path / "cache/gateway/gnode10").chmod(0o777)
    own = {"GATEWAY_KEYS_FILE": "keys", "GATEWAY_PORT": str(port), "GATEWAY_IMAGE": image_name()}
    with contextlib.chdir(tmp_path):
        run.append(made := Run(tmp_path, "r1-7b-v100", gateway=True, ENGINEROOM_CONTAINER="docker", SLURM_JOB_GPUS="0", **own))
    door, deadline = Door(port), time.monotonic() + 30
    while door.status("GET /health") != 200:
        assert time.monotonic() < deadline, made.log.read_text()
        time.sleep(0.2)

    answers = [door.ask("GET /v1/models", key).status for key in (KEYS["alice"], KEYS["bob"])]
    (call,) = (call for call in made.calls("docker") if "engineroom-7-gateway" in call and call[0] == "run")

    assert answers == [200, 401]
    assert engine.requests == ["GET /v1/models HTTP/1.1"]
    assert f"others https://gnode10:{port} for page and API" in made.log.read_text()
    assert {"--read-only", "--cap-drop", "ALL", "no-new-privileges", "1000:1000"} <= set(call)
    assert KEYS["alice"] not in "".join(call)
    assert made.end() == 0
    assert (door.status("GET /health"), sorted(path.name for path in (made.cache / "gateway/gnode10").iterdir())) == (
        0,
        ["certificate-key.pem", "certificate-names", "certificate.pem"],
    )
    assert (made.cache / "gateway/gnode10/certificate-names").read_text() == "gnode10 localhost 127.0.0.1"
    engine.stop()


@pytest.mark.parametrize(
    ("kind", "keys", "reason"),
    [
        ("apptainer", "keys", "The gateway runs in Docker here, and the containers are of the kind apptainer."),
        ("docker", "nowhere", "GATEWAY_KEYS_FILE (nowhere) is no file that can be read."),
        ("docker", "", "GATEWAY_KEYS_FILE (not set) is no file that can be read."),
    ],
)
def test_a_gateway_that_cannot_be(kind: str, keys: str, reason: str, tmp_path: Path) -> None:
    """The job ends at once with 78 where its containers are no Docker's, or without keys."""
    (tmp_path / "keys").touch()
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SLURM_JOB_ID": "7", "ENGINEROOM_IMAGE": DIGEST}
    env |= {"ENGINEROOM_CONTAINER": kind, "GATEWAY_KEYS_FILE": keys}

    result = subprocess.run(
        ["bash"], input=script("demo-cpu", gateway=True), env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert result.returncode == 78
    assert reason in result.stderr
