"""What an operator reads when a broker does not let the daemon in."""

import signal
from collections.abc import Callable
from pathlib import Path

from brokers import Broker
from integration.daemon import Daemon
from integration.plant import Plant
from kafka_home import free_ports


def test_a_wrong_password_an_unknown_authority_and_a_closed_port_are_told_apart(
    plant: Plant, kafka_with: Callable[[str], Broker], install: Callable[..., Path], tmp_path: Path
) -> None:
    broker = kafka_with("security")
    (tmp_path / "password").write_text("not-hers\n")
    (closed,) = free_ports(1)
    source = {"kind": "kafka", "topics": ["images"], "group_id": plant.group}
    login = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-512", "username": broker.user}
    tables = plant.tables(
        sources__stranger={**source, **login, "bootstrap_servers": broker.sasl, "password_file": tmp_path / "password"},
        sources__unknown={**source, "bootstrap_servers": broker.tls, "security_protocol": "SSL"},
        sources__closed={**source, "bootstrap_servers": f"127.0.0.1:{closed}"},
        detectors__bottle={"inputs": ["cameras", "stranger", "unknown", "closed"]},
    )
    plant.send("normal", "defect")
    with Daemon(install(tables)) as daemon:
        daemon.start()
        for name, cause in (("stranger", "not_authorised"), ("unknown", "unknown_ca"), ("closed", "refused")):
            assert daemon.wait_for("source_disconnected", source=name)["cause"] == cause
        plant.wait()  # the others go on
        daemon.signal(signal.SIGTERM)
        assert daemon.exit_code() == 0
    assert "not-hers" not in daemon.tail()
    plant.audit(doubles=False)
