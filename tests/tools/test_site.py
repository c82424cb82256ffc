"""The documentation site: it builds strictly and loads nothing from elsewhere; a fault ends the
build.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hubert_pretrain.tools import api_reference, site

FILE = re.compile(r"`((?:hubert_pretrain|tools|tests|docs)/[\w/.-]*)`")
MODULE = re.compile(r"`(hubert_pretrain(?:\.\w+)+)(?<!\.json)`")
NAME_FROM = re.compile(r"`([\w.]+)(?:\([^`]*\))?` from `(hubert_pretrain[\w.]+)`")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site."""
    pytest.importorskip("zensical")
    folder = tmp_path_factory.mktemp("site")
    assert site.main(["--to", str(folder)]) == 0
    return folder / site.SITE


class References(HTMLParser):
    """Addresses that a browser loads by itself, and the text of the page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.words: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.loaded.append(given.get("src") or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loaded.append(given.get("href") or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def html(built: Path) -> Iterator[Path]:
    yield from sorted(built.rglob("*.html"))


def test_every_page_is_there_and_loads_nothing_from_elsewhere(
    built: Path, repository: Path
) -> None:
    for page in {*site.pages(repository).values(), site.API}:
        assert (built / page).with_suffix(".html").is_file(), page
    for path in html(built):
        loaded = References(path).loaded
        assert any("assets/" in address for address in loaded)
        assert [address for address in loaded if "//" in address] == [], path


def test_pictures_are_there(built: Path) -> None:
    for path in html(built):
        for picture in References(path).loaded:
            if Path(picture).suffix in site.PICTURES and not picture.startswith("/"):
                assert (path.parent / picture).is_file(), f"{path.name}: {picture}"


def test_lists_and_tables_are_rendered(built: Path) -> None:
    """Python-Markdown wants a blank line before a list, GitHub does not."""
    for path in html(built):
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", path.read_text(), flags=re.DOTALL)
        lines = re.findall(r"^(?:[*-] |\d+\. |\|.*\|$).*", text, re.MULTILINE)
        assert not lines, f"{path.name}: {lines[:3]}"


def test_the_code_of_tables_has_no_backslash(built: Path) -> None:
    assert "action|object|location" in (built / "corpora.html").read_text()


# -- faults


@pytest.fixture
def copy(tmp_path: Path, repository: Path) -> Path:
    """Pages and configuration of the repository, to be damaged."""
    folder = tmp_path / "copy"
    for name in ("docs", "recipes"):
        shutil.copytree(repository / name, folder / name)
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", site.CONFIG):
        shutil.copyfile(repository / name, folder / name)
    # The pages name files of the code.
    for name in ("hubert_pretrain", "conf"):
        (folder / name).symlink_to(repository / name)
    return folder


def faults(copy: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(api_reference, "page", lambda: "# Python\n")
    return site.assemble(copy, copy)


def test_the_pages_have_no_fault(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults(copy, monkeypatch) == []


def test_faults_are_named(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "docs" / "lost.md").write_text("# Lost\n\n[a](nowhere.md), ![b](pictures/none.png)\n")
    nav = (copy / site.CONFIG).read_text()
    nav = nav.replace('"tutorial.md"', '"tutorials.md"').replace('"parity.md"', '"health.md"')
    (copy / site.CONFIG).write_text(nav)
    assert set(faults(copy, monkeypatch)) == {
        "docs/lost.md: nowhere.md does not exist",
        "docs/lost.md: pictures/none.png does not exist",
        "docs/lost.md: is missing in nav of zensical.toml",
        "docs/tutorial.md: is missing in nav of zensical.toml",
        "docs/parity.md: is missing in nav of zensical.toml",
        "zensical.toml: tutorials.md in nav is no page",
        "zensical.toml: health.md stands twice in nav",
    }


def test_a_heading_that_does_not_exist_ends_the_build(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("zensical")
    with (copy / "docs" / "parity.md").open("a") as page:
        page.write("\n[a](health.md#no-such-heading)\n")
    monkeypatch.setattr(site, "REPOSITORY", copy)
    monkeypatch.setattr(api_reference, "page", lambda: "# Python\n")
    assert site.main(["--to", str(copy)]) == 1
    assert "anchor does not exist" in capsys.readouterr().err


def test_without_zensical(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert site.main([]) == 1
    assert "pip install '.[docs]'" in capsys.readouterr().err


def test_links_to_code(tmp_path: Path, copy: Path) -> None:
    page = copy / "docs" / "parity.md"
    page.write_text("[`x`](../conf/data) [y](../recipes/demo/README.md#a) `[z](q)` [w](loop.svg)\n")
    (copy / "docs" / "health.md").write_text("# Health and `more`\n")
    text, found = site.for_the_site(page, copy)
    assert text == "`x` [y](recipes/demo.md#a) `[z](q)` [w](loop.svg)\n"
    page.write_text("[health.md](health.md#a) and [alarms](health.md)\n")
    assert site.for_the_site(page, copy)[0] == (
        "[Health and `more`](health.md#a) and [alarms](health.md)\n"
    )
    page.write_text("[`x`](../conf/data)\n")
    text, _ = site.for_the_site(page, copy, "https://example.org/main/")
    assert text == "[`x`](https://example.org/main/conf/data)\n"
    assert found == []


# -- public names


def test_modules_names_and_files_that_the_pages_mention_exist(repository: Path) -> None:
    found = 0
    for page in [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]:
        text = page.read_text()
        for file in FILE.findall(text):
            assert (repository / file).exists(), f"{page.name}: {file}"
        for module in MODULE.findall(text):
            importlib.import_module(module)
        for name, module in NAME_FROM.findall(text):
            value = importlib.import_module(module)
            for part in name.split("."):
                value = getattr(value, part)
        found += len(FILE.findall(text)) + len(NAME_FROM.findall(text))
    assert found > 30


def test_public_names_are_in_the_reference() -> None:
    imported = api_reference.imported()
    assert ("hubert_pretrain.targets.store", "TargetStore") in imported
    for module, name in imported:
        assert api_reference.public(module, name) is not None, f"{module}.{name}"
    page = api_reference.page()
    for name in {name for _, name in imported} | set(api_reference.hubert_pretrain.__all__):
        assert f"### {name}\n" in page, name


def test_a_reference_entry() -> None:
    def example(x: int, *more: str, key: float | None = None, **rest: object) -> str:
        """One line with ``code``.

        Args:
            x: a number, with a colon: here,
                and a second line.
            more: words.

        Raises DataError when it is wrong.
        """
        raise NotImplementedError

    assert api_reference.entry(example, "example").splitlines() == [
        "### example",
        "",
        "```text",
        "example(x: int, *more: str, key: float | None = None, **rest: object) -> str",
        "```",
        "",
        "One line with `code`.",
        "",
        "**Args**",
        "",
        "* `x`: a number, with a colon: here,",
        "  and a second line.",
        "* `more`: words.",
        "",
        "Raises DataError when it is wrong.",
    ]


def test_python_of_the_pages_parses(repository: Path) -> None:
    for page in [repository / "README.md", *(repository / "docs").glob("*.md")]:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            assert ast.parse(code, filename=str(page)).body
