"""What a store holds, computed from plain vectors in float64 NumPy: an oracle and a stand-in.

Nothing here uses the package, so that a mistake there cannot hide here.
"""

from dataclasses import dataclass

import numpy as np
from mmd_truth import gaussian, mmd

FOLDS = 10
COMPONENTS = 16


@dataclass(frozen=True)
class Columns:
    lang_index: np.ndarray
    label: np.ndarray
    pair: np.ndarray
    fold: np.ndarray
    item: np.ndarray
    text_sha256: np.ndarray
    n_chars: np.ndarray
    cluster: np.ndarray | None = None
    lexical_score: np.ndarray | None = None


class StandInModel:
    hookpoints: tuple[str, ...]
    poolings: tuple[str, ...]

    def __init__(self, arrays, dims, hookpoints, poolings, name=""):
        self.name = name
        self._arrays, self._dims = arrays, dims
        self.hookpoints, self.poolings = hookpoints, poolings
        self.seed = 0
        self.manifest = {"dtype": "float32", "template_sha256": "0" * 64, "max_tokens": None}
        self.attrs = {"device": "cpu", "bases": []}

    def express(self, states, other, samples):
        """Add what the store holds of `states` {lang number: [layer, pooling, n, D]} as seen from
        `other`, a model of the same width."""
        shape = self._arrays["pca_coords"].shape[:3]
        coords, score = np.full((*shape, 1, COMPONENTS), np.nan), np.full((*shape, 1), np.nan)
        for i, x in states.items():
            mine = samples.lang_index == i
            fold = samples.fold[mine]
            for at in np.ndindex(shape[:2]):
                z = x[at] - np.nanmean(x[at], 0)
                coords[(*at, mine, 0)] = z @ other._arrays["pca_components"][(*at, i)].T
                mean, count = (
                    np.nan_to_num(other._arrays[n][(*at, i)]) for n in ("fold_mean", "count")
                )
                for f in np.unique(fold):
                    rest = np.arange(FOLDS) != f
                    with np.errstate(all="ignore"):
                        m0, m1 = (
                            count[c, rest] @ mean[c, rest] / count[c, rest].sum() for c in (0, 1)
                        )
                    score[(*at, np.flatnonzero(mine)[fold == f], 0)] = z[fold == f] @ (m1 - m0)
        self._arrays |= {"basis_coords": coords, "basis_score": score}
        self._dims |= {
            "basis_coords": ("layer", "pooling", "sample", "a", "b"),
            "basis_score": ("layer", "pooling", "sample", "a"),
        }
        self.attrs["bases"] = [other.name]

    @property
    def identity(self):
        return f"{self.name}@{id(self)}"

    def has(self, name):
        return name in self._arrays

    def kernel_nulls(self, states, samples):
        """Prepare MMD^2 of a thousand labellings of `states` {lang number: [layer, pooling, n, D]},
        which is only computed where it is read."""
        shape = (*self._arrays["kernel_slope"].shape, 1001)

        def compute():
            null = np.full(shape, np.nan)
            for i, x in states.items():
                for at in np.ndindex(shape[:2]):
                    null[(*at, i)] = kernel_null(x[at], samples, samples.lang_index == i)
            return null

        self._arrays["kernel_null"] = compute
        self._dims["kernel_null"] = ("layer", "pooling", "lang", "labelling")

    def add(self, name, array, dims):
        self._arrays[name], self._dims[name] = array, dims

    def remove(self, name):
        """As in a store of an earlier version."""
        del self._arrays[name]

    def read(
        self, name, *, layer=slice(None), pooling=slice(None), samples=slice(None), lang=slice(None)
    ):
        chosen = {"layer": layer, "pooling": pooling, "sample": samples, "lang": lang}
        index = tuple(chosen.get(dim, slice(None)) for dim in self._dims[name])
        if callable(self._arrays[name]):
            self._arrays[name] = self._arrays[name]()
        return self._arrays[name][index]


class StandInRun:
    """Enough of a store's `Run` for `separation`."""

    def __init__(self, languages, samples, models):
        self.languages, self.samples, self._models = tuple(languages), samples, models
        self.place = "store"
        self.models = tuple(models)

    def lang_range(self, lang):
        i = self.languages.index(lang)
        a, b = np.searchsorted(self.samples.lang_index, [i, i + 1])
        return slice(int(a), int(b))

    def model(self, name):
        return self._models[name]


