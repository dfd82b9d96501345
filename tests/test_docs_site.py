"""The site of docs/: it builds without a warning or a network, and its links, internal and external, are sound."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


class Seen(HTMLParser):
    """The anchors of a page, where its links lead, and what it loads to be shown."""

    def __init__(self, page):
        super().__init__()
        self.anchors, self.links, self.loads = set(), [], []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif "src" in found or (tag == "link" and found.get("rel") not in ("canonical", "prev", "next")):
            self.loads.append(found.get("src") or found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """{page: what is in it} of the built site."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(name, reason="pip install 'kinject[docs]'")
    folder = tmp_path_factory.mktemp("docs") / "site"
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # nothing answers there
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 1800},
        env={**os.environ, **proxies, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return {page: Seen(page) for page in sorted(folder.rglob("*.html"))}


def faults(page, links, anchors_of):
    """What is wrong with the links of a page; `anchors_of(file)` are the anchors of another."""
    for link in links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            good = parts.scheme in ("https", "http", "mailto") and (parts.netloc or parts.scheme == "mailto")
            if not good or re.search(r"\s", link):
                yield f"{page.name}: {link} is no address"
            continue
        path, anchor = urldefrag(link)
        target = page.parent / unquote(path) if path else page
        if not target.exists():
            yield f"{page.name}: {link} leads nowhere"
        elif anchor and unquote(anchor) not in anchors_of(target.resolve()):
            yield f"{page.name}: {link}: there is no such place in {target.name}"


def test_every_page_is_built_and_every_link_leads_somewhere(site):
    names = {page.name for page in site}
    assert {page.with_suffix(".html").name for page in PAGES} <= names and "index.html" in names
    assert {"kinject.serving.html", "kinject.plugins.html"} <= names, "the reference of docstrings"
    by_path = {page.resolve(): seen for page, seen in site.items()}
    skipped = next(
        page for page in site if page.name == "404.html"
    )  # it stands for any address: its links are absolute
    found = [
        fault
        for page, seen in site.items()
        if page is not skipped
        for fault in faults(page, seen.links, lambda target: by_path[target].anchors)
    ]
    assert not found, "\n".join(found)


def test_no_page_loads_anything_from_elsewhere(site):
    assert not [(page.name, one) for page, seen in site.items() for one in seen.loads if urlsplit(one).netloc]


def test_the_reference_tells_shapes_and_errors(site):
    serving = next(page for page in site if page.name == "kinject.plugins.html").read_text()
    assert "kinject.models.seams.Plugin.feed_forward" in serving and "Raises" in serving and "[B, L, D]" in serving


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_links_are_good_as_github_reads_them(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert not list(faults(page, links, anchors_in_markdown))


def anchors_in_markdown(file):
    """Anchors of headings, as GitHub and MkDocs make them of such titles as ours."""
    titles = re.findall(r"(?m)^#+ (.*)$", file.read_text(encoding="utf-8"))
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
