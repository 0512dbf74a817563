"""Models in whose components the states of a model are expressed too: of its store or another."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import RunConfig, names_of
from ..errors import ConfigError, StoreError
from ..extract.finish import Basis
from ..extract.prepare import Prepared
from ..store import Place, Run
from .output import RunOutput


def bases_in_store(place: Place, work: Prepared) -> list[str]:
    """The finished models in whose components the states of a new one are expressed too.

    They have the same layers, poolings and hidden size, and were not run by an earlier version.
    """
    run = Run(str(place))
    return [
        name
        for name in run.models
        if (other := run.model(name)).has("fold_mean")
        and tuple(other.hookpoints) == tuple(work.hookpoints)
        and tuple(other.poolings) == tuple(work.tokens.poolings)
        and other.read("fold_mean", layer=0, pooling=0, lang=0).shape[-1] == len(work.projection)
    ]


@dataclass(frozen=True)
class Foreign:
    """A finished model of another store, in whose components states are expressed too."""

    run: Run
    model: str

    def read(self, lang: str) -> Basis:
        """What a language is in it."""
        return Basis.read(self.run, self.model, lang, foreign=True)

    def check(self, work: Prepared, languages: Sequence[str]) -> list[str]:
        """Say which languages it does not have.

        Raises:
            ConfigError: it has other layers, poolings or hidden size, or no directions.
        """
        store, where = self.run.model(self.model), f"basis {self.run.place}:{self.model}"
        if not store.has("fold_mean"):
            raise ConfigError(f"{where}: an earlier version ran it; run it again")
        width = store.read("fold_mean", layer=0, pooling=0, lang=0).shape[-1]
        for what, own, other in (
            ("layers", work.hookpoints, store.hookpoints),
            ("poolings", work.tokens.poolings, store.poolings),
            ("hidden size", (len(work.projection),), (width,)),
        ):
            if tuple(own) != tuple(other):
                has, runs = (", ".join(map(str, names)) for names in (other, own))
                raise ConfigError(f"{where}: has {what} {has}, but this run {runs}; give the same")
        missing = [lang for lang in languages if lang not in self.run.languages]
        return [f"{where}: has no texts in {', '.join(missing)}"] if missing else []


def foreign_bases(name: str, config: RunConfig) -> dict[str, Foreign]:
    """The models of `--basis` for a model of this name, by identity.

    Raises:
        StoreError: there is no such store or model.
    """
    foreign = {}
    for text in names_of("basis", config.basis, single=True):
        path, colon, model = text.rpartition(":")
        if not colon or "/" in model or not model or Path(text).exists():
            path, model = text, name
        run = Run(path)
        foreign[run.model(model).identity] = Foreign(run, model)
    return foreign


def refuse_other_bases(
    output: RunOutput, name: str, begun: Sequence[str], foreign: Collection[str]
) -> None:
    """Raise StoreError if a model was begun with other models of other stores as bases."""
    before = {basis for basis in begun if "@" in basis}
    if before != set(foreign):
        raise StoreError(
            f"{output.place}: model {name!r} was begun with basis {', '.join(before) or 'none'}, "
            f"now it is {', '.join(foreign) or 'none'}; give the same --basis, or --overwrite"
        )
