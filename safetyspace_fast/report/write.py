"""Writing the page: one HTML file that loads nothing, with a policy that forbids the rest."""

import base64
import hashlib
import shlex
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .plot import require, require_writable, write_file
from .results import METRICS, Results

if TYPE_CHECKING:
    from ..analysis.metric import Metrics
    from ..analysis.selection import Names
    from ..store import Run

_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def report(
    run: "Run | Sequence[Run]",
    path: str | Path,
    *,
    metrics: "Metrics" = METRICS,
    models: "Names" = None,
    layers: "Names" = None,
    poolings: "Names" = None,
    languages: "Names" = None,
    texts: Iterable[str] | None = None,
    command: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write one self-contained HTML page of one store or several.

    Args:
        run: an open store, or several.
        path: the file; it is replaced only when the page is complete.
        metrics: the first one leads; a reader may choose the others.
        models, layers, poolings, languages: names; None shows all.
        texts: texts of the data, which the page then shows; anybody who has the page can read them.
        command: what to type to make the page again.
        progress: called with what is computed, the steps that are done, and of all.

    Raises:
        ConfigError: no open store is given, one has no complete model, a name is unknown, no text
            is in the first store, or the file cannot be written.
        StoreError: an array cannot be read.
    """
    target = Path(path)
    require_writable(target)
    runs = _runs(run)
    stores = {
        _name(one, i, runs): Results(
            one, models=models, layers=layers, poolings=poolings, languages=languages,
            metrics=metrics, progress=progress,
        )
        for i, one in enumerate(runs)
    }  # fmt: skip
    by_hash = {} if texts is None else _by_hash(texts, runs[0])
    if command is None:
        words = ["safetyspace-fast", "report", *stores, "-o", target.name]
        command = " ".join(map(shlex.quote, words))
    content = html(stores, command, by_hash, progress)
    write_file(target, content.encode())


def html(
    stores: dict[str, Results],
    command: str,
    texts: dict[bytes, str],
    progress: Callable[[str, int, int], None] | None = None,
) -> str:
    """The page as text; arguments as in `page.page`."""
    import jinja2

    from .page import page

    def step(what: str) -> None:
        if progress is not None:
            progress(what, 0, 1)

    library = _library()
    content = page(stores, command, texts, step)
    style, script = (_static(f"page.{kind}") for kind in ("css", "js"))
    policy = _POLICY.format(
        scripts=" ".join(map(_hashed, (library, script))), styles=_hashed(style)
    )
    safe = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return safe.from_string(_static("page.html")).render(
        page=content,
        policy=policy,
        style=_markup(style),
        script=_markup(script),
        library=_markup(library),
        version=version("safetyspace-fast"),
    )


def _runs(run: "Run | Sequence[Run]") -> "list[Run]":
    from ..store import Run

    runs = list(run) if isinstance(run, Sequence) and not isinstance(run, str) else [run]
    for one in runs:
        if not isinstance(one, Run):
            raise ConfigError(f"report: got {one!r}, expected a store; open it with open_run first")
    if not runs:
        raise ConfigError("report: got no store; name at least one")
    return runs


def _by_hash(texts: Iterable[str], run: "Run") -> dict[bytes, str]:
    """Texts by their SHA-256, as the store has them."""
    by_hash = {hashlib.sha256(text.encode()).digest(): text for text in texts}
    if not any(bytes(digest) in by_hash for digest in run.samples.text_sha256):
        raise ConfigError(
            f"texts: none of the {len(by_hash):,} is in {run.place}; give the data that it was "
            "made of"
        )
    return by_hash


def _name(run: "Run", i: int, runs: "Sequence[Run]") -> str:
    """The name of a store's folder; with its number where two have the same."""
    names = [str(one.place).rstrip("/").rsplit("/", 1)[-1] for one in runs]
    return names[i] if names.count(names[i]) == 1 else f"{names[i]} ({i + 1})"


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script.

    Raises:
        SafetySpaceError: it is not installed.
    """
    require("altair", "vl_convert")
    import vl_convert

    return (
        str(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub forgets a default
        .replace("\r\n", "\n")
        .replace("</script", "<\\/script")
    )


def _static(name: str) -> str:
    return files(__package__).joinpath("static", name).read_text("utf-8")


def _hashed(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _markup(text: str) -> str:
    """Our own files, which the template does not escape."""
    import markupsafe

    return markupsafe.Markup(text)
