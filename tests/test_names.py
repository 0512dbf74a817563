"""Which language a name means, and what an error offers for a name that is not known."""

import pytest

from safetyspace_fast.names import languages_meant, nearest, primary_language


@pytest.mark.parametrize(
    ("name", "primary"),
    [
        ("en", "en"),
        ("EN", "en"),
        ("zh-CN", "zh"),
        ("zho_Hans", "zh"),
        ("cmn", "zh"),
        ("chi", "zh"),
        ("pt-BR", "pt"),
        ("eng_Latn", "en"),
        ("arb_Arab", "ar"),
        ("yue", "yue"),
        ("nob", "nb"),
    ],
)
def test_primary_language(name: str, primary: str) -> None:
    assert primary_language(name) == primary


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("en", ["en", "en-US"], ["en"]),
        ("en", ["en-US", "en-GB", "de"], ["en-US", "en-GB"]),
        ("en_us", ["en-US", "en"], ["en-US"]),
        ("en-US", ["en-GB", "en"], []),
        ("zh", ["zho_Hans", "zho_Hant"], ["zho_Hans", "zho_Hant"]),
        ("zh-Hans", ["zho_Hans", "zho_Hant"], ["zho_Hans"]),
        ("eng_Latn", ["en", "de"], ["en"]),
        ("fr", ["en", "de"], []),
    ],
)
def test_languages_meant(name: str, known: list[str], meant: list[str]) -> None:
    assert languages_meant(name, known) == meant


def test_the_nearest_name_is_offered() -> None:
    assert nearest("silouette", ["silhouette", "rho"]) == "; did you mean 'silhouette'?"
    assert nearest("Block.3", ["block.3", "embed"]) == "; did you mean 'block.3'?"
    assert nearest("zzz", ["silhouette", "rho"]) == ""
