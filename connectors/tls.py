"""TLS as a client: from files to a context, and what a failed handshake means to an operator."""

import socket
import ssl
from pathlib import Path

from connectors.options import TlsOptions
from monitor.errors import ConfigError, Disconnected

_HOSTNAME_MISMATCH, _IP_MISMATCH = 62, 64  # X509_V_ERR_* of OpenSSL


def tls_context(options: TlsOptions) -> ssl.SSLContext:
    """Certificates and host names of the other side are always verified. Raises ConfigError for files that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file {options.ca_file}: {error}") from error
    if options.cert_file is not None:
        try:
            context.load_cert_chain(options.cert_file, options.key_file, lambda: options.secret("key_password") or "")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cert_file {options.cert_file} with key_file {options.key_file}: {error}") from error
    return context


def reach(host: str, port: int, seconds: float) -> socket.socket:
    """A TCP connection. Raises Disconnected (refused), TimeoutError."""
    try:
        return socket.create_connection((host, port), seconds)
    except TimeoutError:
        raise
    except socket.gaierror as error:
        raise Disconnected(f"{host} is no known host: {error}", "refused") from error
    except OSError as error:
        raise Disconnected(f"{host}:{port} refuses the connection ({error.strerror or error}): is the broker running?", "refused") from error


def encrypted(plain: socket.socket, context: ssl.SSLContext, where: tuple[str, int], authority: Path | None, *, hint: str) -> ssl.SSLSocket:
    """The handshake with (host, port); `plain` is closed where it fails. `authority` is the ca_file; `hint` is said of a port without TLS.

    Raises Disconnected (unknown_ca, tls), TimeoutError."""
    host, at = where[0], f"{where[0]}:{where[1]}"
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (_HOSTNAME_MISMATCH, _IP_MISMATCH):
            raise Disconnected(f"{at} shows a certificate for another host: {error.verify_message}", "tls") from error
        said = authority or "the system's authorities"
        raise Disconnected(f"{at} shows a certificate that {said} did not sign (ca_file names one): {error.verify_message}", "unknown_ca") from error
    except TimeoutError:
        raise
    except OSError as error:
        raise Disconnected(f"{at} does not speak TLS: {hint} {error}", "tls") from error
