"""Every word that is printed beside the numbers, and `explain`."""

import re
import textwrap

from ..errors import ConfigError
from ..names import nearest
from ..store.layout import COMPONENTS
from .crossfit import LEAST_RELIABILITY
from .families import METRICS, metric
from .metric import NONE

NOTATION = {
    "n0": "n0, n1: number of harmless and of harmful texts",
    "N": "N: number of texts; copies of a text count as one (`explain copies`)",
    "m0": "m0, m1: mean of the harmless and of the harmful texts",
    "d": "d: difference of the class means, m1 - m0",
    "S0": "S0, S1: covariance of the harmless and of the harmful texts",
    "X": "X, X': harmless texts; Y, Y': harmful texts",
}
"""Letters in definitions; they are explained where the key occurs."""

ENDS = ("", "_low", "_high")
"""Ends of the names of a number with an interval."""
CONFOUNDS = {
    "tokens0": "mean number of tokens of a harmless text",
    "tokens1": "mean number of tokens of a harmful text; if it differs from tokens0, length alone "
    "separates the classes",
    "chars_per_token": "characters per token; low where the tokenizer does not know the language",
    "truncated": "share of texts that were cut to fit",
    "duplicates": "share of texts that are copies of another text of the language; see "
    "`explain copies`",
    "clustered": "share of texts in a cluster of several: given by the data (column `cluster`), or "
    "alike but for capitals, spaces and punctuation; see `explain units`",
    "units": "number of units of evidence; see `explain units`",
    "design_effect": "variance of the mean shift, from units of evidence, over what it would be if "
    "all texts were independent (last layer, mean over poolings): clusters raise it above 1 (Kish "
    "1965), pairs that have their content in common lower it",
    "elsewhere": "share of texts that are also in another language of the results: means over "
    "groups, and differences between languages, take them as independent unless they share an item",
    "harmful": "share of harmful texts (class balance)",
    "auc_length": "probability that a harmful text has more tokens than a harmless one, ties half: "
    "the AUC of length alone. An AUC of states that is no larger than this, or than 1 minus this, "
    "may be nothing but length",
    "auc_length_low": "lower end of the 95 % interval of auc_length (DeLong et al. 1988)",
    "auc_length_high": "upper end of the 95 % interval of auc_length; see auc_length_low",
    "auc_lexical": "held-out AUC of character n-grams (1 to 4, single ones only where a character "
    "is a word or syllable, as in Chinese and Japanese; hashed, L2-normalised counts; multinomial "
    "naive Bayes, McCallum & Nigam 1998, from the other folds: sums of log ratios of shares, no "
    "fitted regression), without a model: what an AUC of states must exceed to be more "
    "than words; see auc_increment. Not known in stores of earlier versions, or without single "
    "characters",
    "auc_lexical_low": "lower end of the 95 % interval of auc_lexical (DeLong et al. 1988, widened "
    "for the noise of the weights)",
    "auc_lexical_high": "upper end of the 95 % interval of auc_lexical; see auc_lexical_low",
}
"""Differences between languages that are not due to the model, by (model, lang)."""

DOMINANCE = {
    "largest_share": "share of the total variance in the hidden dimension that varies most. Above "
    "one half, rho, distances and auc_direction see little but this dimension (table mark !): "
    "rho_standardized weighs all dimensions alike, and pooling last often has none so large",
    "largest_dim": "index of the hidden dimension that varies most",
    "pc1_tokens": "correlation of the first principal component with the number of tokens of a "
    "text. Beyond 0.5 or -0.5 (table mark #), texts of other lengths differ whatever they say: see "
    "rho_equal_length and auc_equal_length, or another pooling (mean in place of mean_all, or "
    "last), and compare with the lengths of the classes (tokens0, tokens1)",
    "pc1_inverse_tokens": "correlation of the first principal component with 1/tokens, as an "
    "attention sink at the first position gives it to mean_all; see pc1_tokens",
    "tail_share": "share of the variance inside the classes that comes from the 1 % of texts that "
    "are farthest from their class mean; not known with fewer than 100 texts. Above one tenth "
    "(table mark %) tails are heavy: Gaussian texts average 0.08 if one dimension holds all, and "
    "less elsewhere. Spreads then rest on texts that most samples do not have, and intervals cover "
    "less than they say. In simulations with Student's t of 3 degrees of freedom those of frechet "
    "cover about half, those of tpr_at_1_fpr 90 to 95 %, all others 92 % or more",
}
"""Whether one dimension, the length of texts or few texts rule the states, by (model, layer,
pooling, lang). NaN in models that an earlier version ran."""

