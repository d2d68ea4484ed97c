"""Loading tokenizer folders: which tokens are chosen, and what each bad folder is told."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tiny_tokenizer import CHATML, TOKENS, write_tokenizer

from fastsft.data.tokenizer import ChatTokenizer
from fastsft.errors import DataError
from fastsft.families import LLAMA, QWEN25

Load = Callable[[str], ChatTokenizer]


def write_json(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value), "utf-8")


@pytest.mark.parametrize(
    ("name", "stops", "pad", "bos", "lead"),
    [
        ("qwen2.5", ("<|im_end|>", "<|endoftext|>"), "<|endoftext|>", None, ""),
        (
            "llama-3.1",
            ("<|eot_id|>", "<|end_of_text|>"),
            "<|reserved_special_token_0|>",
            "<|begin_of_text|>",
            "",
        ),
        ("mistral-v0.3", ("</s>",), "[control_12]", "<s>", " "),
        ("mistral-nemo", ("</s>",), "<pad>", "<s>", ""),
    ],
)
def test_a_real_tokenizer_has_its_tokens_chosen(
    real_tokenizer: Load, name: str, stops: tuple[str, ...], pad: str, bos: str | None, lead: str
):
    tokenizer = real_tokenizer(name)

    assert (tokenizer.stop_tokens, tokenizer.pad_token) == (stops, pad)
    assert (tokenizer.bos_token, tokenizer.turn.lead) == (bos, lead)
    assert tokenizer.pad_id not in (tokenizer.stop_ids[0], tokenizer.bos_id)


def test_decoding_keeps_a_space_at_the_start(real_tokenizer: Load):
    """Llama's decoder strips one, which would falsify whatever is shown or proved."""
    tokenizer = real_tokenizer("llama-3.1")
    (tokens,) = tokenizer.encode_batch([" yes"])

    assert tokenizer.decode(tokens.ids) == " yes"


def test_truncation_and_padding_saved_in_the_file_do_not_act(tmp_path: Path):
    folder = write_tokenizer(tmp_path)
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    spec["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    write_json(folder, "tokenizer.json", spec)

    (tokens,) = ChatTokenizer.load(folder).encode_batch(["abcdef"])

    assert (len(tokens.ids), tokens.at(5, 6)) == (6, (5, 6))


def test_the_template_file_wins_over_the_config(tmp_path: Path):
    config = {"eos_token": "<|im_end|>", "chat_template": "never"}
    folder = write_tokenizer(tmp_path, config=config)

    assert ChatTokenizer.load(folder).template.source == CHATML


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}],
    ],
)
def test_the_config_may_hold_the_template(tmp_path: Path, template: object):
    config = {"eos_token": "<|im_end|>", "chat_template": template}
    folder = write_tokenizer(tmp_path, template=None, config=config)

    assert ChatTokenizer.load(folder).template.source == CHATML


def test_the_generation_config_adds_stop_ids(tmp_path: Path):
    folder = write_tokenizer(tmp_path, tokens=(*TOKENS, "<stop>"))
    write_json(folder, "generation_config.json", {"eos_token_id": [259, 258]})

    assert ChatTokenizer.load(folder).stop_tokens == ("<|im_end|>", "<|endoftext|>", "<stop>")


def test_a_declared_pad_that_is_no_stop_is_kept(tmp_path: Path):
    config = {"eos_token": "<|im_end|>", "pad_token": {"content": "<pad>"}}
    folder = write_tokenizer(tmp_path, tokens=(*TOKENS, "<pad>"), config=config)

    assert ChatTokenizer.load(folder).pad_token == "<pad>"


def test_a_declared_pad_that_ends_turns_is_replaced(tmp_path: Path):
    config = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}

    tokenizer = ChatTokenizer.load(write_tokenizer(tmp_path, config=config))

    assert tokenizer.pad_token == "<|endoftext|>"


def test_the_family_is_that_of_config_json(tmp_path: Path):
    folder = write_tokenizer(tmp_path)
    write_json(folder, "config.json", {"model_type": "qwen2"})

    assert ChatTokenizer.load(folder).family is QWEN25


