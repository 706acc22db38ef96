#!/usr/bin/env python3
"""Start nginx as the gateway, keep its settings true while it runs, and stop it when its streams have ended.

`gateway` serves; `gateway health` says whether it is live; any other words are run instead. Settings are environment variables,
below. Every few seconds, and at once on SIGHUP, keys, certificate and addresses are read again; nginx reloads only what changed and
running streams go on. Exit codes: 0 stopped on request, 70 nginx ended by itself, 78 a setting was refused.
"""

from __future__ import annotations

import contextlib
import difflib
import http.client
import os
import re
import resource
import secrets
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SETTINGS = {
    "GATEWAY_ENGINES": "",  # host:port of each replica, with spaces between; a name stands for all its addresses
    "GATEWAY_PAGE": "",  # host:port of the chat page; empty: none
    "GATEWAY_LISTEN": "8443",  # port, or address:port
    "GATEWAY_NAMES": "localhost 127.0.0.1",  # names and addresses in a certificate that is made here
    "GATEWAY_KEYS_FILE": "",  # lines of name:key
    "GATEWAY_CERTIFICATE_FILE": "",  # PEM, with the chain; and its private key
    "GATEWAY_CERTIFICATE_KEY_FILE": "",
    "GATEWAY_KEY_STREAMS": "64",  # requests in flight with one key
    "GATEWAY_KEY_RATE": "10",  # requests a second with one key
    "GATEWAY_BODY_MIB": "16",  # largest request
    "GATEWAY_ANSWER_SECONDS": "3600",  # longest silence within an answer
    "GATEWAY_ORIGINS": "",  # origins whose scripts may use the API
    "GATEWAY_DRAIN_SECONDS": "120",  # how long running streams may go on after SIGTERM
    "GATEWAY_SERVICE": "SERVICE",  # what messages call this container
}
NUMBERS = ("GATEWAY_KEY_STREAMS", "GATEWAY_KEY_RATE", "GATEWAY_BODY_MIB", "GATEWAY_ANSWER_SECONDS", "GATEWAY_DRAIN_SECONDS")
WORK = Path("/tmp/gateway")  # noqa: S108 - of this container alone
DATA = Path("/data")
CONFIGURATION = "/etc/engineroom/nginx.conf"
LOOK_SECONDS = 5
WARN_DAYS = 14  # before a certificate ends, each day
KEY = re.compile(r"[A-Za-z0-9._~+/=-]{20,200}")
NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
PLACE = re.compile(r"\[?([A-Za-z0-9_.:-]+?)\]?:(\d{1,5})")
ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]{1,253}(:\d{1,5})?")
REFUSED, FAILED = 78, 70

Settings = Mapping[str, str]


class Refused(Exception):
    """A setting that cannot be; the message says what to type."""


class Certificate(NamedTuple):
    """Files of a certificate and its private key."""

    file: Path
    key: Path


def say(line: str) -> None:
    """A line of the log."""
    print(f"gateway: {line}", file=sys.stderr, flush=True)


def read_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """All settings. Raises Refused for one that is unknown or out of range."""
    for name in environ:
        if name.startswith("GATEWAY_") and name not in SETTINGS:
            near = difflib.get_close_matches(name, SETTINGS, 1)
            raise Refused(f"{name} is no setting." + (f" Did you mean {near[0]}?" if near else f" Known: {', '.join(SETTINGS)}"))
    found = {name: environ.get(name) or default for name, default in SETTINGS.items()}
    for name in NUMBERS:
        if not re.fullmatch(r"[1-9]\d{0,5}", found[name]):
            raise Refused(f"{name} is {found[name]!r}: set it to a whole number from 1 to 999999.")
    for name, pattern, form in (
        ("GATEWAY_ENGINES", PLACE, "host:port"),
        ("GATEWAY_PAGE", PLACE, "host:port"),
        ("GATEWAY_ORIGINS", ORIGIN, "https://name or https://name:port"),
        ("GATEWAY_NAMES", re.compile(r"[A-Za-z0-9.:*-]+"), "a name or an address"),
    ):
        for word in found[name].split():
            if not pattern.fullmatch(word):
                raise Refused(f"{name} holds {word!r}: write {form}, with spaces between several.")
    if not re.fullmatch(r"([A-Za-z0-9.-]+:|\[[0-9a-fA-F:.]+\]:)?\d{1,5}", found["GATEWAY_LISTEN"]):
        raise Refused(f"GATEWAY_LISTEN is {found['GATEWAY_LISTEN']!r}: write a port, or address:port.")
    for name in ("GATEWAY_ENGINES", "GATEWAY_PAGE", "GATEWAY_LISTEN"):
        for word in found[name].split():
            if not 0 < int(word.rpartition(":")[2]) < 65536:  # noqa: PLR2004 - the ports that there are
                raise Refused(f"{name} holds {word!r}: a port is a number from 1 to 65535.")
    if not found["GATEWAY_ENGINES"].split():
        raise Refused("GATEWAY_ENGINES is empty: set it to host:port of the engine.")
    return found


