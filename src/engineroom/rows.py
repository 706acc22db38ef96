"""The rows of the catalog: what each field of each TOML file means, and what a row may not say.

`engineroom.catalog` reads them and checks them against each other. The tables are also the source of the JSON Schemas.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from launcher import fit, tensors
from launcher.engines import ENGINES

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
Reason = Annotated[str, StringConstraints(min_length=8)]
Precision = Literal["auto", "half", "bfloat16", "fp8-weights", "fp8", "fp4"]
EngineKind = Literal["vllm", "sglang", "trtllm", "open-webui", "nginx", "prometheus", "litellm"]
# What templates write into commands is of one shape, so that no value can be more than one word there.
Version = Annotated[str, StringConstraints(pattern=r"^\d[0-9A-Za-z.+-]*$")]
Requirement = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*(==[0-9][\w.+!-]*)?$")]
DebianPackage = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
Reference = Annotated[str, StringConstraints(pattern=r"^([a-z0-9][\w./:@-]*)?$")]
Address = Annotated[str, StringConstraints(pattern=r"^(https://[\w./:-]+)?$")]
HubId = Annotated[str, StringConstraints(pattern=r"^/?[A-Za-z0-9][\w.-]*(/[\w.-]+)*$")]
Advisory = Annotated[str, StringConstraints(pattern=r"^(GHSA(-[0-9a-z]{4}){3})?$")]
Vulnerability = Annotated[str, StringConstraints(pattern=r"^CVE-\d{4}-\d{4,}$")]
FlagName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]
VariableName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
Scalar = bool | int | float | str


class Row(BaseModel):
    """A frozen row that knows no other fields than its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Setting(Row):
    """A default flag of the engine, with its reason."""

    flag: FlagName
    value: Scalar
    why: Reason


class Preset(Setting):
    """A flag of a profile. `measured` says what it gave and where, or that nobody here has measured it; `model_types` limits it to such models.

    `says` is what the plan must know of a file that it names, as flags. `kernels`: only for a model of whose shape the image has compiled kernels;
    `env` are variables that go with it.
    """

    measured: Reason
    model_types: tuple[str, ...] = ()
    kernels: bool = False
    env: dict[VariableName, str] = {}
    says: dict[Name, Scalar] = {}


class Variable(Row):
    """A default environment variable, with its reason."""

    name: VariableName
    value: str
    why: Reason


class Packages(Row):
    """A group of Debian packages, with its reason."""

    packages: tuple[DebianPackage, ...]
    why: Reason


class LeaveOut(Row):
    """What serving does not need: packages that the lock leaves out, or files of packages (`*` spans folders), with the reason.

    `keep` are files that stay although they match; `layer` limits files to one layer, so that the others need not be made
    anew; `unless` names a Debian package whose presence lifts the rule. `saves_mb` is what it weighed unpacked, in 10^6 bytes.
    """

    packages: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    layer: Name | None = None
    unless: str = ""
    saves_mb: int = Field(gt=0)
    why: Reason


class AuditException(Row):
    """A finding of the audit that is accepted, with the reason; `capabilities` limits it to some GPUs."""

    check: Literal["device-code", "shared-libraries", "rights", "secrets"]
    files: tuple[str, ...]
    capabilities: tuple[int, ...] = ()
    why: Reason


class KnownHole(Row):
    """Vulnerabilities that a release keeps, in the words of OpenVEX (https://github.com/openvex/spec), with what contains them.

    `advisories` names each and its entry in GitHub's database, empty where that has none; `package` is the locked or Debian package that
    has them; `absent` are packages without which it cannot be reached, and the release may not have them. `why` says for `affected` what to do, else why it
    does no harm. `checked` is the day on which somebody looked, `until` the day by which somebody must look again.
    """

    package: Name
    advisories: dict[Vulnerability, Advisory] = Field(min_length=1)
    status: Literal["affected", "not_affected", "under_investigation"]
    justification: (
        Literal[
            "component_not_present",
            "vulnerable_code_not_present",
            "vulnerable_code_not_in_execute_path",
            "vulnerable_code_cannot_be_controlled_by_adversary",
            "inline_mitigations_already_exist",
        ]
        | None
    ) = None
    absent: tuple[Name, ...] = ()
    why: Reason
    checked: date
    until: date

    @model_validator(mode="after")
    def _says_enough(self) -> Self:
        if (self.status == "not_affected") is (self.justification is None):
            raise ValueError("a justification goes with status = 'not_affected', and with no other")
        if self.justification == "component_not_present" and not self.absent:
            raise ValueError("justification = 'component_not_present' needs `absent`, the packages that are not there")
        if self.until <= self.checked:
            raise ValueError("`until` must be later than `checked`")
        return self


