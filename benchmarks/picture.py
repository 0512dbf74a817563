"""The README's picture: separation by layer, one language against the others, before and after.

    python -m benchmarks picture pair.zarr --base base --aligned aligned -o real-pair.svg

Reads a store with two models of one data set, computes one metric for every layer and language, and
draws two panels with a common axis. The band is the 95 % interval of the highlighted language.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import xarray

import safetyspace_fast as ssf

WIDTH, HEIGHT = 860, 360
TOP, BOTTOM, LEFT, GAP, RIGHT = 64, 306, 74, 34, 92
PANEL = (WIDTH - LEFT - GAP - RIGHT) / 2
HIGHLIGHT, OTHERS, INK = "#0b5cad", "#9a9a9a", "#222222"
DECADES = (0.001, 1.0)
KEY = "band: 95 % interval; dashed: the value expected without any difference of the classes"


def x_of(i_panel: int, i_layer: int, num_layers: int) -> float:
    return LEFT + i_panel * (PANEL + GAP) + PANEL * i_layer / max(1, num_layers - 1)


def y_of(value: float) -> float:
    """Logarithmic; what lies below the axis is drawn at its end."""
    low, high = map(math.log10, DECADES)
    share = (math.log10(max(value, DECADES[0])) - low) / (high - low)
    return BOTTOM - (BOTTOM - TOP) * share


def path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def text(x: float, y: float, words: str, anchor: str = "start", **style: str) -> str:
    attributes = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in style.items())
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{attributes}>{escape(words)}</text>'
    )


def panel(i_panel: int, table: xarray.Dataset, lang: str, title: str) -> list[str]:
    layers = [str(name) for name in table["layer"].values]
    others = [name for name in table["lang"].values if name != lang]
    left, right = x_of(i_panel, 0, len(layers)), x_of(i_panel, len(layers) - 1, len(layers))
    parts = [text((left + right) / 2, TOP - 14, title, "middle", font_weight="bold")]
    for exponent in range(round(math.log10(DECADES[0])), round(math.log10(DECADES[1])) + 1):
        y = y_of(10.0**exponent)
        parts.append(f'<path d="{path([(left, y), (right, y)])}" stroke="#e4e4e4"/>')
        if i_panel == 0:
            parts.append(text(left - 8, y + 4, f"{10.0**exponent:g}", "end"))
    ends = ((0, "start"), (len(layers) // 2, "middle"), (len(layers) - 1, "end"))
    for i_layer, anchor in ends:
        x = x_of(i_panel, i_layer, len(layers))
        parts.append(text(x, BOTTOM + 18, layers[i_layer], anchor))
    floor = y_of(float(table["floor"].sel(lang=lang).mean()))
    parts.append(
        f'<path d="{path([(left, floor), (right, floor)])}" stroke="{INK}" stroke-dasharray="5 4"/>'
    )

    def line(name: str, column: str) -> list[tuple[float, float]]:
        values = table[column].sel(lang=name).values
        return [(x_of(i_panel, i, len(layers)), y_of(float(v))) for i, v in enumerate(values)]

    parts += [
        f'<path d="{path(line(name, "value"))}" stroke="{OTHERS}" fill="none"/>' for name in others
    ]
    band = path([*line(lang, "low"), *reversed(line(lang, "high"))])
    main = line(lang, "value")
    parts += [
        f'<path d="{band}Z" fill="{HIGHLIGHT}" opacity="0.18"/>',
        f'<path d="{path(main)}" stroke="{HIGHLIGHT}" stroke-width="2.5" fill="none"/>',
    ]
    if i_panel == 1:
        heights = [line(name, "value")[-1][1] for name in others]
        middle = (min(heights) + max(heights)) / 2
        bold = {"fill": HIGHLIGHT, "font_weight": "bold"}
        parts += [
            text(right + 8, main[-1][1] + 4, lang, **bold),
            text(right + 8, middle - 4, f"{len(others)} other"),
            text(right + 8, middle + 10, "languages"),
            text(right + 8, floor + 4, "noise floor"),
        ]
    return parts


def picture(
    table: xarray.Dataset, base: str, aligned: str, metric: str, pooling: str, lang: str
) -> str:
    """The picture as SVG.

    Args:
        table: what `separation` returned for both models.
        base, aligned, metric, pooling: which numbers.
        lang: the language to highlight.
    """
    title = str(table["title"].sel(metric=metric).item())
    shown = table.sel(metric=metric, pooling=pooling)
    heading = f"{title[0].upper()}{title[1:]} of harmful and harmless texts, by layer"
    words = (
        f"{heading}. Left: {base}. Right: {aligned}. Highlighted: {lang}, with its 95 % interval; "
        f"at the last layer {shown['value'].sel(model=base, lang=lang).values[-1]:.3f} before and "
        f"{shown['value'].sel(model=aligned, lang=lang).values[-1]:.3f} after."
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="{INK}">',
        f"<title>{escape(heading)}</title>",
        f"<desc>{escape(words)}</desc>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        text(LEFT, 24, heading, font_size="16", font_weight="bold"),
        *panel(0, shown.sel(model=base), lang, "before tuning"),
        *panel(1, shown.sel(model=aligned), lang, "after tuning"),
        text(LEFT, HEIGHT - 12, f"pooling {pooling}; logarithmic scale; {KEY}"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks picture", description=__doc__)
    parser.add_argument("run", metavar="PAIR.zarr")
    parser.add_argument("--base", default="base")
    parser.add_argument("--aligned", default="aligned")
    parser.add_argument("--metric", default="rho")
    parser.add_argument("--pooling", default="last")
    parser.add_argument("--lang", default="en", help="the language to highlight (default: en)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.svg")
    typed = parser.parse_args(arguments)
    table = ssf.separation(
        ssf.open_run(typed.run),
        models=[typed.base, typed.aligned],
        metrics=[typed.metric],
        poolings=[typed.pooling],
    )
    drawing = picture(table, typed.base, typed.aligned, typed.metric, typed.pooling, typed.lang)
    typed.output.write_text(drawing, encoding="utf-8")
    print(typed.output)
