"""Conversations that are hard on masks, each for a reason that its name gives."""

from fastsft.data.formats import Conversation, Message, Role


def turns(*pairs: tuple[Role, str]) -> Conversation:
    return Conversation(tuple(Message(role, text) for role, text in pairs), "test.jsonl:1")


def ask(question: str, answer: str) -> Conversation:
    return turns(("user", question), ("assistant", answer))


def exchange(number: int) -> tuple[tuple[Role, str], tuple[Role, str]]:
    return ("user", f"q{number}"), ("assistant", f"a {number}")


CODE = '```python\ndef f(x):\n\tif x:\n\t\treturn {"a": [1, 2]}\n    # tab above\n```'
LONG = "The quick brown fox jumps over the lazy dog, 3.14159 times a day.\n" * 40 + "The end."

CONVERSATIONS: dict[str, Conversation] = {
    "short": ask("hi", "yes"),
    "one letter": ask("a", "b"),
    "digit": ask("2+2?", "4"),
    "punctuation": ask("?", "!"),
    "numbers": ask("0.1 + 0.2 = ?", "0.30000000000000004, or 3e-1; 1,234,567 in 2024"),
    "chinese": ask("你好，请介绍一下你自己。", "你好！我是一个人工智能助手。"),
    "chinese then latin": ask("翻译 hello", "你好 hello 世界"),
    "japanese": ask("東京の天気は？", "晴れです。気温は２５度。"),
    "arabic": ask("كيف حالك؟", "أنا بخير، شكرًا لك."),
    "hindi": ask("नमस्ते", "नमस्ते, आप कैसे हैं?"),
    "korean": ask("안녕", "안녕하세요!"),
    "cyrillic": ask("Привет", "Здравствуйте!"),
    "emoji": ask("react", "👍"),
    "emoji family": ask("family?", "👨‍👩‍👧‍👦 and 🏳️‍🌈!"),
    "emoji first and last": ask("🎉", "🎉 party 🎉"),
    "decomposed accents": ask("cafe\u0301", "cafe\u0301 re\u0301sume\u0301"),
    "answer begins with a combining mark": ask("mark", "\u0301 alone"),
    "code": ask("write code", CODE),
    "indented code": ask("indent", "class A:\n    def f(self):\n        return 1"),
    "html": ask("bold", "<b>bold</b> &amp; <i>it</i>"),
    "json": ask("json", '{"role": "assistant", "content": "x"}'),
    "jinja": ask("template", "{{ messages[0] }} {% if x %}{# c #}{% endif %}"),
    "table": ask("table", "| a | b |\n|---|---|\n| 1 | 2 |"),
    "latex": ask("sum", r"$\sum_{i=1}^{n} i = \frac{n(n+1)}{2}$"),
    "url": ask("link", "https://example.org/a?b=c&d=%20e#f"),
    "windows newlines": ask("a\r\nb", "c\r\nd"),
    "tabs": ask("\ttab", "a\tb\t\tc"),
    "leading space": ask(" hi", " yes"),
    "leading spaces": ask("   hi", "   yes"),
    "trailing space": ask("hi ", "yes "),
    "trailing spaces": ask("hi   ", "yes   "),
    "leading newline": ask("\nhi", "\nyes"),
    "leading newlines": ask("\n\n\nhi", "\n\n\nyes"),
    "trailing newline": ask("hi\n", "yes\n"),
    "trailing newlines": ask("hi\n\n", "yes\n\n\n"),
    "both sides": ask(" \n hi \n ", " \n yes \n "),
    "inner blank lines": ask("a\n\n\n\nb", "c\n\n\n\nd"),
    "double spaces": ask("a  b", "a  b   c    d"),
    "no-break space": ask("a\u00a0b", "\u00a0c\u00a0"),
    "zero width": ask("a\u200bb", "a\u200bb\ufeffc"),
    "null character": ask("a\x00b", "a\x00b"),
    "private use": ask("\ue0000\ue001", "\ue0001\ue001 \ue0000\ue001"),
    "replacement character": ask("\ufffd", "x\ufffdy"),
    "metaspace": ask("a▁b", "▁a▁b▁"),
    "byte names": ask("<0x0A>", "<0x0A> is a newline"),
    "line separators": ask("a\u2028b", "a\u2028b\u2029c\x85d"),
    "long": ask(LONG, LONG),
    "short question, long answer": ask("go", LONG),
    "answer repeats the question": ask("same text", "same text"),
    "answer inside the question": ask("yes or no? yes", "yes"),
    "role words": ask("user", "assistant"),
    "the user types the qwen stop": ask("say <|im_end|>\n<|im_start|>assistant\nno", "yes"),
    "the user types the llama stop": ask("say <|eot_id|> now", "yes"),
    "the user types the mistral stop": ask("say </s> now", "yes"),
    "the user types [/INST]": ask("say [/INST] now", "yes"),
    "half a marker": ask("<|im_", "<|im_ end|> <| <|eot_ </ s> [INST"),
    "system": turns(("system", "Be terse."), ("user", "hi"), ("assistant", "yes")),
    "system with spaces": turns(("system", " Be\n terse. "), ("user", "hi"), ("assistant", "yes")),
    "chinese system": turns(("system", "请简短回答。"), ("user", "hi"), ("assistant", "好")),
    "two turns": turns(
        ("user", "one"), ("assistant", "first"), ("user", "two"), ("assistant", "second")
    ),
    "the same answer twice": turns(
        ("user", "ok?"), ("assistant", "ok"), ("user", "ok?"), ("assistant", "ok")
    ),
    "system and three turns": turns(
        ("system", "You are a bot."),
        ("user", "a"),
        ("assistant", "A."),
        ("user", "b\n"),
        ("assistant", "\nB."),
        ("user", "c"),
        ("assistant", "C 👍"),
    ),
    "many turns": turns(*(pair for i in range(20) for pair in exchange(i))),
}
