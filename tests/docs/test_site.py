"""The site is built without a network, and no link leads nowhere."""

import os
import re
import subprocess
import sys

import pytest

from tests.docs.markdown import ROOT

pytest.importorskip("mkdocstrings", reason='pip install "kivla[docs]" -c constraints.txt')


@pytest.mark.slow
def test_the_site_is_built(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?://[^\s\">]+)", page.read_text("utf-8"))
        assert not loaded, f"{page.name} loads {loaded} from the network"
    api = (tmp_path / "api.html").read_text("utf-8")
    assert "backbone_gradient_scale" in api and "ensemble_decay" in api, "the docstrings are missing"
