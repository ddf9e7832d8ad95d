"""How the brokers that the tests start are ended, and stand still."""

import signal
import subprocess


class BrokerProcess:
    """Whoever starts it sets `_process`."""

    _process: subprocess.Popen[bytes] | None = None

    def stop(self) -> None:
        """Orderly: what it holds is saved."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a power cut would: what it had not saved is gone."""
        self._end(signal.SIGKILL)

    def suspend(self) -> None:
        """Stand still until `resume`, with every connection open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            if number != signal.SIGKILL:
                process.send_signal(signal.SIGCONT)  # it may stand still
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
