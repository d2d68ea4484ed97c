"""The Modelfile's template gives what the trained template gives, or there is no Modelfile."""

from collections.abc import Callable
from pathlib import Path

import finished_run
import pytest
from go_oracle import rendered, toolchain

from fastsft import run as runs
from fastsft.data import folder as model_folder
from fastsft.data.template import pin_date
from fastsft.data.templates import LIBRARY, NamedTemplate
from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import ExportError
from fastsft.export import conversations, ollama
from fastsft.export import trained as training
from fastsft.export.gate import modelfile
from fastsft.export.go_template import render
from fastsft.export.trained import Trained

REAL = ("qwen2.5", "llama-3.1", "mistral-nemo", "mistral-v0.3")
LIBRARY_ON = {
    "chatml": "qwen2.5",
    "llama3": "llama-3.1",
    "llama2": "mistral-v0.3",
    "mistral-v1": "mistral-v0.3",
    "mistral-v3": "mistral-v0.3",
    "mistral-tekken": "mistral-nemo",
    "alpaca": "llama-3.1",
    "human-assistant": "mistral-v0.3",
}
SHARED_ON = {"Qwen": "qwen2.5", "meta-llama": "llama-3.1", "Mistral-Small": "mistral-nemo"}
SHARED_ON["mistralai"] = "mistral-nemo"

Load = Callable[[str], ChatTokenizer]


def on(tokenizer: ChatTokenizer, template: NamedTemplate) -> ChatTokenizer:
    """The tokenizer with another template; much quicker than loading it again."""
    files = model_folder.read(tokenizer.origin.folder, (template.source, template.name))
    return ChatTokenizer(tokenizer._tokenizer, files, tokenizer.family)


def chats() -> list[list[dict[str, str]]]:
    """More than 300 that end with a question, and some that end within an answer."""
    return [*conversations.chats(), *conversations.chats(last="assistant")[::4]]


def differences(
    tokenizer: ChatTokenizer, template: str, *, every: int = 1
) -> list[tuple[str, str]]:
    asked = chats()[::every]
    pairs = [(ollama.prompt(tokenizer, chat), render(template, chat)) for chat in asked]
    assert len(pairs) * every >= 400
    return [pair for pair in pairs if pair[0] != pair[1]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    run = finished_run.make(tmp_path_factory.mktemp("run"))
    return training.opened(runs.open_run(run.folder))


@pytest.mark.parametrize("name", REAL)
def test_real_templates_give_the_same_for_hundreds_of_chats(
    name: str, real_tokenizer: Load
) -> None:
    tokenizer = real_tokenizer(name)

    made = ollama.template(tokenizer)

    assert differences(tokenizer, made.text) == []


@pytest.mark.parametrize("name", LIBRARY)
def test_library_templates_give_the_same_for_chats_of_every_kind(
    name: str, real_tokenizer: Load
) -> None:
    tokenizer = on(real_tokenizer(LIBRARY_ON[name]), LIBRARY[name])

    made = ollama.template(tokenizer)

    assert differences(tokenizer, made.text, every=7) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY)
def test_library_templates_give_the_same_for_hundreds_of_chats(
    name: str, real_tokenizer: Load
) -> None:
    tokenizer = on(real_tokenizer(LIBRARY_ON[name]), LIBRARY[name])

    made = ollama.template(tokenizer)

    assert differences(tokenizer, made.text) == []


def test_published_templates_can_be_said(
    shared_templates: list[Path], real_tokenizer: Load
) -> None:
    for path in shared_templates:
        base = next(SHARED_ON[start] for start in SHARED_ON if path.name.startswith(start))
        source = path.read_text("utf-8")
        tokenizer = on(real_tokenizer(base), NamedTemplate(path.name, source, None))

        made = ollama.template(tokenizer, date="2024-07-26")

        for chat in conversations.chats()[::16]:
            wanted = ollama.prompt(tokenizer, chat, date="2024-07-26")
            assert render(made.text, chat) == wanted


def test_go_itself_gives_the_same(real_tokenizer: Load, tmp_path: Path) -> None:
    toolchain()
    tokenizers = [real_tokenizer(name) for name in REAL]
    tokenizers += [on(real_tokenizer(base), LIBRARY[name]) for name, base in LIBRARY_ON.items()]
    texts = [ollama.template(tokenizer).text for tokenizer in tokenizers]

    theirs = rendered([(text, chat) for text in texts for chat in chats()], tmp_path)

    assert theirs == [ollama.prompt(t, chat) for t in tokenizers for chat in chats()]


def test_an_answer_is_gone_on_with_behind_the_prompt_it_was_trained_behind(
    real_tokenizer: Load,
) -> None:
    tokenizer = real_tokenizer("mistral-nemo")
    chat = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]

    assert render(ollama.template(tokenizer).text, chat) == "[INST]S\n\nu[/INST]a"


def test_a_pinned_date_is_written_into_the_template(
    qwen: ChatTokenizer, real_tokenizer: Load
) -> None:
    tokenizer = real_tokenizer("llama-3.1")

    made = ollama.template(tokenizer, date="2025-12-24")

    assert "Today Date: 24 Dec 2025" in made.text
    assert any("2025-12-24" in note for note in made.notes)
    assert not any("date" in note for note in ollama.template(qwen, date="2025-12-24").notes)


