"""A real Mosquitto (Debian: apt-get install mosquitto), with limits, listeners and saved data as a test asks."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from broker_process import BrokerProcess
from kafka_home import free_ports

USER, PASSWORD = "alice", "alice-secret"
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])  # where Debian puts it, on no user's PATH
_CONNECT = bytes.fromhex("100c 0004 4d515454 04 02 003c 0000")  # MQTT 3.1.1, clean session, keepalive 60, no client id


class Mosquitto(BrokerProcess):
    """On 127.0.0.1, with a plain, a TLS and a mutual-TLS listener; ports and what it saved outlive `stop` and `kill`.

    `settings` are lines of mosquitto.conf, e.g. max_queued_messages=10, allow_anonymous="false". Who gives a name is let in
    as `USER` with `PASSWORD` only. `acl` is the text of an acl_file. `certificates` is a folder that certificates.issue() filled.
    """

    user, password = USER, PASSWORD

    def __init__(self, folder: Path, certificates: Path, *, acl: str | None = None, **settings: object) -> None:
        self._folder = folder
        self._saved = folder / "mosquitto.db"
        self.host = "127.0.0.1"
        self.port, self._tls_port, self._mutual_port = free_ports(3)
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self.tls = f"mqtts://localhost:{self._tls_port}"
        self.mutual = f"mqtts://localhost:{self._mutual_port}"
        self.ca, self.cert, self.key = (certificates / name for name in ("ca.pem", "client.crt", "client.key"))
        self._config = self._conf(certificates, acl, settings)
        self._acl = acl

    @staticmethod
    def missing() -> str | None:
        """What this machine lacks to start one."""
        absent = [tool for tool in ("mosquitto", "mosquitto_passwd", "openssl") if shutil.which(tool, path=_PATH) is None]
        return f"{' and '.join(absent)} not found (apt-get install mosquitto openssl)" if absent else None

    def _conf(self, certificates: Path, acl: str | None, settings: dict[str, object]) -> str:
        lines: dict[str, object] = {
            "allow_anonymous": "true",
            "password_file": self._folder / "passwords",
            "max_inflight_messages": 5000,  # v5 clients choose their receive maximum below it; 3.1.1 clients get it
            "max_queued_messages": 100_000,
            "persistence": "true",
            "persistence_location": f"{self._folder}/",
            "autosave_interval": 1800,
            **settings,
        }
        if os.geteuid() == 0:
            lines["user"] = "root"  # else it becomes `mosquitto`, who may not write here
        if acl is not None:
            lines["acl_file"] = self._folder / "acl"
        text = "".join(f"{key} {value}\n" for key, value in lines.items())
        parts = {"cafile": "ca.pem", "certfile": "server.crt", "keyfile": "server.key"}
        served = "".join(f"{key} {certificates / name}\n" for key, name in parts.items())
        text += f"listener {self.port} 127.0.0.1\nlistener {self._tls_port} 127.0.0.1\n{served}"
        return text + f"listener {self._mutual_port} 127.0.0.1\n{served}require_certificate true\nuse_identity_as_username true\n"

    def start(self) -> None:
        """Returns when it answers; RuntimeError with the end of its log when it does not come up."""
        if not (self._folder / "passwords").exists():
            (self._folder / "mosquitto.conf").write_text(self._config)
            if self._acl is not None:
                _private(self._folder / "acl", self._acl)
            _private(self._folder / "passwords", "")
            subprocess.run([_tool("mosquitto_passwd"), "-b", str(self._folder / "passwords"), USER, PASSWORD], check=True, capture_output=True)
        with (self._folder / "broker.log").open("ab") as log:
            command = [_tool("mosquitto"), "-c", str(self._folder / "mosquitto.conf")]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"Mosquitto did not start:\n{self.log()[-3000:]}")
            time.sleep(0.02)

    def save(self) -> None:
        """Returns when sessions, what is queued and what is retained are on disk, as they were at the call or later."""
        assert self._process is not None
        before = self._stamp()
        end = time.monotonic() + 60
        self._process.send_signal(signal.SIGUSR1)
        while self._stamp() == before:
            if time.monotonic() > end:
                raise RuntimeError("Mosquitto did not save")
            time.sleep(0.01)

    def log(self) -> str:
        return (self._folder / "broker.log").read_text(errors="replace")

    def _stamp(self) -> tuple[int, int] | None:
        """Which file holds what was saved: Mosquitto writes a new one and renames it."""
        try:
            found = self._saved.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _answers(self) -> bool:
        """Whether it answers a CONNECT, if only to refuse it."""
        try:
            with socket.create_connection((self.host, self.port), timeout=2) as link:
                link.sendall(_CONNECT)
                return link.recv(1) == b"\x20"
        except OSError:
            return False


def _tool(name: str) -> str:
    found = shutil.which(name, path=_PATH)
    assert found is not None
    return found


def _private(path: Path, text: str) -> None:
    """Newer versions refuse what others may read."""
    path.touch(mode=0o600)
    path.write_text(text)
