"""What an HTML page is made of: tables, charts, and pictures that it holds itself."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np

POINTS = 400  # of a curve, at most
WIDTH, HEIGHT = 480, 280  # of a chart, in its own units
LEFT, BOTTOM, EDGE = 46, 30, 10  # its margins


def section(title: str, *parts: str) -> str:
    """A part of the page under a heading; `parts` are HTML."""
    inside = "\n".join(parts)
    return f"<section><h2>{html.escape(title)}</h2>\n{inside}</section>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(rows: Iterable[Sequence], head: Sequence = (), kind: str = "") -> str:
    """A table of plain texts and numbers."""
    line = lambda cells, tag: (
        "<tr>"
        + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)
        + "</tr>"
    )
    lines = [line(head, "th")] if head else []
    lines += [line(row, "td") for row in rows]
    return f'<div class="wide"><table class="{kind}">{"".join(lines)}</table></div>'


def data_uri(pixels: np.ndarray, kind: str = "png") -> str:
    """An image [H, W, 3] of numbers in [0, 1] as an address that holds it."""
    from matplotlib import image

    content = io.BytesIO()
    image.imsave(content, np.ascontiguousarray(np.uint8(255 * pixels)), format=kind)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def compare(title: str, image, predicted, masked) -> str:
    """Two pictures [H, W, 3] with a slider between them, and a third beside them."""
    image, predicted, masked = map(data_uri, (image, predicted, masked))
    title = html.escape(title)
    return (
        f'<figure><div class="pair"><div class="compare"><div class="both">'
        f'<img src="{image}" alt="{title}: image">'
        f'<img class="over" src="{predicted}" alt="{title}: prediction">'
        '<div class="edge"></div></div>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{title}: from '
        'prediction to image">'
        '<div class="ends"><span>image</span><span>prediction</span></div></div>'
        f'<img src="{masked}" alt="{title}: what the model sees"></div>'
        f"<figcaption>{title}</figcaption></figure>"
    )


def chart(title: str, lines: dict[str, tuple[str, list]]) -> str:
    """Curves with axes as SVG, and in words where each ends.

    Args:
        title: of the chart.
        lines: class of the style, and points (step, value), by label.
    """
    from matplotlib import ticker

    points = [point for _, line in lines.values() for point in line]
    xs, ys = zip(*points)
    top = float(np.percentile(ys, 98))  # the first steps would flatten the rest
    ticks = [
        ticker.MaxNLocator(5).tick_values(min(0, low), high or 1)
        for low, high in ((0, max(xs)), (min(ys), top))
    ]
    low, high = ticks[1][0], ticks[1][-1]

    def place(x, y):
        across = LEFT + (WIDTH - LEFT - EDGE) * x / max(max(xs), 1)
        share = (min(y, high) - low) / (high - low)
        return across, EDGE + (HEIGHT - EDGE - BOTTOM) * (1 - share)

    across = {x: place(x, low)[0] for x in ticks[0] if 0 <= x <= max(xs)}
    drawn, ends = _axes(across, {y: place(0, y)[1] for y in ticks[1]}), []
    for label, (kind, line) in lines.items():
        every = line[:: -(-len(line) // POINTS)]
        every.append(line[-1])
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in every))
        width = 1.6 if len(line) > 1 else 6  # a dot, by its round ends
        drawn.append(
            f'<polyline class="{kind}" stroke-width="{width}" points="{path}"/>'
        )
        step, value = line[-1]
        ends.append(
            f'<span class="key {kind}"></span> {html.escape(label)}: {value:.4f} at '
            f"step {step}"
        )
    if max(ys) > high:
        ends.append(f"Losses above {high:g} are drawn at the upper edge.")
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}, loss by step">{"".join(drawn)}</svg>'
        f"<figcaption>{'<br>'.join(ends)}</figcaption></figure>"
    )


def _axes(across: dict[float, float], down: dict[float, float]) -> list[str]:
    """Lines and numbers of a chart's axes, as SVG, from values to their places."""
    lines = [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - EDGE}" y1="{at:.1f}" '
        f'y2="{at:.1f}"/><text x="{LEFT - 6}" y="{at + 4:.1f}" '
        f'text-anchor="end">{y:g}</text>'
        for y, at in down.items()
    ]
    return lines + [
        f'<text x="{at:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{x:g}</text>'
        for x, at in across.items()
    ]
