"""The text to show for a token id, read from ``tokenizer.json`` without a tokenizer library."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from opdprobe.errors import ModelError, shown
from opdprobe.store.files import OddFileError, regular
from opdprobe.store.safe_text import parse_json

# Most characters of all tokens together: a million, and four for each byte of the file.
_LEAST, _TIMES = 2**20, 4
_SHOW_CODE_POINT = {"Cf", "Cs", "Zl", "Zp"}  # invisible, or able to turn the text around


class TokenText(NamedTuple):
    """One token as shown.

    Attributes
    ----------
    kind : str
        ``"text"``; ``"special"``, a token without text; ``"bytes"``, part of a character's UTF-8;
        ``"id"``, a token whose text is unknown.
    text : str
        The text, the special token's name, bytes such as ``"E2 80"``, or the id.
    """

    kind: str
    text: str


class TokenTexts:
    """The text of every token of a tokenizer; without a tokenizer, every token's id.

    Parameters
    ----------
    path : path-like, optional
        A ``tokenizer.json``, or a directory that has one.

    Attributes
    ----------
    gap : str
        Text between two tokens in running text: a space for word tokenizers, whose tokens contain
        none; otherwise empty.
    size : int
        Highest known id + 1.

    Raises
    ------
    ModelError
        There is no ``tokenizer.json`` at `path`, or it does not have the usual form.

    Examples
    --------
    >>> TokenTexts()[7]
    TokenText(kind='id', text='7')
    >>> TokenTexts("no/such/tokenizer")
    Traceback (most recent call last):
    ...
    opdprobe.errors.ModelError: no/such/tokenizer: expected a tokenizer.json, or a directory ...
    """

    def __init__(self, path: str | Path | None = None):
        self.gap = ""
        self._texts: dict[int, TokenText] = {}
        if path is not None:
            file = Path(path)
            file = file / "tokenizer.json" if file.is_dir() else file
            if not file.is_file():
                raise ModelError(
                    f"{path}: expected a tokenizer.json, or a directory that has one; save it "
                    "there with tokenizer.save_pretrained."
                )
            try:
                content = regular(file).read_bytes()
                self._left = _LEAST + _TIMES * len(content)
                self._read(parse_json(content.decode()))
            except OddFileError as error:
                raise ModelError(f"{file} cannot be read ({error}): restore the file.") from error
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ModelError(
                    f"{file} is not a tokenizer.json of the tokenizers library ({error!r})."
                ) from error
        self.size = max(self._texts, default=-1) + 1

    def __getitem__(self, token: int) -> TokenText:
        return self._texts.get(token, TokenText("id", str(token)))

    def __contains__(self, token: int) -> bool:
        return token in self._texts

    def classes(self) -> dict[int, str]:
        """Return each token's `token_class`; empty without a tokenizer."""
        return {index: token_class(token) for index, token in self._texts.items()}

    def _read(self, rules: dict[str, Any]) -> None:
        vocabulary = rules["model"]["vocab"]
        if isinstance(vocabulary, dict):
            pieces = {_id(index): piece for piece, index in vocabulary.items()}
        else:  # Unigram: [piece, score] in the order of ids
            pieces = {index: piece for index, (piece, _) in enumerate(vocabulary)}
        decode = _decoder(rules.get("decoder"), self._take)
        for index, piece in pieces.items():
            self._take(len(piece))
            self._texts[index] = decode(piece)
        for token in rules.get("added_tokens") or ():
            kind = "special" if token["special"] else "text"
            self._take(len(token["content"]))
            self._texts[_id(token["id"])] = TokenText(kind, visible(token["content"]))
        if rules.get("decoder") is None:
            self.gap = " "  # as the tokenizers library joins tokens without a decoder

    def _take(self, n: int) -> None:
        """Count characters; a decoder may replace each by very many."""
        self._left -= n
        if self._left < 0:
            raise ValueError("its tokens have far more text than its size accounts for")


KINDS = ("number", "word", "sign", "space", "special", "other")
"""What `token_class` tells apart."""


def token_class(token: TokenText) -> str:
    """Return the kind of a token, one of `KINDS`.

    Numbers have a digit and no letter, words a letter; signs are what else is visible. Parts of
    characters and tokens of unknown text are ``other``.

    Examples
    --------
    >>> [token_class(TokenText("text", text)) for text in (" 19", "x2", "+", " ")]
    ['number', 'word', 'sign', 'space']
    >>> token_class(TokenText("special", "<eos>")), token_class(TokenText("id", "7"))
    ('special', 'other')
    """
    if token.kind != "text":
        return "special" if token.kind == "special" else "other"
    text = token.text
    if not text.strip():
        return "space"
    if any(map(str.isalpha, text)):
        return "word"
    return "number" if any(map(str.isdigit, text)) else "sign"


def _id(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"a token's id is {shown(value)}; expected an integer from 0")
    return value


def visible(text: str) -> str:
    r"""Replace characters that are invisible or would rearrange the text around them.

    Control characters become control pictures; other invisible or direction-changing characters
    become their code point. Spaces and line breaks stay.

    Examples
    --------
    >>> visible("a\tb\x00\u202ec \n")
    'a⇥b␀‹U+202E›c \n'
    """
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if character == "\n" or category not in {"Cc", *_SHOW_CODE_POINT}:
        return character
    if character == "\t":
        return "⇥"
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    return f"‹U+{ord(character):04X}›"


def _decoder(
    rules: dict[str, Any] | None, take: Callable[[int], None]
) -> Callable[[str], TokenText]:
    """Turn the file's decoder into a function of one token; `take` counts what it adds."""
    steps = rules.get("decoders", [rules]) if rules else []
    by_type = {step["type"]: step for step in steps}
    if "ByteLevel" in by_type:
        return _byte_level
    replacements = []
    if "Metaspace" in by_type:
        replacements.append((by_type["Metaspace"].get("replacement", "▁"), " "))
    if "String" in by_type.get("Replace", {}).get("pattern", {}):
        replacements.append(
            (by_type["Replace"]["pattern"]["String"], by_type["Replace"]["content"])
        )
    prefix = by_type["WordPiece"].get("prefix", "##") if "WordPiece" in by_type else None

    def decode(piece: str) -> TokenText:
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece) if "ByteFallback" in by_type else None
        if byte:
            return _from_bytes(bytes.fromhex(byte[1]))
        if prefix is not None:
            piece = piece.removeprefix(prefix) if piece.startswith(prefix) else f" {piece}"
        for old, new in replacements:
            take(piece.count(old) * len(new))
            piece = piece.replace(old, new)
        return TokenText("text", visible(piece))

    return decode


def _byte_alphabet() -> dict[str, int]:
    """Map GPT-2's stand-in characters to bytes: printable bytes themselves, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTES = _byte_alphabet()


def _byte_level(piece: str) -> TokenText:
    if any(character not in _BYTES for character in piece):
        return TokenText("text", visible(piece))  # a token added as plain text
    return _from_bytes(bytes(_BYTES[character] for character in piece))


def _from_bytes(raw: bytes) -> TokenText:
    try:
        return TokenText("text", visible(raw.decode()))
    except UnicodeDecodeError:
        return TokenText("bytes", raw.hex(" ").upper())
