"""What MkDocs does beside copying pages: the README is the home page, and the API pages are made of docstrings.

    python docs/hooks.py    # writes docs/reference.md, the list of public names, and docs/options.md anew

Links between pages are written as GitHub reads them; here `../README.md` becomes the home page, and each name of the
list leads to where it is told in full.
"""

import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from typing import get_args

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "kinject",
    "kinject.api",
    "kinject.serving",
    "kinject.linking",
    "kinject.knowledge",
    "kinject.knowledge.importers",
    "kinject.plugins",
    "kinject.tasks",
    "kinject.data",
    "kinject.datasets",
    "kinject.models",
    "kinject.memory",
    "kinject.inference",
    "kinject.training",
    "kinject.stages",
)
TOP = """\
# Public names

What may be relied on: these names, the commands (`kinject --help`) and the files of [formats.md](formats.md).
Everything else may change from one version to the next. The list is made of the packages' `__all__` and the beginning
of each docstring by `python docs/hooks.py`, and a test holds it to them. Arguments, shapes, errors and sources are in
the docstrings: `help(kinject.Host)`, or, on the site that `mkdocs build` makes, one page a package. What a config may
hold is in [options.md](options.md).
"""
OPTIONS = """\
# Options of configs

What the dict that a config's `get_config()` returns may hold: the sections `stages` (by name; `kind` says which of
those below), `seed`, `name`, `published` (others' numbers, by place in `results.json`) and `mesh`. Any entry is
replaced by `--config.a.b=VALUE`. An unknown key, a wrong type or a value out of range is one line that names the key.
The page is made of the classes that read configs by `python docs/hooks.py`, and a test holds it to them.
"""


def on_config(config):
    """Names the generated pages in the navigation, behind the list of names."""
    (reference,) = (one["Reference"] for one in config.nav if "Reference" in one)
    reference[1:1] = [{package: address(package)} for package in PACKAGES]
    return config


def on_files(files, config):
    from mkdocs.structure.files import File

    home = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=home))
    for package in PACKAGES:
        files.append(File.generated(config, address(package), content=page(package)))
    return files


def on_page_markdown(markdown, page, config, files):
    if page.file.src_uri != "reference.md":
        return markdown.replace("](../README.md", "](index.md")
    sections = re.split(r"(?m)^(?=## )", markdown)
    return "".join([sections[0], *map(with_links, sections[1:])])


def with_links(section):
    """A package's section of the list of names, each name with its link."""
    package = section.splitlines()[0].removeprefix("## ")
    return re.sub(r"(?m)^\| `(\w+)` \|", lambda name: f"| {link(package, name[1])} |", section)


def address(package):
    return f"api/{package}.md"


def link(package, name):
    whole = whole_name(getattr(importlib.import_module(package), name))
    return f"[`{name}`]({address(homes()[whole])}#{whole})"


def whole_name(made):
    return f"{made.__module__}.{made.__qualname__}"


@cache
def homes():
    """Where each public name is told in full, by its whole name: in the last package that names it."""
    return {whole_name(made): package for package in PACKAGES for _, made in public(package)}


def public(package):
    """(name, what it is) of what a package names in `__all__`, in the order of the alphabet."""
    module = importlib.import_module(package)
    found = ((name, getattr(module, name)) for name in sorted(module.__all__, key=str.lower))
    return [(name, made) for name, made in found if not name.startswith("_")]


def about(package):
    """The first paragraph of a package's docstring."""
    return inspect.getdoc(importlib.import_module(package)).split("\n\n")[0]


def page(package):
    """The page of a package: what it says of itself, and each public name where it is defined."""
    parts = [f"# {package}", about(package)]
    parts += [f"::: {whole_name(made)}" for _, made in public(package) if homes()[whole_name(made)] == package]
    return "\n\n".join(parts) + "\n"


def reference():
    """The list of public names."""
    parts = [TOP]
    for package in PACKAGES:
        parts.append(f"## {package}\n\n{about(package)}\n\n| name | what it is |\n|---|---|")
        for name, made in public(package):
            first = " ".join(inspect.getdoc(made).split("\n\n")[0].split()).replace("|", "\\|")
            parts.append(f"| `{name}` | {first} |")
        parts.append("")
    return "\n".join(parts)


def options():
    """What configs may hold: every kind of stage, then the sections within them, each with its fields and defaults."""
    from kinject.inference import MeshConfig
    from kinject.stages.experiment import STAGES

    sections = {f"Stage `{kind}`": stage.Config for kind, stage in STAGES.items()} | {"Section `mesh`": MeshConfig}
    parts, waiting, told = [OPTIONS], list(sections.items()), set(sections.values())
    while waiting:
        title, section = waiting.pop(0)
        parts += [f"## {title}\n", described(section), "", "| option | what it is | default |", "|---|---|---|"]
        for name, field in section.model_fields.items():
            for inner in sections_in(field.annotation):
                if inner not in told:
                    told.add(inner)
                    waiting.append((f"Section `{name}` of `{title.split('`')[1]}`", inner))
            if name != "kind":
                parts.append(f"| `{name}` | `{written_type(section, name)}` | {written_default(field)} |")
        parts.append("")
    return "\n".join(parts)


def described(section):
    """What the classes of a section say of it, its own first; what all stages have needs no words."""
    own = [cls for cls in section.__mro__ if vars(cls).get("__doc__") and len(getattr(cls, "model_fields", ())) > 1]
    return "\n\n".join(inspect.cleandoc(cls.__doc__) for cls in own)


def sections_in(annotation):
    """The sections that a field holds."""
    if inspect.isclass(annotation) and hasattr(annotation, "model_fields"):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


def written_type(section, name):
    """A field's type as its class writes it, fit for a table."""
    (owner, *_) = (cls for cls in section.__mro__ if name in vars(cls).get("__annotations__", {}))
    return str(vars(owner)["__annotations__"][name]).replace("|", "\\|")


def written_default(field):
    if field.is_required():
        return "must be given"
    default = field.get_default(call_default_factory=True)
    return "the section's own" if hasattr(type(default), "model_fields") else f"`{default!r}`".replace("|", "\\|")


if __name__ == "__main__":
    (ROOT / "docs" / "reference.md").write_text(reference(), encoding="utf-8")
    (ROOT / "docs" / "options.md").write_text(options(), encoding="utf-8")
