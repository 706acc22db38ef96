"""Where a stack's images, packages and weights come from, whether that can be reached from here, and the way around it."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from engineroom import build, machine, resolve, wheels
from engineroom.catalog import Catalog
from engineroom.checks import Check, Status, secret
from engineroom.host import Host
from engineroom.rows import Stack, UpstreamStack

DOCKER_HUB = "https://registry-1.docker.io"
GATEWAY_ERRORS = (502, 503, 504)  # a proxy's words for a server that it does not reach


class Sources:
    """What a stack takes from elsewhere. Everything is asked for at once, in the background."""

    def __init__(self, catalog: Catalog, host: Host, stack: str, docker: machine.Docker) -> None:
        """Begins to ask, and waits for nothing slow."""
        self.catalog, self.host, self.row, self.docker = catalog, host, catalog.any_stack(stack), docker
        release, page = catalog.release_of(self.row.image), catalog.release_of(resolve.PAGE_IMAGE)
        self.image = host.registry + resolve.tag(self.row.image, release)
        self.own_page, self.page = resolve.tag(resolve.PAGE_IMAGE, page), host.webui_image or page.published
        apt = machine.ask("apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages", "Origin: Debian")
        self.mirrors = apt.text.split()  # what scripts/debian-base takes packages from
        known = {  # as this machine is configured; where nothing says, the tools' own defaults are not asked
            "python packages": (host.index, "PIP_INDEX_URL to a mirror"),
            "debian packages": (_first_uri(host.apt_sources) or "".join(self.mirrors[:1]), "APT_SOURCES to a file that names a mirror"),
        }
        self.packages = {name: (url, setting) for name, (url, setting) in known.items() if url}
        for layer in release.layers:
            if layer.index and not (host.wheels and build.has_wheels(host.wheels, release, layer)):
                self.packages[f"{layer.name} packages"] = (layer.index, "WHEELS to a folder that has them")
        images = {self.image, self.own_page, self.page, self._base(self.row.image), self._base(resolve.PAGE_IMAGE)}
        urls = {*map(self._registry, images), *(url for url, _ in self.packages.values()), *self.mirrors[:1], self._afar()}
        self._here = {image: machine.background(build.have, image) for image in images}
        self._reached = {url: machine.background(reach, url, host.ca) for url in urls}
        self._deadline = time.monotonic() + machine.SECONDS

    def missing(self) -> list[str]:
        """The stack's images that are not on this machine."""
        page = self._have(self.own_page) or self._have(self.page)
        return ([] if self._have(self.image) else [self.row.image]) + ([] if page else [resolve.PAGE_IMAGE])

    def needs_hub(self) -> bool:
        """Whether weights may have to be fetched."""
        if isinstance(self.row, UpstreamStack):
            return False
        inside = self.catalog.images[self.row.image].model == self.row.model
        return not self.host.model.startswith("/") and not (inside and not self.host.model)

    def checks(self) -> Iterator[Check]:
        """Registries, package indexes, the model hub. What cannot be reached fails only where there is no other way."""
        missing, built = self.missing(), self._built()
        if not missing:
            yield Check("images", "ok", f"of {self.row.image} and the page are here")
        if self.row.image in missing and self.host.registry:
            around = "correct ENGINEROOM_REGISTRY, or unset it to build here"
            yield self._reach("engine image", self._registry(self.image), "failed", around)
        for base in dict.fromkeys(map(self._base, built)):
            yield self._pull("base image", base, *self._other_base(base))
        if resolve.PAGE_IMAGE in missing and self._own_page_serves():
            yield self._pull("page image", self.page, "warning", "`make up` builds it from packages instead")
        elif resolve.PAGE_IMAGE in missing:
            yield self._pull("page image", self.page, "failed", "correct WEBUI_IMAGE in .env, or remove it there to have one built")
        yield from self._packages([image for image in built if self.catalog.release_of(image).install == "wheels"])
        if isinstance(self.row, Stack):
            yield self._hub(self.catalog.models[self.row.model].hub)
            if self.host.hf_token:
                yield secret(self.host, "hub token", "HF_TOKEN_FILE", self.host.hf_token)
        elif self.host.upstream_url:
            around = "correct UPSTREAM_URL in .env; the name of a container can be asked by containers alone"
            yield self._reach("service", self.host.upstream_url, "warning", around)

    def _built(self) -> list[str]:
        """The images that have to be built here: those that are missing and that no registry gives."""
        missing, built = self.missing(), []
        if self.row.image in missing and not self.host.registry:
            built.append(self.row.image)
        if resolve.PAGE_IMAGE in missing and self._own_page_serves() and self._unpullable(self.page):
            built.append(resolve.PAGE_IMAGE)
        return built

    def _own_page_serves(self) -> bool:
        """Whether the page's image may be one that is built here: unless the user has named another."""
        return self.host.webui_image in ("", self.own_page)

    def _other_base(self, base: str) -> tuple[Status, str]:
        """What it means that a base image cannot be pulled: scripts/debian-base makes one where it can."""
        vendor = base == self._base(self.row.image) and self.catalog.release_of(self.row.image).install == "vendor"
        if vendor or self.host.base_image not in ("", build.LOCAL_BASE) or not self.mirrors or self._problem(self.mirrors[0]):
            setting = "VENDOR_IMAGE" if vendor else "BASE_IMAGE"
            return "failed", f"set {setting} in .env to one that can be pulled, or bring it along with engineroom save (docs/offline.md)"
        if os.geteuid() and not shutil.which("mmdebstrap"):
            return "failed", "sudo apt-get install mmdebstrap: with it `make up` makes a base from Debian's packages"
        return "warning", "`make up` makes one from Debian's packages instead"

    def _packages(self, built: list[str]) -> Iterator[Check]:
        """What builds fetch: needed where something has to be built, unless it is in a folder."""
        folder = wheels.default_folder(self.catalog, self.row.image)
        for name, (url, setting) in self.packages.items():
            if not built:
                yield self._reach(name, url, "warning", "only a new build needs them")
            elif folder.is_dir():
                yield self._reach(name, url, "warning", f"engineroom image {self.row.image} --offline builds from {folder}")
            else:
                around = f"set {setting} in .env; or bring them along: engineroom wheels {built[0]} (docs/offline.md)"
                yield self._reach(name, url, "failed", around)

    def _afar(self) -> str:
        """The address that is asked while the stack runs: the model hub's, or the service's."""
        return self.host.hub if isinstance(self.row, Stack) else self.host.upstream_url or self.host.hub

    def _hub(self, hub: str) -> Check:
        if not self.needs_hub():
            return Check("model hub", "ok", f"not needed: {'MODEL is a folder' if self.host.model else 'the model is in the image'}")
        if self.host.hub_offline:
            return Check("model hub", "ok", f"not asked (HF_HUB_OFFLINE): {self.host.model or hub} must be in the cache")
        around = "with the weights in a folder, set MODELS to the folder above it and MODEL to /models/NAME in .env"
        return self._reach("model hub", self.host.hub, "warning", around)

    def _base(self, image: str) -> str:
        release = self.catalog.release_of(image)
        if release.install == "vendor":
            return self.host.vendor_image or release.base
        return self.host.base_image or resolve.BASE_IMAGE

    def _registry(self, image: str) -> str:
        """The address where an image's registry answers; for Docker Hub's images the engine's mirror, if it has one."""
        first, slash, _ = image.partition("/")
        if slash and first != "docker.io" and (first == "localhost" or re.search(r"[.:]", first)):
            return f"http{'' if first.startswith(('localhost', '127.')) else 's'}://{first}/v2/"
        return f"{(self.docker.mirrors() or [DOCKER_HUB])[0].rstrip('/')}/v2/"

    def _have(self, image: str) -> bool:
        return machine.result(self._here[image], self._deadline, otherwise=False)

    def _problem(self, url: str) -> str:
        return machine.result(self._reached[url], self._deadline, f"no answer within {machine.SECONDS:.0f} s")

    def _unpullable(self, image: str) -> str:
        """Why an image cannot be pulled, empty when its registry answers."""
        return "it is in no registry" if image in (build.LOCAL_BASE, self.own_page) else self._problem(self._registry(image))

    def _pull(self, name: str, image: str, otherwise: Status, around: str) -> Check:
        short = image.partition("@")[0]
        if self._have(image):
            return Check(name, "ok", f"{short} is here")
        if problem := self._unpullable(image):
            return Check(name, otherwise, f"{short} cannot be pulled: {problem}", around)
        return Check(name, "ok", f"the registry of {short} answers")

    def _reach(self, name: str, url: str, otherwise: Status, around: str) -> Check:
        shown = without_password(url).partition("://")[2].partition("/")[0] or url
        if problem := self._problem(url):
            return Check(name, otherwise, f"{shown} cannot be reached: {problem}", around)
        return Check(name, "ok", f"{shown} answers")


def without_password(url: str) -> str:
    """A URL that can be shown; one that is none is shown as it is."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def reach(url: str, ca: Path | None) -> str:
    """Why no server answers at a URL; empty when one does, even if it refuses."""
    try:
        if urlsplit(url).scheme == "file":
            return "" if Path(urlsplit(url).path).exists() else "it is not there"
        request = urllib.request.Request(without_password(url), method="HEAD")  # noqa: S310 - the user's own settings
        context = ssl.create_default_context(cafile=ca)
        urllib.request.urlopen(request, timeout=machine.SECONDS, context=context).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        return f"it answers {error.code}" if error.code in GATEWAY_ERRORS else ""
    except urllib.error.URLError as error:
        return str(getattr(error.reason, "verify_message", "") or getattr(error.reason, "strerror", "") or error.reason)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error)
    return ""


def _first_uri(sources: Path | None) -> str:
    """The first address in a file of apt sources in the deb822 form."""
    found = re.search(r"^URIs:\s*(\S+)", machine.text_of(sources), re.MULTILINE) if sources else None
    return found[1] if found else ""
