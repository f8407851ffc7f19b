"""Names of tars without a manifest: /data/x/{000000..000146}.tar, a URL of them, or pipe: and a command."""

import re
from pathlib import Path

from data_shards.errors import DataError
from data_shards.format.tar_names import TARS
from data_shards.storage import SCHEME

READABLE = ("file", "gs", "http", "https", "pipe")  # the schemes that webdataset reads, of those we allow


def expand(pattern: str) -> list[str]:
    """The tars that a name with {000..146} means; DataError when one is not allowed or not there."""
    urls = [re.sub(r"^file:(//)?", "", url) for url in _braces(pattern)]
    for url in urls:
        scheme = SCHEME.match(url)
        if scheme and (kind := scheme[1].lower()) not in READABLE:
            use = f"a path or {', '.join(READABLE)}, such as pipe:aws s3 cp s3://bucket/{{000..146}}.tar -"
            raise DataError(f"{redacted(url)}: scheme {kind} is not allowed here; use {use}")
        if not scheme and not Path(url).is_file():
            raise DataError(f"{url}: no such tar; check the pattern {pattern}")
    return urls


def _braces(pattern: str) -> list[str]:
    """The expansion of the braces; in a command, where the shell has braces too, only with {000..146}."""
    from braceexpand import braceexpand

    command = pattern.startswith("pipe:")
    if command and not re.search(r"\{\d+\.\.\d+\}", pattern):
        return [pattern]
    try:
        return list(braceexpand(pattern, escape=not command))
    except ValueError as error:
        raise DataError(f"{redacted(pattern)}: its braces are not in pairs; write {{000..146}}") from error


def redacted(url: str) -> str:
    """A URL for a message, without passwords and queries: of a command its first word and its tar."""
    if url.startswith("pipe:"):
        words = [word.strip("';\"") for word in url[5:].split() if "=" not in word]
        tars = [redacted(word) for word in words[1:] if word.endswith(TARS)]
        return " ".join([f"pipe:{''.join(words[:1])} ...", *tars])
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0]) if SCHEME.match(url) else url
