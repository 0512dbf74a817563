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

from ..analysis.selection import listed
from ..errors import ConfigError
from ..names import nearest
from .plot import require, require_writable, write_file
from .results import METRICS, Pair, Results, named_pairs

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
    base: "Names" = None,
    aligned: "Names" = None,
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
        base, aligned: names of the models before and after tuning, for several pairs in two lists
            of the same order; one base serves every aligned model. None: each model and the first
            of its architecture and layers that was run before it.
        models, layers, poolings, languages: names; None shows all.
        texts: texts of the data, which the page then shows; anybody who has the page can read them.
        command: what to type to make the page again.
        progress: called with what is computed, the steps that are done, and of all.

    Raises:
        ConfigError: no open store is given, one has no complete model, a name is unknown, a pair
            cannot be compared, no text is in a store, or the file cannot be written.
        StoreError: an array cannot be read.
    """
    target = Path(path)
    require_writable(target)
    runs, pairs = _runs(run), named_pairs(base, aligned)
    stores = {
        _name(one, i, runs): Results(
            one, models=models, layers=layers, poolings=poolings, languages=languages,
            metrics=metrics, pairs_asked=_pairs_in(one, pairs), progress=progress,
        )
        for i, one in enumerate(runs)
    }  # fmt: skip
    _require_pairs(pairs or (), runs)
    by_hash = {} if texts is None else _by_hash(texts, runs)
    if command is None:
        command = command_of(
            stores, target, metrics=metrics, base=base, aligned=aligned, models=models,
            layers=layers, poolings=poolings, languages=languages,
            texts=() if texts is None else ("FILE",),
        )  # fmt: skip
    content = html(stores, command, by_hash, progress)
    write_file(target, content.encode())


def command_of(
    stores: Iterable[str], path: Path, *, texts: Iterable[str] = (), **chosen: "Names"
) -> str:
    """What to type to make a page again; of paths the names, as a page may be shared.

    Args:
        stores: their names.
        path: of the page.
        texts: names of the files with the texts that it shows.
        chosen: other arguments of `report`.
    """
    words = ["safetyspace-fast", "report", *stores]
    for field, names in chosen.items():
        if names is not None and field in ("metrics", "base", "aligned"):
            option = field.removesuffix("s")
            words += [word for name in listed(names) for word in (f"--{option}", name)]
        elif names is not None:
            words.append(f"--{field}={','.join(listed(names))}")
    for name in texts:
        words += ["--texts", name]
    words += ["--show-texts"] * ("--texts" in words)
    return " ".join(map(shlex.quote, [*words, "-o", path.name]))


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


def _pairs_in(run: "Run", pairs: list[Pair] | None) -> list[Pair] | None:
    """Those of the named pairs that a store has."""
    return None if pairs is None else [pair for pair in pairs if set(pair) <= set(run.models)]


def _require_pairs(pairs: Iterable[Pair], runs: "Sequence[Run]") -> None:
    """Check that each pair is in a store."""
    known = dict.fromkeys(name for run in runs for name in run.models)
    for pair in pairs:
        for field, name in zip(("base", "aligned"), pair, strict=True):
            if name not in known:
                raise ConfigError(
                    f"{field}: no model {name!r} in the store; it has {', '.join(known)}"
                    f"{nearest(name, known)}"
                )
        if not any(_pairs_in(run, [pair]) for run in runs):
            raise ConfigError(
                f"base, aligned: no store has both {pair[0]!r} and {pair[1]!r}; a pair is compared "
                "on the same texts"
            )


def _by_hash(texts: Iterable[str], runs: "Sequence[Run]") -> dict[bytes, str]:
    """Texts by their SHA-256, as stores have them."""
    by_hash = {hashlib.sha256(text.encode()).digest(): text for text in texts}
    digests = (bytes(digest) for run in runs for digest in run.samples.text_sha256)
    if not any(digest in by_hash for digest in digests):
        places = ", ".join(str(run.place) for run in runs)
        raise ConfigError(
            f"texts: none of the {len(by_hash):,} is in {places}; give the data that it was made of"
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
