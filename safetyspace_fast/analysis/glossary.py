"""Every word that is printed beside the numbers, and `explain`."""

import textwrap

from ..errors import ConfigError
from .families import METRICS, metric
from .metric import NONE

CONFOUNDS = {
    "tokens0": "mean tokens of a harmless text",
    "tokens1": "mean tokens of a harmful text; where it differs from tokens0, length alone tells "
    "the classes apart",
    "chars_per_token": "characters a token of the language stands for: few where the tokenizer "
    "does not know the language",
    "truncated": "share of the texts that were cut to fit",
    "duplicates": "share of the texts that are copies of another one",
    "harmful": "share of harmful texts: class balance",
}
"""What may differ between languages beside the model's view of them, by (model, lang)."""

GEOMETRY = {
    "direction_cosine": "cosine of the harm directions d of both models at full width",
    "direction_cosine_denoised": "the same with the noise of d taken out of dot product and "
    "lengths: what infinitely many texts would give",
    "direction_ceiling": "cosine that two equal directions would show if each were measured on "
    "texts of its own: sqrt of the product of 1 - tr V/|d|^2",
    "displacement": "length of the mean move of the texts, in units of the base model's "
    "within-class standard deviation (root of the total variance)",
    "displacement_share": "share of that move's squared length along the base model's d",
    "displacement_rank": "participation ratio of the texts' moves in the projection: how many "
    "directions they use",
    "transfer_auc": "held-out AUC of the aligned model's texts along the base model's difference "
    "of class means, in the projection that both share",
    "own_auc": "the same along the aligned model's own difference of class means",
    "cka": "linear CKA of the texts in the projection, debiased (Song et al. 2012; "
    "Kornblith et al. 2019)",
}
"""What is compared beside the metrics, for every (layer, pooling, lang)."""

SPACES = {
    "base": "base pcK: both models in the first K principal components of the base model's texts "
    "of the language, inside the seeded projection that both share; `separation` shows each model "
    "in exact components of its own, other numbers",
    "own": "own pcK: either model in components of its own, two spaces, for the models share no "
    "projection (hidden size, its width or its seed differ)",
}
"""Where `compare` sees the metrics in components."""

_EXCESS = "of the excess, as for differences"
COLUMNS = {
    "value": "the number itself, of the texts as they are",
    "low": "lower end of the 95 % interval of the value (of the difference, in `compare`): it "
    "holds the mean at this number of texts",
    "high": "upper end of the 95 % interval; see low",
    "floor": "what the value averages without any difference between the classes; every metric's "
    "own `explain` says how it is known",
    "p": "of a value: share of label permutations (swaps inside pairs) that reach it, "
    "(1 + #>=)/(1 + R); of a difference: two-sided and normal, from its interval",
    "p_family": "p of the largest statistic over all layers and languages shown, of one metric, "
    "model and pooling (Westfall & Young 1993): small where a number stands out of them all. Of "
    "differences and excesses the null turns the signs of what texts or pairs add (Hemerik, Goeman "
    "& Finos 2020), or takes the bootstrap's draws about their mean",
    "n0": "harmless texts with finite states",
    "n1": "harmful texts with finite states",
    "refused": "why there is no number here; empty where there is one",
    "space": "where the states are seen: full (every hidden dimension), projection (the seeded "
    "one), pcK (the language's own first K principal components); of two models "
    + "; ".join(SPACES.values()),
    "base": "value of the model before, on the texts that both models have finite states for; in "
    "components it is not what `separation` shows: see space",
    "aligned": "value of the model after, on the same texts and in the same space",
    "difference": "aligned less base on the same texts; low, high from the interval of either "
    "model, joined by the correlation that the same texts give them (MOVER, Zou 2007); p "
    "two-sided and normal",
    "excess": "difference of differences: that of a language less that of the reference language "
    "(English by default); texts of two languages are independent",
    "excess_low": f"lower end of the 95 % interval {_EXCESS}",
    "excess_high": f"upper end of the 95 % interval {_EXCESS}",
    "excess_p": f"p {_EXCESS}",
    "excess_p_family": f"p_family {_EXCESS}",
}
"""Columns of `separation` and `compare` that are no metrics."""

