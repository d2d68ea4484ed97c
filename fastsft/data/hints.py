"""Hints of garbled text and of personal data in one text: few false alarms, no proof."""

from __future__ import annotations

import re

_CONTINUED = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
"""A later byte of UTF-8, read as Latin-1 or Windows-1252."""
_HARD = "\x80-\x9f¡¢£¤¥¦§¨ª¬\xad¯±µ¶¸¹º¼½¾¿ƒ„†‡ˆ‰Š‹ŒŽ˜š›œžŸ"
"""Those of them that hardly follow an accented letter in real text, as quotation marks do."""
_MOJIBAKE = re.compile(
    "\ufffd|锟斤拷|烫{3}|屯{3}"
    f"|Ã[{_HARD}©]|[a-z]Ã[{_CONTINUED} ]|Ã[{_CONTINUED}][a-z]"  # é, ö
    f"|[a-z.,;:!?]Â[\xa0-\xbf ]|Â[\xa0£§©®°±·]"  # a space that does not break, £
    f"|[a-z][ÄÅ][{_CONTINUED}]|[ÄÅ][{_CONTINUED}][a-z]"  # č, ł
    f"|(?:[Ä-ß][{_CONTINUED}]){{3}}"  # Cyrillic, Greek, Arabic
    f"|â€|ï¿½|ï»¿|ðŸ[{_CONTINUED}]"  # quotation marks, U+FFFD, a byte order mark, emoji
    f"|[ã-é](?:[{_HARD}][{_CONTINUED}]|[¡-¿€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘-”•–—˜™š›œžŸ][{_HARD}])"  # Chinese
    "|[锛銆鐨鏄鈥][\\s\\S]*?[锛銆鐨鏄鈥]"  # UTF-8 read as GBK
)
_EMAIL = re.compile(
    r"(?<!\bgit)(?<=[\w.+-])@(?!example\.)[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}",
)
"""The names that RFC 2606 keeps for examples are nobody's; `git@` is everybody's."""
_PHONE = re.compile(
    r"(?<![\d.+-])(?:"
    r"(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}"  # Chinese mobile
    r"|0\d{2,3}-\d{7,8}"  # Chinese landline
    r"|\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,4}\)?){2,5}(?<=\d)"  # international
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}([.-])\d{3}\1\d{4}"  # North American
    r")(?![\d-])",
    re.ASCII,
)
_FEWEST_PHONE_DIGITS = 9
_CHINESE_ID = re.compile(
    r"(?<!\d)[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\d)",
    re.ASCII,
)
_US_SSN = re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])", re.ASCII)
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_CHECKS = "10X98765432"


def is_mojibake(text: str) -> bool:
    """Whether the text was decoded with the wrong encoding, as in `cafÃ©`."""
    return _MOJIBAKE.search(text) is not None


def has_email(text: str) -> bool:
    """Whether an e-mail address stands in the text."""
    return _EMAIL.search(text) is not None


def has_phone(text: str) -> bool:
    """Whether something written like a telephone number stands in the text."""
    return any(
        sum(c.isdigit() for c in found.group()) >= _FEWEST_PHONE_DIGITS
        for found in _PHONE.finditer(text)
    )


def has_id_number(text: str) -> bool:
    """Whether a Chinese identity number, or a US social security number, stands in the text."""
    return any(_checks(found.group()) for found in _CHINESE_ID.finditer(text)) or bool(
        _US_SSN.search(text)
    )


def _checks(number: str) -> bool:
    """Whether the last of 18 characters is right.  Source: GB 11643-1999 (ISO 7064 MOD 11-2)."""
    total = sum(int(d) * weight for d, weight in zip(number, _ID_WEIGHTS, strict=False))
    return _ID_CHECKS[total % 11] == number[-1].upper()
