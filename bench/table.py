"""The rows that the benches print: what the farm took, what its peer took, and their ratio."""

from __future__ import annotations

Row = dict[str, str]


def row(
    what: str,
    farm: float,
    peer: float,
    unit: str,
    *,
    digits: int = 1,
    most: float | None = None,
    least: float | None = None,
) -> Row:
    """A row whose goal, if it has one, is that the ratio be at most, or at least, so much."""
    ratio = farm / peer
    goal = f"≤ {most:g}" if most is not None else f"≥ {least:g}" if least is not None else "–"
    met = ratio <= (most or ratio) and ratio >= (least or ratio)
    return {
        "what": what,
        "farm": f"{farm:.{digits}f}{unit}",
        "peer": f"{peer:.{digits}f}{unit}",
        "ratio": f"{ratio:.2f}",
        "goal": goal,
        "verdict": verdict(met) if goal != "–" else "",
    }


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def show(rows: list[Row]) -> None:
    if not rows:
        return
    width = max(len(row["what"]) for row in rows)
    print(f"\n{'what':{width}} {'farm':>10} {'peer':>10} {'ratio':>7}  goal")
    for row in rows:
        print(
            f"{row['what']:{width}} {row['farm']:>10} {row['peer']:>10} {row['ratio']:>7}"
            f"  {row['goal']} {row['verdict']}".rstrip()
        )
