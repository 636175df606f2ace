"""Debian's PostgreSQL over TLS with SCRAM, and PgBouncer before it, on loopback, as an unprivileged user.

As a program, `python -m tests.cluster.debian ARGUMENTS`, it runs pytest with these arguments on such a server, which every
connection of the tests reaches over TLS with SCRAM and verify-full.
"""

import asyncio
import contextlib
import datetime as dt
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PASSWORD = "correct horse%battery"
_DAY = dt.timedelta(days=1)
_ROOMY = 2**30  # bytes
_PATIENCE = 60.0  # seconds
_FOR_A_SUITE = {
    "max_connections": "200",
    "autovacuum": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_wal_size": "256MB",
}


def binaries() -> Path | None:
    """The folder with Debian's newest initdb and postgres, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


def pgbouncer() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass
class DebianServer:
    """A running cluster with roles `panda` and `postgres` (SCRAM, one password); `authority` signed its certificate for localhost."""

    port: int
    folder: Path
    authority: Path
    stranger: Path

    def url(
        self,
        *,
        user: str = "panda",
        password: str = PASSWORD,
        host: str = "localhost",
        query: str = "",
        database: str = "panda",
    ) -> str:
        from urllib.parse import quote

        return f"postgresql://{user}:{quote(password, safe='')}@{host}:{self.port}/{database}{query}"


@contextlib.contextmanager
def debian_server(*, tls: bool = True, further: Mapping[str, str] | None = None) -> Generator[DebianServer]:
    """A fresh cluster with `further` settings; ended and removed on leaving."""
    folder = _folder()
    bin_folder = binaries()
    assert bin_folder is not None
    data = folder / "data"
    _run([bin_folder / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"], folder)
    authority, stranger = _certificates(folder)
    port = free_port()
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": str(folder),
        "fsync": "off",
        "password_encryption": "scram-sha-256",
        "max_connections": "60",
        "ssl": "on" if tls else "off",
        "ssl_cert_file": str(folder / "server.pem"),
        "ssl_key_file": str(folder / "server.key"),
        **(further or {}),
    }
    lines = [f"{name} = '{value}'" for name, value in settings.items()]
    (data / "postgresql.auto.conf").write_text("\n".join(lines) + "\n")
    kind = "hostssl" if tls else "host"
    (data / "pg_hba.conf").write_text(f"local all postgres trust\n{kind} all all 127.0.0.1/32 scram-sha-256\n")
    _own(folder)
    process = _start([bin_folder / "postgres", "-D", data], folder, "postgres.log")
    try:
        asyncio.run(_make_roles(folder, port))
        yield DebianServer(port, folder, authority, stranger)
    finally:
        _end(process, signal.SIGINT)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def pooled(
    server: DebianServer, *, size: int = 5, port: int | None = None, end: signal.Signals = signal.SIGINT
) -> Generator[str]:
    """The URL of a PgBouncer in transaction mode before the server, with `size` server connections; ended by `end`."""
    port = port or free_port()
    folder = server.folder
    (folder / "users.txt").write_text(f'"panda" "{PASSWORD}"\n')
    (folder / "bouncer.ini").write_text(
        f"[databases]\npanda = host=127.0.0.1 port={server.port} dbname=panda user=panda\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = plain\n"
        f"auth_file = {folder}/users.txt\npool_mode = transaction\ndefault_pool_size = {size}\nmax_client_conn = 200\n"
        f"server_tls_sslmode = require\nunix_socket_dir =\n"
    )
    _own(folder)
    command = pgbouncer()
    assert command is not None
    process = _start([command, folder / "bouncer.ini"], folder, "bouncer.log")
    try:
        _await_port(port)
        yield server.url().replace(f":{server.port}", f":{port}") + "?sslmode=disable"
    finally:
        _end(process, end)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _account() -> pwd.struct_passwd | None:
    """The user that servers run as when root runs the tests."""
    return pwd.getpwnam("postgres") if os.getuid() == 0 else None


def _folder() -> Path:
    """In memory where there is room: a database of its own for each test is a thousand times three hundred files."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK | os.X_OK) and shutil.disk_usage(memory).free > _ROOMY
    folder = Path(tempfile.mkdtemp(prefix="panda-debian-", dir=memory if roomy else None))
    folder.chmod(0o700)
    _own(folder)
    return folder


def _own(folder: Path) -> None:
    account = _account()
    if account is not None:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, account.pw_uid, account.pw_gid)


def _identity() -> dict[str, Any]:
    account = _account()
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}


def _run(command: list[object], folder: Path) -> None:
    arguments = [str(item) for item in command]
    subprocess.run(arguments, cwd=folder, check=True, stdout=subprocess.DEVNULL, **_identity())


def _start(command: list[object], folder: Path, log: str) -> "subprocess.Popen[Any]":
    with (folder / log).open("wb") as output:
        options: dict[str, Any] = {"stdout": output, "stderr": output, **_identity()}
        return subprocess.Popen([str(item) for item in command], cwd=folder, **options)


def _end(process: "subprocess.Popen[Any]", how: signal.Signals) -> None:
    process.send_signal(how)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _await_port(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on {port}")


async def _make_roles(folder: Path, port: int) -> None:
    connection = None
    deadline = time.monotonic() + _PATIENCE
    while connection is None:
        try:
            connection = await asyncpg.connect(host=str(folder), port=port, user="postgres", database="postgres")
        except (OSError, asyncpg.CannotConnectNowError):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
    await connection.execute(f"CREATE ROLE panda LOGIN CREATEDB CREATEROLE PASSWORD '{PASSWORD}'")
    await connection.execute(f"ALTER ROLE postgres PASSWORD '{PASSWORD}'")
    await connection.execute("CREATE DATABASE panda OWNER panda")
    await connection.close()


def _certificates(folder: Path) -> tuple[Path, Path]:
    """A server certificate for localhost with its authority, and an authority that signed nothing here."""
    key, authority = _authority("Panda Test Authority")
    _, stranger = _authority("A Stranger")
    server_key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    certificate = (
        _builder("localhost", authority.subject, server_key.public_key())
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "server.pem").write_bytes(certificate.public_bytes(pem))
    secret = server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.key").write_bytes(secret)
    (folder / "server.key").chmod(0o600)
    (folder / "authority.pem").write_bytes(authority.public_bytes(pem))
    (folder / "stranger.pem").write_bytes(stranger.public_bytes(pem))
    return folder / "authority.pem", folder / "stranger.pem"


def _authority(name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(name, subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
    )


def main(arguments: Sequence[str]) -> int:
    """Run pytest on a server of its own; its exit code."""
    bin_folder = binaries()
    if bin_folder is None:
        print("PostgreSQL is missing: apt-get install postgresql", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the server ends on the way out
    version = subprocess.run([bin_folder / "postgres", "--version"], stdout=subprocess.PIPE, text=True, check=True)
    with debian_server(further=_FOR_A_SUITE) as server:
        print(f"{version.stdout.strip()} over TLS with SCRAM and verify-full", flush=True)
        url = server.url(query=f"?sslmode=verify-full&sslrootcert={server.authority}")
        # The password in it keeps the URL off the command line, which everybody may read.
        tests = subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments], env={**os.environ, "PANDA_TEST_URL": url}
        )
        while True:
            try:
                return tests.wait()
            except KeyboardInterrupt:  # pytest has got it too, and takes its leave
                continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
