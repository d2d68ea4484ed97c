"""Recipe files: the shipped ones load, a dump loads back, a broken one is told its faults."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fastsft import recipe_file
from fastsft.errors import RecipeError
from fastsft.recipe import Recipe

MODEL = "model: {base: tiny:qwen2.5, family: qwen2.5}\n"
TRAIN = "train: {steps: 2}\n"
GOOD = MODEL + TRAIN
SHIPPED = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
NAMES = [path.stem for path in SHIPPED]


def lr(value: str) -> str:
    return f"{MODEL}train: {{steps: 2, learning_rate: {value}}}\n"


def train(keys: str) -> str:
    return f"{MODEL}train: {{{keys}}}\n"


def packing(value: str) -> str:
    return train(f"steps: 2, packing: {value}")


def load(folder: Path, text: str | bytes, overrides: Sequence[str] = ()) -> Recipe:
    path = folder / "mine.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return recipe_file.load(str(path), overrides)


def refused(folder: Path, text: str | bytes, overrides: Sequence[str] = ()) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load(folder, text, overrides)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


# The shipped recipes


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_loads_and_comes_back_from_its_dump(name: str, tmp_path: Path):
    shipped = recipe_file.load(name)

    again = load(tmp_path, recipe_file.dump(shipped))

    assert again == shipped
    assert recipe_file.digest(again) == recipe_file.digest(shipped)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_says_what_it_is_for(name: str):
    shipped = recipe_file.load(name)
    sentences = shipped.description.count(". ") + 1
    is_tiny = shipped.model.base.startswith("tiny:")

    assert shipped.description.endswith(".")
    assert sentences <= 4
    assert name.startswith("tiny-") == is_tiny
    assert (shipped.model.min_vram_gib > 0) != is_tiny
    assert ("estimate" in shipped.description or name == "mistral-small-24b") != is_tiny


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_named_after_its_base(name: str):
    shipped = recipe_file.load(name)
    words = set(name.split("-")) - {"12b"}  # Nemo's name has no size

    assert all(word in shipped.model.base.lower() for word in words)
    assert name.removeprefix("tiny-").startswith(shipped.model.family)
    assert shipped.data.path is None


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("llama")])
def test_llama_recipes_pin_the_date_that_their_template_writes(name: str):
    assert recipe_file.load(name).data.date == "26 Jul 2024"


def test_the_descriptions_differ():
    descriptions = {recipe_file.load(name).description for name in NAMES}

    assert len(descriptions) == len(NAMES) == len(recipe_file.shipped_names()) > 0


# Names and paths


def test_a_near_name_is_suggested():
    with pytest.raises(RecipeError) as caught:
        recipe_file.load("qwen2.5-7")

    assert str(caught.value) == (
        "qwen2.5-7: no such recipe; did you mean qwen2.5-7b?\n"
        "  hint: `fastsft recipes` lists the shipped ones"
    )


def test_a_name_like_no_other_gets_no_guess():
    with pytest.raises(RecipeError) as caught:
        recipe_file.load("zzz")

    assert caught.value.what == "no such recipe"


def test_a_folder_is_no_recipe(tmp_path: Path):
    with pytest.raises(RecipeError) as caught:
        recipe_file.load(str(tmp_path))

    assert caught.value.what == "is a folder, not a recipe file"


def test_a_missing_file_is_told(tmp_path: Path):
    with pytest.raises(RecipeError) as caught:
        recipe_file.load(str(tmp_path / "none.yaml"))

    assert caught.value.what == "no such file"


def test_a_folder_does_not_hide_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen2.5-7b").mkdir()

    assert recipe_file.load("qwen2.5-7b").model.base == "Qwen/Qwen2.5-7B-Instruct"


# Broken files: each with the whole text of its fault


FILES: list[tuple[str, str | bytes, str]] = [
    ("empty", "", "not a mapping of keys to values"),
    ("comment only", "# nothing\n", "not a mapping of keys to values"),
    ("a list", "- model\n- train\n", "not a mapping of keys to values"),
    ("a scalar", "hello\n", "not a mapping of keys to values"),
    (
        "tab",
        "model:\n\tbase: x\n",
        "not YAML: line 2: found character '\\t' that cannot start any token",
    ),
    ("open quote", "description: 'a\n", "not YAML: line 2: found unexpected end of stream"),
    ("two documents", f"{GOOD}---\n{GOOD}", "not YAML: line 3: but found another document"),
    ("key twice", f"{GOOD}{MODEL}", 'line 3: found duplicate key "model"'),
    (
        "nested key twice",
        f"{TRAIN}model:\n  base: a\n  base: b\n",
        'line 4: found duplicate key "base"',
    ),
    ("alias", "model: &m {base: a}\ndata: *m\n", "YAML aliases (*name) are refused"),
    ("merge", "a: &m {steps: 2}\ntrain:\n  <<: *m\n", "YAML aliases (*name) are refused"),
    ("tag", f"description: !!binary aGk=\n{GOOD}", "YAML tags (!name) are refused"),
    (
        "python tag",
        f"description: !!python/object/apply:os.system [ls]\n{GOOD}",
        "YAML tags (!name) are refused",
    ),
    ("YAML 1.1", f"%YAML 1.1\n---\n{GOOD}", "YAML directives (%) are refused"),
    ("not UTF-8", b"description: \xff\n", "not UTF-8 text"),
    ("UTF-16", GOOD.encode("utf-16"), "not UTF-8 text"),
    ("too large", GOOD + "#" + "x" * 262_144, "262208 bytes"),
    ("deep", "a: " + "[" * 2000 + "]" * 2000, "nested too deep"),
    ("deep in a recipe", f"{GOOD}data: {'{path: ' * 9}1{'}' * 9}", "nested too deep"),
    (
        "list as a key",
        f"? [a, b]\n: 1\n{GOOD}",
        "keys must be str, int, float, bool or None, not tuple",
    ),
    (
        "half a character",
        f'description: "\\ud800"\n{GOOD}',
        "'utf-8' codec can't encode character '\\ud800' in position 17: surrogates not allowed",
    ),
]
VALUES: list[tuple[str, str, str]] = [
    ("unknown at the top", f"{GOOD}modle: 1\n", "modle: unknown key; did you mean model?"),
    (
        "unknown in model",
        f"model: {{base: a, family: llama, quantisation: nf4}}\n{TRAIN}",
        "model.quantisation: unknown key; did you mean model.quantization?",
    ),
    (
        "unknown in data",
        f"{GOOD}data: {{max_token: 9}}\n",
        "data.max_token: unknown key; did you mean data.max_tokens?",
    ),
    (
        "unknown in lora",
        f"{GOOD}lora: {{target: [q_proj]}}\n",
        "lora.target: unknown key; did you mean lora.targets?",
    ),
    (
        "unknown in train",
        train("steps: 2, learning_rat: 1e-4"),
        "train.learning_rat: unknown key; did you mean train.learning_rate?",
    ),
    (
        "unknown in eval",
        f"{GOOD}eval: {{shares: 0.1}}\n",
        "eval.shares: unknown key; did you mean eval.share?",
    ),
    (
        "unknown in export",
        f"{GOOD}export: {{max_shards_gib: 1}}\n",
        "export.max_shards_gib: unknown key; did you mean export.max_shard_gib?",
    ),
    (
        "in the wrong section",
        f"{GOOD}lora: {{learning_rate: 1e-4}}\n",
        "lora.learning_rate: unknown key; did you mean train.learning_rate?",
    ),
    (
        "without its section",
        f"{GOOD}rank: 8\n",
        "rank: unknown key; did you mean lora.rank?",
    ),
    ("like nothing", f"{GOOD}'###': 1\n", "###: unknown key"),
    ("number as a key", f"{GOOD}1: 2\n", "1: unknown key"),
    (
        "trust_remote_code",
        f"model: {{base: a, family: llama, trust_remote_code: true}}\n{TRAIN}",
        "model.trust_remote_code: unknown key",
    ),
    ("no model", TRAIN, "model: missing"),
    ("no train", MODEL, "train: missing"),
    ("no base", f"model: {{family: llama}}\n{TRAIN}", "model.base: missing"),
    ("no family", f"model: {{base: a}}\n{TRAIN}", "model.family: missing"),
    (
        "empty base",
        f"model: {{base: '', family: llama}}\n{TRAIN}",
        'model.base: string should have at least 1 character, not ""',
    ),
    (
        "wrong family",
        f"model: {{base: a, family: gemma}}\n{TRAIN}",
        "model.family: should be 'qwen2.5', 'llama' or 'mistral', not \"gemma\"",
    ),
    (
        "wrong engine",
        f"{GOOD}engine: axolotl\n",
        "engine: should be 'unsloth' or 'reference', not \"axolotl\"",
    ),
    ("wrong method", f"{GOOD}method: dpo\n", "method: should be 'sft' or 'pretrain', not \"dpo\""),
    (
        "wrong layer",
        f"{GOOD}lora: {{targets: [q_proj, lm_head]}}\n",
        "lora.targets.1: should be 'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', "
        "'up_proj' or 'down_proj', not \"lm_head\"",
    ),
    (
        "no layer",
        f"{GOOD}lora: {{targets: []}}\n",
        "lora.targets: tuple should have at least 1 item, not []",
    ),
    (
        "layer alone",
        f"{GOOD}lora: {{targets: q_proj}}\n",
        'lora.targets: should be a valid array, not "q_proj"',
    ),
    ("section is null", f"{GOOD}data:\n", "data: should be an object, not null"),
    ("section is a list", f"{MODEL}train: [1]\n", "train: should be an object, not [1]"),
    (
        "text is a list",
        f"{GOOD}data: {{system: [be kind]}}\n",
        'data.system: should be a valid string, not ["be kind"]',
    ),
    (
        "text is a number",
        f"model: {{base: 7, family: llama}}\n{TRAIN}",
        "model.base: should be a valid string, not 7",
    ),
    ("yes is text", packing("yes"), 'train.packing: should be true, false or auto, not "yes"'),
    ("on is text", packing("on"), 'train.packing: should be true, false or auto, not "on"'),
    ("true as text", packing("'true'"), 'train.packing: should be true, false or auto, not "true"'),
    (
        "neither a number nor auto",
        train("steps: 2, micro_batch_rows: many"),
        'train.micro_batch_rows: should be an integer from 1 to 4096 or auto, not "many"',
    ),
    (
        "no rows at once",
        train("steps: 2, micro_batch_rows: 0"),
        "train.micro_batch_rows: should be an integer from 1 to 4096 or auto, not 0",
    ),
    ("1 is no boolean", packing("1"), "train.packing: should be true, false or auto, not 1"),
    (
        "null is no boolean",
        packing("null"),
        "train.packing: should be true, false or auto, not null",
    ),
    ("integer as text", train("steps: '2'"), 'train.steps: should be a valid integer, not "2"'),
    ("integer as float", train("steps: 2.0"), "train.steps: should be a valid integer, not 2.0"),
    ("true as integer", train("steps: true"), "train.steps: should be a valid integer, not true"),
    ("at least", train("steps: 0"), "train.steps: should be greater than or equal to 1, not 0"),
    (
        "at most",
        train("steps: 10000001"),
        "train.steps: should be less than or equal to 10000000, not 10000001",
    ),
    ("above", lr("0"), "train.learning_rate: should be greater than 0, not 0"),
    ("below zero", lr("-1e-4"), "train.learning_rate: should be greater than 0, not -0.0001"),
    ("no number", lr("2e-4e"), 'train.learning_rate: should be a valid number, not "2e-4e"'),
    ("too large", lr("2"), "train.learning_rate: should be less than or equal to 1, not 2"),
    ("number as text", lr("'2e-4'"), 'train.learning_rate: should be a valid number, not "2e-4"'),
    ("NaN", lr(".nan"), "train.learning_rate: should be a finite number, not NaN"),
    ("infinity", lr(".inf"), "train.learning_rate: should be a finite number, not Infinity"),
    ("overflow", lr("1e999"), "train.learning_rate: should be a finite number, not Infinity"),
    ("nan is text", lr("nan"), 'train.learning_rate: should be a valid number, not "nan"'),
    ("number is null", lr("null"), "train.learning_rate: should be a valid number, not null"),
    ("number is a list", lr("[1]"), "train.learning_rate: should be a valid number, not [1]"),
    (
        "sexagesimal is text",
        lr("1:30"),
        'train.learning_rate: should be a valid number, not "1:30"',
    ),
    (
        "number is a mapping",
        lr("{a: 1}"),
        'train.learning_rate: should be a valid number, not {"a": 1}',
    ),
    (
        "below",
        f"{GOOD}lora: {{dropout: 1}}\n",
        "lora.dropout: should be less than 1, not 1",
    ),
    (
        "long value",
        f"{GOOD}engine: {'x' * 80}\n",
        f"engine: should be 'unsloth' or 'reference', not \"{'x' * 56}...",
    ),
    ("neither", train("seed: 1"), "train.epochs: give train.epochs or train.steps"),
    (
        "both",
        train("steps: 2, epochs: 1"),
        "train.steps: give either train.epochs or train.steps, not both (set the other to null)",
    ),
]


@pytest.mark.parametrize(("text", "told"), [pytest.param(*c[1:], id=c[0]) for c in FILES])
def test_a_file_that_is_no_recipe_is_refused(text: str | bytes, told: str, tmp_path: Path):
    error = refused(tmp_path, text)

    assert (error.where, error.what) == ("mine.yaml", told)


@pytest.mark.parametrize(("text", "told"), [pytest.param(*c[1:], id=c[0]) for c in VALUES])
def test_a_wrong_key_or_value_is_named(text: str, told: str, tmp_path: Path):
    error = refused(tmp_path, text)

    assert (error.where, error.what) == ("mine.yaml", told)
    assert error.hint == "`fastsft recipes --schema` lists every key with its meaning"


def test_an_endless_integer_is_refused(tmp_path: Path):
    error = refused(tmp_path, train(f"steps: {'9' * 5000}"))

    assert error.what.startswith("not YAML: Exceeds the limit (4300 digits)")


def test_several_faults_are_reported_together(tmp_path: Path):
    text = "model: {base: a, quantization: int8}\ntrain: {steps: 0, foo: 1}\nlora: {rnk: 1}\n"

    assert str(refused(tmp_path, text)) == (
        "mine.yaml: model.family: missing\n"
        "mine.yaml: model.quantization: should be 'auto', 'nf4' or 'none', not \"int8\"\n"
        "mine.yaml: lora.rnk: unknown key; did you mean lora.rank?\n"
        "mine.yaml: train.steps: should be greater than or equal to 1, not 0\n"
        "mine.yaml: train.foo: unknown key\n"
        "  hint: `fastsft recipes --schema` lists every key with its meaning"
    )


def test_several_combinations_are_reported_together(tmp_path: Path):
    text = f"{MODEL}train: {{parameters: all}}\n"

    assert refused(tmp_path, text).what.splitlines() == [
        "train.epochs: give train.epochs or train.steps",
        "mine.yaml: train.parameters: a 4-bit base cannot be trained itself; "
        "set model.quantization to none",
    ]


def test_a_flood_of_faults_is_cut(tmp_path: Path):
    text = GOOD + "".join(f"'#{number}': 1\n" for number in range(50))

    lines = refused(tmp_path, text).what.splitlines()

    assert (len(lines), lines[-1]) == (21, "mine.yaml: and 30 more faults")


# Good files: what a value is


@pytest.mark.parametrize(
    ("value", "read"), [("2e-4", 2e-4), ("0.0002", 2e-4), ("1", 1.0), ("1E-5", 1e-5)]
)
def test_a_number_is_a_number(value: str, read: float, tmp_path: Path):
    assert load(tmp_path, lr(value)).train.learning_rate == read


@pytest.mark.parametrize("value", ["no", "on", "1e3x", "2024-07-26", "26 Jul 2024", "12:30:00"])
def test_what_looks_like_more_stays_text(value: str, tmp_path: Path):
    assert load(tmp_path, f"{GOOD}data: {{date: {value}}}\n").data.date == value


def test_a_byte_order_mark_is_no_key(tmp_path: Path):
    assert load(tmp_path, b"\xef\xbb\xbf" + GOOD.encode()) == load(tmp_path, GOOD)


def test_null_is_taken_where_it_means_not_asked(tmp_path: Path):
    found = load(tmp_path, f"{train('steps: 2, epochs: null')}data: {{path: null}}\n")

    assert (found.train.epochs, found.data.path) == (None, None)


# --set


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.learning_rate=1e-4", "train", "learning_rate", 1e-4),
        ("data.path=my rows.jsonl", "data", "path", "my rows.jsonl"),
        ("data.date=2024-07-26", "data", "date", "2024-07-26"),
        ("data.system='a: b'", "data", "system", "a: b"),
        ("data.system=a=b", "data", "system", "a=b"),
        ("lora.targets=[q_proj, v_proj]", "lora", "targets", ("q_proj", "v_proj")),
        ("train.packing=true", "train", "packing", True),
        ("train.neftune_alpha=", "train", "neftune_alpha", None),
        ("train={steps: 7}", "train", "steps", 7),
    ],
)
def test_an_override_changes_its_key(
    override: str, section: str, key: str, value: object, tmp_path: Path
):
    found = load(tmp_path, GOOD, [override])

    assert getattr(getattr(found, section), key) == value


def test_later_overrides_win(tmp_path: Path):
    overrides = ["engine=reference", "train.steps=3", "train.steps=4"]

    found = load(tmp_path, GOOD, overrides)

    assert (found.engine, found.train.steps) == ("reference", 4)


def test_epochs_replace_steps_when_both_are_set(tmp_path: Path):
    found = load(tmp_path, GOOD, ["train.steps=null", "train.epochs=3"])

    assert (found.train.steps, found.train.epochs) == (None, 3)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.steps", "wants key=value"),
        ("=1", "wants key=value"),
        ("train.=1", "wants key=value"),
        (".steps=1", "wants key=value"),
        ("model.base.x=1", "base is not a section"),
        ("description='x", "not YAML: line 1: found unexpected end of stream"),
        ("description=a: b: c", "not YAML: line 1: mapping values are not allowed here"),
        ("description={a: 1, a: 2}", 'line 1: found duplicate key "a"'),
        ("description=*a", "YAML aliases (*name) are refused"),
        ("description=!!binary aGk=", "YAML tags (!name) are refused"),
    ],
)
def test_a_malformed_override_is_refused(override: str, told: str, tmp_path: Path):
    error = refused(tmp_path, GOOD, [override])

    assert (error.where, error.what) == (f"--set {override}", told)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "train.learning_rat=1",
            "train.learning_rat: unknown key; did you mean train.learning_rate?",
        ),
        ("zzz.x=1", "zzz: unknown key"),
        ("train.steps=many", 'train.steps: should be a valid integer, not "many"'),
        ("train=1", "train: should be an object, not 1"),
        ("model.base=", "model.base: should be a valid string, not null"),
        (
            "train.epochs=3",
            "train.steps: give either train.epochs or train.steps, not both "
            "(set the other to null)",
        ),
    ],
)
def test_an_override_is_checked_like_the_file(override: str, told: str, tmp_path: Path):
    error = refused(tmp_path, GOOD, [override])

    assert (error.where, error.what) == ("mine.yaml", told)


# Round trip


TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


def values(annotation: Any, bounds: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a field's annotation and bounds allow."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return trees(annotation)
    if origin is Literal:
        return st.sampled_from(inside)
    if origin is tuple:
        return st.lists(values(inside[0], {}), min_size=1, max_size=3, unique_by=repr).map(tuple)
    if origin is dict:
        return st.dictionaries(TEXT.filter(bool), TEXT.filter(bool), max_size=2)
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        low, high = bounds.get("ge", 0), bounds.get("le", 2**31)
        return st.integers(low, high)
    if annotation is float:
        low, high = bounds.get("ge", bounds.get("gt", 0)), bounds.get("le", bounds.get("lt", 1e9))
        return st.floats(low, high, exclude_min="gt" in bounds, exclude_max="lt" in bounds)
    if annotation is type(None):
        return st.none()
    if annotation is str:
        return TEXT.filter(bool) if "min_length" in bounds else TEXT
    if hasattr(annotation, "__metadata__"):
        if annotation.__origin__ is int:  # 1 to 4096 | auto
            return st.integers(1, 4096)
        return TEXT.filter(bool)  # NonEmpty | None
    return st.one_of(*(values(choice, bounds) for choice in inside))


def trees(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Keys and values of a section, each allowed by itself."""
    keys: dict[bool, dict[str, st.SearchStrategy[Any]]] = {True: {}, False: {}}
    for name, field in model.model_fields.items():
        bounds = {
            kind: getattr(rule, kind)
            for rule in field.metadata
            for kind in ("ge", "gt", "le", "lt", "min_length")
            if getattr(rule, kind, None) is not None
        }
        keys[field.is_required()][name] = values(field.annotation, bounds)
    return st.fixed_dictionaries(keys[True], optional=keys[False])