class Newer(Row):
    """A locked package that is younger than the release's horizon, with the reason."""

    package: Name
    until: date
    why: Reason


class Executor(Row):
    """A way in which a release spreads one model over several nodes: Ray, or the engine's own; with the reason for its place in the order."""

    name: Literal["ray", "native"]
    why: Reason


class Layer(Row):
    """Packages that change together and share an image layer; `nvidia-*` stands for a prefix.

    `index` is a package index that has what the default one has not; a folder of wheels goes before it.
    """

    name: Name
    packages: tuple[str, ...]
    index: Address = ""


class Gpu(Row):
    """Hardware facts of one kind of GPU. `usable_gib` is what CUDA reports for each of `memory_gib`: the rest is the driver's and the ECC's."""

    title: str
    compute_capability: int
    memory_gib: tuple[int, ...]
    usable_gib: tuple[float, ...]
    precisions: tuple[Precision, ...]
    note: str = ""
    source: Reason

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        if len(self.memory_gib) != len(self.usable_gib):
            raise ValueError("memory_gib and usable_gib must have the same length")
        return self


class Upstream(Row):
    """The image that the engine's makers publish, or the nearest whose size is on record: what it weighs, and who says so."""

    image: str
    weighs: str
    source: Annotated[str, StringConstraints(pattern=r"^https://")]


class Memory(Row):
    """How a release deals a GPU's memory out: see launcher.fit.Engine."""

    share: Literal["all", "held", "left"]
    fraction: float = Field(gt=0, le=1)
    tokens: int = Field(ge=0)
    seqs: int = Field(gt=0)
    logit_bytes: float = Field(gt=0)
    fixed_mib: int = Field(ge=0)
    graphs_mib: int = Field(default=0, ge=0)
    source: Reason


Metric = Annotated[str, StringConstraints(pattern=r'^(([a-z_]+:)?[a-z_]+(\{[a-z_]+=~?"[^"]+"(,[a-z_]+=~?"[^"]+")*\})?)?$')]


class Metrics(Row):
    """What a release tells Prometheus, by what it means; empty where it does not tell.

    Gauges of requests that run and that wait, and of the share of the KV cache in use (0 to 1). Counters of tokens in and out, of
    finished requests, of HTTP responses, and of those that say that the server failed. Histograms in seconds, by their base
    name: to the first token, from each token to the next, in the queue.
    """

    running: Metric = ""
    waiting: Metric = ""
    cache: Metric = ""
    prompt_tokens: Metric = ""
    generation_tokens: Metric = ""
    requests: Metric = ""
    responses: Metric = ""
    errors: Metric = ""
    ttft: Metric = ""
    tpot: Metric = ""
    queue: Metric = ""
    source: Reason


class Release(Row):
    """A pinned engine release and why it is the one.

    `fork` says where it was seen that vLLM's core may be a fork of its server, in place of a Python that imports everything once more.
    It is installed from locked `wheels`, is part of a `vendor`'s image, or comes as Debian packages (`debs`): those of `apt`, of
    which the first is the engine itself.
    """

    engine: EngineKind
    version: Version
    install: Literal["wheels", "vendor", "debs"]
    base: Reference = ""
    published: Reference = ""
    packages: tuple[Requirement, ...] = ()
    horizon: date | None = None
    newer: tuple[Newer, ...] = ()
    executors: tuple[Executor, ...] = ()
    fork: Reason | None = None
    python: str = ""
    cuda: str = ""
    min_driver: str = ""
    capabilities: tuple[int, ...]
    memory: Memory | None = None
    metrics: Metrics = Metrics(source="nothing is known of it")
    layers: tuple[Layer, ...] = ()
    apt: tuple[Packages, ...] = ()
    leave_out: tuple[LeaveOut, ...] = ()
    audit_exceptions: tuple[AuditException, ...] = ()
    upstream: Upstream | None = None
    settings: tuple[Variable, ...] = ()
    exceptions: tuple[KnownHole, ...] = ()
    why: Reason
    moves_when: Reason
    source: Reason

    @model_validator(mode="after")
    def _installable(self) -> Self:
        if self.install == "vendor" and not self.base:
            raise ValueError("install = 'vendor' needs `base`, the vendor's image")
        if self.install == "wheels" and not self.packages:
            raise ValueError("install = 'wheels' needs `packages`, what the lock starts from")
        if self.exceptions and self.install == "vendor":
            raise ValueError("`exceptions` name packages of a lock or of `apt`, and the engine of install = 'vendor' is in neither")
        if self.install == "debs" and not self.apt:
            raise ValueError("install = 'debs' needs `apt`, the Debian packages that it is made of")
        debs = {package for group in self.apt for package in group.packages}
        if self.install == "debs" and (wrong := [hole.package for hole in self.exceptions if hole.package not in debs]):
            raise ValueError(f"`exceptions` name {', '.join(wrong)}, which `apt` does not")
        return self

    @property
    def launched(self) -> bool:
        """Whether the launcher starts it: an engine that serves a model."""
        return self.engine in ENGINES