COPIES = (
    "equal texts of one label in one language are one unit of evidence, with all pairs that they "
    "are in: they are drawn together, keep one label in every permutation, and share a fold. "
    "Values weigh a text by its copies, but a copy is no other text: mean distances to the own "
    "class leave copies out, and what is subtracted for noise counts n^2/sum m^2 texts, for n "
    "texts with m copies of each (Kish 1965). A text with both labels is one unit in each class"
)
"""How copies of a text count."""

UNITS = (
    "what is drawn, permuted and left out as a whole: a text alone; a pair of a harmful and a "
    "harmless text; equal texts of one label; a cluster, that is the texts with one entry in the "
    "column `cluster` of the data (a topic, thread or author), or texts of one language that are "
    "alike but for capitals, spaces and punctuation. Units that share a text are one. In a "
    "permutation, units of one label exchange their labels as wholes, units with as many harmful "
    "as harmless texts swap them, and in other units the texts exchange labels among each other. "
    "All texts of a unit are in one fold"
)
"""What resampling treats as one."""

GEOMETRY = {
    "direction_cosine": "cosine between the harm directions d of both models, at full width, as it "
    "would be with infinitely many texts: directions of different models come from different "
    "halves of the texts, over all splits of the folds, and the cosine is corrected for the "
    "reliability of both (Spearman 1904). Cut at -1 and 1; no number if a reliability is below "
    f"{LEAST_RELIABILITY}",
    "direction_low": "lower end of the 95 % interval of direction_cosine (jackknife over folds)",
    "direction_high": "upper end of the 95 % interval of direction_cosine; see direction_low",
    "direction_reliability": "mean cosine between the directions of two halves of the texts, of "
    "the less reliable direction; without any difference between the classes it is below "
    f"{LEAST_RELIABILITY} in at least 95 % of cases",
    "displacement": "length of the mean move of the texts, in units of the within-class standard "
    "deviation of the base model (root of the total variance)",
    "displacement_share": "share of the squared length of this move that lies along d of the base "
    "model",
    "displacement_rank": "number of directions that the moves of the texts use (participation "
    "ratio, in the projection)",
    "transfer_auc": "held-out AUC of the texts in the aligned model along the difference of class "
    "means of the base model, at full width; only for an aligned model that was run after the base",
    "transfer_low": "lower end of the 95 % interval of transfer_auc (DeLong, Wilson's score "
    "interval, widened for the noise of the base model's direction)",
    "transfer_high": "upper end of the 95 % interval of transfer_auc; see transfer_low",
    "own_auc": "the same along the difference of class means of the aligned model itself",
    "rounding_share": "how far rounding alone moves the class means, over how far they moved. From "
    "1 on the models differ only by rounding: no difference is marked, and p and p_family are 1. "
    "They are 1 too for a difference of at most one rounding of the values in the dtype of the "
    "run. After b blocks rounding moves the states by 3 (1 + sqrt b) u of their size, u = 2^-24 in "
    "float32, 2^-11 in float16, 2^-8 in bfloat16: run with --dtype float32 to see smaller changes",
    "kept_share": f"share of the variance of the texts that lies in the first {COMPONENTS} "
    "components, in the model where it is smaller: metrics in union pcK see nothing else",
    "cka": "linear CKA between the texts in both models, debiased (Song et al. 2012; Kornblith et "
    f"al. 2019), at full width: exact in the first {COMPONENTS} components of each model, and "
    "unbiased from the projection in the rest",
    "cka_low": "lower end of the 95 % interval of cka (from the influence of each text)",
    "cka_high": "upper end of the 95 % interval of cka; see cka_low",
}
"""What `compare` reports beside the metrics, for each (layer, pooling, lang)."""

