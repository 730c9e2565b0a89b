"""Draws the charts of `benchmarks/results/` from the JSON that lies there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.measure import RESULTS

OURS, OTHERS = "#2a6fbb", "#b9c2cc"

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "rokt_events_async", "font.size": 9, "axes.spines.top": False})


def load(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return data


def write(name: str) -> Path:
    path = RESULTS / f"{name}.svg"
    plt.tight_layout()
    plt.savefig(path, metadata={"Date": None})
    plt.close()
    # matplotlib leaves blanks at the ends of lines.
    path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text().splitlines()))
    return path


def bars(name: str, panels: dict[str, dict[str, Any]]) -> Path:
    """Horizontal bars with their spread, a panel for each figure; ours in colour, on top."""
    _, all_axes = plt.subplots(1, len(panels), figsize=(9, 0.45 * len(next(iter(panels.values()))) + 0.9))
    for axes, (title, values) in zip(all_axes, panels.items(), strict=True):
        names = list(reversed(values))
        medians = [values[each]["median"] for each in names]
        errors = [
            [values[each]["median"] - values[each]["least"] for each in names],
            [values[each]["most"] - values[each]["median"] for each in names],
        ]
        colours = [OURS if each in ("rokt_events_async", "emitter") else OTHERS for each in names]
        axes.barh(names, medians, xerr=errors, color=colours, ecolor="#555", capsize=2)
        axes.set_title(title, loc="left")
        if axes is not all_axes[0]:
            axes.set_yticklabels([])
    return write(name)


def throughput() -> Path:
    """Rates as shares of the bare loop's."""
    cases = load("throughput")["cases"]
    panels = {}
    for case in cases:
        if case["concurrency"] == 16 and case["loop"] == "asyncio":
            named = {each: figures["of_bare_loop"] for each, figures in case["contestants"].items()}
            panels[f"{case['events_a_session']} events a session"] = named
    widest = max(panels.values(), key=len)
    empty = {"median": 0.0, "least": 0.0, "most": 0.0}
    return bars(
        "throughput",
        {title: {each: named.get(each, empty) for each in widest} for title, named in panels.items()},
    )


def peers() -> Path:
    data = load("peers")["peers"]
    titles = {
        "events_a_second": "events a second",
        "cpu_us_an_event": "processor time, µs an event",
        "held_mean_us": "a call holds its caller, µs",
    }
    return bars(
        "peers",
        {title: {each: figures[key] for each, figures in data.items()} for key, title in titles.items()},
    )


def scale() -> Path:
    cases = [case for case in load("scale")["cases"] if case["events_a_session"] == 1]
    _, all_axes = plt.subplots(1, 2, figsize=(9, 2.6))
    figures = {"total_us": "processor time, µs an event", "longest_hold_ms": "longest hold of the loop, ms"}
    for axes, (key, title) in zip(all_axes, figures.items(), strict=True):
        for collector, colour in ((False, OURS), (True, OTHERS)):
            chosen = [case for case in cases if case["collector"] is collector]
            axes.plot(
                [case["sessions"] for case in chosen],
                [case[key]["median"] for case in chosen],
                marker="o",
                color=colour,
                label=f"collector {'on' if collector else 'off'}",
            )
        axes.set_xscale("log")
        axes.set_yscale("log" if key == "longest_hold_ms" else "linear")
        axes.set_xlabel("open sessions")
        axes.set_title(title, loc="left")
        axes.legend(frameon=False)
    if all_axes[0].get_ylim()[0] > 0:
        all_axes[0].set_ylim(bottom=0)
    return write("scale")


def faults() -> Path:
    """What is left of the throughput, and how long healthy events wait."""
    rows: dict[str, float] = load("faults")
    _, all_axes = plt.subplots(1, 2, figsize=(9, 2.6))
    panels = {"of the throughput without faults": ", of that", "wait before sending, ms": ", median s"}
    for axes, (title, ending) in zip(all_axes, panels.items(), strict=True):
        chosen = {name.removesuffix(ending): value for name, value in rows.items() if name.endswith(ending)}
        factor = 1000 if ending == ", median s" else 1
        axes.barh(list(reversed(chosen)), [factor * chosen[name] for name in reversed(chosen)], color=OURS)
        axes.set_title(title, loc="left")
    return write("faults")


def journal() -> Path:
    """Rates as shares of the emitter's without a journal."""
    cases = load("journal")["cases"]
    return bars(
        "journal",
        {
            title: {name: figures["of_that_without"] for name, figures in case.items()}
            for title, case in cases.items()
        },
    )


def main() -> None:
    for draw in (throughput, peers, scale, faults, journal):
        print(draw().relative_to(Path.cwd()))


if __name__ == "__main__":
    main()
