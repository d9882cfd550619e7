"""Build the documentation site: ``python tools/documentation.py FOLDER``, or ``nox -s site``.

The pages are the Markdown files of the tree, where they lie, and the reference that `reference` writes.  The lists of
docs/index.md are the navigation.  Whatever Sphinx warns of is an error: a link to a page or a heading that is not
there, a page that nothing leads to.
"""

from __future__ import annotations

import re
import shutil
import sys
from functools import reduce
from os.path import normpath
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import reference
from sphinx.cmd.build import main as build

import pgmonkey

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "example_apps/README.md")
CONFIGURATION = f"""
project = "pgmonkey"
html_title = "pgmonkey {pgmonkey.__version__}"
extensions = ["myst_parser"]
root_doc = "docs/index"
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # what commands print is no shell
html_theme = "furo"
html_favicon = "docs/favicon.svg"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
"""

# The pages keep the places that they have in the tree, and so their links.
FRONT = """<!doctype html>
<html lang="en">
<title>pgmonkey</title>
<link rel="icon" href="_static/favicon.svg">
<meta http-equiv="refresh" content="0; url=docs/index.html">
<a href="docs/index.html">pgmonkey</a>
</html>
"""

# What axe-core and Lighthouse ask for: what scrolls can be reached by keyboard, and each landmark has a name.
ACCESSIBLE = {
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Pages">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    "<pre>": '<pre tabindex="0">',
    '<th class="head"><p></p></th>': "<td></td>",
}


def source(folder: Path) -> None:
    """Lay out in *folder* what the site is made from."""
    for path in [*(ROOT / name for name in PAGES), *(ROOT / "docs").rglob("*.*")]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = path.read_text(encoding="utf-8")
            target.write_text(links_to_files(re.sub(r"^<!-- \w+\n.*?^-->\n", "", text, flags=re.M | re.S), path))
        else:
            shutil.copy(path, target)
    (folder / "docs" / "reference").mkdir()
    for name, text in reference.pages().items():
        (folder / "docs" / "reference" / f"{name}.md").write_text(text)
    index = folder / "docs" / "index.md"
    index.write_text(with_navigation(index.read_text(), folder))
    (folder / "conf.py").write_text(CONFIGURATION)


def links_to_files(text: str, page: Path) -> str:
    """Return *text* with the names alone of files of the tree that are no pages of the site."""

    def shown(match: re.Match[str]) -> str:
        target = (page.parent / match[2]).resolve()
        is_page = target.suffix in (".md", ".svg") and target.is_file()
        is_page = is_page or target.parent == ROOT / "docs" / "prometheus"  # to be loaded from the site
        return match[0] if is_page or "://" in match[2] or not target.exists() else match[1]

    return re.sub(r"\[([^\]]+)\]\(([^)#]+)\)", shown, text)


def with_navigation(index: str, folder: Path) -> str:
    """Return the text of the index with each of its lists as a part of the navigation, too.

    A page that is in no list comes last among the how-tos: whoever writes one need not know of the site.
    """
    listed = {(folder / "docs" / path).resolve() for path in re.findall(r"\]\(([^)]+\.md)\)", index)}
    own = [path for path in sorted((folder / "docs").rglob("*.md")) if "reference" not in path.parts]
    more = [path for path in own if path.resolve() not in listed and path.name != "index.md"]
    parts = re.split(r"^(?=## )", index, flags=re.MULTILINE)
    for i, part in enumerate(parts[1:], 1):
        title = part.partition("\n")[0].removeprefix("## ")
        links = re.findall(r"^- \[([^\]]+)\]\(([^)]+)\.md\)$", part, re.MULTILINE)
        lines = [f"{name} </{normpath(f'docs/{path}')}>" for name, path in links]
        if title == "How to":
            lines += [f"/{path.relative_to(folder).with_suffix('')}" for path in more]
        if title == "Reference":
            lines = [f"{name} </docs/reference/{name}>" for name in reference.pages()] + lines
        toctree = "\n".join(lines)
        parts[i] = f"{part}\n```{{toctree}}\n:caption: {title}\n:hidden:\n\n{toctree}\n```\n\n"
    return "".join(parts)


def main() -> int:
    """Build the site in the folder that is given."""
    folder = Path(sys.argv[1])
    for made in ("source", "html"):
        shutil.rmtree(folder / made, ignore_errors=True)
    source(folder / "source")
    status = build(["-q", "-W", "--keep-going", "-n", str(folder / "source"), str(folder / "html")])
    if status == 0:
        for page in (folder / "html").rglob("*.html"):
            page.write_text(reduce(lambda text, each: text.replace(*each), ACCESSIBLE.items(), page.read_text()))
        (folder / "html" / "index.html").write_text(FRONT)
        print(f"The site is in {folder / 'html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