_AS_KNOWN = "Intervals of silhouettes take these components as known"
SPACES = {
    "own": "own pcK: each model in the first K exact principal components of its own texts of the "
    "language, as in `separation`. This asks how well each model separates the classes where it "
    "varies most: a model that is only turned in space does not change",
    "base": "base pcK: both models in the first K exact principal components of the base model's "
    "texts of the language. This asks what became of the separation where the base model varied "
    f"most: a model that is only turned in space does change. {_AS_KNOWN}",
    "union": "union pcK: both models in the first K principal components of the texts of both "
    f"models together (SVD of both, each about its mean and within its own first {COMPONENTS} "
    "components, which are all that a store keeps). This asks how well each model separates the "
    "classes where both vary most, with one space for both: a model that is only turned in space "
    f"changes less than in base pcK. {_AS_KNOWN}",
}
"""Spaces of metrics in components, in `compare`."""

_EXCESS = "of the excess, as for differences"
COLUMNS = {
    "value": "the metric of the texts themselves, without resampling",
    "low": "lower end of the 95 % interval of the value (in `compare` of the difference); the "
    "interval covers the mean of the value over samples of this many texts",
    "high": "upper end of the 95 % interval; see low",
    "floor": "mean of the value if the classes did not differ; `explain METRIC` says how it is "
    "known",
    "p": "of a value: share of label permutations (swaps inside pairs) that reach it, "
    "(1 + #>=)/(1 + R), or of a test without permutations (`explain METRIC` says which); of a "
    "difference: two-sided, Student's t of the difference over its deviation from the influences "
    "of texts or pairs, with Satterthwaite's degrees of freedom",
    "p_family": "p corrected over all numbers of the results: all metrics, models, layers, "
    "poolings and languages are one family (Westfall & Young 1993). Each number is measured from "
    "the median of its permutations, in units of the distance to their 95th percentile, and "
    "compared with the largest under each permutation; what has no permutations is not in the "
    "family. In `compare`: over all differences of the "
    "results, or over all excesses; the null comes from random signs of the influences of texts or "
    "pairs (Hemerik, Goeman & Finos 2020)",
    "p_asks": "what a small p says: `means`, that the means of the classes differ (in pairs, that "
    "their texts differ to one side), or `any difference`, that the classes differ in something, "
    "perhaps in spread alone. In tables * marks what is significant of the first kind, + of the "
    "second",
    "q": "expected share of false ones among all numbers of the results (in `compare`: among all "
    "differences) with a q of at most this one, from p (Benjamini & Hochberg 1995; they depend on "
    "each other positively). It is in JSON, CSV and Parquet, not in tables",
    "n0": "number of harmless texts with finite states",
    "n1": "number of harmful texts with finite states",
    "refused": "why there is no number; empty if there is one",
    "space": "where a metric looks at the states: full (all hidden dimensions), projection (a "
    "seeded random projection), pcK (first K principal components of the language). In `compare`: "
    + "; ".join(SPACES.values()),
    "base": "value of the model before tuning, on the texts with finite states in both models",
    "aligned": "value of the model after tuning, on the same texts",
    "difference": "aligned minus base, on the same texts; low and high come from the intervals of "
    "both models and their correlation (MOVER, Zou 2007)",
    **{
        f"difference_{space}": f"the difference in {space} pcK (`explain space`), of metrics in "
        "components, where these are not those of the result. Where its sign is another than that "
        "of the difference (table mark ^), the choice of components decides whether the classes "
        "came closer or moved apart: claim neither from this metric, and see rho, silhouette and "
        "auc_direction, which need no components"
        for space in SPACES
    },
    "verdict": "with `--equivalence D`, for metrics without a unit. `no change larger than D`: the "
    "90 % interval of the difference lies in [-D, D], which is so in at most 5 % of cases if the "
    "true difference is D (two one-sided tests, Schuirmann 1987). Else `changed`: the 95 % "
    "interval excludes 0 and the difference is larger than rounding. Else `undecided`: more texts "
    "are needed. Like low and high, it is not corrected for the number of differences",
    "excess": "difference of differences: that of a language minus that of the reference language "
    "(English by default). Languages whose texts have the same items are correlated by them; other "
    "texts of two languages are independent",
    "excess_low": f"lower end of the 95 % interval {_EXCESS}",
    "excess_high": f"upper end of the 95 % interval {_EXCESS}",
    "excess_p": f"p {_EXCESS}",
    "excess_p_family": f"p_family {_EXCESS}",
}
"""Columns of `separation` and `compare` that are not metrics."""

