"""Every config that ships compiles for a slice of TPUs as it is, whatever its batches divide by, or says why not."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from kinject.cli.train import main

ROOT = Path(__file__).parent.parent
SHARED = ("common.py", "published.py")  # what other configs import
CONFIGS = sorted(path for path in ROOT.glob("configs/**/*.py") if path.name not in SHARED)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("libtpu"), reason="needs libtpu")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_it_compiles_for_a_slice_or_says_in_one_line_why_not(config, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = main(["--config", str(config), "--aot", "v5e:4x4"])
    told = capsys.readouterr()
    if code == 0:
        assert "on v5e:4x4, 16 devices" in told.out + told.err
    else:
        (line,) = told.err.strip().splitlines()
        assert code == 2 and line.startswith("kinject: ") and ("stage" in line or "options" in line or "data" in line)
