import pytest
from hypothesis import given
from hypothesis import strategies as st

from safetyspace_fast.errors import ConfigError
from safetyspace_fast.models import ModelSpec, parse_model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models/llama", ModelSpec("llama", "models/llama")),
        ("models/llama/", ModelSpec("llama", "models/llama/")),
        ("a=models/llama", ModelSpec("a", "models/llama")),
        ("org/Model-1.5b", ModelSpec("Model-1.5b", "org/Model-1.5b")),
        ("org/m@v1.0", ModelSpec("m", "org/m", revision="v1.0")),
        ("org/m@refs/pr/3", ModelSpec("m", "org/m", revision="refs/pr/3")),
        ("b=org/m@main+tuned", ModelSpec("b", "org/m", ("tuned",), "main")),
        ("b=base+org/lora@v2", ModelSpec("b", "base", ("org/lora@v2",))),
        ("base+adapters/dpo", ModelSpec("dpo", "base", ("adapters/dpo",))),
        ("base+sft+dpo", ModelSpec("dpo", "base", ("sft", "dpo"))),
        ("a=org/m@v1+org/sft@v2+dpo", ModelSpec("a", "org/m", ("org/sft@v2", "dpo"), "v1")),
        ("dir/small.Q4_1.gguf", ModelSpec("small.Q4_1", "dir/small.Q4_1.gguf")),
        ("dir/ein Modell (neu)", ModelSpec("ein-Modell-neu", "dir/ein Modell (neu)")),
        ("/a/b=c/m", ModelSpec("m", "/a/b=c/m")),
        ("dir/" + "x" * 150, ModelSpec("x" * 100, "dir/" + "x" * 150)),
    ],
)
def test_parses(text, expected):
    assert parse_model(text) == expected


def test_signs_inside_an_existing_path_belong_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("c++", "lr=1", "org@home"):
        (tmp_path / name).mkdir()
    assert parse_model("c++") == ModelSpec("c", "c++")
    assert parse_model("c+++tuned") == ModelSpec("tuned", "c++", ("tuned",))
    assert parse_model("lr=1") == ModelSpec("lr-1", "lr=1")
    assert parse_model("m=org@home") == ModelSpec("m", "org@home")
    assert parse_model(".").name == tmp_path.name.strip("-._")


def test_a_chain_of_paths_with_plus_signs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("c++", "run", "run+1", "lr+2/sft+dpo", "dpo"):
        (tmp_path / name).mkdir(parents=True)
    parts = {
        "c+++run+1+dpo": ("c++", "run+1", "dpo"),
        "run+1+run": ("run+1", "run"),
        "run+run+1": ("run", "run+1"),
        "run+lr+2/sft+dpo+dpo": ("run", "lr+2/sft+dpo", "dpo"),
        "c+++lr+2/sft+dpo": ("c++", "lr+2/sft+dpo"),
        "org/base+lr+2/sft+dpo": ("org/base", "lr+2/sft+dpo"),
        "run+absent+dpo": ("run", "absent", "dpo"),
    }
    for text, (base, *adapters) in parts.items():
        spec = parse_model(text)
        assert (spec.base, spec.adapters) == (base, tuple(adapters)), text


@given(parts=st.lists(st.from_regex(r"[a-z./~ ]{1,12}", fullmatch=True), min_size=1, max_size=6))
def test_a_chain_of_what_is_nowhere_is_cut_at_every_sign(parts):
    parts = [f"nowhere-{part}" for part in parts]
    spec = parse_model("m=" + "+".join(parts))
    assert [spec.base, *spec.adapters] == parts


def test_one_adapter_as_a_string_is_refused():
    with pytest.raises(ConfigError, match="expected a tuple of adapters, got 'lora'"):
        ModelSpec("m", "base", "lora")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a=",
        "=models/llama",
        "a=base+",
        "..=models/llama",
        ".hidden=models/llama",
        "-rf=models/llama",
        "a b=models/llama",
        "a\\b=models/llama",
        "naïve=models/llama",
        "zarr.json=models/llama",
        "zarr.json5=models/llama",
        ".=models/llama",
        "a.=models/llama",
        "NUL=models/llama",
        "con.txt=models/llama",
        "e\u0301=models/llama",
        "\ud800=models/llama",
        "~nobody=models/llama",
        "a\n=models/llama",
        "x" * 101 + "=models/llama",
        "dir/模型",
    ],
)
def test_refuses_in_one_line(text):
    with pytest.raises(ConfigError) as caught:
        parse_model(text)
    assert str(caught.value).isprintable()
    assert "expected" in str(caught.value)


def test_a_path_of_any_length_is_read():
    assert parse_model("m=" + "x" * 5000).base == "x" * 5000