def folds_of(label, pair, seed=0, text=None):
    """Ten folds; both texts of a pair and equal texts share one; each class is spread evenly."""
    rng = np.random.default_rng(seed)
    fold = np.empty(len(label), np.int8)
    for c in (0, 1):
        alone = np.flatnonzero((label == c) & (pair < 0))
        fold[alone] = rng.permutation(len(alone)) % FOLDS
    numbers = np.unique(pair[pair >= 0])
    of_pair = dict(zip(numbers, rng.permutation(len(numbers)) % FOLDS, strict=True))
    for i in np.flatnonzero(pair >= 0):
        fold[i] = of_pair[pair[i]]
    if text is not None:
        fold = fold[np.unique(text, return_index=True)[1]][np.unique(text, return_inverse=True)[1]]
    return fold


def language_arrays(x, label, fold, projection, evidence=None, tokens=None, equal=None):
    """Every stored array of one layer, pooling and language from its vectors x [n, D]."""
    n, _ = x.shape
    ok = np.isfinite(x).all(1)
    row = {
        "projected": np.full((n, projection.shape[1]), np.nan, np.float32),
        "pca_coords": np.full((n, COMPONENTS), np.nan, np.float32),
        "pair_sum": np.full((n, 2), np.nan),
        "pair_min": np.full((n, 2), np.nan, np.float32),
        "pair_max": np.full((n, 2), np.nan, np.float32),
        "nearest": np.full(n, -1, np.int32),
        "cos_sum": np.full((n, 2), np.nan),
        "class_sqdist": np.full((n, 2), np.nan),
        "heldout_score": np.full(n, np.nan, np.float32),
        "standard_sqdist": np.full((n, 2), np.nan),
        "standard_score": np.full(n, np.nan, np.float32),
    }
    z, y, f = x[ok], label[ok], fold[ok]
    row["projected"][ok] = (z @ projection).astype(np.float32)
    centred = z - z.mean(0)
    left, singular, axes = np.linalg.svd(centred, full_matrices=False)
    k = min(COMPONENTS, len(singular))
    coords = np.full((len(z), COMPONENTS), np.nan)
    coords[:, :k] = left[:, :k] * singular[:k]
    row["pca_coords"][ok] = coords.astype(np.float32)
    explained = np.full(COMPONENTS, np.nan)
    explained[:k] = singular[:k] ** 2 / (len(z) - 1)

    square = (centred**2).sum(1)
    distance = np.sqrt(np.maximum(square[:, None] + square - 2 * centred @ centred.T, 0))
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    unit = np.divide(z, norm, out=np.zeros_like(z), where=norm > 0)
    cosine = 1 - unit @ unit.T
    np.fill_diagonal(distance, 0)
    np.fill_diagonal(cosine, 0)
    off = distance + np.diag(np.full(len(z), np.nan))
    for c in (0, 1):
        mine = y == c
        row["pair_sum"][ok, c] = distance[:, mine].sum(1)
        row["cos_sum"][ok, c] = cosine[:, mine].sum(1)
        with np.errstate(all="ignore"):
            some = np.nan_to_num(off[:, mine], nan=np.inf).min(1, initial=np.inf)
            row["pair_min"][ok, c] = some
            row["pair_max"][ok, c] = np.nan_to_num(off[:, mine], nan=-1).max(1, initial=-1)
    equal = (np.eye(n, dtype=bool) if equal is None else equal)[np.ix_(ok, ok)]
    if len(z) > 1:
        row["nearest"][ok] = np.flatnonzero(ok)[np.where(equal, np.inf, distance).argmin(1)]
    kernel, slopes = gaussian(z, equal)
    row["kernel_sum"] = np.full((n, 2), np.nan)
    row["kernel_sum"][ok] = np.stack([kernel[:, y == c].sum(1) for c in (0, 1)], 1)
    mean = np.full((2, x.shape[1]), np.nan)
    var = np.full((2, x.shape[1]), np.nan)
    for c in (0, 1):
        if (y == c).any():
            mean[c] = z[y == c].mean(0)
            row["class_sqdist"][ok, c] = ((z - mean[c]) ** 2).sum(1)
        if (y == c).sum() > 1:
            var[c] = z[y == c].var(0, ddof=1)
    row["heldout_score"][ok] = held_out_scores(z, y, f)
    scale = np.full(x.shape[1], np.nan)
    noise = np.full(2, np.nan)
    if min((y == 0).sum(), (y == 1).sum()) > 1:
        scale = 1.4826 * np.median(np.abs(z - np.median(z, 0)), 0)
        scale = np.maximum(scale, z.std(0, ddof=1) / 10)
        scale[scale <= 1e-6 * np.abs(z).max(0)] = np.inf
        thin = (z - z.mean(0)) / scale
        for c in (0, 1):
            row["standard_sqdist"][ok, c] = ((thin - thin[y == c].mean(0)) ** 2).sum(1)
        row["standard_score"][ok] = held_out_scores(thin, y, f)
        of = np.arange(len(z))
        if evidence is not None:
            of = np.unique(evidence[ok], return_inverse=True)[1]
        noise = np.array([noise_of_shift(values, y, of) for values in (z, thin)])
    tokens = np.full(n, 7) if tokens is None else tokens
    same, bridged = at_equal_length(z, y, f, tokens[ok], evidence, ok)
    for name, values in same.items():
        row[name] = np.full((n, *values.shape[1:]), np.nan, values.dtype)
        row[name][ok] = values
    fold_mean = np.full((2, FOLDS, x.shape[1]), np.nan)
    for c, number in np.ndindex(2, FOLDS):
        if ((y == c) & (f == number)).any():
            fold_mean[c, number] = z[(y == c) & (f == number)].mean(0) - z.mean(0)
    count = np.array([np.bincount(f[y == c], minlength=FOLDS) for c in (0, 1)])
    cell = {
        "class_mean": mean,
        "class_var": var,
        "scale": scale,
        "noise": noise,
        "kernel_slope": np.array(mmd(slopes, (y == 1).astype(float), equal)),
        "equal_length_noise": bridged[0],
        "equal_length_noise_sq": bridged[1],
        "fold_mean": fold_mean,
        "pca_components": np.pad(axes[:k], ((0, COMPONENTS - k), (0, 0))),
        "count": count,
    }
    return row, {"pca_explained": explained}, cell


