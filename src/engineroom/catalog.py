"""The catalog: facts in TOML, read once, checked once, then trusted.

`Catalog.load` names file, row and field of whatever is wrong. Everything after it needs no defaults and no checks.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from engineroom.errors import CannotBuild, CannotRun, CatalogError, UnknownName
from launcher import fit, tensors
from launcher.engines import ENGINES
from launcher.settings import OWN_FLAGS

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

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
Scalar = bool | int | float | str
T = TypeVar("T")
TableT = TypeVar("TableT", bound="Table")


class Row(BaseModel):
    """A frozen row that knows no other fields than its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Setting(Row):
    """A default flag of the engine, with its reason."""

    flag: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    value: Scalar
    why: Reason


class Preset(Setting):
    """A flag of a profile. `measured` says what it gave and where, or that nobody here has measured it; `model_types` limits it to such models."""

    measured: Reason
    model_types: tuple[str, ...] = ()


class Variable(Row):
    """A default environment variable, with its reason."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
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


Metric = Annotated[str, StringConstraints(pattern=r'^(([a-z_]+:)?[a-z_]+(\{[a-z_]+=~?"[^"]+"\})?)?$')]


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


class Image(Row):
    """An engine release built for kinds of GPU and a precision."""

    engine: Name
    gpus: tuple[Name, ...] = Field(min_length=1)
    precision: Precision
    model: Name | None = None
    prune: bool = False
    args: tuple[Setting, ...] = ()
    env: tuple[Variable, ...] = ()
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

    `gpu` is the kind and memory that it was planned for: `v100-32`; `fp8_cache` says that its settings keep the KV cache in 8 bits.
    `profile` is one of the image's. `tp` is the tensor parallel size, the GPUs of a node unless given; a node without GPUs counts as one device.
    """

    title: str
    image: Name
    model: Name
    nodes: int = Field(default=1, ge=1)
    gpus: int = Field(ge=0)
    gpu: str = ""
    fp8_cache: bool = False
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
    StackTable: "compose/stacks.toml",
}
OPTIONAL = (MeasuredTable,)


