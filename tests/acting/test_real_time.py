"""The control loop gets the right command at every step, whatever the policy does; by a clock that can be set."""

import math
import threading
import time
from functools import cache, partial
from typing import ClassVar

import numpy as np
import pytest

from kivla.acting import ActionLimits, ChunkExecutor, ExecutionCounts, LatencyEstimate, RealTimeExecutor
from kivla.acting.policy_thread import Answer

RATE, H = 50, 50


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@cache
def fates() -> list[tuple[str, float]]:
    """What becomes of each request, and after how many seconds: mostly a tenth of a second, sometimes far more."""
    generator, n = np.random.default_rng(0), 100_000
    kinds = generator.choice(["answer", "error", "lost"], size=n, p=[0.985, 0.01, 0.005]).tolist()
    median = np.where(generator.random(n) < 0.02, 0.6, 0.07)
    return list(zip(kinds, (median * generator.lognormal(0, 0.4, n)).tolist(), strict=True))


def fate(n: int) -> tuple[str, float]:
    return fates()[n]


class ScriptedThread:
    """A `PolicyThread` without a thread: request n comes to what `fate(n)` says.

    The action of row i says for which step it is, and of which request.
    """

    requests: list  # of all threads of a test, in order

    def __init__(self, policy, options, clock):
        self.fate, self.requests = policy
        self.clock, self.running = clock, None

    def ask(self, request) -> None:
        assert self.running is None, "one at a time"
        number = len(self.requests)
        self.running = request, number, *self.fate(number)
        self.requests.append(request)

    def answers(self):
        if self.running is not None:
            request, number, kind, seconds = self.running
            if kind != "lost" and request.time + seconds <= self.clock():
                self.running = None
                chunk = np.stack([request.step + np.arange(H), np.full(H, number)], axis=1).astype(np.float64)
                outcome = chunk if kind == "answer" else RuntimeError(f"request {number} failed")
                yield Answer(request, outcome, request.time + seconds)

    def close(self, timeout: float = 0.0) -> None:
        pass


def expected(steps: int, episode: int, fate, timeout: float) -> tuple[list, list, ExecutionCounts]:
    """The commands, the delays that are told, and the counts of a naive executor: a table of steps, filled in by hand.

    For a step of the table the last chunk that was written into it counts.
    """
    counts, commands, delays, measured = ExecutionCounts(steps=steps), [], [], []
    asked, begin, has_answered = None, 0, False  # asked: (number, time, step, episode's begin, kind, seconds, due)
    for tick in range(steps):
        now = tick / RATE
        if tick % episode == 0:
            table, begin, last, moved_at = {}, tick, None, -1
        step = tick - begin
        if asked and asked[4] != "lost" and asked[1] + asked[5] <= now:
            number, _, at, of, kind, seconds, due = asked
            asked = None
            if kind == "answer":
                measured += [seconds] if has_answered else []
                has_answered = True
            if of != begin:
                counts.old += 1
            elif kind == "error":
                counts.errors += 1
                table = {}
            else:
                start = at if moved_at >= at else step  # it has stood still: nothing is past
                table = {start + row: (at + row, number) for row in range(H)} if start + H > step else table
                counts.chunks += start + H > step
                counts.too_late += start + H <= step
                counts.late += start + H > step > due
        if asked and now - asked[1] > timeout:
            counts.lost += 1
            asked = None
        left = sum(k >= step for k in table)
        if asked is None and (not left or step > min(table)):  # not twice for one beginning
            newest = sorted(measured[-50:])
            seconds = newest[math.ceil(0.95 * (len(newest) - 1))] if newest else 0.1
            delay = math.ceil(seconds * RATE)
            delays.append(min(delay, left) if left else None)
            number = counts.requests
            asked = (number, now, step, begin, *fate(number), step + delay)
            counts.requests += 1
        if step in table:
            last, moved_at = table[step], step
        elif last is None:
            counts.before_first += 1
        else:
            counts.held += 1
        commands.append(last)
    return commands, delays, counts