HIGH_RESOURCE = ("en", "ru", "de", "zh", "ja", "es", "fr", "it", "nl", "pl", "pt", "vi")
LOW_RESOURCE = (
    "am", "ar", "bn", "he", "hi", "hin", "jv", "ka", "km", "ko", "lo", "ml", "mr", "ne", "si",
    "sw", "ta", "te", "th", "tt", "uk", "ur", "yo", "zu",
)  # fmt: skip
"""Languages with more and with less than one hundredth of the pages of Common Crawl, the line that
Deng et al. 2024 (arXiv 2310.06474) draw. Other languages are in no group."""
GROUPS = {"high": HIGH_RESOURCE, "low": LOW_RESOURCE}
GROUP_DEFINITION = (
    "mean over the languages of a group, and the mean of `high` minus the mean of `low`. The "
    "interval is for exactly these languages: it only allows for other texts. What holds for "
    "languages like these is in group_like_value"
)
LEAST_LANGUAGES = 3
"""Of each group, for numbers about languages like these."""
_LIKE = (
    "mean over all languages like those of a group, and the difference of both: random effects, in "
    "which languages differ by more than the noise of their texts (restricted maximum likelihood; "
    f"Viechtbauer 2005). Needs {LEAST_LANGUAGES} languages in each group"
)
GROUP_VARIABLES = {
    "group_value": GROUP_DEFINITION,
    "group_low": "lower end of the 95 % interval of group_value, for exactly these languages. "
    "Languages whose texts have the same items are correlated by them",
    "group_high": "upper end of the 95 % interval of group_value; see group_low",
    "group_like_value": _LIKE,
    "group_like_low": "lower end of the 95 % interval of group_like_value: it allows for other "
    "languages and other texts (Knapp & Hartung 2003: Student's t, one degree of freedom for each "
    "language less one for each group)",
    "group_like_high": "upper end of the 95 % interval of group_like_value; see group_like_low",
    "group_like_p": "two-sided p of the group_like_value of `high - low`, from the same t",
    "group_tau": "standard deviation between languages of a group, without the noise of their "
    "texts",
    "group_predict_low": "lower end of the 95 % prediction interval for one more language like "
    "those of the group (Higgins, Thompson & Spiegelhalter 2009; Student's t with two degrees of "
    "freedom less than languages)",
    "group_predict_high": "upper end of the 95 % prediction interval; see group_predict_low",
    "group_without_low": "smallest group_value when any one language is left out",
    "group_without_high": "largest group_value when any one language is left out",
    "group_without": "the language that moves group_value most when it is left out",
}
"""Variables of groups of languages, by (.., group)."""

DIRECTIONS = {
    "direction_cosine": "the same of two languages in one model: 1 for a language with itself",
    "direction_low": "as in `compare`",
    "direction_high": "as in `compare`",
    "direction_reliability": "as in `compare`",
    "transfer_auc": "AUC of the texts of `lang` along the difference of class means of "
    "`other_lang`, in the projection. Held out fold by fold, because a text and its translation "
    "(texts with one item, equal texts) share a fold: neither is in the direction that judges it",
    "transfer_low": "lower end of the 95 % interval of transfer_auc (DeLong, Wilson's score "
    "interval, fixed direction)",
    "transfer_high": "upper end of the 95 % interval of transfer_auc; see transfer_low",
}
"""Variables of `directions`."""

