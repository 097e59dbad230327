"""What a word is, for Python and for the operator of the exported graph alike.

Both find the same pieces because the pattern names ranges of code points, each in the notation of
its own engine, and no class that depends on a version of Unicode.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_Range = tuple[int, int]

_PARTING: Sequence[_Range] = (
    (0x0000, 0x0020),  # control characters and the space
    (0x007F, 0x00A0),  # more of them, and the space that does not break
    (0x1680, 0x1680),
    (0x2000, 0x200B),  # spaces of all widths; joiners, which come next, are parts of words
    (0x200E, 0x200F),  # marks of direction
    (0x2028, 0x202F),  # ends of lines and paragraphs, more marks of direction
    (0x205F, 0x206F),
    (0x3000, 0x3000),
    (0xFEFF, 0xFEFF),  # the byte order mark
)
_ALONE: Sequence[_Range] = (
    *((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)),  # punctuation of ASCII
    *((0xA1, 0xA9), (0xAB, 0xB1), (0xB4, 0xB4), (0xB6, 0xB8), (0xBB, 0xBB), (0xBF, 0xBF)),
    *((0xD7, 0xD7), (0xF7, 0xF7)),
    *((0x2010, 0x2027), (0x2030, 0x205E)),  # general punctuation
    (0x20A0, 0x20CF),  # currencies
    (0x2100, 0x2BFF),  # letter-like signs, arrows, mathematics, boxes, dingbats
    (0x3001, 0x303F),  # punctuation of Chinese, Japanese and Korean
    (0x3040, 0x30FF),  # kana
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),  # ideographs
    (0xFE30, 0xFE4F),
    *((0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65)),  # in full width
    (0x1F000, 0x1FAFF),  # emoji
)


def _pattern(notation: str) -> str:
    parting, alone = (
        "".join(f"{notation.format(first)}-{notation.format(last)}" for first, last in ranges)
        for ranges in (_PARTING, _ALONE)
    )
    return f"[^{parting}{alone}]+|[{alone}]"


RE2_PATTERN = _pattern(r"\x{{{:x}}}")
"""Matches a word, or a character that stands alone; in the notation of RE2, for `Tokenizer`."""
_WORD = re.compile(_pattern(r"\U{:08x}"))
_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def words_of(text: str, *, lower_case: bool) -> Iterator[str]:
    """Yields the words of a text in their order; A to Z as a to z if wanted."""
    if lower_case:
        text = text.translate(_LOWER)
    return (match.group() for match in _WORD.finditer(text))
