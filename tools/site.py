"""Build the documentation site by zensical: README.md, docs/, the pages of the recipes, and the
public names of the package with their docstrings (tools/api_reference.py).

    python tools/site.py                          # build/site/index.html
    python tools/site.py --repository https://example.org/hubert_pretrain/blob/main

Pages are plain Markdown whose links work in the repository. The site has only pages: a link to a
file of the code becomes its text, or with `--repository` a link to that place. A fault ends the
build: a page that is missing in the navigation (zensical.toml) or stands there twice, an entry
without a page, a link or picture without a file; zensical itself refuses links to headings that do
not exist.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from hubert_pretrain.tools import api_reference

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = "zensical.toml"
PAGES = Path("build") / "pages"
"""`docs_dir` of the configuration."""
SITE = Path("build") / "site"
"""`site_dir` of the configuration."""
API = "api.md"
"""The page that is made from docstrings."""
RECIPES = '"recipes/index.md",'
"""The line of the navigation behind which the pages of the recipes follow."""

LINK = re.compile(r"(!?)\[((?:[^][]|\[[^][]*\])*)\]\(([^()\s]+)\)")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
TABLE_ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
PICTURES = {".svg", ".png", ".webp"}


def main(arguments: list[str] | None = None) -> int:
    """Put the pages together, check them, and build."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=REPOSITORY, help="folder of build/")
    parser.add_argument("--repository", default="", help="URL of the files of the code")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("zensical") is None:
        print(
            "error: zensical, which renders the site, is not installed: pip install '.[docs]', "
            "with Python 3.11 or later",
            file=sys.stderr,
        )
        return 1
    faults = assemble(REPOSITORY, options.to, options.repository)
    if faults:
        print("\n".join(faults), file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    built = subprocess.run(
        [*command, "--config-file", CONFIG],
        cwd=options.to / PAGES.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        print(built.stdout + built.stderr, file=sys.stderr)
        return 1
    print(f"{options.to / SITE / 'index.html'}: {len(pages(REPOSITORY)) + 1} pages")
    return 0


def pages(repository: Path) -> dict[Path, str]:
    """The page of the site that each Markdown file becomes."""
    found = {repository / "README.md": "index.md"}
    found |= {path: path.name for path in sorted((repository / "docs").glob("*.md"))}
    found[repository / "CONTRIBUTING.md"] = "contributing.md"
    found[repository / "CHANGELOG.md"] = "changes.md"
    found[repository / "recipes" / "README.md"] = "recipes/index.md"
    for path in sorted((repository / "recipes").glob("*/README.md")):
        found[path] = f"recipes/{path.parent.name}.md"
    return found


def assemble(repository: Path, to: Path, url: str = "") -> list[str]:
    """Write the pages and the configuration to `to`; faults that were found."""
    folder = to / PAGES
    shutil.rmtree(folder, ignore_errors=True)
    faults = []
    for path, page in pages(repository).items():
        text, found = for_the_site(path, repository, url)
        faults += found
        target = folder / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    (folder / API).write_text(api_reference.page())
    for picture in pictures(repository):
        target = folder / picture.relative_to(repository / "docs")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, target)
    config, found = configuration(repository)
    (to / PAGES.parent / CONFIG).write_text(config)
    return faults + found


def pictures(repository: Path) -> list[Path]:
    """Pictures of docs/."""
    return [path for path in sorted((repository / "docs").rglob("*")) if path.suffix in PICTURES]


def configuration(repository: Path) -> tuple[str, list[str]]:
    """zensical's configuration with all recipes, and faults of its navigation."""
    config = (repository / CONFIG).read_text()
    exist = {*pages(repository).values(), API}
    recipes = sorted(page for page in exist if page.startswith("recipes/"))
    recipes.remove("recipes/index.md")
    added = "\n".join([RECIPES, *(f'    "{page}",' for page in recipes)])
    config = config.replace(RECIPES, added).replace(f'"{PAGES.parent}/', '"')
    entries = Counter(re.findall(r'"([\w/.-]+\.md)"', config))
    faults = [f"docs/{page}: is missing in nav of {CONFIG}" for page in exist - set(entries)]
    faults += [f"{CONFIG}: {page} in nav is no page" for page in set(entries) - exist]
    faults += [f"{CONFIG}: {page} stands twice in nav" for page, n in entries.items() if n > 1]
    return config, sorted(faults)


def for_the_site(path: Path, repository: Path, url: str = "") -> tuple[str, list[str]]:
    """A page with the links that it has on the site, and its faults."""
    on_the_site = pages(repository)
    folder = Path(on_the_site[path]).parent
    faults = []

    def link(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        name, hash_sign, heading = target.partition("#")
        if not name or "://" in name or name.startswith("mailto:"):
            return match[0]
        file = Path(os.path.normpath(path.parent / name))
        if not file.exists():
            faults.append(f"{path.relative_to(repository)}: {target} does not exist")
            return match[0]
        if file in on_the_site:
            words = title(file) if words == Path(name).name else words
            place = os.path.relpath(on_the_site[file], folder)
        elif file.suffix in PICTURES and file.is_relative_to(repository / "docs"):
            place = os.path.relpath(file.relative_to(repository / "docs"), folder)
        elif url:
            place = f"{url.rstrip('/')}/{file.relative_to(repository)}"
        else:
            return words
        return f"{mark}[{words}]({place}{hash_sign}{heading})"

    parts = CODE.split(path.read_text())
    # Code has no links, but code may stand in the words of one: `[`a`](b)`.
    text = "".join(part.replace("](", "]\0(") if n % 2 else part for n, part in enumerate(parts))
    text = LINK.sub(link, text).replace("]\0(", "](")
    # GitHub wants `\|` in the code of a table, Python-Markdown shows the backslash.
    return TABLE_ROW.sub(
        lambda row: CODE.sub(lambda c: c[0].replace("\\|", "|"), row[0]), text
    ), faults


def title(path: Path) -> str:
    """The heading of a page."""
    return path.read_text().partition("\n")[0].lstrip("# ")


if __name__ == "__main__":
    sys.exit(main())