@pytest.mark.parametrize("way", [pytest.param("rtc", marks=pytest.mark.slow), "naive"])
def test_an_hour_of_late_lost_and_failing_answers(way):
    """At 50 Hz, in episodes of 70 s; commands, delays and counts are those of the table, to the last one."""
    steps, episode, timeout = (3600 if way == "rtc" else 300) * RATE, 70 * RATE, 3.0
    clock, requests = Clock(), []
    act = RealTimeExecutor((fate, requests), RATE, way, answer_timeout=timeout, clock=clock, thread=ScriptedThread)
    commands, observations = [], {"text": "go"}
    with act:
        for tick in range(steps):
            clock.now = tick / RATE
            if tick % episode == 0 and tick:
                act.reset()
            commands.append(act(observations))
        counts = act.counts
    table, delays, wanted = expected(steps, episode, fate, timeout)
    assert counts == wanted
    for tick, (command, entry) in enumerate(zip(commands, table, strict=True)):
        assert (command is None) == (entry is None) and (entry is None or tuple(command) == entry), f"tick {tick}"
    assert min(wanted.late, wanted.lost, wanted.errors, wanted.old, wanted.held, wanted.before_first) > 0
    assert way == "naive" or wanted.too_late > 0
    assert isinstance(act.last_error, RuntimeError | TimeoutError)
    if way == "naive":
        assert all(not request.extra for request in requests)
        return
    commands_at = {tick / RATE: command for tick, command in enumerate(commands)}
    for request, delay in zip(requests, delays, strict=True):
        assert request.extra.get("delay") == delay
        if delay is not None:
            previous = request.extra["previous_actions"]
            assert previous[0].tolist() == list(commands_at[request.time]) and delay <= len(previous) <= H


def steady(n: int) -> tuple[str, float]:
    return "answer", 0.05


def run(act: RealTimeExecutor, clock: Clock, steps: int) -> list:
    commands = []
    with act:
        for tick in range(steps):
            clock.now = tick / RATE
            commands.append(act({}))
    return commands


def test_sync_waits_and_begins_each_chunk_at_its_first_action():
    clock, requests = Clock(), []
    act = RealTimeExecutor((steady, requests), RATE, "sync", replan_every=4, clock=clock, thread=ScriptedThread)
    commands = run(act, clock, 17)
    asked = [0, 7, 14]  # 3 steps of waiting, 4 of acting
    assert [request.step for request in requests] == asked
    said = [None if command is None else (command[0], command[1]) for command in commands]
    first, second = [(i, 0.0) for i in range(4)], [(7 + i, 1.0) for i in range(4)]
    assert said == [None] * 3 + first + [first[-1]] * 3 + second + [second[-1]] * 3
    assert act.counts.held == 6 and act.counts.before_first == 3


def test_the_ensemble_is_the_mean_of_what_reaches_the_step():
    clock = Clock()
    act = RealTimeExecutor((steady, []), RATE, "ensemble", ensemble_decay=0.0, clock=clock, thread=ScriptedThread)
    commands = run(act, clock, 40)
    for step in range(3, 40):
        # The first one, for which the robot waited, begins at 3; those asked at 4, 7, 10, ... are there 3 steps later.
        arrived = [n for n in range(1, 14) if 3 * n + 4 <= step]
        rows, numbers = [step - 3, *(step for _ in arrived)], [0, *arrived]
        assert commands[step] == pytest.approx([np.mean(rows), np.mean(numbers)]), f"step {step}"


@pytest.mark.parametrize("kind", ["error", "lost"])
def test_a_robot_that_is_to_stop_gets_no_more_commands(kind, caplog):
    def third_fails(n):
        return (kind if n >= 2 else "answer"), 0.05

    clock = Clock()
    options = {"out_of_actions": "stop", "answer_timeout": 0.5, "clock": clock, "thread": ScriptedThread}
    act = RealTimeExecutor((third_fails, []), RATE, **options)
    with act:
        commands = []
        for tick in range(3 * H):
            clock.now = tick / RATE
            commands.append(act({}))
        # The second chunk, asked at 4, would end after step 53. An error ends it when it comes, at step 10.
        stop = 10 if kind == "error" else 54
        assert [i for i, command in enumerate(commands) if command is None] == [0, 1, 2, *range(stop, 3 * H)]
        assert act.is_stopped and act.counts.stopped == 3 * H - stop and act.counts.held == 0
        assert str(act.last_error) == (
            "request 2 failed" if kind == "error" else "The policy did not answer within 0.5 s."
        )
        assert "gets no more commands" in caplog.text
        act.reset()
        assert not act.is_stopped


