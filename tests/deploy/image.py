"""deploy/Dockerfile, read as its builder does: instructions, one a line."""

import re

from brokers import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(RUN, "pip install ..."): comments gone, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    found = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in found]


def image_environment() -> dict[str, str]:
    """The MONITOR__* variables of every container."""
    (environment,) = (rest for word, rest in instructions() if word == "ENV" and "MONITOR__" in rest)
    return dict(re.findall(r"(MONITOR__\w+)=(\S+)", environment))
