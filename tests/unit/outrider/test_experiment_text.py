"""The short forms of metrics, guardrails, variants, steps and analyses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from outrider import experiment_text as text
from outrider.policy import PolicyError
from outrider.v1 import experiment_pb2 as pb
from outrider.v1.policy_pb2 import VariantPolicy


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("error_rate", pb.Metric(name="error_rate")),
        ("latency_quantile:0.95", pb.Metric(name="latency_quantile", quantile=0.95)),
        ("latency_quantile:95", pb.Metric(name="latency_quantile", quantile=0.95)),
        ("slow_share:2000", pb.Metric(name="slow_share", threshold_ms=2000)),
        ("slow_share:2000ms", pb.Metric(name="slow_share", threshold_ms=2000)),
        ("attribute:gen_ai.steps", pb.Metric(name="attribute:gen_ai.steps")),
        ("accuracy", pb.Metric(name="accuracy")),
        ("score:accuracy", pb.Metric(name="accuracy")),
    ],
)
def test_metrics(form: str, wanted: pb.Metric) -> None:
    assert text.metric_of(form, "metric") == wanted
    assert text.metric_of(text.metric_text(wanted), "metric") == wanted


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("error_rate:+0.01", pb.Guardrail(metric=pb.Metric(name="error_rate"), margin=0.01)),
        ("cost:+10%", pb.Guardrail(metric=pb.Metric(name="cost"), relative_margin=0.1)),
        (
            "latency_quantile:0.95:+50",
            pb.Guardrail(metric=pb.Metric(name="latency_quantile", quantile=0.95), margin=50),
        ),
    ],
)
def test_guardrails(form: str, wanted: pb.Guardrail) -> None:
    assert text.guardrail_of(form, "guardrails[0]") == wanted


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("control", VariantPolicy(name="control")),
        ("v2:version=v2@0.25", VariantPolicy(name="v2", labels={"version": "v2"}, share=0.25)),
        ("v2@25%", VariantPolicy(name="v2", share=0.25)),
        ("m:model=gpt@x,owner=a@b", VariantPolicy(name="m", model="gpt@x", labels={"owner": "a@b"})),
        (
            "hot:temperature=0.9,top_p=1,max_output_tokens=64,compression=off,prompt_version=7",
            VariantPolicy(
                name="hot", temperature=0.9, top_p=1, max_output_tokens=64, compression=False, prompt_version="7"
            ),
        ),
    ],
)
def test_variants(form: str, wanted: VariantPolicy) -> None:
    assert text.variant_of(form, "variants[0]") == wanted
    again = text.variant_of(f"{wanted.name}:{text.variant_text(wanted)}", "variants[0]")
    again.share = wanted.share
    assert again == wanted


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("5%:60s", pb.RolloutStep(weight=0.05, pause_s=60)),
        ("0.25:300", pb.RolloutStep(weight=0.25, pause_s=300)),
        ("25%:5m:confirm", pb.RolloutStep(weight=0.25, pause_s=300, confirm=True)),
        ("50%:confirm", pb.RolloutStep(weight=0.5, confirm=True)),
        ("100%", pb.RolloutStep(weight=1)),
        ("100%:90s", pb.RolloutStep(weight=1, pause_s=90)),
    ],
)
def test_steps(form: str, wanted: pb.RolloutStep) -> None:
    assert text.step_of(form, "steps[0]") == wanted
    assert text.step_of(text.step_text(wanted), "steps[0]") == wanted


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("error_rate<=.02", None),
        ("error_rate<=0.02", pb.Analysis(metric=pb.Metric(name="error_rate"), max=0.02)),
        ("rating>=4", pb.Analysis(metric=pb.Metric(name="rating"), min=4)),
        (
            "latency_quantile:0.95+50ms",
            pb.Analysis(metric=pb.Metric(name="latency_quantile", quantile=0.95), margin=50),
        ),
        ("latency_quantile:0.95<=800", pb.Analysis(metric=pb.Metric(name="latency_quantile", quantile=0.95), max=800)),
        ("attribute:a-b<=1e-3", pb.Analysis(metric=pb.Metric(name="attribute:a-b"), max=0.001)),
    ],
)
def test_analyses(form: str, wanted: pb.Analysis | None) -> None:
    made = text.analysis_of(form, "analyses[0]")
    assert made == (wanted or pb.Analysis(metric=pb.Metric(name="error_rate"), max=0.02))
    assert text.analysis_of(text.analysis_text(made), "analyses[0]") == made


@pytest.mark.parametrize(
    ("read", "form", "said"),
    [
        (text.metric_of, "latency_quantile", "has no number where one belongs"),
        (text.metric_of, "slow_share:nan", "has no number where one belongs"),
        (text.metric_of, "attribute:", "names no attribute"),
        (text.metric_of, "error_rate:3", "only latency_quantile, slow_share"),
        (text.metric_of, "1st", "is no metric: error_rate"),
        (text.metric_of, "", "is no metric"),
        (text.guardrail_of, "error_rate", "is no guardrail: write"),
        (text.guardrail_of, "error_rate:0.01", "is no guardrail: write"),
        (text.variant_of, ":version=v2", "is no variant: write NAME"),
        (text.variant_of, "v2:version", "'version' in 'v2:version' is not KEY=VALUE"),
        (text.variant_of, "v2@2", "is no share"),
        (text.variant_of, "v2:temperature=hot", "has no number"),
        (text.variant_of, "v2:compression=maybe", "neither on nor off"),
        (text.variant_of, "v2:max_output_tokens=1.5", "not a whole number"),
        (text.step_of, "5:60s:often", "is no step"),
        (text.step_of, "500%", "is no share"),
        (text.analysis_of, "error_rate", "is no analysis"),
        (text.analysis_of, "error_rate<=1.2.3", "has no number"),
    ],
)
def test_what_is_wrong_is_said(read: Callable[[str, str], Any], form: str, said: str) -> None:
    with pytest.raises(PolicyError, match=r"^here: ") as caught:
        read(form, "here")
    assert said in str(caught.value)


def test_variants_without_a_share_divide_what_the_others_leave() -> None:
    variants = [VariantPolicy(name="a"), VariantPolicy(name="b", share=0.5), VariantPolicy(name="c")]
    assert [one.share for one in text.with_shares(variants, "variants")] == [0.25, 0.5, 0.25]
    assert variants[0].share == 0
    with pytest.raises(PolicyError, match="leave nothing for 'a'"):
        text.with_shares([VariantPolicy(name="a"), VariantPolicy(name="b", share=1)], "variants")
