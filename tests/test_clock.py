"""The virtual clock: it jumps when nothing else can happen, and never past what can."""

import asyncio
import inspect
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from headwater.testing import VirtualTimeLoop, run_virtual, virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


def test_an_hour_takes_no_time() -> None:
    started = time.monotonic()

    async def main() -> float:
        await asyncio.sleep(3600)
        return now()

    assert run_virtual(main()) == 3600
    assert time.monotonic() - started < 5


@virtual_time
async def test_timers_fire_in_order_and_on_time() -> None:
    fired: list[tuple[str, float]] = []
    loop = asyncio.get_running_loop()
    for name, delay in [("c", 30.0), ("a", 0.1), ("b", 15.0), ("b2", 15.0)]:
        loop.call_later(delay, lambda name=name: fired.append((name, loop.time())))
    await asyncio.sleep(29)
    assert [name for name, _ in fired] == ["a", "b", "b2"]
    await asyncio.sleep(2)
    assert fired == [("a", 0.1), ("b", 15.0), ("b2", 15.0), ("c", 30.0)]


@virtual_time
async def test_time_stands_still_while_callbacks_are_ready() -> None:
    timer = asyncio.get_running_loop().call_later(0.001, lambda: None)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert now() == 0
    timer.cancel()


@virtual_time
async def test_longer_than_the_loops_longest_wait() -> None:
    await asyncio.sleep(10 * 24 * 3600)  # asyncio waits a day at most in one go
    assert now() == 10 * 24 * 3600


@virtual_time
async def test_timeouts_end_what_never_comes() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(20):
            await asyncio.Event().wait()
    assert now() == 20


@virtual_time
async def test_a_job_in_the_executor_holds_the_clock() -> None:
    async with asyncio.timeout(0.001):
        await asyncio.to_thread(time.sleep, 0.05)  # far longer for real than the timeout
    assert now() == 0


@virtual_time
async def test_the_executor_does_not_stop_later_timers() -> None:
    await asyncio.to_thread(time.sleep, 0)
    await asyncio.sleep(100)
    assert now() == 100


def test_a_thread_that_answers_within_the_grace_is_heard_first() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()
        thread = threading.Timer(0.05, lambda: loop.call_soon_threadsafe(answered.set))
        thread.start()
        async with asyncio.timeout(60):
            await answered.wait()
        thread.join()
        return loop.time()

    assert run_virtual(main(), grace=10) == 0


def test_a_process_that_answers_within_the_grace_is_heard_first() -> None:
    async def main(pipe: int) -> float:
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()
        loop.add_reader(pipe, answered.set)
        async with asyncio.timeout(60):
            await answered.wait()
        loop.remove_reader(pipe)
        return loop.time()

    with subprocess.Popen(["sh", "-c", "sleep 0.05; echo done"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert run_virtual(main(process.stdout.fileno()), grace=10) == 0


def test_the_end_waits_for_the_executors_threads() -> None:
    started, ended = threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        time.sleep(0.1)
        ended.set()

    async def main() -> None:
        unwanted = asyncio.get_running_loop().run_in_executor(None, job)
        await asyncio.to_thread(started.wait)
        unwanted.cancel()

    run_virtual(main())
    assert ended.is_set()


@virtual_time
async def test_a_thread_is_waited_for_when_no_timer_is_set() -> None:
    loop = asyncio.get_running_loop()
    answered = asyncio.Event()
    thread = threading.Timer(0.05, lambda: loop.call_soon_threadsafe(answered.set))
    thread.start()
    await answered.wait()
    thread.join()
    assert now() == 0


@virtual_time
async def test_loopback_sockets_talk_before_time_moves() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, asyncio.timeout(0.5):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for n in range(50):
            writer.write(b"%d\n" % n)
            assert await reader.readline() == b"%d\n" % n
        writer.close()
        await writer.wait_closed()
    assert now() == 0


@virtual_time
async def test_a_silent_socket_does_not_stop_the_clock() -> None:
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    here.setblocking(False)
    with here, there, pytest.raises(TimeoutError):
        await asyncio.wait_for(loop.sock_recv(here, 1), 15)
    assert now() == 15


def test_a_loop_that_waits_for_nothing_fails() -> None:
    async def main() -> None:
        await asyncio.sleep(7)
        await asyncio.Event().wait()

    runner = asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(stuck_after=0.05))
    with runner, pytest.raises(RuntimeError, match=r"stuck at 7 s.*no timer is set"):
        runner.run(main())


def test_a_job_that_never_ends_fails() -> None:
    release = threading.Event()

    async def main() -> None:
        await asyncio.gather(asyncio.to_thread(release.wait), asyncio.sleep(1))

    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(stuck_after=0.05)) as runner:
        with pytest.raises(RuntimeError, match="1 executor job"):
            runner.run(main())
        release.set()


def test_tasks_left_behind_are_an_error_and_are_cancelled() -> None:
    ends: list[str] = []

    async def forgotten() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    tasks = []

    async def main() -> None:
        tasks.append(asyncio.create_task(forgotten(), name="forgotten-one"))
        await asyncio.sleep(1)

    with pytest.raises(RuntimeError, match=r"left behind.*forgotten-one"):
        run_virtual(main())
    assert ends == ["cancelled"]


def test_errors_come_through() -> None:
    async def main() -> None:
        await asyncio.sleep(1)
        raise LookupError("as raised")

    with pytest.raises(LookupError, match="as raised"):
        run_virtual(main())


@virtual_time
async def test_fixtures_reach_a_decorated_test(tmp_path: Path) -> None:
    assert tmp_path.is_dir()
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)


@pytest.mark.parametrize("seconds", [0.5, 90.0])
@virtual_time
async def test_parameters_reach_a_decorated_test(seconds: float) -> None:
    await asyncio.sleep(seconds)
    assert now() == seconds


def test_a_decorated_test_is_a_plain_function() -> None:
    assert not inspect.iscoroutinefunction(test_fixtures_reach_a_decorated_test)
