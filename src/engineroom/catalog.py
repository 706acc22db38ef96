"""The catalog: facts in TOML, read once, checked once, then trusted.

`Catalog` names file, row and field of whatever is wrong. Everything after it needs no defaults and no checks.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from engineroom.errors import CannotBuild, CannotRun, CatalogError, UnknownName
from engineroom.rows import (
    FILES,
    OPTIONAL,
    Gpu,
    GpuTable,
    Image,
    ImageTable,
    ImpossibleImage,
    ImpossibleStack,
    LeaveOut,
    Measured,
    MeasuredTable,
    Model,
    ModelTable,
    Release,
    ReleaseTable,
    Stack,
    StackTable,
    Table,
    Tool,
    ToolTable,
    UpstreamStack,
)
from launcher.settings import OWN_FLAGS

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T")
KERNELS_FOR = 90  # what images/compile-kernels compiles for
TableT = TypeVar("TableT", bound=Table)


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
        self.tools: dict[str, Tool] = _read(root, ToolTable).rows
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

    def model_of_hub(self, hub: str) -> str:
        """The name of the model with this hub id; empty where there is none."""
        return next((name for name, model in self.models.items() if model.hub == hub), "")

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
            if image.kernels and gpu.compute_capability != KERNELS_FOR:
                raise CatalogError(
                    f"{where}.kernels: images/compile-kernels compiles for compute capability {KERNELS_FOR}, and {gpu_name} has {gpu.compute_capability}."
                )
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:  # TOML is UTF-8
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
