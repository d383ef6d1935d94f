"""Results as a table to read, as Markdown for docs/load.md, and as a picture."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any, Final

from bench import prices
from bench.rows import CROWD, EMPTY, HAND, MANAGED, MOUNTED, OURS, OURS_REDIS, UPSTREAM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.rows import Section, Spread

_BAR: Final = 30
Bars = list[tuple[str, float, str]]


def aims(results: dict[str, Any]) -> Iterator[tuple[str, str, float, bool]]:
    """Yield each aim: its name, the aim, the measured figure, and whether it is reached."""
    throughput, start, crowd = results["throughput"], results["start"], results["crowd"]
    ours, mounted, managed = throughput[OURS], start[MOUNTED], start[MANAGED]
    most = list(results["callers"])[-1]

    def of(spread: Spread) -> float:
        return spread["median"]

    rest_mounted, rest_managed = (
        of(mounted["megabytes_of_hand_written"]),
        of(managed["megabytes_of_hand_written_with_secret_manager"]),
    )
    settled, *_, last = [size for _, size in ours["megabytes_after_calls"]]
    fewest = results["callers"][next(iter(results["callers"]))]
    slower = 1000 * (results["callers"][most]["load_seconds"] - fewest["load_seconds"])
    empty = _median(results, "throughput", EMPTY, "cpu_milliseconds")
    yield _least("throughput, times hand-written", of(ours["of_hand_written"]), 3)
    yield _least("throughput, times bare pass-through", of(ours["of_bare"]), 1.1)
    yield _least("throughput, times an empty function", of(ours["of_empty"]), 0.85)
    if OURS_REDIS in throughput:
        yield _least("throughput with Redis, times that with memory", of(throughput[OURS_REDIS]["of_memory"]), 0.75)
    if empty:
        policy = results["policy_microseconds"]["all"] / 1000 / empty
        yield _most("CPU of a call, times an empty function's", of(ours["cpu_of_empty"]), 1.1)
        yield _most("policy layer, the best of three looks, of an empty function's CPU", policy, 0.12)
    yield _most("start with a mounted key, times empty", of(mounted["of_empty"]), 1.2)
    yield _most(
        "start with Secret Manager, times hand-written with it", of(managed["of_hand_written_with_secret_manager"]), 1
    )
    yield _least(f"{CROWD} at once, part of the limit", of(crowd[OURS]["of_limit"]), 0.96)
    yield _most(f"{CROWD} at once, p99 in milliseconds", of(crowd[OURS]["p99_milliseconds"]), 400)
    yield _most("memory at rest with a mounted key, times hand-written", rest_mounted, 1.1)
    yield _most("memory at rest with Secret Manager, times hand-written with it", rest_managed, 1.1)
    yield _most("memory at the end, times after the first round", last / settled if settled else 0, 1.02)
    yield _most(f"{most} callers, a call's time, times 10 callers", results["callers"][most]["ratio"], 1.05)
    yield _most(f"{most} callers, milliseconds more to load", slower, 150)


def _least(what: str, value: float, aim: float) -> tuple[str, str, float, bool]:
    return what, f"at least {aim:g}", value, value >= aim


def _most(what: str, value: float, aim: float) -> tuple[str, str, float, bool]:
    return what, f"at most {aim:g}", value, value <= aim


def text(results: dict[str, Any]) -> str:
    """Return all measurements, in tables with bars."""
    lines = [_machine(results)]
    lines += _table(
        "One worker, 8 connections; calls a second, median (min - max)",
        results["throughput"],
        "calls_per_second",
        lambda row: (
            f"{_range(row['calls_per_second'], 0)}  p50 {row['p50_milliseconds']['median']:.1f} ms"
            f"  p99 {row['p99_milliseconds']['median']:.1f} ms  CPU {row['cpu_milliseconds']['median']:.2f} ms a call"
        ),
        leave=(UPSTREAM,),
    )
    for name, why in results["left_out"].items():
        lines.append(f"  {name:<30} left out: {why}")
    alone = _median(results, "throughput", UPSTREAM, "calls_per_second")
    lines.append(f"  The load generator takes {alone:.0f} calls a second from the upstream alone.")
    lines += _table(
        "From a process's start to its first invoice, milliseconds",
        results["start"],
        "milliseconds",
        lambda row: f"{_range(row['milliseconds'], 0)}  {row['of_empty']['median']:.2f} of empty",
    )
    lines += _table(
        f"{CROWD} at once, {CROWD} threads, an upstream that takes 300 ms; calls a second",
        results["crowd"],
        "calls_per_second",
        lambda row: (
            f"{_range(row['calls_per_second'], 0)}  {row['of_limit']['median']:.0%} of the limit"
            f"  p50 {row['p50_milliseconds']['median']:.0f} ms  p99 {row['p99_milliseconds']['median']:.0f} ms"
        ),
    )
    lines += ["", "Memory of master and worker, each page once, megabytes", ""]
    for name, row in results["start"].items():
        lines.append(f"  {name:<30} {row['megabytes']['median']:>7.1f} after the first call")
    for name in (HAND, OURS):
        (first, before), *_, (calls, after) = results["throughput"][name]["megabytes_after_calls"]
        lines.append(f"  {name:<30} {before:>7.1f} after {first:,} calls, {after:.1f} after {calls:,}")
    for name, row in results["crowd"].items():
        lines.append(f"  {name:<30} {row['megabytes']['median']:>7.1f} at {CROWD} at once")
    looks = ", ".join(map(str, results["policy_microseconds_looks"]))
    policy = f"Everything but sockets, microseconds at the median, in the quietest of the measurements ({looks})"
    lines += _bars(policy, results["policy_microseconds"], "{:.1f}")
    lines += _bars("Where the CPU of a call goes, milliseconds", share(results), "{:.3f}")
    lines += ["", "Callers in the policy", ""]
    for count, row in results["callers"].items():
        lines.append(
            f"  {count:>16} {row['call_microseconds']:>7.1f} microseconds a call ({row['ratio']:.2f}), "
            f"{row['load_seconds']:.3f} s to load"
        )
    lines += _bars("What a store takes of a call with a key, milliseconds", results["store_milliseconds"], "{:.3f}")
    lines.append("  Firestore is Google's emulator on this machine, which says nothing of Firestore's own speed.")
    lines += ["", "What was to be reached", ""]
    for what, aim, value, reached in aims(results):
        lines.append(f"  {'reached' if reached else 'NOT YET':<8} {what:<63} {value:>8.2f}   {aim}")
    return "\n".join(lines)


def share(results: dict[str, Any]) -> dict[str, float]:
    """Return the parts of our CPU time for one call, in milliseconds; empty if CPU was not measured."""
    whole, empty = (_median(results, "throughput", name, "cpu_milliseconds") for name in (OURS, EMPTY))
    policy = results["policy_microseconds"]["all"] / 1000
    parts = {"the framework and its server": empty, "the policy layer": policy}
    return parts | {"client, sockets and the rest": max(0.0, whole - empty - policy)} if whole else {}


def markdown(results: dict[str, Any]) -> str:
    """Return the tables for docs/load.md, of the first of which the README repeats five lines."""
    lines = [f"Measured by `make bench`: {_machine(results)}.", ""]
    lines += ["| | calls/s, median (min - max) | p50 | p99 | CPU a call |", "|---|---|---|---|---|"]
    for name, row in results["throughput"].items():
        if name != UPSTREAM:
            p50, p99, cpu = (row[key]["median"] for key in ("p50_milliseconds", "p99_milliseconds", "cpu_milliseconds"))
            rate = _range(row["calls_per_second"], 0).strip()
            lines.append(f"| {name} | {rate} | {p50:.1f} ms | {p99:.1f} ms | {cpu:.2f} ms |")
    lines += [f"| {name} | left out: {why} | | | |" for name, why in results["left_out"].items()]
    lines += ["", "| start to first invoice | median (min - max) | times empty | memory then |", "|---|---|---|---|"]
    for name, row in results["start"].items():
        lines.append(
            f"| {name} | {_range(row['milliseconds'], 0).strip()} ms | {row['of_empty']['median']:.2f} "
            f"| {row['megabytes']['median']:.0f} MB |"
        )
    lines += ["", "| aim | | measured | |", "|---|---|---|---|"]
    for what, aim, value, reached in aims(results):
        lines.append(f"| {what} | {aim} | {value:.2f} | {'reached' if reached else 'not yet'} |")
    return "\n".join(lines) + "\n"


def profile(results: dict[str, Any]) -> str:
    """Return the load profile for docs/load.md, by its formulas; empty if CPU was not measured."""
    cpu = _median(results, "throughput", OURS, "cpu_milliseconds") / 1000
    if not cpu:
        return ""
    most = 1 / cpu
    one = f"A call costs {1000 * cpu:.2f} ms of CPU, so one CPU makes at most {most:.0f} calls a second."
    columns = (
        "the upstream takes",
        "calls/s of one instance",
        "limited by",
        "a million calls, instance full",
        "one by one",
    )
    lines = [f"From `make bench`: {_machine(results)}. {one}", "", f"| {' | '.join(columns)} |"]
    lines.append("|---|---|---|---|---|")
    for seconds in (0.1, 0.3, 1.0):
        by_threads = prices.THREADS / seconds
        rate = min(by_threads, most)
        limit = "CPU" if most < by_threads else f"{prices.THREADS} threads"
        alone = math.ceil((seconds + cpu) / prices.ROUNDED_TO) * prices.ROUNDED_TO
        lines.append(
            f"| {1000 * seconds:.0f} ms | {rate:.0f} | {limit} | ${prices.million(1 / rate):.2f} "
            f"| ${prices.million(alone):.2f} |"
        )
    return "\n".join(lines) + "\n"


def picture(results: dict[str, Any]) -> str:
    """Return an SVG of the main figures: calls a second, and the time to the first invoice."""
    rates = [
        (name, row["calls_per_second"]["median"], f"{row['calls_per_second']['median']:.0f}")
        for name, row in results["throughput"].items()
        if name != UPSTREAM
    ]
    starts = [
        (name, row["milliseconds"]["median"], f"{row['milliseconds']['median']:.0f} ms")
        for name, row in results["start"].items()
    ]
    height = 0
    parts: list[str] = []
    for title, bars in (("Calls a second, one worker, 8 connections", rates), ("Start to first invoice", starts)):
        parts += _panel(title, bars, height)
        height += 22 * len(bars) + 50
    caption = escape(_machine(results))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height + 20}" font-family="sans-serif" '
        f'font-size="13"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}'
        f'<text x="12" y="{height + 8}" font-size="11" fill="#666">{caption}</text></svg>\n'
    )


def _panel(title: str, bars: Bars, top: int) -> Iterator[str]:
    longest = max(value for _, value, _ in bars)
    yield f'<text x="12" y="{top + 26}" font-weight="bold">{escape(title)}</text>'
    for number, (name, value, label) in enumerate(bars):
        y, width = top + 38 + 22 * number, 440 * value / longest
        fill = "#1a66c2" if name.startswith("Countersign") else "#b5bcc6"
        yield f'<text x="225" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
        yield f'<rect x="235" y="{y}" width="{width:.1f}" height="17" fill="{fill}"/>'
        yield f'<text x="{241 + width:.1f}" y="{y + 13}" fill="#444">{escape(label)}</text>'


def _machine(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return (
        f"{results['date']}, {machine['cores']} cores ({machine['model']}), {machine['system']}, "
        f"Python {results['python']}, load before it {machine['load_before']:.1f}"
    )


def _table(
    title: str, section: Section, key: str, words: Callable[[dict[str, Any]], str], leave: tuple[str, ...] = ()
) -> list[str]:
    rows = {name: row for name, row in section.items() if name not in leave}
    longest = max(row[key]["median"] for row in rows.values())
    lines = ["", title, ""]
    for name, row in rows.items():
        lines.append(f"  {name:<30} {words(row)}")
        lines.append(f"  {'':<30} {_bar(row[key]['median'], longest)}")
    return lines


def _bars(title: str, values: dict[str, float], form: str) -> list[str]:
    longest = max(values.values(), default=1)
    return ["", title, ""] + [
        f"  {name:<30} {form.format(value):>8}  {_bar(value, longest)}" for name, value in values.items()
    ]


def _bar(value: float, longest: float) -> str:
    return "█" * max(1, round(_BAR * value / longest))


def _range(spread: Spread, digits: int) -> str:
    least, median, most = (f"{spread[key]:.{digits}f}" for key in ("min", "median", "max"))
    return f"{median:>6} ({least} - {most})"


def _median(results: dict[str, Any], section: str, row: str, key: str) -> float:
    value: float = results[section][row][key]["median"]
    return value