def test_chunks_of_another_shape_are_errors_of_the_policy():
    """The control loop never hears of them."""
    for shapes, limits, text in (
        ([(4, 3), (4, 2)], None, "the chunk before have the shape \\(2,\\), those of this one \\(3,\\)"),
        ([(4,)], None, "must be \\(H, action_dim\\), got the shape \\(4,\\)"),
        ([(0, 2)], None, "must be \\(H, action_dim\\), got the shape \\(0, 2\\)"),
        ([(4, 2)], ActionLimits(RATE, max_speed=[1.0] * 3), "limits for 3 values, but a command has the shape"),
        ([(4, 2)], None, "replan_every = 9, but the policy's chunks have 4 actions"),
    ):
        every = 9 if "replan" in text else None

        def chunk(observation, shapes=shapes):
            return {"actions": np.zeros(shapes.pop() if len(shapes) > 1 else shapes[0])}

        with RealTimeExecutor(chunk, RATE, limits=limits, replan_every=every) as act:
            until(lambda act=act: (act({}), act.counts.errors)[1])
            with pytest.raises(ValueError, match=text):
                raise act.last_error


def test_limits_come_last():
    clock = Clock()
    limits = ActionLimits(RATE, max_speed=[10.0, 0.1])
    act = RealTimeExecutor((steady, []), RATE, limits=limits, clock=clock, thread=ScriptedThread)
    act.reset(position=np.array([0.0, 0.0]))
    commands = run(act, clock, 20)
    assert commands[3][0] == pytest.approx(0) and commands[4][0] == pytest.approx(0.2), "10 a second at 50 a second"
    assert limits.commands == 17 and limits.limited[0] == 16


# ---------------------------------------------------------------------------------------------------- a real thread
def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.001)


class Policy:
    """Answers when it is let; remembers the threads in which it was asked."""

    def __init__(self):
        self.go, self.asked, self.threads, self.seen = threading.Semaphore(0), 0, set(), []

    def __call__(self, observation, **options):
        self.asked += 1
        self.threads.add(threading.current_thread().name)
        self.seen.append((observation, options))
        assert self.go.acquire(timeout=20)
        return {"actions": np.full((10_000, 1), float(self.asked))}  # long enough for a loop that does not wait


def test_the_control_loop_never_waits_and_looks_only_when_the_policy_is_asked():
    policy, looked = Policy(), []

    def look():
        looked.append(threading.current_thread().name)
        return {"text": "go"}

    with RealTimeExecutor(policy, RATE, "rtc", seed=3) as act:
        for _ in range(100):
            assert act(look) is None, "the policy does not answer, and nobody waits for it"
        until(lambda: policy.asked == 1)
        policy.go.release()
        until(lambda: act(look) is not None)
        until(lambda: (act(look), policy.asked)[1] == 2)
        policy.go.release()
    assert policy.threads == {"kivla-policy"} and set(looked) == {"kivla-policy"} and len(looked) == policy.asked
    assert policy.seen[0] == ({"text": "go"}, {"seed": 3, "rtc": "guidance"})
    observation, _ = policy.seen[1]
    assert observation["text"] == "go" and observation["delay"] == 5, "counted on until it was measured: 0.1 s"
    assert observation["previous_actions"].shape[1] == 1
    assert act.counts.before_first >= 100


def test_an_answer_of_the_last_episode_never_reaches_the_next():
    policy = Policy()
    with RealTimeExecutor(policy, RATE) as act:
        assert act({}) is None
        until(lambda: policy.asked == 1)
        act.reset()
        assert act({}) is None
        policy.go.release(2)
        until(lambda: act({}) is not None)
        assert act({})[0] == 2 and act.counts.old == 1 and act.counts.chunks >= 1
        policy.go.release(9)


def test_a_policy_that_hangs_is_given_up_and_asked_anew():
    policy, clock = Policy(), Clock()
    with RealTimeExecutor(policy, RATE, answer_timeout=1.0, clock=clock) as act:
        assert act({}) is None
        until(lambda: policy.asked == 1)
        clock.now = 1.5
        assert act({}) is None and act.counts.lost == 1
        until(lambda: policy.asked == 2)
        policy.go.release(2)  # the first answer comes, too, and is not wanted any more
        until(lambda: act({}) is not None)
        assert act.counts.requests >= 2 and act.counts.lost == 1
        policy.go.release(9)


