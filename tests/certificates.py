"""An authority of the tests' own, and what it signed: for brokers that speak TLS. Needs openssl."""

import subprocess
from pathlib import Path


def issue(folder: Path) -> None:
    """ca.pem; server.key and server.crt for localhost and 127.0.0.1; client.key and client.crt for CN=press."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "rsa:2048", "-nodes")
    authority = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", "-x509", *new, "-days", "30", "-subj", "/CN=monitor test authority", "-keyout", "ca.key", "-out", "ca.pem", *authority)
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name, subject in (("server", "localhost"), ("client", "press")):
        openssl("req", *new, "-subj", f"/CN={subject}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.crt")
