"""The Vega-Lite chart that all panels share: its layers and their looks.

Points and curves are placed by the axes, which are those of the points. All else is in pixels.
The layers take their rows by name; `figures.py` makes those.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from bench.reporting.looks import INK, PAPER, RULE, SOFT


@cache
def template(curves: bool) -> dict[str, Any]:
    """Returns the chart without its rows: altair takes longer for it than Vega for a panel."""
    import altair as alt

    def rows(name: str) -> alt.Chart:
        return alt.Chart(alt.NamedData(name))

    placed = alt.X("x:Q"), alt.Y("y:Q")
    spread = alt.X("x:Q"), alt.Y("low:Q"), alt.Y2("high")
    pixels = alt.X("x:Q", scale=None, axis=None), alt.Y("y:Q", scale=None, axis=None)
    to = alt.X2("x2"), alt.Y2("y2")
    colour, dash = alt.Stroke("colour:N", scale=None), alt.StrokeDash("dash:N", scale=None)
    symbol = (
        *(colour, alt.Fill("fill:N", scale=None), alt.Shape("shape:N", scale=None)),
        alt.Description("about:N"),
    )
    inside = alt.Fill("colour:N", scale=None)
    series = alt.Detail("series:N"), alt.Description("method:N")
    points = rows("points").mark_point().encode(*placed, *symbol)
    lead = rows("leads").mark_rule(strokeWidth=0.8, opacity=0.75)
    leads = lead.encode(*pixels, *to, colour, alt.Description("method:N"))
    across = rows("across").mark_rule(aria=False, stroke=INK, strokeDash=[2, 3], strokeWidth=0.8)
    if curves:
        layers = [
            rows("points").mark_area(opacity=0.1).encode(*spread, inside, *series),
            rows("points").mark_line(strokeWidth=1.6).encode(*placed, colour, dash, *series),
            across.encode(*pixels, *to),
            leads,
            points,
            rows("ends").mark_point().encode(*pixels, *symbol),
        ]
    else:
        steps = rows("steps").mark_line(
            aria=False, interpolate="step-after", stroke=INK, strokeWidth=1.2, opacity=0.45
        )
        layers = [
            across.encode(*pixels, *to),
            steps.encode(*pixels),
            rows("points").mark_rule(opacity=0.6).encode(*spread, colour, *series),
            leads,
            points,
        ]
    for name in ("words", "words left"):
        at: Any = {"align": "right" if name == "words left" else "left", "baseline": "middle"}
        text = rows(name).mark_text(**at)
        ground = rows(name).mark_text(**at, stroke=PAPER, aria=False)
        layers += [ground.encode(*pixels, alt.Text("text:N"))]
        layers += [text.encode(*pixels, alt.Text("text:N"), alt.Description("text:N"))]
    chart = alt.layer(*layers).properties(autosize=alt.AutoSizeParams(type="none"))
    sizes: Any = {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"}
    colours: Any = {"labelColor": SOFT, "titleColor": INK, "gridColor": RULE, "tickColor": RULE}
    made: dict[str, Any] = (
        chart.configure(background=PAPER)
        .configure_axis(
            **sizes, **colours, domainColor=RULE, titleBaseline="middle", aria=False,
            labelOverlap=False,
        )
        .configure_view(stroke=None)
        .configure_text(fontSize=11, fill=INK, strokeWidth=3)
        .configure_point(size=42, strokeWidth=1.4, opacity=1)
        .to_dict()
    )  # fmt: skip
    return made