def copies_of(samples, mine):
    """[n, n] bool, whether two texts are equal and have one label."""
    number = samples.text_sha256[mine].astype(np.int64) @ 256 ** np.arange(4)
    both = 2 * number + samples.label[mine]
    return both[:, None] == both


def kernel_null(x, samples, mine, labellings=1000):
    """MMD^2 of the labels, and of labels that units exchange, or the texts of a pair."""
    ok = np.isfinite(x).all(1)
    pair, y, of = samples.pair[mine], samples.label[mine].astype(float), units_of(samples, mine)
    with_partner = np.array([p >= 0 and ok[pair == p].sum() == 2 for p in pair])
    if with_partner.mean() >= 0.9:
        ok &= with_partner
    y, of, pair = y[ok], np.unique(of[ok], return_inverse=True)[1], pair[ok]
    same = copies_of(samples, mine)[np.ix_(ok, ok)]
    kernel, _ = gaussian(x[ok], same)
    rng = np.random.default_rng(1)
    first = np.unique(of, return_index=True)[1]
    drawn = [y]
    for _ in range(labellings):
        if with_partner.mean() >= 0.9:
            drawn.append(np.abs(y - rng.integers(0, 2, of.max() + 1)[of]))
        else:
            drawn.append(rng.permutation(y[first])[of])
    return np.array([mmd(kernel, labels, same) for labels in drawn])


def held_out_scores(z, y, fold):
    score = np.full(len(z), np.nan)
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        if all((train & (y == c)).any() for c in (0, 1)):
            m0, m1 = (z[train & (y == c)].mean(0) for c in (0, 1))
            gap = m1 - m0
            with np.errstate(all="ignore"):
                score[test] = (z[test] - (m0 + m1) / 2) @ gap / np.linalg.norm(gap)
    return score