PARALLEL = {
    "semantic": "silhouette of parallel texts grouped by content (by item, or by pair where there "
    "are no items), in the projection",
    "language": "silhouette of the same texts grouped by language, in the projection",
}
"""Variables of `parallel`, each with low and high."""

POWER = {
    "value": "of one model: its value in the pilot; with `--versus`: minus that of this model",
    "floor": "value expected without any difference between the classes; 0 with `--versus`",
    "deviation": "standard deviation of the value over samples of as many texts as the pilot has",
    "detectable": "smallest difference that as many texts as the pilot has show, at the level and "
    "with the power that were asked",
    "needed0": "harmless texts of the language that show the difference: that is how many are "
    "needed for a two-sided test at `--level` to find it in the share `--power` of studies. Of one "
    "model: for the interval to exclude a number that is the difference away from its value, such "
    "as its floor. With `--versus`: for `compare` of the same texts in both models. The texts must "
    "be like those of the pilot: as spread, in units as large (`explain units`), in the same "
    "proportion of labels and as separated. A pilot knows this number only roughly: see "
    "needed_low. Ratios exclude their floor a little more "
    "often than asked (in simulations up to 0.92 for 0.8). Not corrected for several numbers",
    "needed1": "harmful texts of the language; see needed0",
    "needed_low": "lower end of the 95 % interval of needed0 + needed1, as well as the pilot knows "
    "them: from bootstraps of the influences of its units, normal on the logarithmic scale. In 20 "
    "to 30 simulated pilots of 150 + 150 texts it covered 85 to 100 %, for mean_shift 70 to 80 %; "
    "differences of two models were not simulated. Not known where noise explains all of the "
    "variance. Plan for needed_high to be on the safe side",
    "needed_high": "upper end of the 95 % interval of needed0 + needed1; see needed_low",
    "needed_units": "units of evidence in these texts, see `explain units`: with pairs or clusters "
    "it is their number that counts",
    "unit_effect": "variance of the value from units of evidence, over what it would be if all "
    "texts were independent: that many times more texts are needed",
}
"""Variables of `power`, by (metric, model, layer, pooling, lang)."""

TRANSFER = {
    "best_layer": "layer with the largest auc_direction in the first store",
    "source_auc": "auc_direction in the first store in this layer, which was chosen by it: it is "
    "too high, because the largest of several numbers is partly luck",
    "source_low": "lower end of its 95 % interval, which takes the layer as known",
    "source_high": "upper end of its 95 % interval; see source_low",
    "target_auc": "AUC of the texts of the second store in this layer, along the difference of the "
    "class means of all texts of the first store. Neither layer nor direction has seen these texts",
    "target_low": "lower end of the 95 % interval of target_auc (DeLong, Wilson's score interval, "
    "fixed direction)",
    "target_high": "upper end of the 95 % interval of target_auc; see target_low",
    "target_p": "share of label permutations of the second store whose AUC is as many standard "
    "deviations above 1/2, (1 + #>=)/(1 + R)",
    "target_own_auc": "held-out AUC of the same texts along the second store's own direction",
    "target_n0": "harmless texts of the second store that are left",
    "target_n1": "harmful texts of the second store that are left",
    "removed": "texts of the second store that were left out, because the first store has them or "
    "a text of their unit (`explain units`), in any language",
}
"""Variables of `transfer`, by (model, pooling, lang)."""

CURVE = {
    "size": "texts of the rarer label in a sub-sample of whole units (`explain units`); `all`: all "
    "texts, in the random projection as the sub-samples are; `full width`: all texts, as in "
    "`separation`. Value and interval are the mean over several sub-samples: what a study of so "
    "many texts would have given",
}
"""What `curve` has beside value, low and high."""

