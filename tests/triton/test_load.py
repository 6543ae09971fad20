"""Releases under load: no request fails, and every answer is of a version that was meant to serve.

The whole of it, with a kill at every step and more than 10,000 requests, is `benchmarks/release.py`.
"""

from __future__ import annotations

from tests.triton.fixtures import Place
from tests.triton.load import Answer, Clients, Play


def test_no_request_fails_while_a_model_is_changed(place: Place) -> None:
    play = Play(place)
    with Clients(place.server.url, place.name) as clients:
        play.swap(1)
        play.fail()
        play.crash("loaded", 2)
        play.swap(3, watched=True)
        play.back()
        clients.wait_for(1500)
    verdict = play.judge(clients.answers)
    assert verdict.failed == []
    assert verdict.strangers == []
    assert verdict.requests >= 1500
    assert len(verdict.versions) >= 4


def test_an_answer_of_a_version_that_was_not_meant_is_seen(place: Place) -> None:
    """The judge itself: an error, a version that serves no more, and one that answers with other values."""
    play = Play(place)
    play.meant += [(10.0, frozenset({1, 2})), (11.0, frozenset({2}))]
    good = [Answer(9, 9.5, 1, "a"), Answer(10.5, 11.5, 1, "a"), Answer(10.5, 10.6, 2, "b")]
    assert play.judge(good).strangers == []
    late, early = Answer(12, 12.1, 1, "a"), Answer(9, 9.1, 2, "b")
    assert len(play.judge([late, early]).strangers) == 2
    assert len(play.judge([*good, Answer(9, 9.2, 1, "other")]).strangers) == 1
    assert play.judge([Answer(9, 9.1, None, "Triton said no")]).failed == ["Triton said no"]