def read(file: str, setting: str) -> str:
    """The text of a secret's file. Raises Refused with the way out where it cannot be read."""
    try:
        return Path(file).read_text(encoding="ascii")
    except PermissionError:
        raise Refused(
            f"{setting}: user {os.getuid()} may not read {file}. On the machine that has it, type: chmod 644 on that file, in a folder "
            "that is yours alone (chmod 700), since Compose mounts it with its own rights."
        ) from None
    except OSError as error:
        raise Refused(f"{setting}: {file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise Refused(f"{setting}: {file} is no plain ASCII text.") from None


def given(file: str) -> bool:
    """Whether a secret's file was given: Compose mounts /dev/null where none was."""
    return bool(file) and not (os.path.exists(file) and stat.S_ISCHR(os.stat(file).st_mode))


def parse_keys(text: str, file: str) -> dict[str, str]:
    """Names by key, from lines of name:key; # begins a comment. Raises Refused with the line's number, never with what is in it.

    A name may have several keys, so that one can be replaced without a pause.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, colon, key = line.partition(":")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, key = name.strip(), key.strip()
        if not colon or not NAME.fullmatch(name):
            raise Refused(f"{file}, line {number}: wanted name:key, the name of letters, digits and . _ @ -")
        if not KEY.fullmatch(key):
            raise Refused(f"{file}, line {number}: a key is 20 to 200 letters, digits and . _ ~ + / = -\nA good one: openssl rand -hex 32")
        if key in names:
            raise Refused(f"{file}, line {number}: this key stands above already.")
        names[key] = name
    if not names:
        raise Refused(f"{file} has no key. Add one: echo NAME:$(openssl rand -hex 32) >> {file}")
    return names


def keys(settings: Settings) -> dict[str, str]:
    """Names by key from the file that was given, else from one that is made at the first start."""
    if given(settings["GATEWAY_KEYS_FILE"]):
        file = settings["GATEWAY_KEYS_FILE"]
        return parse_keys(read(file, "GATEWAY_KEYS_FILE"), file)
    own = DATA / "keys"
    if not own.exists():
        write(own, f"default:{secrets.token_urlsafe(32)}\n", 0o660)
        say(
            f"no file of keys was given: made one key, named default. To see it: docker compose exec {settings['GATEWAY_SERVICE']} cat {own}"
        )
    return parse_keys(read(str(own), "GATEWAY_KEYS_FILE"), str(own))


def write(file: Path, text: str, mode: int) -> None:
    """Write a file, whole or not at all. Raises Refused where the folder takes none."""
    new = file.with_name(f"{file.name}.new")
    try:
        new.unlink(missing_ok=True)
        new.touch(mode=mode)
        new.write_text(text)
        new.replace(file)
    except OSError as error:
        raise Refused(
            f"{file} cannot be written by user {os.getuid()}: {error.strerror}. Give the container a volume that it may write."
        ) from None


def certificate(settings: Settings) -> Certificate:
    """The certificate that was given, else one that is made here and kept in the volume until it is about to end."""
    file, key = settings["GATEWAY_CERTIFICATE_FILE"], settings["GATEWAY_CERTIFICATE_KEY_FILE"]
    if given(file) != given(key):
        raise Refused("a certificate of your own is two files: set both GATEWAY_CERTIFICATE_FILE and GATEWAY_CERTIFICATE_KEY_FILE.")
    if given(file):
        read(file, "GATEWAY_CERTIFICATE_FILE")
        read(key, "GATEWAY_CERTIFICATE_KEY_FILE")
        return Certificate(Path(file), Path(key))
    return made_certificate(settings["GATEWAY_NAMES"])


def made_certificate(names: str) -> Certificate:
    """A certificate signed by itself, for the names that are set: the one in the volume if it still serves, else a new one."""
    own, made_for = Certificate(DATA / "certificate.pem", DATA / "certificate-key.pem"), DATA / "certificate-names"
    serves = all(path.exists() for path in (*own, made_for)) and read(str(made_for), "GATEWAY_NAMES") == names
    if serves and not ends_within(own, 30):
        return own
    others = ",".join(f"{'IP' if re.fullmatch(r'[0-9.]+|.*:.*', name) else 'DNS'}:{name}" for name in names.split())
    made = openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "825", "-subj", "/CN=Engine Room gateway",
        "-addext", f"subjectAltName={others}", "-keyout", str(own.key), "-out", str(own.file),
    )  # fmt: skip
    if made.returncode:
        raise Refused(f"no certificate could be made in {DATA} for {names!r}:\n{made.stderr.strip()}")
    own.key.chmod(0o660)  # OpenSSL gives it to this user alone: another id may take the volume over
    write(made_for, names, 0o660)
    return own


def openssl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run OpenSSL's program."""
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)


