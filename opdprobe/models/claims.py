"""What a model's files claim, checked before transformers builds it.

A configuration of a kilobyte can describe a model of petabytes, and the rules of a tokenizer can
turn each character into thousands.
"""

import base64
import re
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from opdprobe.errors import ModelError, printable, shown
from opdprobe.store.budget import LEAST
from opdprobe.store.files import OddFileError, regular
from opdprobe.store.safe_text import parse_json

# Weights of one bit, of which a byte holds 8, twice over: tied ones are saved once.
_WEIGHTS_OF_BYTE = 16
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
_VOCABULARIES = ("vocab_size", "n_vocab", "padded_vocab_size")
_INNER = ("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size")
_MOST_LAYERS = 10_000
_MOST_GROWTH = 64  # of a text, by all of a tokenizer's rules together
_MOST_RULES = 64
# Repetitions of a regular expression, outside of brackets and where they are not escaped.
_IN_BRACKETS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]])*\]")
_REPEATS = re.compile(r"(?<!\()[*+?{]")
_REPEATED_GROUP = re.compile(r"\)[*+?{]")
_MOST_REPEATS = 2
_MOST_ADDED = 1000  # special tokens around a text


def check_model_claims(directory: Path) -> None:
    """Check that ``config.json`` describes no model far larger than the weights beside it.

    Raises
    ------
    ModelError
        It does; names the entries.
    """
    config = _content(directory / "config.json")
    if config is None:
        return
    n_bytes = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    most = LEAST + _WEIGHTS_OF_BYTE * n_bytes
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        layers, width, vocabulary, inner = (
            _largest(part, names) for names in (_LAYERS, _WIDTHS, _VOCABULARIES, _INNER)
        )
        claims = {
            "layers": (layers, _MOST_LAYERS),
            "weights in norms": (layers * width, most),
            "weights in embeddings": (vocabulary * width, most),
            "weights in a layer": (inner * width, most),
        }
        for what, (claimed, allowed) in claims.items():
            if claimed > allowed:
                raise ModelError(
                    f"{directory}: config.json claims {claimed} {what}, but the weights' files "
                    f"have {n_bytes} bytes; expected the configuration that belongs to them."
                )


def check_tokenizer_claims(file: Path) -> None:
    """Check that a tokenizer's rules do not multiply a text, and that its names can be printed.

    Parameters
    ----------
    file
        Its ``tokenizer.json``; the files beside it are looked at, too.

    Raises
    ------
    ModelError
        They do.
    """
    for described in (
        file.with_name("tokenizer_config.json"),
        file.with_name("special_tokens_map.json"),
    ):
        for name in _names(_content(described)):
            # The tokenizers library prints names that it does not know, as they are.
            if printable(name) != name:
                raise ModelError(
                    f"{described}: an entry is called {shown(name)}; expected names without "
                    "control characters: take the tokenizer from the model's author."
                )
    rules = _content(file)
    if rules is None:
        return
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        parts = list(_parts(rules.get(name)))
        if name != "pre_tokenizer":
            _check_patterns(file, name, parts)
        grown = prod(map(_growth, parts[:_MOST_RULES]))
        if len(parts) > _MOST_RULES or grown > _MOST_GROWTH:
            raise ModelError(
                f"{file}: the {name} has {len(parts)} rules that can make a text {grown} times as "
                f"long; expected at most {_MOST_RULES} rules and {_MOST_GROWTH} times: take the "
                "tokenizer from the model's author."
            )
    around = sum(map(_added, _parts(rules.get("post_processor"))))
    if around > _MOST_ADDED:
        raise ModelError(
            f"{file}: the post_processor adds {around} tokens to a text; expected at most "
            f"{_MOST_ADDED}: take the tokenizer from the model's author."
        )


def _check_patterns(file: Path, name: str, parts: list[dict[str, Any]]) -> None:
    """Refuse regular expressions that could take very long where no time limit applies.

    A normalizer runs on the added tokens when a tokenizer is loaded, a decoder on each text.
    """
    for part in parts:
        pattern = part.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        if not isinstance(regex, str):
            continue
        plain = _IN_BRACKETS.sub("x", regex)
        if len(_REPEATS.findall(plain)) > _MOST_REPEATS or _REPEATED_GROUP.search(plain):
            raise ModelError(
                f"{file}: the {name} has the regular expression {shown(regex)}, which can take "
                f"very long; expected at most {_MOST_REPEATS} repetitions, and none of a group: "
                "take the tokenizer from the model's author."
            )


def _content(file: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is none, of which loading says what is wrong."""
    try:
        found = parse_json(regular(file).read_bytes())
    except OddFileError as error:
        raise ModelError(f"{file} cannot be read ({error}): restore the file.") from error
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _names(content: Any) -> Iterator[str]:
    """Yield the names of all entries, however deep."""
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _largest(config: dict[str, Any], names: tuple[str, ...]) -> int:
    found = (config.get(name) for name in names)
    return max((n for n in found if isinstance(n, int) and not isinstance(n, bool)), default=0)


def _parts(rule: Any) -> Iterator[dict[str, Any]]:
    """Yield the rules that a rule consists of, however deep."""
    waiting = [rule]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, dict):
            inner = [
                v for k, v in one.items() if k.endswith(("ors", "ers")) and isinstance(v, list)
            ]
            waiting += inner
            if not inner:
                yield one


def _growth(rule: dict[str, Any]) -> int:
    """How many times as long a rule can make a text, rounded up."""
    if rule.get("type") == "Replace":
        pattern, content = rule.get("pattern"), rule.get("content")
        old = pattern.get("String") if isinstance(pattern, dict) else None
        shortest = len(old) if isinstance(old, str) and old else 1
        return max(1, -(-len(content) // shortest)) if isinstance(content, str) else 1
    if rule.get("type") == "Prepend":
        return 1 + len(str(rule.get("prepend", "")))
    if rule.get("type") == "Precompiled":
        return _longest_replacement(rule.get("precompiled_charsmap"))
    return 1


def _longest_replacement(charsmap: Any) -> int:
    """Longest text that a SentencePiece map puts in place of a character."""
    try:
        raw = base64.b64decode(charsmap or "")
    except (TypeError, ValueError):
        return 1  # tokenizers says what is wrong with it
    texts = raw[4 + int.from_bytes(raw[:4], "little") :]
    return max(len(text.decode(errors="ignore")) for text in texts.split(b"\x00")) or 1


def _added(rule: dict[str, Any]) -> int:
    """Count the tokens that a template adds; the text itself may stand in it once."""
    tokens = rule.get("special_tokens")
    own = list(tokens.values()) if isinstance(tokens, dict) else []
    most = max((len(one.get("ids") or ()) for one in own if isinstance(one, dict)), default=0)
    pieces = [p for name in ("single", "pair") for p in rule.get(name) or () if isinstance(p, dict)]
    texts = sum("Sequence" in piece for piece in pieces)
    return len(pieces) * max(most, 1) + (_MOST_ADDED if texts > 8 else 0)
