/**
 * A caller: asks an agent through the sidecar. The answer goes to stdout, what is known about the call to stderr.
 *
 * Always holds: every call has a deadline; Ctrl-C cancels the call, which reaches the agent; the exit code is 0 only
 * when the answer is complete. `-` as the question: read it from stdin.
 *
 * node dist/client.js [--target 127.0.0.1:7600] [--agent-id ID] [--session-id ID] [--deadline-ms 30000] [--unary] QUESTION
 */
import { text } from "node:stream/consumers";
import { parseArgs } from "node:util";
import * as grpc from "@grpc/grpc-js";
import { Agent, MESSAGE_LIMITS, violationsOf, type InvokeReply, type InvokeRequest, type Usage } from "./api.js";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    target: { type: "string", default: "127.0.0.1:7600" },
    "agent-id": { type: "string", default: "" },
    "session-id": { type: "string", default: "" },
    "deadline-ms": { type: "string", default: "30000" },
    unary: { type: "boolean", default: false },
  },
});

/** What came of a call: its status with the trailers, and where it succeeded what the agent says about its answer. */
interface Outcome { status: grpc.StatusObject; finish: string; usage: Usage | null }

const sidecar = new Agent(options.target, grpc.credentials.createInsecure(), {
  ...MESSAGE_LIMITS,
  "grpc.enable_retries": 0, // the sidecar retries, within one budget
  "grpc.enable_http_proxy": 0, // the sidecar is local, whatever the environment says about proxies
});

/** Identity as the mesh reads it; the message says the same. */
function metadataOf(request: InvokeRequest): grpc.Metadata {
  const metadata = new grpc.Metadata();
  if (request.agentId) metadata.set("x-agent-id", request.agentId);
  if (request.sessionId) metadata.set("x-session-id", request.sessionId);
  return metadata;
}

function cancelOnCtrlC(call: { cancel(): void }): void {
  process.once("SIGINT", () => call.cancel());
}

/** The status with the trailers: the last event of a call, failed or not. */
function statusOf(call: grpc.ClientUnaryCall | grpc.ClientReadableStream<unknown>): Promise<grpc.StatusObject> {
  return new Promise((resolve) => call.once("status", resolve));
}

async function invoke(request: InvokeRequest): Promise<Outcome> {
  let answer: InvokeReply | undefined;
  const call = sidecar.invoke(request, metadataOf(request), callOptions(), (_, reply) => { answer = reply; });
  cancelOnCtrlC(call);
  const status = await statusOf(call);
  process.stdout.write(answer?.parts.map((part) => part.text ?? "").join("") ?? "");
  return { status, finish: answer?.finishReason ?? "", usage: answer?.usage ?? null };
}

async function invokeStream(request: InvokeRequest): Promise<Outcome> {
  const call = sidecar.invokeStream(request, metadataOf(request), callOptions());
  cancelOnCtrlC(call);
  const ended = statusOf(call);
  let finish = "";
  let usage: Usage | null = null;
  try {
    for await (const chunk of call) {
      process.stdout.write(chunk.text ?? "");
      if (chunk.finish) ({ reason: finish, usage } = chunk.finish);
    }
  } catch { /* the status says why */ }
  return { status: await ended, finish, usage };
}

function callOptions(): grpc.CallOptions {
  return { deadline: Date.now() + Number(options["deadline-ms"]) };
}

function tell({ status, finish, usage }: Outcome): void {
  for (const name of ["x-outrider-cache", "x-outrider-endpoint"]) {
    for (const value of status.metadata.get(name)) console.error(`${name}: ${value}`);
  }
  if (finish) console.error(`finish: ${finish}`);
  if (usage) console.error(`usage: ${usage.inputTokens ?? "?"} in, ${usage.outputTokens ?? "?"} out`);
  console.error(`status: ${grpc.status[status.code]}${status.code ? `: ${status.details}` : ""}`);
  for (const { field, description } of violationsOf(status.metadata)) console.error(`wrong: ${field}: ${description}`);
}

const asked = positionals.join(" ");
const question = asked === "-" ? await text(process.stdin) : asked;
const request: InvokeRequest = {
  agentId: options["agent-id"],
  sessionId: options["session-id"],
  messages: [{ role: "ROLE_USER", parts: [{ text: question }] }],
};
const outcome = await (options.unary ? invoke(request) : invokeStream(request));
process.stdout.write("\n");
tell(outcome);
sidecar.close();
process.exitCode = outcome.status.code === grpc.status.OK && outcome.finish === "FINISH_REASON_STOP" ? 0 : 1;