REQUIRED = {"base": "tiny:qwen2.5", "family": "qwen2.5"}


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any recipe; keys that do not go together are left out again."""
    tree = draw(trees(Recipe))
    tree["model"] = REQUIRED | tree.get("model", {})
    tree["train"] = {"steps": 1} | tree.get("train", {})
    while True:
        try:
            return Recipe.model_validate(tree)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
        key = message.removeprefix("Value error, @").partition(":")[0]
        section, _, leaf = key.partition(".")
        if key == "train.epochs":
            tree["train"]["steps"] = 1
        else:
            del tree[section][leaf]


@pytest.mark.parametrize("text", ["one\x85two", "\u2028", "a\u2029", "line\nbreak"])
def test_a_line_break_of_any_kind_comes_back(tmp_path, text):
    recipe = load(tmp_path, GOOD, [f"data.system={json.dumps(text)}"])
    path = tmp_path / "again.yaml"
    path.write_text(recipe_file.dump(recipe), "utf-8")

    assert recipe_file.load(str(path)).data.system == text


@settings(deadline=None, max_examples=50)
@given(recipes())
def test_any_recipe_comes_back_from_its_dump(tmp_path_factory: pytest.TempPathFactory, r: Recipe):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(recipe_file.dump(r), "utf-8")

    again = recipe_file.load(str(path))

    assert again == r
    assert recipe_file.digest(again) == recipe_file.digest(r)


def test_a_dump_names_every_key(tmp_path: Path):
    text = recipe_file.dump(load(tmp_path, GOOD))

    sections = ("data.sources.", "data.replay.")  # where there are none, they have no keys
    keys = [key for key in list(recipe_file.keys()) if not key.startswith(sections)]
    assert all(f"{key.rsplit('.', 1)[-1]}:" in text for key in keys)


def test_the_digest_follows_the_values_not_the_layout(tmp_path: Path):
    one = recipe_file.digest(load(tmp_path, GOOD))
    same = recipe_file.digest(load(tmp_path, f"# a comment\n{TRAIN}\n{MODEL}"))
    other = recipe_file.digest(load(tmp_path, GOOD, ["train.seed=1"]))

    assert one == same != other
