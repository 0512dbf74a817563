"""The answer in words: what changed where, with intervals, and what the data cannot tell."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..analysis import families
from ..analysis.columns import Style
from ..analysis.glossary import ENDS
from ..analysis.marks import ELSEWHERE, disagrees, is_significant
from ..analysis.metric_tables import DOMINANT, HEAVY

if TYPE_CHECKING:
    import xarray

Kind = Literal["grew", "fell", "mixed", "unknown", "note", "caution"]
FEW_TEXTS = 50
"""Texts of a class below which the page warns of wide intervals."""
CONFOUNDED = 0.1
"""An AUC of length this far from 1/2, with an interval that excludes 1/2, is worth a warning."""


@dataclass(frozen=True)
class Finding:
    """One sentence or two of the answer."""

    kind: Kind
    head: str
    text: str


def changes(dataset: "xarray.Dataset", metric: str, pooling: str) -> list[Finding]:
    """Where tuning moved the classes apart or together, by language.

    Args:
        dataset: of `compare`.
        metric, pooling: the measure and the pooling that the words are about.
    """
    view = dataset.sel(metric=metric, pooling=pooling)
    findings, unmoved, unknown = [], [], []
    for lang in _names(view, "lang"):
        one = view.sel(lang=lang)
        if (finding := _change(one, lang)) is not None:
            findings.append(finding)
        elif bool(one["low"].notnull().any()):
            unmoved.append(lang)
        else:
            unknown.append(lang)
    if unmoved:
        findings.append(_unmoved(view.sel(lang=unmoved), unmoved, others=bool(findings)))
    if unknown:
        findings.append(_unknown(view.sel(lang=unknown), unknown, "no interval is known"))
    return findings + _less(view)


def _change(view: "xarray.Dataset", lang: str) -> Finding | None:
    """Of one language, over its layers; None if no layer differs significantly."""
    layers = _names(view, "layer")
    difference, moved = view["difference"].to_numpy(), is_significant(view).to_numpy()
    if not moved.any():
        return None
    grew, fell = moved & (difference > 0), moved & (difference < 0)
    parts = [
        f"{word} at {_share(where, layers)}"
        for where, word in ((grew, "further apart"), (fell, "closer together"))
        if where.any()
    ]
    i = int(np.nanargmax(np.where(moved, np.abs(difference), np.nan)))
    ends = [
        tuple(float(view[name].to_numpy()[i]) for name in names)
        for names in (("difference", "low", "high"), ("base", "base", "base"), ("aligned",) * 3)
    ]
    style = Style.of(ends[:1])
    before, after = (style.number(value[0]) for value in ends[1:])
    doubtful = np.zeros(len(layers), bool)
    for name in ELSEWHERE:
        if name in view:
            doubtful |= moved & disagrees(view, name).to_numpy()
    other = f" In other components the sign is the other one at {_share(doubtful, layers)}."
    kind: Kind = "mixed" if grew.any() and fell.any() else "grew" if grew.any() else "fell"
    return Finding(
        kind,
        f"{isolated(lang)}:",
        f"{', '.join(parts)}. Largest change at {layers[i]}: {_signed(style, *ends[0])}, from "
        f"{before} to {after}.{other * bool(doubtful.any())}",
    )


def _unmoved(view: "xarray.Dataset", langs: Sequence[str], *, others: bool) -> Finding:
    """Of the languages without a significant difference, all in one."""
    low, high = (view[name].to_numpy() for name in ("low", "high"))
    ends = float(np.nanmin(low)), float(np.nanmax(high))
    style = Style.of([(0.0, *ends)])
    reach = ""
    if others:
        reach = " In this measure these texts show no significant effect of tuning there."
    return Finding(
        "unknown",
        f"{listed(langs)}:",
        "no change is significant at any layer. This does not show that nothing changed: "
        f"the 95 % intervals reach from {style.number(ends[0])} to {style.number(ends[1])}.{reach}",
    )


def _unknown(view: "xarray.Dataset", langs: Sequence[str], otherwise: str) -> Finding:
    """Of languages without a number that could be judged; `otherwise` if no reason is given."""
    reasons = sorted({str(x) for x in view["refused"].to_numpy().ravel() if x})
    why = "; ".join(reasons) or otherwise
    return Finding("unknown", f"{listed(langs)}:", f"nothing can be said: {why}.")


def elsewhere(dataset: "xarray.Dataset", metric: str, pooling: str) -> list[Finding]:
    """Whether the other metrics and poolings of the results say the same."""
    lines = []
    for other in _names(dataset, "metric"):
        for place in _names(dataset, "pooling"):
            if (other, place) == (metric, pooling):
                continue
            view = dataset.sel(metric=other, pooling=place)
            lines.append(f"{other}, pooling {place}: {_summed(view)}")
    if not lines:
        return []
    return [Finding("note", "Other choices.", "; ".join(lines) + ".")]


def _summed(view: "xarray.Dataset") -> str:
    """`further apart in en, closer in de`."""
    if not bool(view["p_family"].notnull().any()):
        return "nothing can be said"
    parts, moved = [], is_significant(view)
    for where, word in ((view["difference"] > 0, "further apart"), (view["difference"] < 0,
                        "closer together")):  # fmt: skip
        flags = (moved & where).any("layer").to_numpy()
        langs = [lang for lang, flag in zip(_names(view, "lang"), flags, strict=True) if flag]
        if langs:
            parts.append(f"{word} in {listed(langs)}")
    return ", ".join(parts) or "no significant change"


def _less(view: "xarray.Dataset") -> list[Finding]:
    """Languages that changed otherwise than the reference language, where that changed most."""
    reference = view.attrs.get("reference", "")
    if "excess" not in view or reference not in _names(view, "lang"):
        return []
    own = view.sel(lang=reference)
    size = np.where(is_significant(own), abs(own["difference"]), np.nan)
    if np.isnan(size).all():
        return []
    i = int(np.nanargmax(size))
    at = view.isel(layer=i)
    differs = is_significant(at, "excess_")
    rows = [
        (lang, float(at["excess"].sel(lang=lang)), float(at["excess_low"].sel(lang=lang)),
         float(at["excess_high"].sel(lang=lang)))
        for lang in _names(view, "lang")
        if lang != reference and bool(differs.sel(lang=lang))
    ]  # fmt: skip
    if not rows:
        return []
    style = Style.of([row[1:] for row in rows])
    each = "; ".join(f"{isolated(row[0])} {_signed(style, *row[1:])}" for row in rows)
    return [
        Finding(
            "mixed",
            f"Not like {isolated(reference)}:",
            f"at {_names(view, 'layer')[i]}, where {isolated(reference)} changed most, these "
            f"languages differ from its change by: {each}.",
        )
    ]


def levels(dataset: "xarray.Dataset", metric: str, pooling: str) -> list[Finding]:
    """Of one model without a partner: where the classes are further apart than chance explains.

    Args:
        dataset: of `separation`, of one model.
        metric, pooling: as in `changes`.
    """
    view = dataset.sel(metric=metric, pooling=pooling)
    layers = _names(view, "layer")
    findings: list[Finding] = []
    chance: list[str] = []
    unknown: list[str] = []
    grows, spread = families.metric(metric).grows, ""
    if view["p_asks"].item() != "means":
        spread = " A difference of spread alone is enough for this metric (`+` in the tables)."
    for lang in _names(view, "lang"):
        one = view.sel(lang=lang)
        value, significant = one["value"].to_numpy(), is_significant(one).to_numpy()
        if not significant.any():
            (chance if bool(one["p_family"].notnull().any()) else unknown).append(lang)
            continue
        i = int(np.nanargmax(np.where(significant, value if grows else -value, np.nan)))
        ends = tuple(float(one[name].to_numpy()[i]) for name in ("value", "low", "high"))
        floor = float(one["floor"].to_numpy()[i])
        style = Style.of([ends])
        expected = f", where chance gives {style.number(floor)}" if math.isfinite(floor) else ""
        text = (
            f"apart at {_share(significant, layers)}. Most at {layers[i]}: "
            f"{style.entry(*ends)}{expected}.{spread}"
        )
        findings.append(Finding("grew", f"{isolated(lang)}:", text))
    if chance:
        text = "the classes are not significantly apart at any layer."
        findings.append(Finding("unknown", f"{listed(chance)}:", text))
    if unknown:
        otherwise = "this metric has no p that is corrected"
        findings.append(_unknown(view.sel(lang=unknown), unknown, otherwise))
    return findings


def choice_of(pair: tuple[str, str], *, named: bool) -> Finding:
    """How a pair of models was chosen: named by whoever made the page, or guessed."""
    base, aligned = map(isolated, pair)
    text = (
        "was named by whoever made the page."
        if named
        else f"is a guess: {base} was run before {aligned}, and both have the same architecture "
        "and layers. The options base and aligned name other pairs."
    )
    return Finding("note", "This pair", text)


def turned(dataset: "xarray.Dataset", pooling: str) -> list[Finding]:
    """In which languages tuning turned the harm direction, and where most.

    A layer counts if the interval of its cosine excludes 1.

    Args:
        dataset: of `compare`.
        pooling: the one that the words are about.
    """
    view = dataset.sel(pooling=pooling)
    names = [f"direction_{end}" for end in ("cosine", "low", "high")]
    cosines, straight, unknown = [], [], []
    for lang in _names(view, "lang"):
        value, low, high = (view[name].sel(lang=lang).to_numpy() for name in names)
        if np.isnan(value).all():
            unknown.append(lang)
            continue
        beyond = np.where(high < 1, value, np.nan)
        if np.isnan(beyond).all():
            straight.append(lang)
            continue
        i = int(np.nanargmin(beyond))
        ends = float(value[i]), float(low[i]), float(high[i])
        cosines.append(
            (ends[0], f"{isolated(lang)} {_below_one(*ends)} at {_names(view, 'layer')[i]}")
        )
    if not cosines and not straight:
        return []
    parts = []
    if cosines:
        each = ", ".join(text for _, text in sorted(cosines))
        parts.append(
            "the cosine between both models at the layer where it turned most (1: not turned; the "
            f"intervals are not corrected for this choice): {each}"
        )
    if straight:
        parts.append(f"no turn beyond noise in {listed(straight)}")
    if unknown:
        parts.append(f"too noisy in {listed(unknown)}")
    return [Finding("note", "The harm direction:", "; ".join(parts) + ".")]


NO_CONTROL = Finding(
    "caution",
    "An untrained model",
    "is not in this store: run random:MODEL too, to see how much of a separation the words alone "
    "give a model that has learnt nothing.",
)


def cautions(dataset: "xarray.Dataset", pooling: str) -> list[Finding]:
    """What the data cannot tell: few texts, length, words, one dimension, other settings.

    Args:
        dataset: of `separation` or `compare`; both hold the same variables of confounds.
        pooling: the one that the words are about.
    """
    notes: list[tuple[str, str]] = []
    langs = _names(dataset, "lang")
    first = dataset.isel(model=0)

    def of_any(name: str) -> list[NDArray[np.float64]]:
        """[lang] each: an AUC and its ends, in the model where it is furthest from 1/2."""
        parts = [dataset[name + end].transpose("model", "lang") for end in ENDS]
        i = abs(parts[0] - 0.5).fillna(0).argmax("model")
        return [part.isel(model=i).to_numpy() for part in parts]

    def where(flags: Iterable[bool]) -> list[str]:
        return [lang for lang, flag in zip(langs, flags, strict=True) if flag]

    rarer = _rarer(dataset)
    if few := where(rarer < FEW_TEXTS):
        counts = ", ".join(f"{isolated(x)} {rarer[langs.index(x)]:.0f}" for x in few)
        notes.append(
            ("Few texts", f"of the rarer class: {counts}. Their intervals are wide, metrics that "
             "need more have no number, and a difference that is not shown may well be there.")
        )  # fmt: skip
    value, low, high = of_any("auc_length")
    if long := where((abs(value - 0.5) > CONFOUNDED) & ((low > 0.5) | (high < 0.5))):
        each = ", ".join(f"{isolated(x)} {value[langs.index(x)]:.2f}" for x in long)
        notes.append(
            ("Length", f"alone tells the classes apart (AUC {each}; 0.5 is chance): part of a "
             "separation may be length. rho_equal_length and auc_equal_length leave it out.")
        )  # fmt: skip
    value, low, _ = of_any("auc_lexical")
    if words := where((value > 0.5 + CONFOUNDED) & (low > 0.5)):
        each = ", ".join(f"{isolated(x)} {value[langs.index(x)]:.2f}" for x in words)
        notes.append(
            ("Words", f"alone tell the classes apart (AUC of character n-grams {each}): a "
             "separation that is no larger need not be more than vocabulary.")
        )  # fmt: skip
    notes += _rulers(dataset.sel(pooling=pooling), langs)
    if "rounding_share" in dataset:
        share = dataset["rounding_share"].sel(pooling=pooling).to_numpy()
        if np.isfinite(share).any() and (share[np.isfinite(share)] >= 1).all():
            notes.append(("Rounding", "explains all differences between the two models."))
    if settings := dataset.attrs.get("settings_differ"):
        notes.append(("Settings", f"of the models differ: {settings}."))
    copies = first["elsewhere"].to_numpy()
    if copied := where(copies > 0.1):
        notes.append(
            ("Shared texts", f"{listed(copied)} hold texts that are also in another language; "
             "differences between languages take texts as independent.")
        )  # fmt: skip
    if len(langs) > 1:
        notes.append(
            ("Sources", "of the languages may differ in more than the language. Compare how "
             "models differ across languages, not the languages' own values.")
        )  # fmt: skip
    return [Finding("caution", head, text) for head, text in notes]


def _rarer(dataset: "xarray.Dataset") -> NDArray[np.float64]:
    """[lang], texts of the rarer class; NaN in results of `compare`, which do not count them."""
    if "n0" not in dataset:
        return np.full(dataset.sizes["lang"], np.nan)
    counts = [dataset[name].max(("model", "layer", "pooling")).to_numpy() for name in ("n0", "n1")]
    rarer: NDArray[np.float64] = np.min(counts, axis=0).astype(np.float64)
    return rarer


def _rulers(view: "xarray.Dataset", langs: Sequence[str]) -> list[tuple[str, str]]:
    """Whether length, one huge dimension or few texts rule the states: what tables mark."""
    notes = []
    tokens = np.maximum(*(abs(view[f"pc1_{name}"].to_numpy()) for name in ("tokens",
                        "inverse_tokens")))  # fmt: skip
    for values, most, head, text in (
        (tokens, DOMINANT, "Length in the states", "the first principal component follows the "
         "number of tokens, as an attention sink at the first token gives it"),
        (view["largest_share"].to_numpy(), DOMINANT, "One dimension", "a single hidden dimension "
         "holds more than half of the variance; rho_standardized weighs all dimensions alike"),
        (view["tail_share"].to_numpy(), HEAVY, "Heavy tails", "1 % of the texts hold more than a "
         "tenth of the variance inside the classes; intervals of frechet and tpr_at_1_fpr "
         "may cover less than 95 %"),
    ):  # fmt: skip
        beyond = np.nan_to_num(values) > most  # [model, layer, lang]
        ruled = [lang for lang, flag in zip(langs, beyond.any((0, 1)), strict=True) if flag]
        if ruled:
            cells = beyond.any(0).sum()
            notes.append(
                (head, f"in {listed(ruled)}, in {cells} of {beyond[0].size} layers and languages: "
                 f"{text}.")
            )  # fmt: skip
    return notes


def _share(where: NDArray[np.bool_], layers: Sequence[str]) -> str:
    """`3 of 20 layers (embed, block.3 to block.4)`."""
    flags = [*where.tolist(), False]
    ranges, start = [], None
    for i, flag in enumerate(flags):
        if flag and start is None:
            start = i
        elif not flag and start is not None:
            ranges.append((layers[start], layers[i - 1]))
            start = None
    if where.all():
        return f"all {len(layers)} layers" if len(layers) > 1 else layers[0]
    shown = ranges[:4]
    each = ", ".join(one if one == last else f"{one} to {last}" for one, last in shown)
    more = ", and others" if len(ranges) > len(shown) else ""
    return f"{where.sum()} of {len(layers)} layers ({each}{more})"


def _below_one(value: float, low: float, high: float) -> str:
    """A cosine whose interval excludes 1, with as many digits as show that it does."""
    styles = [Style.of([(value, low, high)]), *(Style(f"z.{digits}f") for digits in range(3, 9))]
    below = (style for style in styles if float(style.number(high)) < 1)
    return next(below, styles[-1]).entry(value, low, high)


def _signed(style: Style, value: float, low: float, high: float) -> str:
    sign = "+" if value > 0 else ""
    return f"{sign}{style.entry(value, low, high)}"


def _names(view: "xarray.Dataset", dim: str) -> list[str]:
    return [str(name) for name in np.atleast_1d(view[dim].to_numpy())]


def isolated(name: str) -> str:
    """A name that does not change the direction of the words around it (Unicode isolates)."""
    return f"\u2068{name}\u2069"


def listed(names: Sequence[str]) -> str:
    """Names with commas, each isolated; beyond twelve their number."""
    shown = ", ".join(map(isolated, names[:12]))
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"
