"""What a child does by itself: refusing to be started by hand, and dying with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from processors.child import (
    IGNORED_SIGNALS,
    LAUNCH_FLAG,
    Child,
    Launch,
    enter,
    give_turn,
    read_launch,
    write_launch,
)
from processors.settings import Settings
from processors.stop import Stop
from processors.tally import OWNER, PARKED, RELAY, WORD
from ringbuf import Ring

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0
SETTINGS = Settings(data_dir="/data", database="sqlite:////data/rasher.db")

CHILD = """
import sys
from processors.child import enter
child = enter(sys.argv)
child.watch_parent()
child.ready()
sys.stdin.read()
"""


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    with Ring.create(tmp_path / "a.ring", capacity=1, slot_bytes=256) as ring:
        yield ring


class Pipe:
    """Its two ends, each closed once."""

    def __init__(self) -> None:
        read, write = os.pipe()
        self.r, self.w = os.fdopen(read, "rb", 0), os.fdopen(write, "wb", 0)

    def close(self) -> None:
        self.r.close()
        self.w.close()


@pytest.fixture
def alive() -> Iterator[Pipe]:
    with closing(Pipe()) as pipe:
        yield pipe


@pytest.fixture
def status() -> Iterator[Pipe]:
    with closing(Pipe()) as pipe:
        yield pipe


def launch_with(ring: Ring, alive_fd: int, status_fd: int, parent_pid: int) -> Launch:
    return Launch(
        role="worker",
        index=3,
        settings=SETTINGS,
        ring_fd=ring.fd,
        listen_fd=None,
        alive_fd=alive_fd,
        status_fd=status_fd,
        parent_pid=parent_pid,
        adopt=[7],
    )


class Turn:
    """A replacement of worker 3 at its gate, with the supervisor's ends of its pipes."""

    def __init__(self, ring: Ring, alive: Pipe, status: Pipe, gate: Pipe) -> None:
        launch = launch_with(ring, alive.r.fileno(), os.dup(status.w.fileno()), os.getpid())
        self.child = Child(replace(launch, gate_fd=os.dup(gate.r.fileno())), ring)
        self.gate, self.status = gate, status

    def give(self, adopt: list[int]) -> None:
        give_turn(os.dup(self.gate.w.fileno()), adopt)
        self.gate.w.close()

    def close(self) -> None:
        os.close(self.child.launch.status_fd)


@pytest.fixture
def turn(ring: Ring, alive: Pipe, status: Pipe) -> Iterator[Turn]:
    with closing(Pipe()) as gate, closing(Turn(ring, alive, status, gate)) as turn:
        yield turn


def test_a_replacement_stands_by_until_it_is_given_the_index_and_what_to_adopt(turn: Turn) -> None:
    turn.give([2, 5])
    with Stop() as stop:
        assert turn.child.wait_turn(stop) == [2, 5]
    assert turn.status.r.read(64) == b"standing by\n"


def test_a_replacement_that_is_asked_to_stop_gets_no_index(turn: Turn) -> None:
    turn.give([])
    with Stop() as stop:
        stop.request()
        assert turn.child.wait_turn(stop) is None


def test_the_gate_of_a_supervisor_that_is_gone_gives_no_index(turn: Turn) -> None:
    turn.gate.w.close()
    with Stop() as stop:
        assert turn.child.wait_turn(stop) is None


def test_giving_a_turn_to_nobody_is_harmless() -> None:
    read, write = os.pipe()
    os.close(read)
    give_turn(write, [1])


def test_without_a_gate_the_index_is_the_childs_from_the_start(ring: Ring) -> None:
    with Stop() as stop:
        assert Child(launch_with(ring, 5, 6, 7), ring).wait_turn(stop) == [7]


@pytest.mark.parametrize("number", sorted(IGNORED_SIGNALS))
def test_what_is_the_supervisors_to_answer_ends_no_child(
    ring: Ring, alive: Pipe, status: Pipe, number: int
) -> None:
    with start(launch_with(ring, alive.r.fileno(), status.w.fileno(), os.getpid())) as child:
        status.w.close()
        assert status.r.read(10) == b"ready\n"
        child.send_signal(number)
        alive.w.close()
        assert child.wait(PATIENCE_S) == -signal.SIGKILL  # its own, not that signal's


def start(launch: Launch) -> subprocess.Popen[bytes]:
    fd = write_launch(launch)
    try:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, LAUNCH_FLAG, str(fd)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            pass_fds=[fd, launch.ring_fd, launch.alive_fd, launch.status_fd],
        )
    finally:
        os.close(fd)


def test_a_relay_counts_in_words_of_its_own_in_a_page_in_which_a_front_counted(ring: Ring) -> None:
    front = replace(launch_with(ring, 0, 1, os.getpid()), role="front", cause="signal")
    relay = replace(front, role="relay", index=0, cause="exit")
    with ring.writer() as place:
        page = Child(front, ring).tally("writer", place.index).page
        page[PARKED] = 7  # when it was killed
        assert page[OWNER] == 4
        Child(relay, ring).tally("writer", place.index)
        assert (page[OWNER], page[PARKED]) == (RELAY, 0)
        assert (page[WORD["restarted_signal"]], page[WORD["restarted_exit"]]) == (1, 0)
        assert (page[WORD["relay_signal"]], page[WORD["relay_exit"]]) == (0, 1)


def test_the_launch_record_arrives_whole_and_its_descriptor_is_closed(ring: Ring) -> None:
    launch = launch_with(ring, 5, 6, 7)
    fd = write_launch(launch)
    assert read_launch(["program", LAUNCH_FLAG, str(fd)]) == launch
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("argv", [[], [LAUNCH_FLAG], [LAUNCH_FLAG, "x"], [LAUNCH_FLAG, "9999"]])
def test_started_by_hand_it_says_what_to_start_instead(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        enter(argv)
    assert caught.value.code == 2
    assert "run `rasher` instead" in capsys.readouterr().err


def test_a_child_whose_parent_died_before_it_could_ask_ends_at_once(
    ring: Ring, alive: Pipe, status: Pipe
) -> None:
    with start(launch_with(ring, alive.r.fileno(), status.w.fileno(), parent_pid=1)) as child:
        status.w.close()
        assert child.wait(PATIENCE_S) == -signal.SIGKILL
        assert status.r.read(10) == b""


@pytest.mark.parametrize("blocking", [True, False])
def test_the_end_of_the_alive_pipe_ends_a_child(
    ring: Ring, alive: Pipe, status: Pipe, blocking: bool
) -> None:
    # The flag belongs to all who share the pipe: an event loop in one of them clears it.
    os.set_blocking(alive.r.fileno(), blocking)
    with start(launch_with(ring, alive.r.fileno(), status.w.fileno(), os.getpid())) as child:
        status.w.close()
        assert status.r.read(10) == b"ready\n"
        assert status.r.read(10) == b""
        assert child.poll() is None
        alive.w.close()
        assert child.wait(PATIENCE_S) == -signal.SIGKILL
