"""Messages are compared by what they name: an option, its value, a path; the other words are free."""

from collections.abc import Sequence


def assert_names(message: str, *parts: str) -> None:
    """Assert that a message is one line that holds every part."""
    assert [part for part in parts if part not in message] == [], message
    assert message.rstrip("\n").count("\n") == 0, message


def assert_each_names(messages: Sequence[str], *parts: Sequence[str]) -> None:
    """Assert that there are as many messages as tuples of parts, and that each holds its own."""
    assert len(messages) == len(parts), messages
    for message, named in zip(messages, parts, strict=True):
        assert_names(message, *named)
