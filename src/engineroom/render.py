"""Write everything that follows from the catalog: Dockerfiles, image.json, bake.json, compose files, JSON Schemas."""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.sandbox import SandboxedEnvironment

from engineroom import resolve, stacks, tables, vex
from engineroom.catalog import Catalog
from engineroom.errors import CatalogError, EngineRoomError
from engineroom.rows import FILES

MARK = "# Rendered by `engineroom render`"  # first line of every file that can hold a comment
MARKED = ("images/*/Dockerfile", "compose/*.yaml", "compose/metrics/*.yaml", "compose.yaml")


def outputs(catalog: Catalog) -> dict[str, str]:
    """Every rendered file below the root with its text. Raises CatalogError when a template asks for what is not there."""
    found = {
        "images/bake.json": _json(resolve.bake(catalog)),
        "entrypoints/launcher/models.json": _json(resolve.known_models(catalog)),
        "compose.yaml": template(catalog.root, "compose", "root.yaml.j2", {"stacks": [*catalog.stacks, *catalog.upstream_stacks]}),
    }
    for name in catalog.images:
        found |= _image(catalog, name)  # images of one release give the same layers
    for name in catalog.stacks:
        found[f"compose/{name}.yaml"] = template(catalog.root, "compose", "stack.yaml.j2", stacks.compose(catalog, name))
        if stacks.metrics(catalog, name):
            found[f"compose/metrics/{name}.yaml"] = template(catalog.root, "compose", "rules.yaml.j2", stacks.rules(catalog, name))
    for name in catalog.upstream_stacks:
        found[f"compose/{name}.yaml"] = template(catalog.root, "compose", "api.yaml.j2", stacks.upstream(catalog, name))
    found |= tables.documents(catalog)
    for table, file in FILES.items():
        found[f"images/schema/{Path(file).stem}.schema.json"] = _json(table.model_json_schema())
    return found


def _image(catalog: Catalog, name: str) -> dict[str, str]:
    release = catalog.release_of(name)
    folder = f"images/{name}"
    layers = resolve.layers(release, _lock(catalog, name)) if release.install == "wheels" else []
    files = {}
    for layer in layers:
        place = f"images/layers/{catalog.images[name].engine}/{layer.name}"
        files[f"{place}.txt"] = layer.requirements
        files[f"{place}.left-out"] = "".join(f"{file}\n" for file in resolve.left_out_files(catalog, release, layer.name))
    files[f"{folder}/audit-rules.json"] = _json(resolve.audit_rules(catalog, name))
    files[f"{folder}/Dockerfile"] = template(
        catalog.root, "images", f"{release.engine}.Dockerfile.j2", resolve.dockerfile(catalog, name, layers)
    )
    if statements := vex.document(catalog, name):
        files[f"{folder}/openvex.json"] = _json(statements)
    if release.launched:
        files[f"{folder}/image.json"] = _json(resolve.image_facts(catalog, name))
    return files


def _lock(catalog: Catalog, name: str) -> str:
    try:
        return resolve.lock_file(catalog, name).read_text()
    except FileNotFoundError as error:
        raise CatalogError(f"{error.filename} is missing. Type: engineroom lock {name}") from None


def differences(catalog: Catalog) -> dict[str, tuple[str, str, str]]:
    """Files that are not as rendered: path -> (what is wrong, text on disk, rendered text)."""
    wanted = outputs(catalog)
    found: dict[str, tuple[str, str, str]] = {}
    for path, text in wanted.items():
        file = catalog.root / path
        if not file.exists():
            found[path] = ("missing", "", text)
        elif (there := file.read_text()) != text:
            found[path] = ("stale or edited", there, text)
    for path in sorted(_owned(catalog.root) - wanted.keys()):
        found[path] = ("left over", (catalog.root / path).read_text(), "")
    return found


def write(catalog: Catalog) -> list[str]:
    """Bring every rendered file up to date, and remove those that nothing renders any more. Returns what changed."""
    changed = differences(catalog)
    for path, (what, _, text) in changed.items():
        file = catalog.root / path
        if what == "left over":
            file.unlink()
            if not any(file.parent.iterdir()):
                file.parent.rmdir()
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return sorted(changed)


def diff(catalog: Catalog) -> str:
    """What `write` would change, as a unified diff."""
    lines: list[str] = []
    for path, (_, there, text) in differences(catalog).items():
        lines += difflib.unified_diff(there.splitlines(True), text.splitlines(True), f"a/{path}", f"b/{path}")
    return "".join(lines)


def _owned(root: Path) -> set[str]:
    """Rendered files on disk, known by their first line; files without comments by their folder."""
    found = {path for pattern in MARKED for path in root.glob(pattern) if path.read_text().startswith(MARK)}
    found |= {path for file in found if file.name == "Dockerfile" for path in file.parent.glob("*.json")}
    return {path.relative_to(root).as_posix() for path in (*found, *root.glob("images/schema/*.json"), *root.glob("images/layers/*/*"))}


def _json(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


@cache
def _environment(folder: Path) -> SandboxedEnvironment:
    """Strict, so that a misspelt name stops the render; sandboxed, so that a template can only write text."""
    return SandboxedEnvironment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def template(root: Path, area: str, name: str, values: dict[str, Any]) -> str:
    """A template of `area`, filled in. Raises EngineRoomError with its file and line where it asks for what is not there."""
    folder = root / area / "templates"
    try:
        return _environment(folder).get_template(name).render(values)
    except TemplateError as error:
        line = f":{error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise EngineRoomError(f"{area}/templates/{name}{line}: {error.message or type(error).__name__}") from None