@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_the_fingerprint_changes_with_every_file(tmp_path: Path, name: str):
    folder = write_tokenizer(tmp_path)
    before = ChatTokenizer.load(folder).fingerprint
    file = folder / name
    changed = file.read_text("utf-8").replace("{% for", "{# #}{% for")
    file.write_text(changed.replace("}", ', "x": 1}') if name.endswith("json") else changed)

    assert ChatTokenizer.load(folder).fingerprint != before


def refusal(folder: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        ChatTokenizer.load(folder)
    return caught.value


def test_a_missing_folder_is_named(tmp_path: Path):
    error = refusal(tmp_path / "absent")

    assert str(error) == f"{tmp_path / 'absent'}: no such model folder\n  hint: check the path"


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path):
    error = refusal(tmp_path)

    assert error.what == "there is no tokenizer.json"
    assert error.hint == "name a folder that holds a whole model, tokenizer included"


def test_a_slow_tokenizer_is_told_how_to_convert(tmp_path: Path):
    (tmp_path / "tokenizer.model").touch()

    error = refusal(tmp_path)

    assert error.what == "there is no tokenizer.json, only a slow tokenizer (tokenizer.model)"
    assert "save_pretrained" in error.hint


def test_a_base_model_is_sent_to_the_instruct_checkpoint(tmp_path: Path):
    error = refusal(write_tokenizer(tmp_path, template=None))

    assert error.what == "the tokenizer has no chat template, so this is a base model"
    assert "fine-tune the Instruct checkpoint" in error.hint


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("tokenizer.json", "{}", "cannot be read: "),
        ("tokenizer_config.json", "{", "not JSON: "),
        ("tokenizer_config.json", "[]", "not a JSON object"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, text: str, what: str):
    folder = write_tokenizer(tmp_path)
    (folder / name).write_text(text, "utf-8")

    error = refusal(folder)

    assert str(error).startswith(f"{folder / name}: {what}")
    assert error.hint.startswith("download it again")


def test_a_file_that_is_no_text_is_named(tmp_path: Path):
    folder = write_tokenizer(tmp_path)
    (folder / "chat_template.jinja").write_bytes(b"\xff")

    assert refusal(folder).what.startswith("cannot be read: 'utf-8' codec")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("x", "eos_token_id is 'x', not a token id or a list of them"),
        ([True], "eos_token_id is [True], not a token id or a list of them"),
        (99999, "eos_token_id [99999] is outside the vocabulary"),
    ],
)
def test_a_wrong_stop_id_is_refused(tmp_path: Path, value: object, what: str):
    folder = write_tokenizer(tmp_path)
    write_json(folder, "generation_config.json", {"eos_token_id": value})

    assert str(refusal(folder)).startswith(f"generation_config.json: {what}")


def test_a_template_that_ends_no_turn_is_refused(tmp_path: Path):
    error = refusal(write_tokenizer(tmp_path, template="{{ messages[-1].content }}\n"))

    assert error.what == "the chat template writes no stop token after the assistant's answer"
    assert "would never learn to stop" in error.hint


def test_a_tokenizer_without_a_pad_is_refused(tmp_path: Path):
    error = refusal(write_tokenizer(tmp_path, tokens=("<|im_start|>", "<|im_end|>")))

    assert error.what.startswith("no token to pad with: the tokenizer has none of <|endoftext|>")
    assert error.hint.startswith("a stop token cannot pad")


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"eos_token": "<end>"}, "the eos_token '<end>' is not in the vocabulary"),
    ],
)
def test_a_named_token_must_exist(tmp_path: Path, config: Mapping[str, object], what: str):
    error = refusal(write_tokenizer(tmp_path, config=config))

    assert error.what == what
    assert error.hint.startswith("restore tokenizer.json")


def test_a_family_whose_bos_the_tokenizer_lacks_is_refused(tmp_path: Path):
    folder = write_tokenizer(tmp_path)

    with pytest.raises(DataError, match=r"the bos_token '<\|begin_of_text\|>' is not in"):
        ChatTokenizer.load(folder, family=LLAMA)


def test_tokens_that_tell_no_family_are_refused(tmp_path: Path):
    template = "{{ messages[-1].content }}<stop>"
    folder = write_tokenizer(tmp_path, template=template, tokens=("<stop>",), config={})

    assert refusal(folder).what == "no config.json, and the tokens do not tell the model's family"
