"""The rules of Crater's job forms, as its portal and its backend check them. Each stands below the file of raids-lab/crater that it comes from.

A document is refused here as well where it says what the forms do not know: the portal would drop that in silence.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

# frontend/src/components/form/types.ts: CurrentJobTemplateVersion, and the types of MetadataFormCustom and MetadataFormPytorch
Version = Literal["20260707"]

# frontend/src/utils/form.ts: z.string().min(1), z.number().int().min(0)
Text = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(strict=True, ge=0)]


class Form(BaseModel):
    """No unknown field, and no text for a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Gpu(Form):
    """frontend/src/utils/form.ts, resourceSchema: a count needs a model, which is the name of a resource."""

    count: Count
    # frontend/src/utils/form.ts, convertToResourceList: the model becomes a key of Kubernetes' resources
    model: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9_.-]+$")] | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.count and not self.model:
            raise ValueError("a number of GPUs without a model")
        return self


class Network(Form):
    """frontend/src/utils/form.ts, resourceSchema: RDMA needs a model."""

    enabled: bool
    model: str | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.enabled and not self.model:
            raise ValueError("RDMA without a model")
        return self


class VirtualGpu(Form):
    """frontend/src/utils/form.ts, resourceSchema."""

    enabled: bool
    models: list[object] | None = None


class Resource(Form):
    """frontend/src/utils/form.ts, resourceSchema: cores and GiB are whole numbers."""

    cpu: Count
    memory: Count
    gpu: Gpu
    network: Network
    vgpu: VirtualGpu


class Image(Form):
    """frontend/src/utils/form.ts, taskSchema; backend/internal/handler/vcjob/util.go, DetermineArchitectureType: amd or x86 is x86-64."""

    imageLink: Text  # noqa: N815 - the form's spelling
    archs: Annotated[list[Literal["linux/amd64", "linux/arm64"]], Field(min_length=1)]


class Port(Form):
    """frontend/src/utils/form.ts, taskSchema; Kubernetes: a container port's name."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$")]
    port: Annotated[int, Field(ge=1, le=65535)]


class Task(Form):
    """frontend/src/utils/form.ts, taskSchema."""

    taskName: Text  # noqa: N815
    replicas: Annotated[int, Field(ge=1)]
    resource: Resource
    image: Image
    # Kubernetes takes `$$` for `$` in a command.
    command: Annotated[str, StringConstraints(min_length=1, pattern=r"^(?:[^$]|\$[^$])*$")]
    workingDir: Annotated[str, StringConstraints(pattern="^/")]  # noqa: N815 - backend/internal/handler/vcjob/custom.go: binding:"required"
    ports: list[Port]


class CustomTask(Task):
    """frontend/src/routes/portal/jobs/new/single-job.tsx: the choices of the shell."""

    shell: Literal["/crater-start.sh", "bash", "sh"]


class Environment(Form):
    """frontend/src/utils/form.ts, envsSchema: no empty value. Kubernetes: the name."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_.-][A-Za-z0-9_.-]*$")]
    value: Text


def _apart(path: str) -> str:
    if not path.startswith("/") or ".." in path or "//" in path or path == "/":
        raise ValueError("a mount path begins with one slash, is more than that, and has no `..` and no `//`")
    return path


class Mount(Form):
    """frontend/src/utils/form.ts, volumeMountsSchema; backend/internal/util/volumes.go, ResolveVolumeMount: files are in one of three spaces."""

    type: Literal[1]
    subPath: Annotated[str, StringConstraints(pattern="^(user|account|public)(/|$)")]  # noqa: N815
    mountPath: Annotated[str, AfterValidator(_apart)]  # noqa: N815


class Forward(Form):
    """frontend/src/utils/form.ts, forwardsSchema."""

    name: Annotated[str, StringConstraints(pattern="^[a-z]+$", max_length=20)]
    port: Annotated[int, Field(ge=1, le=65535)]


class NodeSelector(Form):
    """frontend/src/utils/form.ts, nodeSelectorSchema: enabled, it names a node."""

    enable: bool
    mode: Literal["include", "exclude"]
    nodes: list[str]

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.enable and not any(node.strip() for node in self.nodes):
            raise ValueError("a choice of nodes without a node")
        return self


class Data(Form):
    """What both forms have: frontend/src/utils/form.ts, jobNameSchema and the schemas above."""

    jobName: Annotated[str, StringConstraints(min_length=1, max_length=40)]  # noqa: N815
    envs: list[Environment]
    volumeMounts: list[Mount]  # noqa: N815
    alertEnabled: bool  # noqa: N815
    nodeSelector: NodeSelector  # noqa: N815
    forwards: list[Forward]

    @model_validator(mode="after")
    def _once(self) -> Self:
        """Kubernetes: mount paths and variables of a container differ."""
        for values in ([env.name for env in self.envs], [mount.mountPath for mount in self.volumeMounts]):
            if len(values) != len(set(values)):
                raise ValueError("a variable or a mount path comes twice")
        return self


class Custom(Data):
    """frontend/src/routes/portal/jobs/new/single-job.tsx, formSchema; ScheduleType of frontend/src/services/api/vcjob.ts."""

    task: CustomTask
    cpuPinningEnabled: bool  # noqa: N815
    scheduleType: Literal[0, 1]  # noqa: N815


class Master(Task):
    """backend/internal/handler/vcjob/pytorch.go: the plugin's --master=master. Volcano's address is that of the first pod."""

    taskName: Literal["master"]  # noqa: N815
    replicas: Literal[1]


class Worker(Task):
    """backend/internal/handler/vcjob/pytorch.go: the plugin's --worker=worker."""

    taskName: Literal["worker"]  # noqa: N815


class Pytorch(Data):
    """frontend/src/routes/portal/jobs/new/pytorch-ddp-job.tsx, formSchema and onSubmit."""

    ps: Master
    worker: Worker
    # backend/internal/service/vcjob/runtime.go, CreateForwardIngresses: a forward's Service selects every pod of the job.
    forwards: Annotated[list[Forward], Field(max_length=0)]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if self.ps.resource.network != self.worker.resource.network:
            raise ValueError("RDMA differs between the roles")
        return self


class CustomDocument(Form):
    """frontend/src/utils/form.ts, importFromJobSubmitJson: the type is the form's, the version the current one."""

    version: Version
    type: Literal["custom"]
    data: Custom


class PytorchDocument(Form):
    """The same for the form of PyTorch jobs."""

    version: Version
    type: Literal["pytorch"]
    data: Pytorch


class Document(BaseModel):
    """A file that the portal imports."""

    document: Annotated[CustomDocument | PytorchDocument, Field(discriminator="type")]


def load(document: object) -> CustomDocument | PytorchDocument:
    """The document, when every rule holds. Raises pydantic.ValidationError."""
    return Document.model_validate({"document": document}).document