def introduce(own: Certificate, made: bool) -> None:
    """Say which certificate is shown, so that a client can be told what to expect. Raises Refused when it is none."""
    told = openssl("x509", "-in", str(own.file), "-noout", "-fingerprint", "-sha256", "-enddate")
    if told.returncode:
        raise Refused(f"GATEWAY_CERTIFICATE_FILE: {own.file} holds no certificate in PEM form.")
    fingerprint, end = (line.partition("=")[2] for line in told.stdout.splitlines()[:2])
    say(f"certificate {'made here, signed by itself: clients must be told to trust it' if made else own.file}; valid until {end}")
    say(f"its SHA-256 fingerprint: {fingerprint}")
    if ends_within(own, 0):
        say("it has ended: clients will refuse it")


def ends_within(own: Certificate, days: int) -> bool:
    """Whether a certificate ends before so many days are over."""
    return bool(openssl("x509", "-in", str(own.file), "-noout", "-checkend", str(days * 86400)).returncode)


class Addresses:
    """Where names lead now. A name server that does not answer changes nothing; a name that is gone has no address."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}

    def of(self, place: str) -> list[str]:
        """address:port of every server behind host:port."""
        found = PLACE.fullmatch(place)
        assert found, "checked when the settings were read"  # noqa: S101 - for the type checker
        try:
            rows = socket.getaddrinfo(found[1], int(found[2]), type=socket.SOCK_STREAM)
            hosts = {f"[{row[4][0]!s}]" if row[0] == socket.AF_INET6 else str(row[4][0]) for row in rows}
            self.known[place] = [f"{host}:{found[2]}" for host in sorted(hosts)]
        except UnicodeError:  # what no name can be: a part that is empty, or longer than 63 characters
            self.known[place] = []
        except socket.gaierror as error:
            if error.errno != socket.EAI_AGAIN:
                self.known[place] = []
        return self.known.get(place, [])


def upstream(name: str, places: Sequence[str], addresses: Addresses) -> str:
    """An nginx upstream of all servers behind some places. One that fails twice is left alone for ten seconds."""
    servers = [f"    server {address} max_fails=2 fail_timeout=10s;" for place in places for address in addresses.of(place)]
    return "\n".join([
        f"upstream {name} {{", f"    zone {name} 256k;", "    least_conn;", *(dict.fromkeys(servers) or ["    server 127.0.0.1:1 down;"]),
        "    keepalive 64;", "    keepalive_timeout 3s;  # less than the 5 s after which uvicorn hangs up", "}",
    ])  # fmt: skip


def configuration(settings: Settings, names: Mapping[str, str], own: Certificate, addresses: Addresses) -> str:
    """settings.conf. Keys are patterns, since nginx compares plain words of a map without regard to case."""
    page = settings["GATEWAY_PAGE"].split()
    rate = int(settings["GATEWAY_KEY_RATE"])
    return "\n".join([
        "map $http_authorization $key_name {", '    default "";',
        *(f'    "~^(?i:bearer) {re.escape(key)}$" "{name}";' for key, name in names.items()), "}",
        f'map $host $with_page {{ default {"yes" if page else "no"}; }}',
        "map $http_origin $cors {", '    default "";', *(f'    "{origin}" $http_origin;' for origin in dict.fromkeys(settings["GATEWAY_ORIGINS"].lower().split())), "}",
        upstream("engine", settings["GATEWAY_ENGINES"].split(), addresses),
        upstream("page", page, addresses),
        f"limit_req_zone $limited zone=rate:1m rate={rate}r/s;", f"limit_req zone=rate burst={2 * rate} nodelay;",
        "limit_conn_zone $limited zone=streams:1m;", f"limit_conn streams {settings['GATEWAY_KEY_STREAMS']};",
        f"client_max_body_size {settings['GATEWAY_BODY_MIB']}m;",
        f"proxy_read_timeout {settings['GATEWAY_ANSWER_SECONDS']}s;", f"proxy_send_timeout {settings['GATEWAY_ANSWER_SECONDS']}s;",
        f"ssl_certificate {own.file};", f"ssl_certificate_key {own.key};", "",
    ])  # fmt: skip


class Gateway:
    """nginx with settings that follow their sources."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.addresses, self.shown = settings, Addresses(), ""
        self.certificate: Certificate = certificate(settings)
        self.stamp: list[int] = []  # when the certificate's files last changed
        self.warned = time.monotonic()  # that it ends soon
        self.woken, self.stopping = threading.Event(), False

    def settle(self) -> bool:
        """Write settings.conf; whether it changed. Raises Refused, and then leaves the one that is there."""
        try:
            stamp = [path.stat().st_mtime_ns for path in self.certificate]
        except OSError as error:
            raise Refused(f"{error.filename} is gone: {error.strerror}.") from None
        if time.monotonic() > self.warned + 86400:
            self.warned = time.monotonic()
            if ends_within(self.certificate, WARN_DAYS):
                say(
                    f"{self.certificate.file} ends within {WARN_DAYS} days. Renew it, then: docker compose restart {self.settings['GATEWAY_SERVICE']}"
                )
        text = configuration(self.settings, keys(self.settings), self.certificate, self.addresses)
        if (text, stamp) == (self.shown, self.stamp):
            return False
        if stamp != self.stamp:
            introduce(self.certificate, made=self.certificate.file.parent == DATA)
        write(WORK / "settings.conf", text, 0o600)
        self.shown, self.stamp = text, stamp
        return True

    def run(self) -> int:
        """Serve until a signal or nginx ends it. Returns the exit code."""
        WORK.mkdir(mode=0o700, exist_ok=True)
        write(WORK / "listen.conf", f"listen {self.settings['GATEWAY_LISTEN']} ssl backlog=4096;\n", 0o600)
        self.settle()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536) if most > 0 else 65536, most))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, lambda *_: self.woken.set())
        signal.signal(signal.SIGCHLD, lambda *_: self.woken.set())
        nginx = subprocess.Popen(["nginx", "-e", "stderr", "-c", CONFIGURATION])
        say(f"listening on {self.settings['GATEWAY_LISTEN']} for {self.settings['GATEWAY_ENGINES']}")
        complaint = ""
        while nginx.poll() is None and not self.stopping:
            self.woken.wait(LOOK_SECONDS)
            self.woken.clear()
            try:
                if self.settle():
                    say("settings changed: nginx reloads; running streams go on")
                    nginx.send_signal(signal.SIGHUP)
                complaint = ""
            except Refused as error:
                if str(error) != complaint:
                    say(f"{error}\nGoing on with what was there before.")
                complaint = str(error)
        if not self.stopping:
            say(f"nginx ended by itself, with status {nginx.returncode}")
            return FAILED
        nginx.send_signal(signal.SIGQUIT)  # no new connections; streams that run come to their end
        try:
            nginx.wait(int(self.settings["GATEWAY_DRAIN_SECONDS"]))
        except subprocess.TimeoutExpired:
            say("streams still run at the deadline: they are cut")
            nginx.terminate()
            nginx.wait()
        return 0

    def _stop(self, *_: object) -> None:
        self.stopping = True
        self.woken.set()


def health(settings: Settings) -> int:
    """Whether nginx answers on its port."""
    address, _, port = settings["GATEWAY_LISTEN"].rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it asks itself
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPSConnection(address.strip("[]") or "127.0.0.1", int(port), timeout=5, context=context)
        connection.request("GET", "/health")
        return 0 if connection.getresponse().status == http.client.OK else 1
    return 1


def main() -> int:
    """Exit codes as above."""
    if sys.argv[1:] not in ([], ["health"]):
        try:
            os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - the user's own command
        except OSError as error:
            sys.exit(f"gateway: {sys.argv[1]}: {error.strerror}. Without a command it starts the gateway.")
    os.umask(0o007)  # what is made in the volume is for this user and group: another id may take it over
    try:
        settings = read_settings(os.environ)
        return health(settings) if sys.argv[1:] else Gateway(settings).run()
    except Refused as error:
        say(str(error))
        return REFUSED


if __name__ == "__main__":
    sys.exit(main())
