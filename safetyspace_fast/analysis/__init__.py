"""How far apart the classes are, from a store alone: metrics, intervals, p values, comparisons.

    separation, compare, directions, parallel, power, transfer   the questions that users ask
    curve            what fewer texts would have given
    sensitivity      whether an answer depends on the choice of metric, layer and pooling
      selection      names of models, layers, poolings and languages
      cells          states of one language, some layers at a time
      families       one file a family: definition, formula and estimator of each metric
      estimate       floor, interval and p of a number, with `resamples`, `moments`,
                     `uncertainty`, `intervals` and `significance`
      confounds, geometry, groups                  what is reported beside the metrics
      settings, rounding                           whether two models can be compared, and differ
    tables, rows     the resulting dataset for people (with study_tables, columns) and machines
    glossary         every word that is printed, and `explain`

README.md in this folder lists all metrics, and how to add one.
"""

from .compare import compare
from .curve import curve
from .glossary import explain
from .languages import directions, parallel
from .power import power
from .sensitivity import sensitivity
from .separation import separation
from .transfer import transfer

__all__ = [
    "compare",
    "curve",
    "directions",
    "explain",
    "parallel",
    "power",
    "sensitivity",
    "separation",
    "transfer",
]
