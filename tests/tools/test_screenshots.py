"""Pictures of the pages: small, shown, and made from what the report has today."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hubert_pretrain.tools import screenshots

STATIC = Path(screenshots.__file__).resolve().parent.parent / "hubert_pretrain/report/static"


def test_every_picture_is_small_and_shown(repository: Path) -> None:
    pages = [repository / "README.md", *(repository / "docs").glob("*.md")]
    text = "".join(page.read_text() for page in pages)
    pictures = sorted((repository / "docs" / "pictures").iterdir())
    assert len(pictures) > 5
    for picture in pictures:
        assert picture.stat().st_size <= screenshots.MAX_BYTES, picture.name
        assert f"pictures/{picture.name}" in text, f"{picture.name} is on no page"
    assert {shot.name for shot in screenshots.SHOTS} == {
        picture.stem for picture in pictures if picture.stem.startswith("report-")
    }


def test_a_picture_is_made_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1100, 3), dtype=np.uint8)
    png = io.BytesIO()
    smooth = Image.fromarray(noise).resize((110, 90)).resize((1100, 900))
    smooth.save(png, "PNG")
    assert len(png.getvalue()) > screenshots.MAX_BYTES
    made = screenshots.webp(png.getvalue())
    assert len(made) <= screenshots.MAX_BYTES
    assert Image.open(io.BytesIO(made)).size == (1100, 900)


def test_the_report_has_what_is_photographed() -> None:
    text = "".join(path.read_text() for path in STATIC.iterdir() if path.is_file())
    for shot in screenshots.SHOTS:
        for selector in (shot.first, shot.last):
            for name in re.findall(r"#(\w+)", selector):
                assert re.search(rf"[\"'(]{name}[\"',)]", text), f"{shot.name}: {selector}"


def test_a_run_without_a_report_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert screenshots.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/report.html: not there; make it with stage=report\n"
    )
