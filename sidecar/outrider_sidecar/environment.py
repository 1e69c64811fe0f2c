"""What the environment says about telemetry (OTEL_* as the standard says) and about the control plane (OUTRIDER_TOKEN).

Always holds: a variable that is unset or empty means its default; a wrong OTEL_* value is passed over with a note, as
the OpenTelemetry specification asks.

Deliberately not here: the customer's variables (`outrider.defaults`), the YAML file (`config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

from outrider.address import Address, parse_address
from outrider.policy import PolicyError
from outrider.tree import show

SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
SERVICE_NAME = "outrider-sidecar"
OTLP_PORT = 4317
_MAX_PAIRS = 128  # in OTEL_RESOURCE_ATTRIBUTES and in headers


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Where spans go besides the control plane, and how. Times in milliseconds."""

    otlp: Address | None = None  # an OTLP/gRPC collector; None: no second exporter
    otlp_tls: bool = False  # the endpoint's scheme is https
    headers: tuple[tuple[str, str], ...] = ()  # metadata of exports; holds secrets
    resource: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"service.name": SERVICE_NAME}))
    sampler: str = "parentbased_always_on"  # for the second exporter; the control plane gets every span
    sampler_ratio: float = 1.0
    schedule_delay_ms: int = 1_000
    export_timeout_ms: int = 10_000
    max_queue_size: int = 2_048  # spans
    max_export_batch_size: int = 512  # spans


def control_token(environ: Mapping[str, str]) -> str:
    """OUTRIDER_TOKEN; PolicyError, which does not show it, where it cannot be a token."""
    token = environ.get("OUTRIDER_TOKEN", "").strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise PolicyError("OUTRIDER_TOKEN", "holds characters that no token has")
    return token


def telemetry(environ: Mapping[str, str]) -> tuple[Telemetry, tuple[str, ...]]:
    """The OTEL_* variables, and a note for each that is passed over."""
    reader = _OtelReader(environ)
    otlp, otlp_tls = reader.endpoint()
    batch = reader.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512, 1, 65_536)
    queue = reader.number("OTEL_BSP_MAX_QUEUE_SIZE", 2_048, 1, 1_048_576)
    if batch > queue:
        reader.note("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", f"{batch} is more than the queue's {queue}, which is taken")
        batch = queue
    sampler, ratio = reader.sampler()
    read = Telemetry(
        otlp=otlp,
        otlp_tls=otlp_tls,
        headers=reader.headers(),
        resource=reader.resource(),
        sampler=sampler,
        sampler_ratio=ratio,
        schedule_delay_ms=reader.number("OTEL_BSP_SCHEDULE_DELAY", 1_000, 1, 3_600_000),
        export_timeout_ms=reader.export_timeout_ms(),
        max_queue_size=queue,
        max_export_batch_size=batch,
    )
    return read, tuple(reader.notes)


class _OtelReader:
    def __init__(self, environ: Mapping[str, str]):
        self._environ = environ
        self.notes: list[str] = []

    def note(self, variable: str, reason: str) -> None:
        self.notes.append(f"{variable}: {reason}")

    def text(self, *variables: str) -> tuple[str, str]:
        """The first variable that is set, and its value; the last one's name and "" where none is."""
        for variable in variables:
            value = self._environ.get(variable, "").strip()
            if value:
                return variable, value
        return variables[-1], ""

    def number(self, variable: str, default: int, low: int, high: int) -> int:
        _, text = self.text(variable)
        if not text:
            return default
        if text.isascii() and text.isdecimal() and len(text) < 16 and low <= int(text) <= high:
            return int(text)
        self.note(variable, f"{show(text)} is not a whole number from {low} to {high}; {default} is taken")
        return default

    def endpoint(self) -> tuple[Address | None, bool]:
        off = self.text("OTEL_SDK_DISABLED")[1].lower() == "true"
        if off or self.text("OTEL_TRACES_EXPORTER")[1].lower() == "none":
            return None, False
        variable, text = self.text("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
        if not text:
            return None, False
        protocol_variable, protocol = self.text("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        if protocol not in ("", "grpc"):
            self.note(protocol_variable, f"{show(protocol)} is not grpc; spans are not exported to {show(text)}")
            return None, False
        try:
            return otlp_endpoint(text)
        except ValueError as error:
            self.note(variable, f"{show(text)} {error}; spans are not exported there")
            return None, False

    def export_timeout_ms(self) -> int:
        """The exporter's own timeout, else the batch processor's."""
        for variable in ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"):
            if self.text(variable)[1]:
                return self.number(variable, 10_000, 1, 3_600_000)
        return self.number("OTEL_BSP_EXPORT_TIMEOUT", 10_000, 1, 3_600_000)

    def resource(self) -> Mapping[str, str]:
        attributes = {"service.name": SERVICE_NAME, **dict(self._pairs("OTEL_RESOURCE_ATTRIBUTES"))}
        service = self.text("OTEL_SERVICE_NAME")[1]
        if service:
            attributes["service.name"] = service
        return MappingProxyType(attributes)

    def headers(self) -> tuple[tuple[str, str], ...]:
        pairs = self._pairs("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
        return tuple((name.lower(), value) for name, value in pairs)

    def sampler(self) -> tuple[str, float]:
        _, name = self.text("OTEL_TRACES_SAMPLER")
        if name and name not in SAMPLERS:
            self.note("OTEL_TRACES_SAMPLER", f"{show(name)} is not one of {', '.join(SAMPLERS)}; the default is taken")
            name = ""
        _, text = self.text("OTEL_TRACES_SAMPLER_ARG")
        ratio = 1.0
        if text and name.endswith("traceidratio"):
            try:
                ratio = float(text)
            except ValueError:
                ratio = -1.0
            if not 0.0 <= ratio <= 1.0:
                self.note("OTEL_TRACES_SAMPLER_ARG", f"{show(text)} is not a ratio from 0 to 1; 1 is taken")
                ratio = 1.0
        return name or "parentbased_always_on", ratio

    def _pairs(self, *variables: str) -> list[tuple[str, str]]:
        """`key=value,key=value`, percent-encoded; one bad pair discards them all, as the specification asks."""
        variable, text = self.text(*variables)
        pairs = []
        for item in text.split(",") if text else ():
            key, separator, value = item.partition("=")
            key, value = unquote(key.strip()), unquote(value.strip())
            if not separator or not key or not (key + value).isprintable() or len(pairs) == _MAX_PAIRS:
                self.note(variable, f"is not a list of at most {_MAX_PAIRS} key=value pairs; it is not used")
                return []
            pairs.append((key, value))
        return pairs


def otlp_endpoint(text: str) -> tuple[Address, bool]:
    """The address of an OTLP/gRPC endpoint, a URL or an address, and whether it is dialled by TLS.

    ValueError else, as `parse_address` raises it.
    """
    if "://" not in text or text.startswith(("unix:", "dns:")):
        return parse_address(text), False
    url = urlsplit(text)
    if url.scheme not in ("http", "https"):
        raise ValueError("begins with a scheme that is neither http nor https")
    host_port = url.netloc.rpartition("@")[2]
    bare = not host_port.rpartition("]")[2].startswith(":") if host_port.startswith("[") else ":" not in host_port
    return parse_address(f"{host_port}:{OTLP_PORT}" if bare else host_port), url.scheme == "https"
