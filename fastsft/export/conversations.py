"""Texts and conversations on which two tokenizers or templates are compared.  Reads no files.

Every text is in NFC, since llama.cpp does not compose Unicode where a tokenizer does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

Message = dict[str, str]

WORDS: Final = (
    "What is the capital of Norway?",
    "I'm sure they'll say it's what we've done, but I'd wait; you're early, DON'T RUSH, SHE'LL.",
    "Please rewrite the last paragraph (the one about tides) in two short sentences.",
    'He said: "Why not?" — and left…',
    "camelCaseNames, snake_case_names, SCREAMING_CASE and kebab-case-names",
    "iPhone, eBay, McDonald, LaTeX, GitHub, HTTPServer, XMLHttpRequest2",
    "ALL CAPITALS, then Title Case Words, then lower case ones.",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "lololololololololololololololol hahahahahahahahahahaha noooooooooooo",
    "x",
    "ok",
    "No.",
)
ACCENTS: Final = (
    "Ça va très bien, merci ; où est l’élève ?",
    "Größe, Straße, Übermut, ÄÖÜ, ẞ",
    "El niño comió piñas. ¿Cuánto? ¡Mañana!",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Zażółć gęślą jaźń, ŁÓDŹ",
    "Tiếng Việt: Tôi thích ăn phở buổi sáng.",
    "İstanbul'da ığdır ile ÇAĞRI",
    "Ærlig talt, Åse spiste blåbær på øya.",
    "naïve façade coöperate résumé Ångström",
)
SCRIPTS: Final = (
    "你好,世界!请用一句话介绍长城。",
    "我昨天买了3本书,花了¥128.50元。",
    "「こんにちは」、カタカナとひらがなと漢字。東京タワー",
    "안녕하세요. 한국어 문장을 번역해 주세요.",
    "繁體中文測試:龍、鳳、麒麟。",
    "Привет, как дела? Съешь ещё этих мягких булок.",
    "ПРИВЕТ МИР и Москва, СССР, Юрий, КамАЗ",
    "Καλημέρα κόσμε, ΑΘΗΝΑ και Ελλάδα",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣",
    "שלום עולם, מה שלומך?",
    "สวัสดีครับ วันนี้อากาศดีมาก",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "বাংলা ভাষায় একটি বাক্য।",
    "வணக்கம் உலகம்",
    "გამარჯობა მსოფლიო",
    "Բարեւ աշխարհ",
    "ሰላም ለዓለም",
    "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",
    "𐍈𐌰𐌹𐌻𐌰 𝔉𝔯𝔞𝔨𝔱𝔲𝔯 𝒮𝒸𝓇𝒾𝓅𝓉",
)
EMOJI: Final = (
    "😀😂🤣 thanks!! 🙏",
    "👨‍👩‍👧‍👦 is a family, 🏳️‍🌈 a flag, 👩🏽‍🚀 an astronaut",
    "🇳🇴🇯🇵🇧🇷 1️⃣2️⃣#️⃣ ❤️ ☎️ ✈️",
    "🫠🪿🫨 new ones",
    "text🙂text 🙂 text🙂",
)
SIGNS: Final = (
    "!?!?!?... --- === *** ### ~~~ ``` ''' \"\"\"",
    "a/b\\c|d&e^f%g$h#i@j!k~l`m",
    "∑∫∂√∞≈≠≤≥±×÷ → ← ⇒ ∀x∈ℝ: x²≥0",
    "€5, £6, ¥7, ₹8, 20 °C, 5 µm, ½ cup, №3, ™®©",
    "«guillemets» „German“ ‘single’ “double” ‚low‘",
    "[1] (2) {3} <4> [[5]] ((6)) {{7}} {% 8 %} {# 9 #}",
    "https://example.org/a_b?c=d&e=%20f#g user@example.com",
    "C:\\Users\\me\\file.txt and /usr/bin/env -- -x --long=1",
    "─│┌┐└┘ █▓▒░ ⠋⠙⠹ ①②③ Ⅳ ⅷ",
    "zero\u200bwidth, soft\u00adhyphen, no\u00a0break, thin\u2009space, ideographic\u3000space",
    "left\u200eto right\u200f marks, a word\u2060joiner and a \ufeffBOM",
    "tab\vvertical\fform feed, bell \a, escape \x1b[0m, delete \x7f",
    "line separator\u2028paragraph separator\u2029next line\u0085end",
    "private \ue000 use and unassigned \u0378",
)
NUMBERS: Final = (
    "3.14159265358979, -1e-10, 6.02e+23, 0x1F, 0b1010, 1_000_000",
    "1 22 333 4444 55555 666666 7777777 88888888 999999999",
    "2026-11-21T08:13:00Z, 12:59:59.999, +47 22 12 34 56",
    "1,234,567.89 and 1.234.567,89 and 1 234 567",
    "½¾⅓ x² y³ H₂O 10⁻⁶ ٣٤٥ ३४५ 三百",
    "v1.2.3-rc.4+build.5, 192.168.0.1, ::1, ISBN 978-3-16-148410-0",
)
CODE: Final = (
    "def f(x: int):\n    if x < 2:\n        return 1\n    return x * f(x - 1)  # why\n\n\nf(5)",
    '#include <stdio.h>\nint main(void) {\n\tprintf("%d\\n", 1 << 4);\n\treturn 0;\n}',
    'SELECT a.id, COUNT(*) AS n\nFROM "t" AS a\nWHERE a.x >= 10 AND b IS NOT NULL\nGROUP BY 1;',
    "const f = async (x) => { await g(`${x}`); return {...x, y: x?.z ?? 0}; };",
    '{"a": [1, 2.5, null, true], "b": {"c": "d\\n\\u00e9"}}',
    '<!DOCTYPE html>\n<p class="x">a &amp; b</p>\n<!-- no -->',
    "| a | b |\n|---|:-:|\n| 1 | 2 |\n\n- [ ] todo\n- [x] done\n\n> quote",
    "```python\nprint('hi')\n```\n\n1. one\n2. two\n   - nested\n      - deeper",
    "$ git commit -m 'x' && echo \"$HOME\" | sed -e 's/a/b/g' > /dev/null 2>&1",
    "key:\n  - a: 1\n    b: |\n      text\n  - &x {c: *x}\r\nwindows\r\nlines\r\n\r\nend",
    "\\frac{a}{b} = \\sum_{i=0}^{n} x_i^2 \\quad\\text{for } n \\to \\infty",
)
MARKERS: Final = (
    "say <|im_end|> and <|im_start|>user, please",
    "what is <|endoftext|>?",
    "the tags <|eot_id|>, <|start_header_id|> and <|end_header_id|>",
    "an <unk> or <pad> in the text, and [PAD3]",
    "[INST] nested [/INST] and [TOOL_CALLS] [AVAILABLE_TOOLS]",
    "a strike: <s>old</s>, and </s>more</s>text </s>",
    "bytes such as <0x0A> or <0xE2><0x96><0x81>",
    "<|reserved_special_token_5|> <|python_tag|> <|fim_prefix|> <|file_sep|> <EOT> [EOS] <eos>",
    "half a tag <|im_en d|> <|im_start >| |im_end|> <| im_end |>",
    "### Instruction:\nuser\n\n### Response:\nassistant\n\nHuman: hi\n\nAssistant:",
    "<<SYS>>\nsystem\n<</SYS>>\n\n{{ .Prompt }} {{- if .System }} {%- endif %} {{ messages[0] }}",
    "<think>\nstep\n</think>\n<tool_call>\n{}\n</tool_call>",
    "SentencePiece's ▁ and GPT-2's Ġ and Ċ",
)

PIECES: Final = (*WORDS, *ACCENTS, *SCRIPTS, *EMOJI, *SIGNS, *NUMBERS, *CODE, *MARKERS)
_JOINTS: Final = (" ", "\n", "\n\n", "  ", "\t", "", ": ", " - ", "\r\n", "   \n", ", ", "'s ")
_RUNS: Final = (
    " ",
    "\t",
    "\n",
    "\r\n",
    " \n",
    "\n ",
    "\t ",
    "\u3000",
    "=",
    "-",
    "0",
    "ab",
    "é",
    "你",
)
_LENGTHS: Final = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33)
_SYSTEM: Final = (
    "You are a helpful assistant.",
    "Answer in one sentence.\nUse plain words.",
    "你是一个乐于助人的助手。",
)
_STEP: Final = 37
"""Prime to the number of pieces, so that each is joined with another far away."""

CHATS: Final = 480


def texts() -> list[str]:
    """At least 320 texts of many scripts and shapes, always the same, none empty.

    Some begin or end with white space, and some have the special tokens of all families
    written out, which tokenizers read as such.
    """
    runs = [f"a{run * length}b" for run in _RUNS for length in _LENGTHS]
    edges = [run * length for run in _RUNS[:4] for length in _LENGTHS]
    return list(dict.fromkeys([*PIECES, *_joined(), *runs, *edges]))


def chats(
    *,
    last: Literal["user", "assistant"] = "user",
    with_system: bool = True,
    is_padded: bool = False,
) -> list[list[Message]]:
    """480 conversations of one to four questions, every third with a system prompt.

    `last` speaks last.  No content begins or ends with white space, as Ollama's templates
    cannot trim, unless `is_padded`: then every one does.  `with_system` false leaves the system
    prompts out.
    """
    contents = [text.strip() for text in texts() if text.strip()]
    return [
        _chat(contents, number, last, with_system=with_system, is_padded=is_padded)
        for number in range(CHATS)
    ]


def _joined() -> list[str]:
    count = len(PIECES)
    return [
        piece + _JOINTS[place % len(_JOINTS)] + PIECES[(place * _STEP + 11) % count]
        for place, piece in enumerate(PIECES)
    ]


def _chat(
    contents: Sequence[str], number: int, last: str, *, with_system: bool, is_padded: bool
) -> list[Message]:
    """The conversation of a number; its questions and answers are taken from `contents`."""
    messages = []
    if with_system and number % 3 == 0:
        messages.append({"role": "system", "content": _SYSTEM[number // 3 % len(_SYSTEM)]})
    for turn in range(1 + number % 4):
        question = contents[(number + turn * _STEP) % len(contents)]
        answer = contents[(number * _STEP + turn * 5 + 3) % len(contents)]
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    if last == "user":
        messages.pop()
    return [_padded(message) for message in messages] if is_padded else messages


def _padded(message: Message) -> Message:
    return {**message, "content": f" \n{message['content']}\n\n "}
