"""How secrets look: keys and tokens by their shape, anything by the name it goes under.

Each pattern stands beside what must be in a text for it to be looked for: patterns are slow where the text is not.
"""

from __future__ import annotations

import re

__all__ = ["LEFT", "NAMED", "SHAPES", "is_secret_name", "is_worded_name", "looks_secret"]

# A secret begins where a word does, or behind an escape of JSON or of a URL.
_ESCAPE = r"(?<=\\[nrtbf])|(?<=\\u[0-9a-fA-F]{4})|(?<=%[0-9A-Fa-f]{2})"
_START = rf"(?:(?<![A-Za-z0-9_-])|{_ESCAPE})"
_DIGIT = r"(?=[\w.~+/=-]*\d)"
# The lines of a key in PEM's form, as they are or in JSON's escapes; the mark alone is no key.
_GAP = r"(?:\s|\\+[nr])*"
_PEM = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    rf"(?:{_GAP}(?:Proc-Type|DEK-Info): [\w, -]{{1,100}})*"
    rf"(?:{_GAP}[A-Za-z0-9+/=]{{16,}})+(?:{_GAP}[A-Za-z0-9+/=]{{1,15}}(?={_GAP}-----END))?"
    rf"(?:{_GAP}-----END [A-Z ]*PRIVATE KEY-----)?"
)
SHAPES: tuple[tuple[str, str], ...] = (
    # Behind a letter it may be a piece of an image.
    ("AIza", rf"(?:(?<![A-Za-z0-9+])|{_ESCAPE})AIza[\w-]{{30,}}"),
    ("ya29.", _START + r"ya29\.[\w.-]{8,}"),
    ("1//0", _START + r"1//0[\w-]{20,}"),
    ("GOCSPX-", _START + r"GOCSPX-[\w-]{20,}"),
    ("eyJ", _START + r"eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"),
    ("sk-", _START + rf"sk-{_DIGIT}[\w-]{{20,}}"),
    ("k_", _START + r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    ("gh", _START + r"gh[pousr]_[A-Za-z0-9]{20,}"),
    ("github_pat_", _START + r"github_pat_\w{20,}"),
    ("glpat-", _START + r"glpat-[\w-]{20,}"),
    ("xox", _START + r"xox[abeoprs]-[\w-]{10,}"),
    ("AKIA", _START + r"AKIA[A-Z0-9]{16}\b"),
    ("ASIA", _START + r"ASIA[A-Z0-9]{16}\b"),
    ("hf_", _START + r"hf_[A-Za-z0-9]{30,}"),
    ("lsv2_", _START + r"lsv2_(?:pt|sk)_\w{20,}"),
    ("tvly-", _START + rf"tvly-{_DIGIT}[\w-]{{16,}}"),
    ("PRIVATE KEY-----", _PEM),
    (".iam.gserviceaccount.com", r"(?<![\w.-])[\w.-]+@[\w.-]+\.iam\.gserviceaccount\.com"),
)
_SURE = (
    r"x-goog-api-key|api[_-]?key|access[_-]?token|refresh[_-]?token|id[_-]?token|auth[_-]?token|client[_-]?secret"
    r"|private[_-]?key(?:[_-]?id)?|secret[_-]?key|secret[_-]?access[_-]?key|passwd|password|passphrase|(?<![a-z])pwd"
)
_SURE_MARKS = ("key", "token", "secret", "passw", "passp", "pwd")
_BARE = r"[^\s\"'\\,;<>&]"
# A name in quotes, then its value: in JSON, in JSON inside of a text, in Python's notation.
_NAME = rf"((?:{_SURE})\\*[\"']\s*:\s*"
# The last group of each goes.
NAMED: tuple[tuple[tuple[str, ...], str], ...] = (
    (_SURE_MARKS, rf"(?i){_NAME}\")((?:[^\"\\\n]|\\.){{6,}})(?=\")"),
    (_SURE_MARKS, rf"(?i){_NAME}')((?:[^'\\\n]|\\.){{6,}})(?=')"),
    (_SURE_MARKS, rf"(?i){_NAME}(?P<open>\\+[\"']))([^\n]{{6,}}?)(?<!\\)(?=(?P=open))"),
    # Words that mean other things as well.
    (
        ("token", "secret", "authorization", "cookie"),
        r"(?i)([\"'](?:token|secret|authorization|cookie)\\*[\"']\s*:\s*\\*[\"'](?:(?:bearer|basic|token) )?)"
        + rf"({_DIGIT}(?=[\d_.~+/=-]*[A-Za-z])[\w.~+/=-]{{12,}})",
    ),
    (
        ("key", "token", "secret", "password"),
        rf"(?i)((?:[?&;]|\b)(?:{_SURE})=)([^\s&;\"'\\<>]{{8,}})",
    ),
    # Settings: NAME=value, name = 'value', name: value. Not in quotes it is a secret where it looks like no word.
    (_SURE_MARKS, rf"(?i)((?:{_SURE}) ?= ?(?P<quote>[\"']))([^\"'\\\n]{{6,}})(?=(?P=quote))"),
    (
        _SURE_MARKS,
        rf"(?i)((?:{_SURE}) ?[=:] ?)((?={_BARE}{{0,200}}\d)(?={_BARE}{{0,200}}[A-Za-z]){_BARE}{{8,}})",
    ),
    (_SURE_MARKS, rf"(?i)(<(?:{_SURE})>)([^<>\s]{{6,}})(?=</)"),
    (("key=", "token="), r"(?i)([?&](?:\w+[_-])?(?:key|token)=)([^\s&;\"'\\<>]{8,})"),
    (("bearer ", "basic "), rf"(?i)(\b(?:bearer|basic) ){_DIGIT}([\w.~+/=-]{{16,}})"),
    (
        ("x-goog-api-key", "authorization", "cookie"),
        r"(?i)(\b(?:x-goog-api-key|authorization|(?:set-)?cookie): ?)([^\s\"'\\][^\n\"'\\]{7,})",
    ),
    (("://",), r"(://)([^/\s:@\"'\\]+:[^/\s@\"'\\]+)(?=@)"),
    (("projects/",), r"(\bprojects/)((?!REDACTED)[^/\s\"'\\]+)(?=/locations/)"),
    (("service_account",), r"(?i)(project_id\\*[\"']\s*:\s*\\*[\"'])([^\"'\\]+)"),
)
# Rules of their own for what is about to be written: no marks, no starts, no lengths in between.
LEFT = re.compile(
    r"(?<![A-Za-z0-9+/])(?:AIza[\w-]{35}(?![\w-])|ya29\.[\w-]{20,}|GOCSPX-[\w-]{28}|eyJ[\w-]{15,}\.eyJ[\w-]{15,}"
    r"|ghp_[A-Za-z0-9]{36}|AKIA[A-Z0-9]{16}(?![A-Z0-9]))|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\\nr]*[A-Za-z0-9+/=]{24}"
)
_SURE_NAME = re.compile(rf"(?i)(?:{_SURE})")
_WORDED_NAME = re.compile(r"(?i)(?:token|secret|authorization|cookie)")
_WORDED_VALUE = re.compile(r"(?i)(?:(?:bearer|basic|token) )?(?=\S*\d)(?=\S*[a-z])[\w.~+/=-]{12,}")


def is_secret_name(name: str) -> bool:
    """Whether what goes under a name is a secret: `api_key`, `dbPassword`, `OPENAI_API_KEY`."""
    return any(found.end() == len(name) for found in _SURE_NAME.finditer(name))


def is_worded_name(name: str) -> bool:
    """Whether what goes under a name may be one, where it looks like one (`looks_secret`): `token`, `authorization`."""
    return _WORDED_NAME.fullmatch(name) is not None


def looks_secret(value: str) -> bool:
    """Whether a value is no word."""
    return _WORDED_VALUE.fullmatch(value) is not None
