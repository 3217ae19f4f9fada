"""Words of texts for comparing them, without case, spacing and Unicode variants."""

import unicodedata

# Written without spaces between words (Thai, Lao, Burmese, Khmer, kana, Chinese characters): each character is a word.
# Hangul has spaces.
_UNSPACED = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF)),
    *((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x20000, 0x3FFFF)),
)
SEPARATOR = "\0"  # placed between two texts; it is always a separate word, so no n-gram spans both texts


def words(text: str) -> list[str]:
    """The words of a text in order, without punctuation; a character of a script without spaces is a word."""
    text = _normalised(text)
    if text.isascii():  # most texts; a table of bytes is much faster
        return text.encode().translate(_ASCII).decode().replace(SEPARATOR, f" {SEPARATOR} ").split()
    return text.translate(_WORDS).split()


def words_and_marks(text: str) -> list[str]:
    """The words of a text in order, each punctuation mark and symbol being one more word."""
    return _normalised(text).translate(_WORDS_AND_MARKS).split()


def normalised(text: str) -> str:
    """Unicode's NFKC, casefolded, with single spaces, without invisible characters."""
    text = _normalised(text)
    if not text.isascii():
        text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return " ".join(text.split())


def _normalised(text: str) -> str:
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", text)  # casefolding may leave a text that is not NFKC


class _Spacing(dict[int, str]):
    """A table for str.translate that puts spaces around words; filled character by character, on first use."""

    def __init__(self, marks: bool):
        super().__init__()
        self.marks = marks

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        if character == SEPARATOR or any(first <= code <= last for first, last in _UNSPACED):
            shown = f" {character} "
        elif kind[0] in "LMN":  # letters, their accents and vowel signs, numbers
            shown = character
        elif kind == "Cf":  # invisible: soft hyphens, zero-width spaces and joiners, byte-order marks
            shown = ""
        else:
            shown = f" {character} " if self.marks and not character.isspace() else " "
        self[code] = shown
        return shown


_WORDS, _WORDS_AND_MARKS = _Spacing(marks=False), _Spacing(marks=True)
_ASCII = bytes(ord(_WORDS[code].strip(" ") or " ") if code < 128 else 0 for code in range(256))
