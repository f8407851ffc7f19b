"""Load on a server with known answers: every request is sent once, and every answer is counted."""

from collections import Counter

import pytest

from launcher.bench.address import Address
from launcher.bench.client import NO_ANSWER, Answer, described
from launcher.bench.load import Level, LoadOptions, level, mean_batch, measure
from launcher.config.errors import ConfigError
from tests.launcher.bench.fake_server import BROKEN, FakeServer, fake_server

BODIES = (b"one", b"two", b"three")


def load(server: FakeServer, concurrency: int, requests: int) -> Level:
    options = LoadOptions(requests=requests, timeout_s=300.0)
    return measure(Address.of(server.url), BODIES, concurrency, options)


def test_rates_and_errors_by_hand() -> None:
    # six answers in 2 s, four of them good: 2 a second; of 10, 20, 30, 40 ms the median is 25 ms
    good = [Answer(status="200", seconds=number / 100) for number in (4, 1, 3, 2)]
    bad = [
        Answer(status="500", seconds=9.0, detail="first"),
        Answer(status="500", seconds=9.0, detail="second"),
    ]
    found = level(8, [bad[0], *good, bad[1]], 2.0, 3.5, 0.5)
    assert (found.requests, found.answered, found.requests_s, found.mean_batch) == (6, 4, 2.0, 3.5)
    assert found.latency is not None
    assert found.latency.p50_ms == pytest.approx(25)
    assert (found.errors, found.details, found.client_cores) == ({"500": 2}, {"500": "first"}, 0.25)
    nothing = level(1, bad, 2.0, None, 0.5)
    assert (nothing.latency, nothing.answered, nothing.requests_s) == (None, 0, 0)


def test_the_mean_batch_is_that_of_the_passes_in_between() -> None:
    assert mean_batch((100, 40), (160, 50)) == 6  # 60 images in 10 passes
    assert mean_batch(None, (160, 50)) is None
    assert mean_batch((100, 40), (100, 40)) is None


@pytest.mark.parametrize(("concurrency", "requests"), [(1, 7), (3, 3), (4, 20)])
def test_every_request_is_sent_once_and_images_in_turn(concurrency: int, requests: int) -> None:
    with fake_server() as server:
        found = load(server, concurrency, requests)
    assert (found.requests, found.answered, found.errors) == (requests, requests, {})
    counted = server.bodies[2 * concurrency :]  # after two of each client that do not count
    assert Counter(counted) == Counter(BODIES[number % 3] for number in range(requests))
    assert found.mean_batch == pytest.approx(2.5)


def test_clients_send_at_the_same_time() -> None:
    """A request is answered only when five are there."""
    with fake_server(meet=5) as server:
        found = load(server, 5, 10)
    assert (found.answered, found.concurrency) == (10, 5)


def test_errors_are_counted_by_status_and_the_clients_go_on() -> None:
    statuses = (200, 429, 200, 500, BROKEN)  # of numbers 4 ... 23, after the four that do not count
    with fake_server(lambda number: statuses[number % 5]) as server:
        found = load(server, 2, 20)
    assert found.errors == {"429": 4, "500": 4, NO_ANSWER: 4}
    assert (found.requests, found.answered) == (20, 8)
    assert (found.details["429"], found.details["500"]) == ("reason of 429", "reason of 500")
    assert found.details[NO_ANSWER]


def test_a_server_without_metrics() -> None:
    with fake_server(metrics=False) as server:
        assert load(server, 1, 2).mean_batch is None


def test_a_path_before_all_others() -> None:
    address = Address.of("https://host.example/models/a/")
    assert (address.host, address.port, address.path) == ("host.example", None, "/models/a")
    assert Address.of("http://[::1]:8000").host == "::1"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host:70000",
        "http://me:word@host",
        "http://host?a=1",
    ],
)
def test_what_is_no_url_of_a_server(url: str) -> None:
    with pytest.raises(ConfigError, match="is no URL|http://HOST:PORT"):
        Address.of(url)


def test_no_server_and_one_of_another_kind() -> None:
    with fake_server() as server:
        url = server.url
        assert described(Address.of(url)) == ("a fake of 3 classes", "/v1/classify")
        with pytest.raises(ConfigError, match="no server of swin-moe: .* status 404"):
            described(Address.of(f"{url}/elsewhere"))
    for unreachable in (url, "http://no.such.host.invalid", "http://a..b"):
        with pytest.raises(ConfigError, match="no answer: .*swin-moe serve"):
            described(Address.of(unreachable))
