"""Options that several kinds share."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr

from monitor.ports import Options


class TlsOptions(Options):
    """Whom we trust, and what we show of ourselves."""

    ca_file: Path | None = None
    """PEM of the authority that signed the brokers' certificates; the system's authorities by default."""
    cert_file: Path | None = None
    """PEM of our certificate, for mutual TLS; with its chain."""
    key_file: Path | None = None
    """PEM of its key; by default the key stands in `cert_file`."""
    key_password: SecretStr | None = None
    """Of an encrypted key; from the environment only, or `key_password_file`."""
    key_password_file: Path | None = None
    """File that holds the key's password."""

    def tls_mistakes(self, tls: bool, needs: str) -> list[str]:
        """What is written of these and has no effect; `needs` says when it would have one."""
        written = [name for name in TlsOptions.model_fields if getattr(self, name) is not None]
        if not tls:
            return [f"{', '.join(written)}: only with {needs}"] if written else []
        of_key = [name for name in written if name.startswith("key_")]
        return [f"{', '.join(of_key)} needs cert_file"] if of_key and self.cert_file is None else []


class MapsInFolder(BaseModel):
    """Maps that are too large to stand inline become files."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: Path
    """Folder that the consumers of the alerts can read too."""
