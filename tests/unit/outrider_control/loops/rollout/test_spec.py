from __future__ import annotations

from collections.abc import Callable

import pytest

from outrider.policy import PolicyError
from outrider.v1 import experiment_pb2 as pb
from outrider_control.loops.experiment.types import Metric
from outrider_control.loops.rollout.spec import checked, spec_of, split_of
from outrider_control.loops.rollout.types import Analysis, Step
from tests.rollouts import errors, wanted

Change = Callable[[pb.RolloutSpec], object]


def clear_stable(spec: pb.RolloutSpec) -> None:
    spec.stable.labels.clear()


def same_labels(spec: pb.RolloutSpec) -> None:
    spec.stable.labels["version"] = "v2"


def override(spec: pb.RolloutSpec) -> None:
    spec.overrides["tester"] = "nobody"


def add(spec: pb.RolloutSpec, **fields: object) -> None:
    spec.analyses.add(**fields)


def metric(**fields: object) -> Change:
    return lambda spec: add(spec, metric=pb.Metric(**fields), max=1.0)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec.ClearField("name"), "spec.name: is missing"),
        (lambda spec: setattr(spec, "name", "a=b"), "spec.name: "),
        (lambda spec: spec.ClearField("agent_id"), "spec.agent_id: is missing"),
        (lambda spec: spec.ClearField("candidate"), "spec.candidate.labels: .*tells them apart"),
        (lambda spec: setattr(spec.candidate, "name", "stable"), "spec.candidate.name: .*of the stable version too"),
        (lambda spec: setattr(spec.candidate, "name", "a,b"), "spec.candidate.name: "),
        (lambda spec: setattr(spec.candidate, "share", 0.5), "spec.candidate.share: .*steps say"),
        (lambda spec: setattr(spec.stable, "aborted", True), "spec.stable: "),
        (lambda spec: setattr(spec.candidate, "temperature", float("nan")), "spec.candidate.temperature: "),
        (same_labels, "sets nothing"),
        (clear_stable, "spec.stable.labels: .*tells them apart"),
        (lambda spec: spec.ClearField("steps"), "spec.steps: is empty"),
        (lambda spec: spec.steps.add(weight=1.5), r"spec.steps\[2\].weight: 1.5 is not between 0 and 1"),
        (lambda spec: spec.steps.add(weight=float("nan")), r"spec.steps\[2\].weight: nan"),
        (lambda spec: spec.steps.add(weight=0.2), r"spec.steps\[2\].weight: .*only goes forward"),
        (lambda spec: setattr(spec.steps[0], "pause_s", -1), r"spec.steps\[0\].pause_s"),
        (lambda spec: spec.steps.extend([spec.steps[1]] * 100), "spec.steps: has 102 steps"),
        (lambda spec: add(spec, metric=pb.Metric(name="error_rate")), r"analyses\[0\]: asks for nothing"),
        (lambda spec: add(spec, metric=pb.Metric(name="error_rate"), max=float("nan")), r"analyses\[0\].max: nan"),
        (lambda spec: add(spec, metric=pb.Metric(name="rating"), min=4.0, max=3.0), r"analyses\[0\].min: .*more than"),
        (lambda spec: add(spec, metric=pb.Metric(name="rating"), margin=-1.0), r"analyses\[0\].margin"),
        (lambda spec: add(spec, metric=pb.Metric(name="rating"), max=1.0, count=-1), r"analyses\[0\].count"),
        (lambda spec: add(spec, metric=pb.Metric(name="rating"), max=1.0, min_units=-1), r"analyses\[0\].min_units"),
        (lambda spec: add(spec, max=1.0), r"analyses\[0\].metric.name: is missing"),
        (metric(name="eror_rate"), r"metric.name: .*is 'error_rate' meant"),
        (metric(name="no such thing"), r"metric.name: .*is no metric"),
        (metric(name="attribute:"), r"metric.name: .*names no attribute"),
        (metric(name="latency_quantile"), r"metric.quantile: 0 is not between"),
        (metric(name="slow_share"), r"metric.threshold_ms: 0 is not between"),
        (metric(name="rating", direction="left"), r"metric.direction: .*neither up nor down"),
        (lambda spec: setattr(spec, "unit", "planet"), "spec.unit: "),
        (lambda spec: setattr(spec, "idle_s", -1), "spec.idle_s: "),
        (lambda spec: setattr(spec, "progress_deadline_s", -1), "spec.progress_deadline_s: "),
        (override, "spec.overrides.tester: "),
        (lambda spec: spec.webhooks.append("ftp://a/b"), r"webhooks\[0\]: is not https"),
        (lambda spec: spec.webhooks.append("https://"), r"webhooks\[0\]: is not https"),
        (lambda spec: spec.webhooks.append("https://[::1"), r"webhooks\[0\]: is no URL"),
        (lambda spec: spec.webhooks.append("https://a:b@c/d"), r"webhooks\[0\]: .*signed instead"),
        (lambda spec: spec.webhooks.append("http://a.test/b?secret=x"), r"webhooks\[0\]: 'http://a.test/b' is not enc"),
        (lambda spec: spec.webhooks.extend(["https://a.test/"] * 2), "webhooks: names a URL twice"),
        (lambda spec: spec.webhooks.extend(["https://a.test/"] * 9), "webhooks: has 9 URLs"),
    ],
)
def test_what_cannot_be(change: Change, said: str) -> None:
    spec = wanted("0.1", "0.5")
    change(spec)
    with pytest.raises(PolicyError, match=said):
        checked(spec)


def test_a_step_without_traffic_measures_nothing() -> None:
    spec = wanted("0:confirm", "0.5", analyses=[errors()])
    ready = spec_of(checked(spec))
    assert ready.analyses_of(0) == ()
    assert len(ready.analyses_of(1)) == 1
    spec.steps[0].analyses.append(errors())
    with pytest.raises(PolicyError, match="cannot be measured"):
        checked(spec)


def test_defaults() -> None:
    spec = checked(wanted("0.1:30:confirm", analyses=[errors(0.02)]))
    assert (spec.candidate.name, spec.stable.name) == ("candidate", "stable")
    ready = spec_of(spec)
    assert ready.steps == (Step(0.1, 30_000, True),)
    assert ready.analyses == (Analysis(Metric("error_rate"), max=0.02, min_units=50, interval_ms=10_000, count=1),)
    split = split_of(spec)
    assert [one.share for one in split.variants] == [1.0, 0.0]
    assert (split.unit, split.idle_s, split.is_open) == ("session", 86_400, True)
    assert checked(spec) == spec


def test_a_model_alone_needs_no_labels() -> None:
    spec = pb.RolloutSpec(name="out", agent_id="agent")
    spec.candidate.model = "m2"
    spec.steps.add(weight=1.0)
    spec.webhooks.extend(["https://a.test/hook", "http://127.0.0.1:9000/hook"])
    assert split_of(checked(spec)).variants[1].model == "m2"


def test_two_that_share_endpoints_may_differ_by_model() -> None:
    spec = wanted("1")
    spec.stable.labels["version"] = "v2"
    spec.candidate.model = "m2"
    assert checked(spec)
