"""docs/knowledge.md does what it says: its commands are run, and what they print is on the page."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "knowledge.md"


def test_the_commands_of_the_page(tmp_path):
    text = PAGE.read_text()
    scripts = re.findall(r"<!-- run -->\n```bash\n(.*?)```", text, re.DOTALL)
    shown = re.findall(r"(?:```|<!-- output -->)\n```\n(.*?)```", text, re.DOTALL)
    assert len(scripts) == len(shown) == 2
    kinject = f'set -e\nkinject() {{ "{sys.executable}" -m kinject "$@"; }}\n'
    environment = {**os.environ, "PYTHONPATH": str(PAGE.parents[1]), "PYTHONIOENCODING": "utf-8"}
    for script, expected in zip(scripts, shown, strict=True):
        done = subprocess.run(
            ["bash", "-c", kinject + script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    assert (
        "Rhine -- flows_into -> North Sea"
        in subprocess.run(
            [sys.executable, "-m", "kinject", "knowledge", "inspect", "rivers", "--entity", "Q1"],
            **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": True},
        ).stdout
    )
