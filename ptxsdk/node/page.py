"""Page: HTML of the node's page, made here; no script, style or font comes from elsewhere.

Nothing on it names a patient: films are shown by the time they came in.  What a film shows by itself, a burned-in
name, it shows here as well; the page is for this machine only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from ptxsdk.detection import DISCLAIMER
from ptxsdk.node.store import Film

STATIC = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}

_STATES = {
    "received": "waiting",
    "scored": "results on their way",
    "done": "results delivered",
    "refused": "refused by the input gate",
    "failed": "failed",
}


def static(name: str) -> bytes:
    """Return the content of a file in `STATIC`."""
    return resources.files("ptxsdk.node").joinpath("static").joinpath(name).read_bytes()


def films_page(films: Sequence[Film], counts: Mapping[str, int]) -> str:
    """Return the list of recent films."""
    rows = "".join(
        f'<tr><td><a href="/films/{film.token}">{_time(film.received)}</a></td><td>{_verdict(film)}</td>'
        f"<td>{_probability(film)}</td><td>{escape(_STATES[film.state])}{_code(film)}</td>"
        f"<td>{escape(film.source)}</td></tr>"
        for film in films
    )
    numbers = " &middot; ".join(f"{counts[state]} {escape(text)}" for state, text in _STATES.items())
    table = (
        "<table><thead><tr><th>received (UTC)</th><th>result</th><th>probability</th><th>state</th><th>from</th></tr>"
        f"</thead><tbody>{rows}</tbody></table>"
        if films
        else "<p>No film yet.</p>"
    )
    return _document("films", f'<p class="faint">{numbers}</p>{table}', refresh=True)


def film_page(film: Film) -> str:
    """Return one film: picture, result, findings of the gate."""
    result = film.result or {}
    located = result.get("profile") == "cade"
    picture = (
        f'<canvas id="film" width="1" height="1" data-pixels="/films/{film.token}/pixels" '
        f'data-regions="{escape(json.dumps(_outlines(result)))}"></canvas>'
        '<form id="controls">'
        + ('<label><input type="checkbox" id="overlay" checked> overlay</label>' if located else "")
        + '<label>level <input type="range" id="level" min="0" max="65535"></label>'
        '<label>window <input type="range" id="width" min="64" max="131070"></label>'
        '<button type="reset" id="reset">as stored</button></form>'
        if film.files
        else "<p>The film is no longer in the spool.</p>"
    )
    facts = [
        ("received (UTC)", _time(film.received)),
        ("state", escape(_STATES[film.state])),
        ("from", escape(film.source)),
    ]
    if film.code:
        facts += [("code", escape(film.code)), ("reason", escape(film.message))]
    if result:
        point = result["operating_point"]
        facts += [
            ("probability", _probability(film)),
            ("operating point", f"{escape(point['name'])}, threshold {point['threshold']:.3f}"),
            ("profile", escape(result["profile"])),
            ("engine", f"{escape(result['engine']['name'])} {escape(result['engine']['version'])}"),
            ("ran on", f"{escape(result['backend'])} {escape(result['precision'])}"),
        ]
        facts += [(f"region {n}", _region(region)) for n, region in enumerate(result["regions"], 1)]
    body = (
        f'<p><a href="/">all films</a></p><h2>{_verdict(film)}</h2><div class="film"><div>{picture}</div><div>'
        + _table(facts)
        + _gate(result)
        + "</div></div>"
    )
    return _document("film", body, script=film.files)


def message_page(text: str) -> str:
    """Return a page that says one thing."""
    return _document(text, f"<p>{escape(text)}</p>")


def _document(title: str, body: str, *, script: bool = False, refresh: bool = False) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        + ('<meta http-equiv="refresh" content="10">' if refresh else "")
        + f'<title>ptxsdk: {escape(title)}</title><link rel="stylesheet" href="/page.css">'
        '<link rel="icon" href="data:,">'
        + ('<script src="/page.js" defer></script>' if script else "")
        + f'</head><body><header>NOT FOR DIAGNOSTIC USE <small>{escape(DISCLAIMER)} "Not flagged" rules nothing out.'
        f"</small></header><main>{body}</main></body></html>"
    )


def _verdict(film: Film) -> str:
    if film.result is None:
        return {"refused": "not scored", "failed": "not scored"}.get(film.state, "not yet scored")
    return '<strong class="flag">PNEUMOTHORAX FLAGGED</strong>' if film.result["flagged"] else "not flagged"


def _probability(film: Film) -> str:
    return "" if film.result is None else f"{film.result['probability']:.3f}"


def _code(film: Film) -> str:
    return f" <code>{escape(film.code)}</code>" if film.code else ""


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def _outlines(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"box": region["box"], "outline": region["outline"]} for region in result.get("regions", ())]


def _region(region: Mapping[str, Any]) -> str:
    area = region["area_mm2"]
    size = f"{region['area_px']:.0f} px" if area is None else f"{area / 100:.1f} cm<sup>2</sup>"
    return f"{escape(region['side'] or 'side unknown')}, {size}, peak {region['probability']:.2f}"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "<table>" + "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows) + "</table>"


def _gate(result: Mapping[str, Any]) -> str:
    quality = result.get("quality", {})
    rows = [
        (f"<code>{escape(check['code'])}</code>", f"{escape(check['status'])}: {escape(check['detail'])}")
        for check in quality.get("checks", ())
    ]
    warnings = "".join(f"<li>{escape(text)}</li>" for text in quality.get("warnings", ()))
    return (f"<h3>input gate</h3>{_table(rows)}" if rows else "") + (f"<ul>{warnings}</ul>" if warnings else "")