SENSITIVITY = {
    "choice": "a set of choices: `all`, or those of one metric, pooling or layer",
    "choices": "how many combinations of metric, layer and pooling have a number",
    "direction": "the sign of most of them: 1 if the aligned model holds the classes further apart "
    "than the base model (in `separation`: if the value is above its floor), -1 if less "
    "far, 0 if nothing differs. With as many of either, it is 1",
    "agree": "choices with this sign. Differences no larger than rounding have none",
    "shown": "choices whose 95 % interval excludes 0 (in `separation` the floor) in this "
    "direction. All choices are of the same texts, so that they are not so many pieces of "
    "evidence; see p_family for what holds among all of them",
    "against": "choices whose 95 % interval excludes 0 in the other direction",
}
"""Variables of `sensitivity`, by (choice, .., lang)."""

_IN_TWO = {
    name: f"of two models, in `compare`: {GEOMETRY[name]}. Of two languages, in `languages`: {text}"
    for name, text in DIRECTIONS.items()
    if name in GEOMETRY
}
_GROUPS = (
    f"{GROUP_DEFINITION}. "
    + "; ".join(f"{name}: {', '.join(langs)}" for name, langs in GROUPS.items())
    + " (more and less than 1 % of the pages of Common Crawl), by primary subtag: zh-CN and "
    "zho_Hans are zh"
)
NOTES = (
    CONFOUNDS
    | DOMINANCE
    | COLUMNS
    | DIRECTIONS
    | GEOMETRY
    | _IN_TWO
    | {name + end: text for name, text in PARALLEL.items() for end in ENDS}
    | TRANSFER
    | SENSITIVITY
    | CURVE
    | {name: text for name, text in POWER.items() if name not in COLUMNS}
    | {"copies": COPIES, "units": f"{CONFOUNDS['units']}. A unit is {UNITS}"}
    | GROUP_VARIABLES
    | dict.fromkeys(("groups", "group_value"), _GROUPS)
)
"""Everything that is reported beside the metrics, by name."""

_SPACES = {
    "full": "full width, all hidden dimensions",
    "projection": "the seeded random projection",
}
_UNITS = {"state": "that of the hidden state", "state^2": "the square of that of the hidden state"}


def explain(name: str) -> str:
    """Definition of a metric or of a column, in a few lines for the terminal.

    Raises:
        ConfigError: nothing has that name.
    """
    if name in NOTES:
        return "\n".join(
            textwrap.wrap(f"{name}: {NOTES[name]}", 100, subsequent_indent=" " * (len(name) + 2))
        )
    try:
        entry = metric(name)
    except ConfigError:
        names = ", ".join((*METRICS, *NOTES))
        near = nearest(name, (*METRICS, *NOTES))
        raise ConfigError(f"explain: no {name!r}; choose from {names}{near}") from None
    letters = set(re.findall(r"\w+", entry.definition))
    components = f"first {entry.components} principal components of the language"
    rows = {
        "alias": entry.alias_of and f"a transformation of {entry.alias_of}: it adds no evidence",
        "definition": entry.definition,
        "notation": "; ".join(text for letter, text in NOTATION.items() if letter in letters),
        "source": entry.source,
        "space": _SPACES.get(entry.space, components),
        "unit": _UNITS.get(entry.unit, ""),
        "data": "paired languages only" if entry.paired else "",
        "floor": entry.floor,
        "interval": entry.interval if entry.interval == NONE else f"95 %: {entry.interval}",
        "p": entry.null + "; asks for any difference" * entry.any_difference,
        "pitfalls": entry.pitfalls,
    }
    lines = [f"{entry.name}: {entry.title}"]
    for key, text in rows.items():
        head, indent = f"  {key:<12}", " " * 14
        lines += textwrap.wrap(text, 100, initial_indent=head, subsequent_indent=indent)
    return "\n".join(lines)