HIGH_RESOURCE = ("en", "ru", "de", "zh", "ja", "es", "fr", "it", "nl", "pl", "pt", "vi")
LOW_RESOURCE = (
    "am", "ar", "bn", "he", "hi", "hin", "jv", "ka", "km", "ko", "lo", "ml", "mr", "ne", "si",
    "sw", "ta", "te", "th", "tt", "uk", "ur", "yo", "zu",
)  # fmt: skip
"""Languages above and below one hundredth of Common Crawl's pages, the line that Deng et al. 2024
(arXiv 2310.06474) draws; a language in neither is in no group. `groups` overrides the table."""
GROUPS = {"high": HIGH_RESOURCE, "low": LOW_RESOURCE}
GROUP_DEFINITION = (
    "mean over the languages of a group that have a number, and the mean of `high` less that of "
    "`low`; the interval holds for these languages: texts are drawn again, languages are not"
)

DIRECTIONS = {
    "direction_cosine": "cosine of the differences of class means of two languages, full width",
    "direction_ceiling": "cosine that two equal directions would show with the noise of these "
    "texts: sqrt of the product of 1 - tr V/|d|^2",
    "transfer_auc": "AUC of the texts of `lang` along the difference of class means of "
    "`other_lang`, in the projection; on the diagonal held out, fold by fold",
    "transfer_low": "95 % interval of transfer_auc by DeLong's placements, the direction given",
    "transfer_high": "see transfer_low",
}
"""Variables of `directions`."""

PARALLEL = {
    "semantic": "silhouette of the texts grouped by content: by parallel item where there is one, "
    "else by pair; in the projection",
    "language": "silhouette of the same texts grouped by language, in the projection",
}
"""Variables of `parallel`, each with low and high: which of the two a layer orders texts by."""
PARALLEL_ENDS = ("", "_low", "_high")

_TABLE = "; ".join(f"{name}: {', '.join(langs)}" for name, langs in GROUPS.items())
_GROUPS = f"{GROUP_DEFINITION}. {_TABLE} (above or below 1 % of Common Crawl's pages)"
NOTES = (
    CONFOUNDS
    | COLUMNS
    | DIRECTIONS
    | GEOMETRY
    | {name + end: text for name, text in PARALLEL.items() for end in PARALLEL_ENDS}
    | dict.fromkeys(("groups", "group_value", "group_low", "group_high"), _GROUPS)
)
"""What is reported beside the metrics, by name."""


def explain(name: str) -> str:
    """What a metric is, in a few lines for the terminal.

    Raises:
        ConfigError: nothing has that name.
    """
    if name in NOTES:
        return "\n".join(
            textwrap.wrap(f"{name}: {NOTES[name]}", 100, subsequent_indent=" " * (len(name) + 2))
        )
    try:
        m = metric(name)
    except ConfigError:
        names = ", ".join((*METRICS, *NOTES))
        raise ConfigError(f"explain: no {name!r}; choose from {names}") from None
    space = {"full": "full width", "projection": "the seeded random projection"}.get(
        m.space, f"the language's own first {m.components} principal components"
    )
    rows = [
        ("definition", m.definition),
        ("space", space),
        ("source", m.source),
        ("floor", m.floor),
        ("interval", f"95 %: {m.interval}" if m.interval != NONE else NONE),
        ("p", m.null),
        ("pitfalls", m.pitfalls),
    ]
    if m.alias_of:
        rows.insert(0, ("alias", f"of {m.alias_of}: the same number, no further evidence"))
    if m.paired:
        rows.append(("data", "only where every text of the language has a partner"))
    lines = [f"{m.name}: {m.title}"]
    for key, text in rows:
        head, indent = f"  {key:<12}", " " * 14
        lines += textwrap.wrap(text, 100, initial_indent=head, subsequent_indent=indent)
    return "\n".join(lines)
