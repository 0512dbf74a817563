"""Every metric as data: what it is, where it comes from, how it misleads, how sure it is."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import ConfigError

COMPONENTS = 16
"""Principal components a store keeps for every text; `_pcK` names reach up to here."""

BOOTSTRAP = (
    "bootstrap of texts (of pairs on paired data), each with components of its own; normal with "
    "the bootstrap's deviation, less the noise that draws add to noise where its size is known"
)
INFLUENCE = "delta method from exact per-text influences (summed over pairs on paired data)"
REFITS = "widened by the share of the fitted directions that is noise (twice the variance on noise)"
DELONG = f"DeLong's placements within folds, {REFITS}; normal on the log odds"
BINOMIAL = "from the texts' own spread (pairs' on paired data), normal on the log odds"
NONE = "none"

SHUFFLE = "permuted labels (swapped inside pairs on paired data)"
SHUFFLE_PROJECTION = f"the same statistic in the projection, {SHUFFLE}"
REFIT = f"{SHUFFLE}, every fold fitted again, in the projection"


@dataclass(frozen=True)
class Metric:
    """One metric: everything that a reader must know to use its number."""

    name: str
    title: str
    space: str
    """`full` (every hidden dimension), `pcK` (the language's own first K principal components) or
    `projection` (the seeded random projection)."""
    kind: Literal["A", "B", "C"]
    """A: counts, means and moments; B: a second look at every text; C: pairs of texts."""
    definition: str
    source: str
    pitfalls: str
    interval: str
    null: str
    floor: str
    """What `floor` holds: the value expected without any difference between the classes."""
    alias_of: str = ""
    paired: bool = False
    """Only defined on paired data."""
    default: bool = False
    """Computed when no metrics are named."""
    grows: bool = True
    """Whether a larger value means classes further apart."""

    @property
    def unit(self) -> str:
        """Unit of the value: `state`, `state^2`, or `1` where it has none."""
        squares = ("mean_shift", "paired_shift", "frechet")
        family = self.name.rsplit("_pc", 1)[0]
        return "state" if family == "energy_distance" else "state^2" if family in squares else "1"

    @property
    def components(self) -> int:
        """K of a `pcK` space, 0 elsewhere."""
        return int(self.space[2:]) if self.space.startswith("pc") else 0


_RHO_FLOOR = "1/(N-1), exact at any dimension; on paired data the mean over label swaps"
_NULL_MEAN = "mean over the permutations"
_PCA = (
    "Components are the language's own, of both classes together: values of different models or "
    "languages stand in different spaces; `compare` sees both models in the base model's."
)

_RHO = Metric(
    name="rho",
    title="between-class ratio",
    space="full",
    kind="A",
    definition="B/(B+W), B = (n0 n1/N)|m1-m0|^2, W = (n0-1) tr S0 + (n1-1) tr S1",
    source="share of variance between groups, R^2 of PERMANOVA (Anderson 2001)",
    pitfalls="In-sample: without any difference it still averages 1/(N-1). One huge hidden "
    "dimension hides all others: see rho_standardized.",
    interval=INFLUENCE + ", mapped from rho_adjusted",
    null=SHUFFLE_PROJECTION,
    floor=_RHO_FLOOR,
    default=True,
)
_BHATTACHARYYA = Metric(
    name="bhattacharyya",
    title="Bhattacharyya distance",
    space="pc10",
    kind="A",
    definition="T1 + T2, T1 = d'S^-1 d/8, T2 = (ln|S| - ln|S0|/2 - ln|S1|/2)/2, S = (S0+S1)/2",
    source="Bhattacharyya 1943; Fukunaga 1990, section 3.4",
    pitfalls="Above zero without any difference, by about k/(4n) + k(k+1)/(8n): read it beside "
    "its floor or as bhattacharyya_excess. Assumes Gaussian classes. " + _PCA,
    interval=BOOTSTRAP,
    null=SHUFFLE,
    floor="exact mean for equal Gaussian classes (expected inverse and log-determinant of a "
    "Wishart matrix); on paired data the mean over label swaps",
    default=True,
)
_SILHOUETTE = Metric(
    name="silhouette",
    title="silhouette, Euclidean",
    space="full",
    kind="C",
    definition="mean over texts of (b-a)/max(a,b); a, b: mean distance to the own (itself left "
    "out) and to the other class",
    source="Rousseeuw 1987, scikit-learn's conventions",
    pitfalls="Values of different spaces are different numbers. Distances concentrate in many "
    "dimensions, so that full-width values stay small even for classes that separate perfectly.",
    interval=INFLUENCE + "; the slope of each text's value is replaced by its class's mean slope",
    null=SHUFFLE_PROJECTION,
    floor=_NULL_MEAN,
    default=True,
)
_AUC = Metric(
    name="auc_direction",
    title="held-out AUC, mean difference",
    space="full",
    kind="B",
    definition="chance that a harmful text scores above a harmless one along the difference of "
    "class means of the other folds; within folds, weighted by their pairs of texts",
    source="Hanley & McNeil 1982; cross-fitted",
    pitfalls="Estimates what directions fitted to nine tenths of these texts reach, not the best "
    "direction: it grows with the number of texts.",
    interval=DELONG,
    null=REFIT,
    floor="0.5",
    default=True,
)

_BASE: tuple[Metric, ...] = (
    _RHO,
    replace(
        _RHO,
        name="rho_adjusted",
        title="adjusted between-class ratio",
        definition="1 - (1-rho)(N-1)/(N-2)",
        source="adjusted R^2 (Ezekiel 1930)",
        pitfalls="May be negative: no more between the classes than chance puts there.",
        interval=INFLUENCE + ", with the second-order term of |m1-m0|^2",
        floor="0; on paired data the mean over label swaps",
    ),
    replace(
        _RHO,
        name="calinski_harabasz",
        title="Calinski-Harabasz",
        definition="(N-2) rho/(1-rho)",
        source="Calinski & Harabasz 1974",
        pitfalls="The same number as rho on another scale, no further evidence. Grows with N.",
        interval="that of rho, transformed",
        floor="that of rho, transformed",
        alias_of="rho",
        default=False,
    ),
    replace(
        _RHO,
        name="xie_beni",
        title="Xie-Beni",
        definition="(n0 n1/N^2)(1-rho)/rho",
        source="Xie & Beni 1991, hard labels",
        pitfalls="The same number as rho on another scale, no further evidence. Small is separate.",
        interval="that of rho, transformed",
        floor="that of rho, transformed",
        alias_of="rho",
        default=False,
        grows=False,
    ),
    replace(
        _RHO,
        name="rho_standardized",
        title="between-class ratio, per dimension",
        definition="mean over hidden dimensions of B_j/(B_j+W_j)",
        source="rho after scaling every dimension to unit variance",
        pitfalls="Every dimension counts the same, also those that the model hardly uses. "
        "Constant dimensions are left out.",
        interval=NONE,
        null=f"the same statistic of the {COMPONENTS} components, {SHUFFLE}",
    ),
    replace(
        _RHO,
        name="rho_pc10",
        title="between-class ratio in PCs",
        space="pc10",
        source="Lin et al. 2024 (arXiv 2406.10794)",
        pitfalls="Larger than the full-width ratio, whose denominator holds all variance. " + _PCA,
        interval=BOOTSTRAP,
        null=SHUFFLE,
        default=False,
    ),
    replace(
        _RHO,
        name="mean_shift",
        title="squared mean shift",
        definition="|m1-m0|^2 - tr S0/n0 - tr S1/n1",
        source="Chen & Qin 2010; linear-kernel MMD^2 of Gretton et al. 2012",
        pitfalls="In squared units of the state: not comparable between layers or models.",
        interval=INFLUENCE + ", with the second-order term of |m1-m0|^2",
        floor="0; on paired data the mean over label swaps, in the projection",
    ),
    _BHATTACHARYYA,
    replace(
        _BHATTACHARYYA,
        name="bhattacharyya_excess",
        title="Bhattacharyya above its floor",
        definition="bhattacharyya - floor of bhattacharyya",
        pitfalls="May be negative: no more than chance. " + _PCA,
        floor="0",
    ),
    replace(
        _BHATTACHARYYA,
        name="bhattacharyya_mean",
        title="Bhattacharyya T1 (means)",
        definition="d'S^-1 d/8, S = (S0+S1)/2",
    ),
    replace(
        _BHATTACHARYYA,
        name="bhattacharyya_cov",
        title="Bhattacharyya T2 (covariances)",
        definition="(ln|S| - ln|S0|/2 - ln|S1|/2)/2, S = (S0+S1)/2",
    ),
    replace(
        _BHATTACHARYYA,
        name="bhattacharyya_shrunk",
        title="Bhattacharyya, shrunk",
        definition="bhattacharyya with every S replaced by its Ledoit-Wolf shrinkage towards a "
        "multiple of the identity",
        source="Ledoit & Wolf 2004",
        pitfalls="Not invariant to scaling of dimensions. " + _PCA,
        floor=_NULL_MEAN,
        default=False,
    ),
    replace(
        _BHATTACHARYYA,
        name="bhattacharyya_coefficient",
        title="Bhattacharyya coefficient",
        definition="exp(-bhattacharyya)",
        source="Bhattacharyya 1943; Haldar et al. 2025 (arXiv 2502.00657)",
        pitfalls="Below one without any difference. Small is separate. " + _PCA,
        interval="that of bhattacharyya, transformed",
        floor="exp(-floor of bhattacharyya)",
        alias_of="bhattacharyya",
        default=False,
        grows=False,
    ),
    replace(
        _BHATTACHARYYA,
        name="mahalanobis",
        title="Mahalanobis, cross-validated",
        definition="mean of d_A' Sp^-1 d_B over all disjoint texts A, B: d'Sp^-1 d - "
        "tr Sp^-1 (S0/n0 + S1/n1)",
        source="crossnobis (Walther et al. 2016)",
        pitfalls="May be negative. Its root is d'. On paired data it subtracts too much noise: "
        "read it against its floor, or use hotelling. " + _PCA,
        floor="0; on paired data the mean over label swaps",
        default=False,
    ),
    replace(
        _BHATTACHARYYA,
        name="frechet",
        title="squared Frechet distance",
        definition="|d|^2 + tr(S0 + S1 - 2 (S0^1/2 S1 S0^1/2)^1/2)",
        source="Dowson & Landau 1982",
        pitfalls="Biased up by about 1/n. In squared units of the state. " + _PCA,
        floor=_NULL_MEAN,
        default=False,
    ),
    _SILHOUETTE,
    replace(
        _SILHOUETTE,
        name="silhouette_cosine",
        title="silhouette, cosine",
        definition="as silhouette, with distance 1 - cos(x, y)",
        pitfalls="The mean state is not removed, and one huge dimension makes all texts alike.",
        default=False,
    ),
    replace(
        _SILHOUETTE,
        name="silhouette_pc10",
        title="silhouette in PCs",
        space="pc10",
        null=SHUFFLE,
        pitfalls="Larger than at full width: the noise of all other dimensions is cut away. "
        + _PCA,
    ),
    replace(
        _SILHOUETTE,
        name="davies_bouldin",
        title="Davies-Bouldin",
        kind="B",
        definition="(s0+s1)/|m1-m0|, s: mean distance of a class's texts to its mean",
        source="Davies & Bouldin 1979, scikit-learn's conventions",
        pitfalls="Small is separate. Biased down where the means hardly differ.",
        interval=INFLUENCE + "; s as if the mean were known; normal on 1/value, which may leave no "
        "upper end",
        null=NONE,
        floor=NONE,
        default=False,
        grows=False,
    ),
    replace(
        _SILHOUETTE,
        name="dunn",
        title="Dunn index",
        definition="smallest distance between classes / largest distance inside a class",
        source="Dunn 1974",
        pitfalls="One extreme pair of texts decides it; duplicates in both classes make it 0.",
        interval=NONE,
        null=NONE,
        floor=NONE,
        default=False,
    ),
    replace(
        _SILHOUETTE,
        name="nn_accuracy",
        title="1-nearest-neighbour accuracy",
        definition="share of texts whose nearest other text is of their class; ties count half",
        source="Cover & Hart 1967",
        pitfalls="Near-duplicate texts, and pairs above all, decide it: on paired data the "
        "nearest text is often the partner, and the value falls below chance.",
        interval=f"{BINOMIAL}; texts that are each other's nearest count as one",
        default=False,
    ),
    replace(
        _SILHOUETTE,
        name="energy_distance",
        title="energy distance",
        definition="2E|X-Y| - E|X-X'| - E|Y-Y'|, every mean over distinct texts",
        source="Szekely & Rizzo 2013, U-statistic",
        pitfalls="In units of the state. The interval is first-order: near zero it is too narrow, "
        "and p is the thing to read.",
        interval=INFLUENCE,
        floor="0; on paired data the mean over label swaps, in the projection",
        default=False,
    ),
    replace(
        _SILHOUETTE,
        name="mmd",
        title="MMD^2, Gaussian kernel",
        space="projection",
        definition="E k(X,X') + E k(Y,Y') - 2E k(X,Y), k = exp(-|x-y|^2/(2h^2)), h = median "
        "distance; every mean over distinct texts",
        source="Gretton et al. 2012, U-statistic",
        pitfalls="The bandwidth must be one for the models compared: `compare` takes the base "
        "model's. The interval is first-order: near zero it is too narrow.",
        interval=INFLUENCE,
        null=SHUFFLE,
        floor="0; on paired data the mean over label swaps",
        default=False,
    ),
    _AUC,
    replace(
        _AUC,
        name="accuracy_direction",
        title="held-out accuracy, mean difference",
        definition="share of texts on their class's side of the midpoint of the other folds' means",
        source="nearest-centroid rule, cross-fitted",
        interval=f"{BINOMIAL}, {REFITS}",
        floor="share of the larger class",
        default=False,
    ),
    replace(
        _AUC,
        name="auc_probe",
        title="held-out AUC, logistic probe",
        space="projection",
        definition="AUC of an L2 logistic probe (C = 1, features standardised in the training "
        "folds), within folds, weighted by their pairs of texts",
        source="Alain & Bengio 2016; cross-fitted",
        null=f"{REFIT}, with a ridge probe in the logistic one's place",
    ),
    replace(
        _AUC,
        name="accuracy_probe",
        title="held-out accuracy, logistic probe",
        space="projection",
        definition="share of texts that the logistic probe of the other folds classifies right",
        source="Alain & Bengio 2016; cross-fitted",
        interval=f"{BINOMIAL}, {REFITS}",
        null=f"{REFIT}, with a ridge probe in the logistic one's place",
        floor="share of the larger class",
        default=False,
    ),
    replace(
        _AUC,
        name="paired_accuracy",
        title="held-out sign accuracy of pairs",
        definition="share of pairs whose harmful text scores higher along the difference of class "
        "means of the other folds; ties count half",
        source="cross-fitted",
        pitfalls="Estimates what directions fitted to nine tenths of these pairs reach.",
        interval=f"{BINOMIAL}, {REFITS}",
        paired=True,
    ),
    replace(
        _AUC,
        name="paired_effect",
        title="paired effect size",
        definition="mean/sd of the differences inside pairs of the held-out scores",
        source="Cohen's d_z, cross-fitted",
        pitfalls="Along one direction only. Grows where pairs differ consistently, however little.",
        interval=f"{INFLUENCE}, {REFITS}",
        floor="0",
        paired=True,
    ),
    replace(
        _AUC,
        name="paired_shift",
        title="squared mean shift of pairs",
        kind="A",
        definition="|mean|^2 - tr S/n of the differences inside pairs",
        source="Chen & Qin 2010",
        pitfalls="In squared units of the state. The noise tr S/n is estimated in the projection.",
        interval=INFLUENCE + ", with the second-order term",
        null=SHUFFLE_PROJECTION,
        floor="0",
        paired=True,
    ),
    replace(
        _AUC,
        name="hotelling",
        title="Hotelling's T^2 of pairs, per pair",
        space="pc10",
        kind="A",
        definition="T^2/n = mean' S^-1 mean of the differences inside pairs",
        source="Hotelling 1931",
        pitfalls="In-sample: averages about k/n without any difference. " + _PCA,
        interval=BOOTSTRAP,
        null=SHUFFLE,
        floor=_NULL_MEAN,
        default=False,
        paired=True,
    ),
)

_IN_COMPONENTS = {m.name.removesuffix("_pc10"): m for m in _BASE if m.components}


def _in_components(metric: Metric, k: int) -> Metric:
    family = metric.name.removesuffix("_pc10")
    alias = metric.alias_of and f"{metric.alias_of}_pc{k}"
    return replace(metric, name=f"{family}_pc{k}", space=f"pc{k}", alias_of=alias)


def _catalogue() -> dict[str, Metric]:
    """Full-width metrics as they are, those in components for 10 and for 2."""
    found = {}
    for metric in _BASE:
        for entry in (
            (_in_components(metric, 10), _in_components(metric, 2))
            if metric.components
            else (metric,)
        ):
            shown = entry.default and (entry.components != 2 or "silhouette" in entry.name)
            found[entry.name] = replace(entry, default=shown)
    return found


METRICS: dict[str, Metric] = _catalogue()
"""Every metric by name. Those in principal components also exist for any other K up to 16."""


def metric(name: str) -> Metric:
    """One metric by name; `FAMILY_pcK` works for every K from 1 to 16.

    Raises:
        ConfigError: there is no such metric.
    """
    if name in METRICS:
        return METRICS[name]
    if match := re.fullmatch(r"(\w+)_pc(\d+)", name):
        family, k = match[1], int(match[2])
        if family in _IN_COMPONENTS and 1 <= k <= COMPONENTS:
            return replace(_in_components(_IN_COMPONENTS[family], k), default=False)
    raise ConfigError(f"metric: no {name!r}; choose from {', '.join((*METRICS, *_notes()))}")


def choose(names: str | Sequence[str] | None) -> tuple[Metric, ...]:
    """Metrics by name; None gives the default ones, `all` every one.

    Raises:
        ConfigError: a name is unknown or given twice.
    """
    if names is None:
        return tuple(m for m in METRICS.values() if m.default)
    if names == "all" or list(names) == ["all"]:
        return tuple(METRICS.values())
    if isinstance(names, str):
        names = names.split(",")
    if len(set(names)) != len(names):
        raise ConfigError(f"metric: {','.join(names)} names one twice; name each once")
    return tuple(metric(name) for name in names)


def _notes() -> dict[str, str]:
    """What is reported beside the metrics, by name."""
    from .between import COLUMNS, GEOMETRY
    from .languages import DEFINITIONS, GROUP_DEFINITION, GROUPS, PARALLEL, PARALLEL_ENDS
    from .separation import CONFOUNDS

    table = "; ".join(f"{name}: {', '.join(langs)}" for name, langs in GROUPS.items())
    groups = f"{GROUP_DEFINITION}. {table} (above or below 1 % of Common Crawl's pages)"
    ends = {name + end: text for name, text in PARALLEL.items() for end in PARALLEL_ENDS}
    named = dict.fromkeys(("groups", "group_value", "group_low", "group_high"), groups)
    return CONFOUNDS | COLUMNS | DEFINITIONS | GEOMETRY | ends | named


def explain(name: str) -> str:
    """What a metric is, in a few lines for the terminal.

    Raises:
        ConfigError: there is no such metric.
    """
    if name in (notes := _notes()):
        return "\n".join(
            textwrap.wrap(f"{name}: {notes[name]}", 100, subsequent_indent=" " * (len(name) + 2))
        )
    m = metric(name)
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