class Sampling(Row):
    """Sampling that the model's authors recommend."""

    temperature: float
    top_p: float = 1.0


class Accuracy(Row):
    """What a precision costs: a test's score with this model, and with the model that it was made from, in percent."""

    test: str
    score: float
    before: float


class Tools(Row):
    """Tool calls of a model: the name of the parser that reads them, an engine each, and why it is this one. Without parsers: why there are none.

    `template` is the file in entrypoints/launcher/chat that tells the model of a request's tools, where the checkpoint's own does not.
    """

    parsers: dict[EngineKind, Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]] = {}
    template: Annotated[str, StringConstraints(pattern=r"^([a-z0-9-]+\.jinja)?$")] = ""
    why: Reason


class Model(Row):
    """Checkpoint facts. `config` holds those fields of its config.json that say how large its tensors are; `bytes` is its size on disk.

    `accuracy` compares it with the checkpoint that it was made from.
    """

    title: str
    hub: HubId
    revision: str = ""
    parameters: int
    bytes: int
    precision: Precision
    reasoning: str = ""
    tools: Tools
    sampling: Sampling
    source: Reason
    config: dict[str, Any]
    accuracy: tuple[Accuracy, ...] = ()
    accuracy_source: str = ""

    @model_validator(mode="after")
    def _has_a_shape(self) -> Self:
        if fit.shape(self.config) is None or self.config["model_type"] not in tensors.SHAPES:
            raise ValueError(f"config: the sizes of its tensors do not follow from it; known model_type: {', '.join(tensors.SHAPES)}")
        return self

    @property
    def shape(self) -> fit.Shape:
        """Layers, heads and what else memory depends on."""
        found = fit.shape(self.config)
        assert found, "checked when the row was read"  # noqa: S101 - for the type checker
        return found


class Kernels(Row):
    """FlashInfer's attention for some shapes of models, compiled while the image is made: `head_dim` numbers a head, `groups` query heads to a head of the cache.

    `unless` are flags with which they were not tried: none of them may be set by the user. `measured` says where it ran.
    """

    head_dim: Literal[64, 128, 256]
    groups: tuple[Annotated[int, Field(gt=0)], ...] = Field(min_length=1)
    unless: tuple[FlagName, ...] = ()
    why: Reason
    measured: Reason


class Image(Row):
    """An engine release built for kinds of GPU and a precision."""

    engine: Name
    gpus: tuple[Name, ...] = Field(min_length=1)
    precision: Precision
    model: Name | None = None
    prune: bool = False
    args: tuple[Setting, ...] = ()
    env: tuple[Variable, ...] = ()
    kernels: tuple[Kernels, ...] = ()
    profiles: dict[Name, tuple[Preset, ...]] = {}


class ImpossibleImage(Row):
    """A rule about what cannot be built; a field that is left out matches everything."""

    engine: EngineKind | None = None
    gpu: Name | None = None
    precision: Precision | None = None
    reason: Reason
    instead: Name


