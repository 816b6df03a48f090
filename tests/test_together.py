"""http/together.py: what several processes counted, from whichever of them is asked; also when some have died."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest

from headwater.histogram import Histogram
from headwater.http.together import Snapshot, Together
from real_server import Server
from scraped import Scraped

EVENTS, READERS, GAPS = "headwater_events_appended", "headwater_readers", "headwater_event_gap_seconds"


def numbers(events: int, readers: int, *gaps: float) -> Snapshot:
    histogram = Histogram((1, 2))
    for gap in gaps:
        histogram.observe(gap)
    return {EVENTS: {("run",): events}, READERS: {("sse",): readers}, GAPS: {("run",): histogram}}


def sums(snapshot: Snapshot) -> tuple[object, object, list[int]]:
    histogram = snapshot[GAPS][("run",)]
    assert isinstance(histogram, Histogram)
    return snapshot[EVENTS].get(("run",)), snapshot[READERS].get(("sse",)), histogram.counts


def test_the_living_are_added_up_and_the_dead_go_on_counting(tmp_path: Path) -> None:
    one, two = Together(str(tmp_path / "new" / "folder")), Together(str(tmp_path / "new" / "folder"))
    one.keep(numbers(5, 2, 0.5))
    assert sums(two.sum(numbers(10, 1, 1.5, 9))) == (15, 3, [1, 1, 1])
    assert sums(one.sum(numbers(6, 2, 0.5, 0.5))) == (16, 3, [2, 1, 1])
    two.close()
    assert sums(one.sum(numbers(6, 2, 0.5, 0.5))) == (16, 2, [2, 1, 1]), "its readers are gone, its events are not"
    one.close()


def test_the_dead_are_folded_into_one_file_by_the_next(tmp_path: Path) -> None:
    for _ in range(5):
        process = Together(str(tmp_path))
        process.keep(numbers(1, 1, 0.5))
        process.close()
    last = Together(str(tmp_path))
    assert sums(last.sum(numbers(0, 0))) == (5, 0, [5, 0, 0])
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert len(list(tmp_path.glob("*-*.lock"))) == 1
    last.close()


def test_what_no_process_of_ours_wrote_is_passed_by(tmp_path: Path) -> None:
    (tmp_path / "1-a.json").write_text("not json")
    (tmp_path / "1-b.json").write_text('{"headwater_events_appended": 7}')
    (tmp_path / "1-c.json").write_text(
        '{"of_another_version": [[["x"], 7]], "headwater_events_appended": [[["run"], 1]]}'
    )
    (tmp_path / "1-d.json").write_text('{"headwater_event_gap_seconds": [[["run"], [[5.0], [1, 1], 6.0]]]}')
    mine = Together(str(tmp_path))
    assert sums(mine.sum(numbers(2, 1, 0.5))) == (3, 1, [1, 0, 0])
    mine.close()


def test_a_process_that_is_killed_no_longer_lives(tmp_path: Path) -> None:
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_together import Together, numbers
        Together({str(tmp_path)!r}).keep(numbers(3, 3))
        print("kept", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    mine = Together(str(tmp_path))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"kept\n"
        assert sums(mine.sum(numbers(1, 1)))[:2] == (4, 4)
        os.kill(other.pid, signal.SIGKILL)
    assert sums(mine.sum(numbers(1, 1)))[:2] == (4, 1)
    mine.close()


@pytest.mark.server
def test_two_servers_on_one_store_tell_the_sum_whichever_is_asked(tmp_path: Path) -> None:
    servers = [Server("serve", tmp_path, "--metrics-dir", str(tmp_path / "shared")) for _ in range(2)]
    one, two = servers
    events = "headwater_events_appended_total", "kind=stream"

    def told(server: Server) -> Scraped:
        return Scraped(httpx.get(f"{server.url}/metrics").text)

    try:
        one.start()
        two.start()
        httpx.put(f"{one.url}/v1/stream/a", headers={"content-type": "text/plain"}, content="x").raise_for_status()
        for server in servers:
            for _ in range(3):
                httpx.post(
                    f"{server.url}/v1/stream/a", headers={"content-type": "text/plain"}, content="y"
                ).raise_for_status()
        told(one)  # which keeps what it tells
        assert told(two)[events] == 7
        assert told(one)[events] == 7
        assert told(one)["headwater_processes"] == 2
        two.kill()
        assert (told(one)[events], told(one)["headwater_processes"]) == (7, 1)
        two.start()
        assert (told(two)[events], told(two)["headwater_processes"]) == (7, 2)
    finally:
        for server in servers:
            if server.running:
                server.stop()
