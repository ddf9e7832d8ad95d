"""deploy/reference.md is what the Options say, and names every key that monitor.toml may hold."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_options_say(tmp_path: Path):
    """In a process of its own: kinds that the tests register are not the product's."""
    page = tmp_path / "reference.md"
    subprocess.run([sys.executable, "-m", "monitor.manual", page], cwd=ROOT, check=True, env={})

    assert (ROOT / "deploy" / "reference.md").read_text() == page.read_text(), "python -m monitor.manual deploy/reference.md"


def test_every_key_has_a_meaning():
    rows = [line.split("|") for line in (ROOT / "deploy" / "reference.md").read_text().splitlines() if line.startswith("| `")]

    assert len(rows) > 50
    assert [row[1] for row in rows if not row[-2].strip()] == []