class Catalog:
    """Every row of every file, checked against each other."""

    def __init__(self, root: Path) -> None:
        """Read and check the catalog below `root`. Raises CatalogError with file, row and field."""
        self.root = root
        self.gpus: dict[str, Gpu] = _read(root, GpuTable).rows
        self.releases: dict[str, Release] = _read(root, ReleaseTable).rows
        self.models: dict[str, Model] = _read(root, ModelTable).rows
        images, stacks = _read(root, ImageTable), _read(root, StackTable)
        self.images: dict[str, Image] = images.rows
        self.stacks: dict[str, Stack] = stacks.rows
        self.upstream_stacks: dict[str, UpstreamStack] = stacks.upstream
        self.measured: dict[str, Measured] = _read(root, MeasuredTable).rows
        self.leave_out: tuple[LeaveOut, ...] = images.leave_out
        self.impossible_images: dict[str, ImpossibleImage] = images.cannot
        self.impossible_stacks: dict[str, ImpossibleStack] = stacks.cannot
        for name in self.measured:
            _known(self.images, name, f"images/measured.toml: [{name}]")
        for name, image in self.images.items():
            self._check_image(f"images/images.toml: [{name}]", image)
        for name, stack in self.stacks.items():
            self._check_stack(f"compose/stacks.toml: [{name}]", stack)
        for name, upstream in self.upstream_stacks.items():
            _known(self.images, upstream.image, f"compose/stacks.toml: [upstream.{name}].image")

    def image(self, name: str) -> Image:
        """The row of this image. Raises CannotBuild with the reason, or UnknownName with the nearest name."""
        if name in self.impossible_images:
            row = self.impossible_images[name]
            raise CannotBuild(name, row.reason, row.instead)
        if name not in self.images:
            raise UnknownName("image", name, self.images)
        return self.images[name]

    def stack(self, name: str) -> Stack:
        """The row of this stack. Raises CannotBuild with the reason, CannotRun for a page without an engine, or UnknownName with the nearest name."""
        if name in self.impossible_stacks:
            row = self.impossible_stacks[name]
            raise CannotBuild(name, row.reason, row.instead)
        if name in self.upstream_stacks:
            raise CannotRun(f"{name} is a page in front of another's service, without an engine of ours. Type: docker compose up {name}")
        if name not in self.stacks:
            raise UnknownName("stack", name, (*self.stacks, *self.upstream_stacks))
        return self.stacks[name]

    def any_stack(self, name: str) -> Stack | UpstreamStack:
        """The row of this stack, with an engine of ours or without. Raises CannotBuild or UnknownName."""
        return self.upstream_stacks.get(name) or self.stack(name)

    def release_of(self, image: str) -> Release:
        """The pinned engine release of an image."""
        return self.releases[self.image(image).engine]

    def _check_image(self, where: str, image: Image) -> None:
        release = _known(self.releases, image.engine, f"{where}.engine")
        if image.model is not None:
            _known(self.models, image.model, f"{where}.model")
        for profile, presets in image.profiles.items():
            for preset in presets:
                if preset.flag in OWN_FLAGS:
                    raise CatalogError(
                        f"{where}.profiles.{profile}: --{preset.flag} is the launcher's own setting {OWN_FLAGS[preset.flag]}."
                    )
        for gpu_name in image.gpus:
            gpu = _known(self.gpus, gpu_name, f"{where}.gpus")
            for rule in self.impossible_images.values():
                if _matches(rule.engine, release.engine) and _matches(rule.gpu, gpu_name) and _matches(rule.precision, image.precision):
                    raise CatalogError(f"{where} cannot be built: {rule.reason}\nUse {rule.instead} instead.")
            if image.precision not in gpu.precisions:
                raise CatalogError(f"{where}.precision: a {gpu.title} has no {image.precision}; it has {', '.join(gpu.precisions)}.")
            if gpu.compute_capability not in release.capabilities:
                raise CatalogError(
                    f"{where}.gpus: {image.engine} has no device code for compute capability {gpu.compute_capability} "
                    f"({gpu_name}); it has {', '.join(map(str, release.capabilities))}."
                )

    def _check_stack(self, where: str, stack: Stack) -> None:
        image = _known(self.images, stack.image, f"{where}.image")
        model = _known(self.models, stack.model, f"{where}.model")
        if stack.profile and stack.profile not in image.profiles:
            raise CatalogError(f"{where}.profile: {stack.image} has no {stack.profile}; it has {', '.join(image.profiles) or 'none'}.")
        kind, _, gib = stack.gpu.rpartition("-")
        if stack.gpus and not (kind in image.gpus and gib.isdigit() and int(gib) in self.gpus[kind].memory_gib):
            known = ", ".join(f"{name}-{size}" for name in image.gpus for size in self.gpus[name].memory_gib)
            raise CatalogError(f"{where}.gpu: {stack.gpu!r} is none of {known}, which {stack.image} is for.")
        if stack.max_model_len > model.shape.context:
            raise CatalogError(
                f"{where}.max_model_len: {stack.max_model_len} is more than the {model.shape.context} tokens of {stack.model}."
            )
        if model.shape.heads % stack.tensor_parallel:
            field = "tp" if stack.tp else "gpus"
            raise CatalogError(f"{where}.{field}: {model.shape.heads} attention heads do not divide by {stack.tensor_parallel}.")
        if stack.nodes > 1 and not self.release_of(stack.image).executors:
            raise CatalogError(
                f"{where}.nodes: {image.engine} has no `executors` in images/engines.toml: it is not started over several nodes."
            )
        for rule in self.impossible_stacks.values():
            if rule.model == stack.model and rule.gpu in image.gpus and stack.nodes * stack.gpus <= rule.max_gpus:
                raise CatalogError(f"{where} cannot work: {rule.reason}\nUse {rule.instead} instead.")


def _known(rows: dict[str, T], name: str, where: str) -> T:
    if name not in rows:
        raise CatalogError(f"{where}: {UnknownName('row', name, rows)}")
    return rows[name]


def _matches(wanted: str | None, found: str) -> bool:
    return wanted is None or wanted == found


def _read(root: Path, table: type[TableT]) -> TableT:
    """Parse and check one file. TOML goes through JSON so that arrays are tuples and dates text, as in the schema."""
    where = FILES[table]
    try:
        data = tomllib.loads((root / where).read_text())
    except FileNotFoundError:
        if table in OPTIONAL:
            return table.model_validate({})
        raise CatalogError(f"{where} is missing: run this inside a checkout of Engine Room.") from None
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{where} is no valid TOML: {error}.") from None
    for place, text in _texts(data):
        if not text.isprintable():
            raise CatalogError(f"{where}: {place}: a text must be one line of printable characters (found {text!r})")
    try:
        return table.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise CatalogError("\n".join(_explain(where, found) for found in error.errors())) from None


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every name and text below a value, with its place: a line break would let it be more than a word or a comment in a rendered file."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield place, name
            yield from _texts(inner, f"{place}.{name}" if place else f"[{name}]")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{place}[{number}]")


def _explain(where: str, found: ErrorDetails) -> str:
    row, *path = (str(part) for part in found["loc"]) if found["loc"] else ("",)
    field = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path)
    return f"{where}: [{row}]{field}: {found['msg']} (found {found['input']!r})"
