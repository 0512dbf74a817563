"""The README of the analysis is what the definitions say."""

from safetyspace_fast.analysis.families import METRICS
from safetyspace_fast.analysis.readme import FOLDER, readme


def test_the_readme_is_current():
    written = (FOLDER / "README.md").read_text("utf-8")
    assert written == readme(), (
        "write it again: python -m safetyspace_fast.analysis.readme "
        "> safetyspace_fast/analysis/README.md"
    )


def test_the_readme_has_every_metric_and_every_file():
    text = readme()
    for name, metric in METRICS.items():
        assert f"| `{name.replace(f'_pc{metric.components}', '_pcK')}`" in text
    for path in (*FOLDER.glob("[a-z]*.py"), *FOLDER.glob("families/[a-z]*.py")):
        assert f"| `{path.relative_to(FOLDER).as_posix()}`" in text
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    assert max(map(len, prose)) <= 100