def at_equal_length(z, y, fold, tokens, evidence, ok):
    """What the store holds of the states less their regression on length, and [tr V, tr V^2]."""
    of = np.arange(len(z)) if evidence is None else np.unique(evidence[ok], return_inverse=True)[1]
    if min((y == 0).sum(), (y == 1).sum()) < 4:
        nothing = {"equal_length_sqdist": np.full((len(z), 2), np.nan)}
        nothing["equal_length_score"] = np.full(len(z), np.nan, np.float32)
        return nothing, np.full(2, np.nan)
    design = np.c_[y == 0, y == 1, np.log(tokens), 1 / tokens].astype(float)
    length = np.c_[np.log(tokens), 1 / tokens] * (np.ptp(tokens) > 0)
    design[:, 2:] = length

    def slopes(texts):
        return np.linalg.lstsq(design[texts], z[texts], rcond=1e-9)[0][2:]

    left = z - length @ slopes(np.full(len(z), True))
    sqdist = np.stack([((left - left[y == c].mean(0)) ** 2).sum(1) for c in (0, 1)], 1)
    score = np.full(len(z), np.nan)
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        if all((train & (y == c)).any() for c in (0, 1)):
            x = z - length @ slopes(train)
            m0, m1 = (x[train & (y == c)].mean(0) for c in (0, 1))
            with np.errstate(all="ignore"):
                score[test] = (x[test] - (m0 + m1) / 2) @ (m1 - m0) / np.linalg.norm(m1 - m0)
    solve = np.linalg.pinv(design)
    taken = np.diag(design @ solve).copy()
    for c in (0, 1):
        size = np.bincount(of[y == c])
        taken[y == c] += (size**2).sum() / size.sum() ** 2 - 1 / (y == c).sum()
    rest = z - design @ (solve @ z)
    part = ((solve[1] - solve[0]) / np.sqrt(np.maximum(1 - taken, 1e-9)))[:, None] * rest
    sums = np.zeros((of.max() + 1, z.shape[1]))
    np.add.at(sums, of, part)
    own, gram = (sums**2).sum(1), sums @ sums.T if len(sums) < z.shape[1] else sums.T @ sums
    noise = np.array([own.sum(), max(0.0, (gram**2).sum() - (own**2).sum())])
    found = {"equal_length_sqdist": sqdist, "equal_length_score": score.astype(np.float32)}
    return found, noise


def noise_of_shift(z, y, unit):
    """tr V^2 of the covariance V of the mean shift, over pairs of distinct units."""
    sums = np.zeros((unit.max() + 1, z.shape[1]))
    for c, sign in ((0, -1), (1, 1)):
        mine = y == c
        np.add.at(sums, unit[mine], sign * (z[mine] - z[mine].mean(0)) / mine.sum())
    return max(0.0, ((sums.T @ sums) ** 2).sum() - ((sums**2).sum(1) ** 2).sum())


def units_of(samples, mine):
    """Texts of a pair or cluster, and equal texts of one label, share a number, over any steps."""
    pair, label = samples.pair[mine], samples.label[mine]
    digest = [bytes(row) for row in samples.text_sha256[mine]]
    unit = np.arange(len(pair))
    groups = {}
    for i in range(len(pair)):
        groups.setdefault(("text", digest[i], label[i]), []).append(i)
        if samples.cluster is not None:
            groups.setdefault(("cluster", samples.cluster[mine][i]), []).append(i)
        if pair[i] >= 0 and (pair == pair[i]).sum() == 2:
            groups.setdefault(("pair", pair[i]), []).append(i)
    while True:
        before = unit.copy()
        for members in groups.values():
            unit[members] = unit[members].min()
        if (unit == before).all():
            return np.unique(unit, return_inverse=True)[1]