class Stack(Row):
    """A model served by an image on `nodes` nodes of `gpus` GPUs each. Sizes in tokens, times in seconds.

    `gpu` is the kind and memory that it was planned for: `v100-32`.
    `profile` is one of the image's. `tp` is the tensor parallel size, the GPUs of a node unless given; a node without GPUs counts as one device.
    """

    title: str
    image: Name
    model: Name
    nodes: int = Field(default=1, ge=1)
    gpus: int = Field(ge=0)
    gpu: str = ""
    tp: int | None = Field(default=None, ge=1)
    profile: Name | None = None
    max_model_len: int = Field(gt=0)
    max_seqs: int | None = None
    start_seconds: int | None = None
    drain_seconds: int = 120
    args: tuple[Setting, ...] = ()
    env: tuple[Variable, ...] = ()

    @property
    def devices(self) -> int:
        """What the model is cut over: all GPUs, or the nodes where they have none."""
        return self.nodes * max(self.gpus, 1)

    @property
    def tensor_parallel(self) -> int:
        """Devices that share each layer."""
        return self.tp or max(self.gpus, 1)

    @property
    def pipeline_parallel(self) -> int:
        """Groups of such devices, each with some of the layers."""
        return self.devices // self.tensor_parallel

    @model_validator(mode="after")
    def _cut_evenly(self) -> Self:
        if self.devices % self.tensor_parallel:
            raise ValueError(f"tp = {self.tp} does not divide the stack's {self.devices} {'GPUs' if self.gpus else 'nodes'}")
        return self


class UpstreamStack(Row):
    """A chat page in front of somebody else's service: `image` is the router between them, and there is neither engine nor model of ours."""

    title: str
    image: Name
    gpus: ClassVar[int] = 0
    nodes: ClassVar[int] = 1


class ImpossibleStack(Row):
    """A rule about layouts that cannot work: this model on this GPU with at most so many of them."""

    model: Name
    gpu: Name
    max_gpus: int
    reason: Reason
    instead: Name


class Measured(Row):
    """What an image took where it was measured.

    10^6 bytes unpacked, compressed, and compressed after pruning; seconds of a build from nothing and of one with nothing to do.
    """

    unpacked_mb: int = Field(gt=0)
    compressed_mb: int | None = Field(default=None, gt=0)
    pruned_mb: int | None = Field(default=None, gt=0)
    cold_seconds: float | None = Field(default=None, ge=0)
    warm_seconds: float | None = Field(default=None, ge=0)
    measured: str = ""
    source: Reason

    @property
    def build_bytes(self) -> int:
        """Disk that a build from nothing wants: its layers while they are made, and the image."""
        return self.unpacked_mb * 2 * 10**6


class Tool(Row):
    """What builds use beside an engine's packages, in a lock of its own."""

    packages: tuple[Requirement, ...] = Field(min_length=1)
    why: Reason


class Table(BaseModel):
    """A TOML file: every top-level table but `cannot`, `leave_out` and `upstream` is a row. Also the source of its JSON Schema."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    @property
    def rows(self) -> dict[str, Any]:
        """The rows by name."""
        return self.__pydantic_extra__ or {}


class GpuTable(Table):
    """gpus.toml"""

    __pydantic_extra__: dict[Name, Gpu]


class ReleaseTable(Table):
    """engines.toml"""

    __pydantic_extra__: dict[Name, Release]


class ModelTable(Table):
    """models.toml"""

    __pydantic_extra__: dict[Name, Model]


class ImageTable(Table):
    """images.toml"""

    __pydantic_extra__: dict[Name, Image]
    leave_out: tuple[LeaveOut, ...] = ()
    cannot: dict[Name, ImpossibleImage] = {}


class MeasuredTable(Table):
    """measured.toml, which may be absent: what builds took, an image a row"""

    __pydantic_extra__: dict[Name, Measured]


class ToolTable(Table):
    """tools.toml"""

    __pydantic_extra__: dict[Name, Tool]


class StackTable(Table):
    """stacks.toml"""

    __pydantic_extra__: dict[Name, Stack]
    upstream: dict[Name, UpstreamStack] = {}
    cannot: dict[Name, ImpossibleStack] = {}


FILES: dict[type[Table], str] = {
    GpuTable: "images/gpus.toml",
    ReleaseTable: "images/engines.toml",
    ModelTable: "images/models.toml",
    ImageTable: "images/images.toml",
    MeasuredTable: "images/measured.toml",
    ToolTable: "images/tools.toml",
    StackTable: "compose/stacks.toml",
}
OPTIONAL = (MeasuredTable,)
