"""The README's picture: it is that of the stored points, whole, legible, and in the page's colours."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from evaluation.benches import overview
from evaluation.page import picture, plots
from evaluation.page.words import Words
from evaluation.store import Store

STYLE = picture.STYLE.read_text("utf-8")
SVG = "{http://www.w3.org/2000/svg}"


def rows():
    known = {row["id"]: row for row in Store().rows()}
    return [known[name] for name in overview.first_points()]


def test_the_readme_shows_the_picture_of_the_stored_points():
    """`python -m evaluation tables`."""
    assert picture.FILE.read_text("utf-8") == overview.front_picture()
    readme = overview.README.read_text("utf-8")
    assert f"(assets/{picture.FILE.name})" in readme and "front.png" not in readme


def test_every_point_is_there_by_its_name_and_with_its_family():
    drawn = ET.fromstring(picture.drawn(rows(), STYLE))
    said = [text.text for text in drawn.iter(f"{SVG}text")]
    names = picture.names(rows(), Words("en"))
    assert set(names.values()) <= set(said) and len(set(names.values())) == len(names)
    families = [path.get("class") for path in drawn.iter(f"{SVG}path")]
    for family in {row["family"] for row in rows()}:
        own = sum(row["family"] == family for row in rows())
        assert families.count(family) == own + (family in plots.SYMBOLS), family


def test_another_size_or_name_is_another_picture():
    changed = [row | {"file_bytes": row["file_bytes"] / 2} for row in rows()[1:2]] + rows()[2:] + rows()[:1]
    assert picture.drawn(changed, STYLE) != picture.drawn(rows(), STYLE)


def test_no_name_covers_a_mark_or_another_name():
    """Of a crowd of thirty points and of a few that lie on each other."""
    crowd = [(300 + 37 * (i * 7 % 11), 200 + 23 * (i * 5 % 13), f"Method {i}, 4 bits") for i in range(30)]
    points = [*crowd, (800.0, 500.0, "one"), (801.0, 501.0, "two"), (799.0, 502.0, "three")]
    boxes = [box for box, _, _ in picture._placed(points)]
    for i, box in enumerate(boxes):
        assert box[0] >= picture.LEFT and box[2] <= picture.RIGHT
        assert not any(plots.overlap(box, other) for other in boxes[i + 1 :])
        assert not any(plots.overlap(box, (x - 4, y - 4, x + 4, y + 4)) for x, y, _ in points)


def test_colours_are_the_pages_in_light_and_dark():
    light, dark = (dict(picture.colours(STYLE, d)) for d in (False, True))
    assert light["ground"] == "#ffffff" and dark["ground"] == "#121214"
    assert light["pruning"] == dark["pruning"] != light["quantization"] != dark["quantization"]
    drawn = picture.drawn(rows(), STYLE)
    assert re.search(r"prefers-color-scheme: dark\) \{ svg \{ --quantization: #56B4E9", drawn)


def test_two_runs_of_one_short_name_get_their_long_ones():
    base = rows()[1]
    twins = [
        base | {"id": n, "recipe": [["gptq", {"bits": 4, "group_size": g}]]}
        for n, g in (("a", 64), ("b", 32))
    ]
    assert picture.names(twins, Words("en")) == {"a": "GPTQ, 4 bits, group 64", "b": "GPTQ, 4 bits, group 32"}
