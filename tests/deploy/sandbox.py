"""Runs a command as a unit file would: `python sandbox.py UNIT COMMAND...`. For machines where systemd is not in charge.

Taken from the unit: NoNewPrivileges, Limit*=, UMask=, CapabilityBoundingSet= (empty), SystemCallFilter=, SystemCallErrorNumber=,
RestrictAddressFamilies=, RestrictNamespaces=. Not done here: what needs mounts, cgroups or another user (ProtectSystem,
PrivateDevices, DeviceAllow, PrivateUsers, OOMPolicy and the like), and RestrictRealtime, RestrictSUIDSGID, LockPersonality.
"""

import ctypes
import errno
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 23, 24, 38
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # SCMP_ACT_ALLOW, SCMP_ACT_ERRNO
_MASKED_EQUAL, _EQUAL = 7, 4  # SCMP_CMP_MASKED_EQ, SCMP_CMP_EQ
_NEW_NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x00000080)
_CAPABILITY_VERSION_3 = 0x20080522


class _Compare(ctypes.Structure):
    """struct scmp_arg_cmp of seccomp.h."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("datum_a", ctypes.c_uint64), ("datum_b", ctypes.c_uint64))


def directives(unit: Path) -> dict[str, list[str]]:
    """Every key of the [Service] section with its values in order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def system_calls(expressions: list[str]) -> set[str]:
    """SystemCallFilter= as systemd itself resolves it: an allow list, from which `~` takes away."""
    listing = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager"], capture_output=True, text=True, check=True).stdout
    groups: dict[str, set[str]] = {}
    group = ""
    for line in listing.splitlines():
        if line.startswith("@"):
            group = line.strip()
            groups[group] = set()
        elif line.startswith("    ") and not line.strip().startswith("#"):
            groups[group].add(line.strip())

    def members(name: str) -> set[str]:
        return set().union(*map(members, groups[name])) if name.startswith("@") else {name}

    allowed = members("@default")  # always
    for expression in expressions:
        names = set().union(*map(members, expression.lstrip("~").split()))
        allowed = allowed - names if expression.startswith("~") else allowed | names
    return allowed


class _Filter:
    """One seccomp filter; those that are loaded later come on top."""

    def __init__(self, default: int) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(default)))

    def add(self, action: int, name: str, *compares: _Compare) -> None:
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # of another architecture
            return
        array = (_Compare * len(compares))(*compares)
        done = self._library.seccomp_rule_add_array(self._context, ctypes.c_uint32(action), number, len(compares), array)
        if done:
            raise OSError(-done, f"seccomp rule for {name}: {os.strerror(-done)}")

    def load(self) -> None:
        done = self._library.seccomp_load(self._context)
        if done:
            raise OSError(-done, f"seccomp_load: {os.strerror(-done)}")


def enter(unit: Path) -> None:
    """This process, and all that it starts, as the unit allows."""
    service = directives(unit)
    calls = system_calls(service["SystemCallFilter"])
    for key, (value, *_) in service.items():
        if key.startswith("Limit"):
            which = getattr(resource, f"RLIMIT_{key.removeprefix('Limit')}")
            hard = resource.getrlimit(which)[1]  # beyond it only the service manager may go
            number = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
            resource.setrlimit(which, (number, number))
    os.umask(int(service["UMask"][-1], 8))
    libc = ctypes.CDLL(None, use_errno=True)
    if service["CapabilityBoundingSet"] == [""]:
        _drop_capabilities(libc)
    if service["NoNewPrivileges"] == ["yes"] and libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")

    listed = service["RestrictAddressFamilies"][-1].split()
    families = _Filter(_ALLOW)
    for family in set(range(1, 46)) - {int(getattr(socket, name)) for name in listed}:
        families.add(_ERRNO | errno.EAFNOSUPPORT, "socket", _Compare(0, _EQUAL, family, 0))
    families.load()
    if service["RestrictNamespaces"] == ["yes"]:
        namespaces = _Filter(_ALLOW)
        namespaces.add(_ERRNO | errno.ENOSYS, "clone3")  # its flags lie in memory, where a filter cannot look
        namespaces.add(_ERRNO | errno.EPERM, "setns")
        for flag in _NEW_NAMESPACES:
            namespaces.add(_ERRNO | errno.EPERM, "unshare", _Compare(0, _MASKED_EQUAL, flag, flag))
            namespaces.add(_ERRNO | errno.EPERM, "clone", _Compare(0, _MASKED_EQUAL, flag, flag))
        namespaces.load()
    allowing = _Filter(_ERRNO | getattr(errno, service["SystemCallErrorNumber"][-1]))
    for name in sorted(calls):
        allowing.add(_ALLOW, name)
    allowing.load()


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Out of the bounding set, where we may, and out of every other."""
    for capability in range(64):
        if libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    enter(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
