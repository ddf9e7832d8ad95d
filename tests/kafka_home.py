"""A real Apache Kafka of one node (KRaft), from an unpacked distribution or any folder with its libs/*.jar. Needs Java 17, and openssl for TLS."""

import random
import shutil
import socket
import subprocess
import time
from pathlib import Path

from broker_process import BrokerProcess
from certificates import issue

USER, PASSWORD = "alice", "alice-secret"
_JAAS = "org.apache.kafka.common.security"
_HEAP = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


class ApacheKafka(BrokerProcess):
    """On 127.0.0.1, with a plain, a SASL and a TLS listener; ports, records and offsets outlive `stop` and `kill`."""

    abilities = frozenset({"restart", "limits", "security"})
    user, password = USER, PASSWORD

    def __init__(self, home: Path, folder: Path) -> None:
        self.name = f"Apache Kafka of {home}"
        self._home = home
        self._folder = folder
        self._ports = dict(zip(("plain", "sasl", "tls", "controller"), free_ports(4), strict=True))
        self.plain = f"127.0.0.1:{self._ports['plain']}"
        self.sasl = f"127.0.0.1:{self._ports['sasl']}"
        self.tls = f"localhost:{self._ports['tls']}"
        self.ca = folder / "ca.pem"

    @staticmethod
    def missing(home: Path) -> str | None:
        """What this machine lacks to start a broker from that folder."""
        if not any((home / "libs").glob("kafka_*.jar")):
            return f"no libs/kafka_*.jar in {home}"
        absent = [tool for tool in ("java", "openssl") if shutil.which(tool) is None]
        return f"{' and '.join(absent)} not found (apt-get install default-jre-headless openssl)" if absent else None

    def start(self) -> None:
        """Returns when the broker answers; RuntimeError with the end of its log when it does not come up."""
        config, fresh = self._folder / "server.properties", not (self._folder / "data").exists()
        with (self._folder / "broker.log").open("ab") as log:
            if fresh:
                self._certificates()
                config.write_text("".join(f"{key}={value}\n" for key, value in self._properties().items()))
                users = [
                    argument for digest in ("256", "512") for argument in ("--add-scram", f"SCRAM-SHA-{digest}=[name={USER},password={PASSWORD}]")
                ]
                formatting = self._java("kafka.tools.StorageTool", "format", "--standalone", "-t", "plant-monitor-test-01", "-c", str(config), *users)
                subprocess.run(formatting, check=True, stdout=log, stderr=log)
            self._process = subprocess.Popen(self._java("kafka.Kafka", str(config)), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while not answers(self._ports["plain"]):
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"{self.name} did not start:\n" + (self._folder / "broker.log").read_text(errors="replace")[-3000:])
            time.sleep(0.1)

    def _java(self, *arguments: str) -> list[str]:
        return ["java", *_HEAP, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{self._home / 'libs'}/*", *arguments]

    def _properties(self) -> dict[str, object]:
        ports = self._ports
        addresses = [f"{name.upper()}://127.0.0.1:{ports[name]}" for name in ("plain", "sasl", "tls")]
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{ports['controller']}",
            "controller.listener.names": "CONTROLLER",
            "listeners": ",".join([*addresses, f"CONTROLLER://127.0.0.1:{ports['controller']}"]),
            "advertised.listeners": ",".join(addresses),
            "listener.security.protocol.map": "PLAIN:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "PLAIN",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.sasl.plain.sasl.jaas.config": f'{_JAAS}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
            "listener.name.sasl.scram-sha-256.sasl.jaas.config": f"{_JAAS}.scram.ScramLoginModule required;",
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": f"{_JAAS}.scram.ScramLoginModule required;",
            "listener.name.tls.ssl.keystore.type": "PEM",
            "listener.name.tls.ssl.keystore.location": self._folder / "server.pem",
            "listener.name.tls.ssl.truststore.type": "PEM",
            "listener.name.tls.ssl.truststore.location": self.ca,
            "listener.name.tls.ssl.client.auth": "requested",
            "log.dirs": self._folder / "data",
            "broker.session.timeout.ms": 3000,  # how long the registration of a killed broker keeps its next start waiting
            "broker.heartbeat.interval.ms": 500,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            "message.max.bytes": 16 * 1024 * 1024,
            "log.retention.check.interval.ms": 1000,
            "num.partitions": 1,
            "num.network.threads": 2,
            "num.io.threads": 2,
            "log.cleaner.dedupe.buffer.size": 8 * 1024 * 1024,
            **{f"{topic}.replication.factor": 1 for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")},
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1,
            "share.coordinator.state.topic.min.isr": 1,
        }

    def _certificates(self) -> None:
        """ca.pem, and server.pem (key, certificate, authority) for localhost and 127.0.0.1."""
        issue(self._folder)
        parts = [self._folder / name for name in ("server.key", "server.crt", "ca.pem")]
        (self._folder / "server.pem").write_text("".join(part.read_text() for part in parts))


def free_ports(count: int) -> list[int]:
    """Distinct free ports of the loopback interface, below those that the kernel gives to connections: a port stays free while its broker is down."""
    below = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = random.SystemRandom().sample(range(10_000, below), 200) if below > 11_000 else [0] * count
    sockets: list[socket.socket] = []
    try:
        for port in candidates:
            if len(sockets) == count:
                break
            sockets.append(socket.socket())
            try:
                sockets[-1].bind(("127.0.0.1", port))
            except OSError:  # taken
                sockets.pop().close()
        assert len(sockets) == count, "no free ports"
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def answers(port: int) -> bool:
    """Whether a broker answers ApiVersions (key 18, version 0, correlation 1, no client id)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as link:
            link.sendall(bytes.fromhex("0000000a 0012 0000 00000001 ffff"))
            return len(link.recv(8)) == 8
    except OSError:
        return False
