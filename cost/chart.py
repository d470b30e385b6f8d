"""What environments cost, as bars: in a terminal, and as a picture for the documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.sax.saxutils import escape

from cost.estimate import Estimate

USE = "with the load"
#: Part of a bar -> its sign in a terminal, and its colour on light and on dark.
PARTS = {
    "api": ("#", "#3b6fd4"), "files": ("=", "#2f9e77"), "web": ("+", "#c2791f"),
    "shared": (":", "#8a63c9"), USE: ("-", "#8793a6"),
}  # fmt: skip
LEFT, RIGHT, BAR, ROW, TOP = 80, 90, 530, 34, 34
STYLE = """
  text { font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1b2333 }
  .sum { font-weight: 600 } .line { stroke: #d5dbe5 }
  @media (prefers-color-scheme: dark) { text { fill: #e6eaf2 } .line { stroke: #2b3444 } }
"""


def parts(found: Estimate) -> dict[str, float]:
    """Dollars of each part of a bar."""
    fixed = {name: sum(found.fixed.get(name, {}).values()) for name in PARTS if name != USE}
    return {**fixed, USE: found.together() - found.total()}


def bars(estimates: Mapping[str, Estimate], width: int) -> Iterator[str]:
    """A line for each environment, and the legend."""
    most = max(each.together() for each in estimates.values())
    room = width - 30
    for env, each in estimates.items():
        drawn, at = "", 0.0
        for name, dollars in parts(each).items():
            at += dollars
            drawn += PARTS[name][0] * (round(at / most * room) - len(drawn))
        yield f"{env[:16]:16} {drawn:{room}} {each.together():12,.2f}"
    yield "  ".join(f"{sign} {name}" for name, (sign, _) in PARTS.items())


def svg(estimates: Mapping[str, Estimate]) -> str:
    """The same as a picture; its colours are read on light and on dark."""
    most = max(each.together() for each in estimates.values())
    height = TOP + ROW * len(estimates)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + BAR + RIGHT} {height}">',
        "<title>dollars a month</title>",
        f"<style>{STYLE}</style>",
    ]
    for number, (name, (_, colour)) in enumerate(PARTS.items()):
        at = LEFT + number * 100
        lines.append(f'<rect x="{at}" y="8" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{at + 17}" y="18">{escape(name)}</text>')
    for number, (env, each) in enumerate(estimates.items()):
        x, y = float(LEFT), TOP + number * ROW
        lines.append(f'<text x="0" y="{y + 16}">{escape(env)}</text>')
        for name, dollars in parts(each).items():
            wide, colour = dollars / most * BAR, PARTS[name][1]
            lines.append(
                f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="22" fill="{colour}">'
                f"<title>{escape(name)}: {dollars:,.0f}</title></rect>"
            )
            x += wide
        lines.append(
            f'<text class="sum" x="{x + 8:.1f}" y="{y + 16}">${each.together():,.0f}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"