def test_what_a_modelfile_cannot_do_is_said(real_tokenizer: Load) -> None:
    notes = " ".join(ollama.template(real_tokenizer("llama-3.1")).notes)

    assert "trims the messages of system, user, assistant" in notes
    assert "this template has no tools" in notes


def test_text_that_ollama_would_drop_or_end_at_is_escaped(qwen: ChatTokenizer) -> None:
    system = 'say """x""" {{ y }} a\u200db\u00a0c {'

    made = ollama.template(qwen, system=system)

    chat = [{"role": "user", "content": "q"}]
    assert '"""' not in made.text
    assert "\u200d" not in made.text
    assert "\u00a0" not in made.text
    assert render(made.text, chat) == ollama.prompt(qwen, chat, system=system)
    assert system in ollama.prompt(qwen, chat, system=system)


def custom(tokenizer: ChatTokenizer, body: str) -> ChatTokenizer:
    source = body + "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    return on(tokenizer, NamedTemplate("custom", source, None))


LOOP = (
    "{% for m in messages %}{% if TEST %}!{% endif %}<|im_start|>{{ TEXT }}<|im_end|>{% endfor %}"
)


@pytest.mark.parametrize(
    ("test", "text", "fault"),
    [
        ("'<b>' in m.content", "m.content", "and as a Go template"),
        ("loop.index == 5", "m.content", "in long chats"),
        ("false", "m.content + m.content", "repeats, moves or leaves out"),
        ("loop.last and messages|length > 6", "m.content", "and as a Go template"),
    ],
)
def test_a_template_that_cannot_be_said_is_refused(
    test: str, text: str, fault: str, qwen: ChatTokenizer
) -> None:
    body = LOOP.replace("TEST", test).replace("TEXT", text)
    if "+" in text:  # the tokenizer itself wants to find one answer
        body = body.replace("m.content + m.content", "m.content if m.role != 'user' else '2'")

    with pytest.raises(ExportError) as raised:
        ollama.template(custom(qwen, body))

    assert fault in str(raised.value)
    assert raised.value.exit_code == 5


def test_a_template_without_a_system_role_says_that_it_has_none(
    qwen: ChatTokenizer,
) -> None:
    body = LOOP.replace("TEST", "m.role == 'system' and raise_exception('no')")
    tokenizer = custom(qwen, body.replace("TEXT", "m.content"))

    made = ollama.template(tokenizer)

    assert any("no system message" in note for note in made.notes)
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "u"}]
    assert render(made.text, chat) == ollama.prompt(tokenizer, chat[1:])


def test_a_modelfile_has_template_stops_context_and_sampling(trained: Trained) -> None:
    made = ollama.modelfile(trained, gguf_name="model-q8_0.gguf")

    found = modelfile.read(made.text)
    assert (found.template, found.stops) == (made.template, made.stops)
    lines = made.text.splitlines()
    assert "FROM ./model-q8_0.gguf" in lines
    assert f'TEMPLATE """{made.template}"""' in made.text
    assert made.stops[0] == trained.tokenizer.turn.stop
    assert f'PARAMETER stop "{made.stops[0]}"' in lines
    assert any(line.startswith("PARAMETER num_ctx ") for line in lines)
    assert "PARAMETER repeat_penalty 1" in lines
    assert "#   ollama create NAME -f Modelfile" in lines
    assert str(trained.run.folder.parent) not in made.text


def with_data(trained: Trained, **data: object) -> Trained:
    section = trained.recipe.data.model_copy(update=data)
    recipe = trained.recipe.model_copy(update={"data": section})
    return Trained(trained.run, recipe, trained.base, trained.tokenizer)


@pytest.mark.parametrize("system", ["Be brief.\nAlways.", 'say """x"""', "a\u200db", ""])
def test_the_trained_system_prompt_is_given_to_chats_without_one(
    system: str, trained: Trained
) -> None:
    made = ollama.modelfile(with_data(trained, system=system), gguf_name="m.gguf")

    chat = [{"role": "user", "content": "hi"}]
    wanted = trained.tokenizer.render(
        [{"role": "system", "content": system}, *chat], add_generation_prompt=True
    )
    assert render(made.template, chat, system=made.system) == wanted
    assert (f'SYSTEM """{system}"""' in made.text) == (made.system is not None)
    assert (made.system is not None) == (system == "Be brief.\nAlways.")


def test_raw_text_goes_to_the_model_as_it_is(trained: Trained) -> None:
    recipe = trained.recipe.model_copy(update={"method": "pretrain"})

    made = ollama.modelfile(
        Trained(trained.run, recipe, trained.base, trained.tokenizer), gguf_name="m.gguf"
    )

    assert 'TEMPLATE """{{ .Prompt }}"""' in made.text
    assert render(made.template, [{"role": "user", "content": "Once"}]) == "Once"


def test_an_adapter_goes_onto_the_base(trained: Trained) -> None:
    made = ollama.modelfile(trained, gguf_name="base.gguf", adapter_name="lora.gguf")

    assert "FROM ./base.gguf\nADAPTER ./lora.gguf\n" in made.text


def test_a_clock_that_training_left_running_is_told(
    qwen: ChatTokenizer,
) -> None:
    body = "{{ strftime_now('%Y') }}" + LOOP.replace("TEST", "false").replace("TEXT", "m.content")
    tokenizer = custom(qwen, body)

    made = ollama.template(tokenizer)

    assert any("the day it was written" in note for note in made.notes)
    assert pin_date(None) == {}