def stand_in(
    states,
    label,
    *,
    pair=None,
    proj=64,
    seed=0,
    fold=None,
    item=None,
    text=None,
    tokens=None,
    cluster=None,
):
    """A store of models: states {model: {lang: [layer, pooling, n, D]}}, label {lang: [n]}.

    Texts are all different, or those with the same number of `text` {lang: [n]} are equal. They
    have seven tokens each, or as many as `tokens` {lang: [n]} says. Lexical scores are noise.
    Texts of one cluster share a number of `cluster` {lang: [n]}, and a fold if `fold` says so.
    """
    languages = list(label)
    pair = pair or {}
    columns = {"lang_index": [], "label": [], "pair": [], "fold": [], "item": []}
    for i, lang in enumerate(languages):
        y = np.asarray(label[lang], np.int8)
        p = np.asarray(pair.get(lang, np.full(len(y), -1)), np.int32)
        columns["lang_index"].append(np.full(len(y), i, np.int16))
        columns["label"].append(y)
        columns["pair"].append(p)
        columns["item"].append(np.full(len(y), -1) if item is None else np.asarray(item[lang]))
        equal = None if text is None else text[lang]
        columns["fold"].append(folds_of(y, p, text=equal) if fold is None else fold[lang])
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    number = np.arange(len(whole["label"]))
    if text is not None:
        number = np.concatenate([text[lang] for lang in languages])
    digests = number.astype(np.uint32)[:, None].view(np.uint8)
    n_tokens = np.full(len(number), 7, np.int32)
    if tokens is not None:
        n_tokens = np.concatenate([tokens[lang] for lang in languages]).astype(np.int32)
    lexical = np.random.default_rng(seed).standard_normal(int(number.max()) + 1)[number]
    samples = Columns(
        **whole,
        text_sha256=digests,
        n_chars=np.full(len(digests), 21),
        lexical_score=lexical.astype(np.float32),
        cluster=None if cluster is None else np.concatenate([cluster[x] for x in languages]),
    )
    models = {}
    for name, by_lang in states.items():
        n_layers, n_pool, _, hidden = next(iter(by_lang.values())).shape
        rng = np.random.default_rng(seed)
        projection = rng.standard_normal((hidden, proj)) / np.sqrt(proj)
        arrays, dims = {}, {}
        for i_layer in range(n_layers):
            for i_pool in range(n_pool):
                for i_lang, lang in enumerate(languages):
                    mine = samples.lang_index == i_lang
                    copy = copies_of(samples, mine)
                    row, whole, cell = language_arrays(
                        np.asarray(by_lang[lang][i_layer, i_pool], np.float64),
                        samples.label[mine],
                        samples.fold[mine],
                        projection,
                        units_of(samples, mine),
                        n_tokens[mine],
                        copy,
                    )
                    for key, value in row.items():
                        shape = (n_layers, n_pool, len(mine), *value.shape[1:])
                        unknown = np.nan if value.dtype.kind == "f" else -1
                        arrays.setdefault(key, np.full(shape, unknown, value.dtype))
                        arrays[key][i_layer, i_pool, mine] = value
                        dims[key] = ("layer", "pooling", "sample", "rest")[: value.ndim + 2]
                    for key, value in (whole | cell).items():
                        shape = (n_layers, n_pool, len(languages), *value.shape)
                        arrays.setdefault(key, np.full(shape, np.nan))
                        arrays[key][i_layer, i_pool, i_lang] = value
                        dims[key] = ("layer", "pooling", "lang", "a", "b", "c")[: value.ndim + 3]
        arrays["n_tokens"] = n_tokens.copy()
        arrays["truncated"] = np.zeros(len(samples.label), bool)
        dims["n_tokens"] = dims["truncated"] = ("sample",)
        hookpoints = ("embed", *(f"block.{i}" for i in range(n_layers - 1)))
        poolings = ("mean", "last")[:n_pool]
        models[name] = StandInModel(arrays, dims, hookpoints, poolings, name)
        vectors = {i: np.asarray(by_lang[x], np.float64) for i, x in enumerate(languages)}
        models[name].kernel_nulls(vectors, samples)
        first = models[next(iter(models))]
        if first.name != name and first._arrays["class_mean"].shape[-1] == hidden:
            models[name].express(
                {i: by_lang[lang] for i, lang in enumerate(languages)}, first, samples
            )
    return StandInRun(languages, samples, models)


def planted(n=400, width=32, shift=1.0, *, layers=1, poolings=1, seed=0, spread=None):
    """Two Gaussian classes `shift` apart along every dimension over sqrt(width)."""
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1], n // 2)
    x = rng.standard_normal((layers, poolings, n, width))
    if spread is not None:
        x = x * spread
    x = x + shift / np.sqrt(width) * label[:, None]
    return x, label


def toy_pairs(pairs=400, width=256, *, content=3.0, noise=0.3, shift=0.25, moved=5, seed=0):
    """Pairs that share their content; only `moved` dimensions tell the classes apart."""
    rng = np.random.default_rng(seed)
    topic = content * rng.standard_normal((pairs, width))
    x = np.repeat(topic, 2, axis=0) + noise * rng.standard_normal((2 * pairs, width))
    label = np.tile([0, 1], pairs)
    x[label == 1, :moved] += shift
    return x[None, None], label, np.repeat(np.arange(pairs), 2)
