"""A fleet of one agent under calls and a scaler, as a simulation of events.

Always holds: every call that arrives is served or shed, once; what is shed could not have started in time; an instance
serves at most `capacity` calls at once, is paid from being asked for until its last call has ended, and is taken away
only after that; equal events happen in the order they were made. The same calls and scaler give the same outcome.

Deliberately not here: the network, failures, differences between instances. This compares scalers, nothing else.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench.sim_scale.scaler import Scaler, View

ARRIVAL, END, READY, EXPIRY, TICK = range(5)


@dataclass(frozen=True, slots=True)
class Call:
    at_s: float
    service_s: float
    patience_s: float  # it may wait so long; started later it is late


@dataclass(frozen=True, slots=True)
class Settings:
    capacity: int = 4  # calls at once of one instance
    start_s: float = 10.0  # from asking for an instance until it serves
    instances: int = 1  # at the start
    queue: str = "deadline"  # "fifo": in order of arrival, and calls that are late are served too


class Instance:
    """One instance; it counts as started from the moment it is asked for."""

    __slots__ = ("busy", "is_draining", "is_ready", "number")

    def __init__(self, number: int, is_ready: bool):
        self.number = number
        self.busy = 0
        self.is_ready = is_ready
        self.is_draining = False


@dataclass(slots=True)
class Outcome:
    calls: int = 0
    served: int = 0
    late: int = 0  # started after their patience, or shed
    shed: int = 0
    waited_s: float = 0.0
    instance_s: float = 0.0
    max_instances: int = 0
    changes: int = 0
    ready: list[tuple[float, int]] = field(default_factory=list)  # at each change
    paid: list[tuple[float, int]] = field(default_factory=list)


class Waiting:
    """A call in the queue."""

    __slots__ = ("call", "is_there")

    def __init__(self, call: Call):
        self.call = call
        self.is_there = True


class Fleet:
    """One run: `Fleet(calls, scaler, settings).play()`."""

    def __init__(self, calls: Sequence[Call], scaler: Scaler, settings: Settings, until_s: float):
        self.calls = calls
        self.scaler = scaler
        self.settings = settings
        self.until_s = until_s  # the scaler is asked, and instances are paid, until then
        self.outcome = Outcome(calls=len(calls))
        self.now_s = 0.0
        self.instances = [Instance(number, True) for number in range(settings.instances)]
        self.numbered = settings.instances
        self.events: list[tuple[float, int, int, object]] = []
        self.order = 0
        self.queue: list[tuple[float, int, Waiting]] = []
        self.waiting = self.running = self.ended = 0
        self.demand_s = 0.0
        self.note()

    def play(self) -> Outcome:
        arrivals = iter(self.calls)
        self.arrive_next(arrivals)
        self.at(0.0, TICK, None)
        while self.events:
            at_s, _, kind, subject = heapq.heappop(self.events)
            self.pass_to(at_s)
            if kind == ARRIVAL:
                assert isinstance(subject, Call)
                self.arrive(subject)
                self.arrive_next(arrivals)
            elif kind == END:
                assert isinstance(subject, Instance)
                self.end(subject)
            elif kind == READY:
                assert isinstance(subject, Instance)
                self.become_ready(subject)
            elif kind == EXPIRY:
                assert isinstance(subject, Waiting)
                self.expire(subject)
            else:
                self.tick()
        self.pass_to(max(self.now_s, self.until_s))
        return self.outcome

    def at(self, at_s: float, kind: int, subject: object) -> None:
        self.order += 1
        heapq.heappush(self.events, (at_s, self.order, kind, subject))

    def pass_to(self, at_s: float) -> None:
        self.demand_s += (self.running + self.waiting) * (at_s - self.now_s)
        paid_s = min(at_s, self.until_s) - self.now_s
        if paid_s > 0:
            self.outcome.instance_s += len(self.instances) * paid_s
        self.now_s = at_s

    def arrive_next(self, arrivals: Iterator[Call]) -> None:
        call = next(arrivals, None)
        if call is not None:
            self.at(call.at_s, ARRIVAL, call)

    def arrive(self, call: Call) -> None:
        free = self.free()
        if free is not None:
            self.serve(free, call)
            return
        waiting = Waiting(call)
        self.waiting += 1
        self.order += 1
        start_by_s = call.at_s + call.patience_s
        is_fifo = self.settings.queue == "fifo"
        heapq.heappush(self.queue, (call.at_s if is_fifo else start_by_s, self.order, waiting))
        if not is_fifo:
            self.at(start_by_s, EXPIRY, waiting)

    def free(self) -> Instance | None:
        """The least busy instance that takes a call."""
        capacity = self.settings.capacity
        best: Instance | None = None
        if self.waiting:  # every place that came free has gone to one of them
            return None
        for one in self.instances:
            if one.is_ready and not one.is_draining and one.busy < capacity and (best is None or one.busy < best.busy):
                best = one
        return best

    def serve(self, instance: Instance, call: Call) -> None:
        waited_s = self.now_s - call.at_s
        instance.busy += 1
        self.running += 1
        self.outcome.waited_s += waited_s
        self.outcome.late += waited_s > call.patience_s
        self.at(self.now_s + call.service_s, END, instance)

    def serve_waiting(self, instance: Instance) -> None:
        while self.queue and instance.busy < self.settings.capacity:
            waiting = heapq.heappop(self.queue)[2]
            if waiting.is_there:
                waiting.is_there = False
                self.waiting -= 1
                self.serve(instance, waiting.call)

    def end(self, instance: Instance) -> None:
        instance.busy -= 1
        self.running -= 1
        self.ended += 1
        self.outcome.served += 1
        if not instance.is_draining:
            self.serve_waiting(instance)
        elif not instance.busy:
            self.instances.remove(instance)
            self.note()

    def expire(self, waiting: Waiting) -> None:
        if waiting.is_there:
            waiting.is_there = False
            self.waiting -= 1
            self.outcome.shed += 1
            self.outcome.late += 1

    def become_ready(self, instance: Instance) -> None:
        if not instance.is_draining:
            instance.is_ready = True
            self.note()
            self.serve_waiting(instance)

    def tick(self) -> None:
        staying = [one for one in self.instances if not one.is_draining]
        ready = sum([one.is_ready for one in staying])
        leaving = len(self.instances) - len(staying)
        view = View(
            self.now_s, self.running, self.waiting, ready, len(staying) - ready, leaving, self.settings.capacity
        )
        view.demand_s, view.ended = self.demand_s, self.ended
        wanted = self.scaler.decide(view)
        if wanted > len(staying):
            for _ in range(wanted - len(staying)):
                self.start()
        elif wanted < len(staying):
            staying.sort(key=lambda one: (one.is_ready, one.busy, -one.number))
            for one in staying[: len(staying) - wanted]:
                self.drain(one)
        self.outcome.changes += wanted != len(staying)
        self.note()
        if self.now_s + self.scaler.tick_s < self.until_s:
            self.at(self.now_s + self.scaler.tick_s, TICK, None)

    def start(self) -> None:
        instance = Instance(self.numbered, False)
        self.numbered += 1
        self.instances.append(instance)
        self.at(self.now_s + self.settings.start_s, READY, instance)

    def drain(self, instance: Instance) -> None:
        instance.is_draining = True
        if not instance.busy:
            self.instances.remove(instance)

    def note(self) -> None:
        """What there is from now on."""
        ready = sum([one.is_ready and not one.is_draining for one in self.instances])
        for counts, count in ((self.outcome.ready, ready), (self.outcome.paid, len(self.instances))):
            if counts and counts[-1][0] == self.now_s:
                counts[-1] = self.now_s, count
            elif not counts or counts[-1][1] != count:
                counts.append((self.now_s, count))
        self.outcome.max_instances = max(self.outcome.max_instances, len(self.instances))
