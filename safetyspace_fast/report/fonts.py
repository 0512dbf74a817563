"""The font of a figure inside its SVG, so that the picture looks the same on every machine."""

import io
from base64 import b64encode
from pathlib import Path
from xml.etree import ElementTree

FAMILY = "Liberation Sans"
"""The font that vl-convert brings and measures with; `theme.FONT` names it first."""
_FILES = {"normal": "LiberationSans-Regular.woff", "bold": "LiberationSans-Bold.woff"}
_FOLDER = Path(__file__).with_name("static") / "fonts"


def style(svg: str) -> str:
    """A `<style>` element with the letters that an SVG uses, for each weight that it uses.

    The text stays text. Letters that the font lacks (it has Latin, Greek, Cyrillic and Hebrew)
    are left to the fonts of whoever opens the file.

    Args:
        svg: a picture as vl-convert writes it: weights are attributes of `text` elements.
    """
    letters = {weight: set[str]() for weight in _FILES}
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        letters[text.get("font-weight", "normal")].update("".join(text.itertext()))
    faces = (_face(weight, used) for weight, used in letters.items() if used)
    return f"<style>{''.join(faces)}</style>"


def _face(weight: str, letters: set[str]) -> str:
    """The CSS of a font that has these letters only."""
    from fontTools import subset

    options = subset.Options(flavor="woff", hinting=False, notdef_outline=True)
    options.drop_tables += ["FFTM"]  # of the font's editor
    font = subset.load_font(_FOLDER / _FILES[weight], options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=map(ord, letters))
    subsetter.subset(font)
    file = io.BytesIO()
    subset.save_font(font, file, options)
    source = f"url(data:font/woff;base64,{b64encode(file.getvalue()).decode()})"
    return f'@font-face{{font-family:"{FAMILY}";font-weight:{weight};src:{source}}}'
