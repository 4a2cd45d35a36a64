"""A difference as one HTML page that loads nothing: for people, and for what continuous integration keeps.

Entries hold what strangers wrote: all of it is escaped, characters that are not seen are written out, and the
page's own policy lets no script run and nothing be fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from typing import Final

from skep.validator.diff.report import DRIFT, SAME, TOO_FEW, Change, Report
from skep.validator.diff.traces import Shown

VALUE_MAX: Final = 2000  # characters of one value on the page; all of it is in the JSON
PAGE_MAX: Final = 16 << 20  # characters of all rows; browsers are slow with more.
VERDICTS: Final = {SAME: "the same", DRIFT: "they differ", TOO_FEW: "too few to compare"}
SIGNS: Final = {"added": "+", "removed": "−", "changed": "~", "moved": "→"}

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --dim: #667; --mark: #8881;
  --added: #16702e; --removed: #a3261d; --changed: #8a5a00; --moved: #2456a6; }
@media (prefers-color-scheme: dark) { :root { --dim: #99a; --added: #6cd38a; --removed: #ff8a80;
  --changed: #f0b849; --moved: #8ab4ff; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0 0 .3rem; }
p { margin: .3rem 0; } .dim { color: var(--dim); }
ul.counts { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; list-style: none; margin: 1rem 0; padding: 0; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--dim); }
th, td { padding: .35rem .6rem; vertical-align: top; border-bottom: 1px solid var(--line); }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; color: var(--dim); }
code { font: 13px/1.45 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
dl { margin: .4rem 0 0; display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; }
dt { color: var(--dim); } dd { margin: 0; } tr.excused td { opacity: .65; }
.added { color: var(--added); } .removed { color: var(--removed); }
.changed { color: var(--changed); } .moved { color: var(--moved); }
td code { background: var(--mark); padding: 0 .2em; border-radius: 3px; }
"""
_HASH: Final = base64.b64encode(sha256(_STYLE.encode()).digest()).decode()
_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"

_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{a} and {b}: {verdict}</title>
<style>{style}</style></head><body>
<h1>{verdict}</h1>
<p><span class="removed">{a}</span>, {size_a} {noun}; <span class="added">{b}</span>, {size_b} {noun}</p>
<ul class="counts">{counts}</ul>
{notes}{strays}{table}</body></html>
"""


def visible(text: str) -> str:
    """With what cannot be seen, or turns what is seen around, written out: ``\\u202e``."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def page(report: Report, a: str, b: str) -> str:
    """``a``, ``b``: what the two are called."""
    counts = {"the same": report.same, **report.counts, "excused": report.excused}
    return _PAGE.format(
        policy=escape(_POLICY),
        style=_STYLE,
        a=_text(a),
        b=_text(b),
        verdict=VERDICTS[report.status],
        size_a=f"{report.size_a:,}",
        size_b=f"{report.size_b:,}",
        noun=report.noun,
        counts="".join(f'<li class="{name}"><b>{n:,}</b> {name}</li>' for name, n in counts.items()),
        notes="".join(f'<p class="dim">{_text(note)}</p>\n' for note in notes(report)),
        strays=_strays(report.strays),
        table=_table(report.changes),
    )


def notes(report: Report) -> Iterator[str]:
    """What is to be said besides the differences."""
    if report.note:
        yield report.note
    if not report.minimal:
        yield "there are so many differences that fewer may do: the alignment is anchored, not minimal"
    if report.beyond:
        yield f"{report.beyond:,} more differences are counted and not shown"


def _strays(paths: list[str]) -> str:
    if not paths:
        return ""
    items = "".join(f"<li><code>{_text(path)}</code></li>" for path in paths)
    return f'<p class="removed">traces where none may lie:</p><ul>{items}</ul>\n'


def _table(changes: list[Change]) -> str:
    if not changes:
        return ""
    head = "<tr><th></th><th>first</th><th>second</th><th>who, where and what</th></tr>"
    rows, room = [], PAGE_MAX
    for change in changes:
        rows.append(_row(change))
        room -= len(rows[-1])
        if room <= 0:
            rows.append(f'<tr><td colspan="4">… and {len(changes) - len(rows):,} more</td></tr>\n')
            break
    return f"<table><thead>{head}</thead><tbody>\n{''.join(rows)}</tbody></table>\n"


def _row(change: Change) -> str:
    of = change.shown
    excused = f'<p class="dim">excused: {_text(change.excused)}</p>' if change.excused else ""
    outcome = f' <span class="dim">{_text(of.outcome)}</span>' if of.outcome else ""
    said = f"{_text(of.who)} <b>{_text(of.path)}</b> <code>{_text(of.said)}</code>{outcome}"
    kind = f'<td class="{change.kind}">{SIGNS[change.kind]}&nbsp;{change.kind}</td>'
    places = f'<td class="n">{_number(change.a)}</td><td class="n">{_number(change.b)}</td>'
    row = "<tr class=excused>" if change.excused else "<tr>"
    return f"{row}{kind}{places}<td>{said}{_fields(change)}{excused}</td></tr>\n"


def _fields(change: Change) -> str:
    if not change.fields:
        return ""
    rows = (
        f'<dt>{_text(field.name)}</dt><dd><code class="removed">{_text(field.a)}</code> → '
        f'<code class="added">{_text(field.b)}</code></dd>'
        for field in change.fields
    )
    return f"<dl>{''.join(rows)}</dl>"


def _number(shown: Shown | None) -> str:
    return "" if shown is None else f"{shown.place:,}"


def _text(text: str) -> str:
    short = text if len(text) <= VALUE_MAX else f"{text[:VALUE_MAX]}…"
    # Lines of one write stay lines.
    return "\n".join(escape(visible(line)) for line in short.split("\n"))