def test_exceptions_never_reach_the_control_loop(caplog):
    def policy(observation):
        raise ConnectionError("the server has gone")

    with RealTimeExecutor(policy, RATE) as act:
        until(lambda: act({}) is None and act.counts.errors >= 3)
    assert isinstance(act.last_error, ConnectionError)
    assert caplog.text.count("The policy failed: ConnectionError: the server has gone") == 1, (
        "said once, counted always"
    )


def test_start_and_stop():
    threads = threading.active_count()
    act = RealTimeExecutor(lambda observation: {"actions": np.ones((H, 1))}, RATE)
    with pytest.raises(RuntimeError, match="not started: use it in a `with` statement"):
        act({})
    for _ in range(3):
        with act:
            until(lambda: act({}) is not None)
        assert threading.active_count() == threads, "its thread has ended"
        assert act.start()({}) is None, "and nothing is left of what it did before"
        act.stop()


def test_settings_that_cannot_be():
    for options, text in (
        ({"rate": 0}, "rate and answer_timeout must be positive"),
        ({"rate": 50, "answer_timeout": 0}, "rate and answer_timeout must be positive"),
        ({"rate": math.inf}, "rate and answer_timeout must be positive"),
        ({"rate": 50, "limits": ActionLimits(20, 1.0)}, "limits count on 20 commands per second, .* executor gives 50"),
        ({"rate": 50, "out_of_actions": "fall"}, 'out_of_actions must be "hold" or "stop"'),
        ({"rate": 50, "max_delay": 0}, "max_delay must be at least 1"),
        ({"rate": 50, "max_delay": 2.5}, "max_delay must be a whole number"),
        ({"rate": 50, "hold": 5}, "hold must be a function of the last command"),
        ({"rate": 50, "way": "quick"}, "There is no way of acting"),
    ):
        with pytest.raises(ValueError, match=text):
            RealTimeExecutor(Policy(), **options)


class Knowing(Policy):
    """Says what it can: real-time chunking as trained, with delays of up to 3 steps."""

    max_delay = 3

    wrapping_angles: ClassVar = [{0: (-180.0, 180.0)}]

    def check_options(self, rtc: str | None = None, **others) -> None:
        if rtc not in (None, "trained"):
            raise ValueError(f"not {rtc}")
        if others:
            raise TypeError(f"no {', '.join(others)}")

    def check_averaging(self) -> None:
        raise ValueError("no mean")


def test_what_the_policy_says_of_itself_is_heard_before_the_robot_moves():
    with pytest.raises(ValueError, match="not guidance"):
        RealTimeExecutor(Knowing(), 50, "rtc")
    with pytest.raises(ValueError, match="not guidance"):
        ChunkExecutor(Knowing(), way="rtc")
    with pytest.raises(ValueError, match="no mean"):
        ChunkExecutor(Knowing(), ensemble_decay=0.1)
    for make in (lambda **options: RealTimeExecutor(Knowing(), 50, **options), partial(ChunkExecutor, Knowing())):
        with pytest.raises(TypeError, match="no nonsense"):
            make(nonsense=1)
        with pytest.raises(ValueError, match=r"Dimension 0 is an angle that wraps at -180 and 180, .* the long way"):
            make(limits=ActionLimits(50, max_speed=90))
        make(limits=ActionLimits(50, max_speed=90, wraps={0: (-180, 180)}))
        make(limits=ActionLimits(50, max_speed=[np.inf, 90.0]))
        make(limits=ActionLimits(50, max_speed=90, offsets=True))
    assert RealTimeExecutor(Knowing(), 50, "rtc-trained").max_delay == 3
    assert RealTimeExecutor(Knowing(), 50, "rtc-trained", max_delay=2).max_delay == 2
    assert RealTimeExecutor(Knowing(), 50, "naive").max_delay is None
    assert RealTimeExecutor(Policy(), 50, "rtc-trained").max_delay is None, "nothing is known of a plain function"


def test_a_policy_trained_with_delays_is_told_none_that_it_does_not_know():
    clock, requests = Clock(), []
    latency = LatencyEstimate(first=0.3)
    options = {"latency": latency, "max_delay": 4, "clock": clock, "thread": ScriptedThread}
    run(RealTimeExecutor((steady, requests), RATE, "rtc-trained", **options), clock, 20)
    assert [request.extra.get("delay") for request in requests][:4] == [None, 4, 3, 3], "0.3 s, cut; then as measured"
