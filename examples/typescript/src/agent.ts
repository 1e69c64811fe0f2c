/**
 * An agent: answers by repeating the question, a word at a time.
 *
 * Always holds: it stops working on a call as soon as the caller is gone (cancelled, or the deadline is over); it
 * waits when the caller reads slower than it writes. What happens is told on stdout, a JSON object a line.
 *
 * node dist/agent.js [--port 9001] [--word-ms 50]
 */
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import * as grpc from "@grpc/grpc-js";
import { HealthImplementation } from "grpc-health-check";
import {
  agentService, invalidArgument, MESSAGE_LIMITS,
  type InvokeChunk, type InvokeReply, type InvokeRequest, type Usage,
} from "./api.js";

type Call = grpc.ServerUnaryCall<InvokeRequest, InvokeReply> | grpc.ServerWritableStream<InvokeRequest, InvokeChunk>;

const MODEL = "echo";
const GRACE_MS = 10_000; // how long calls in flight may take once the agent is told to stop
const { values: options } = parseArgs({
  options: { port: { type: "string", default: "9001" }, "word-ms": { type: "string", default: "50" } },
});
const wordMs = Number(options["word-ms"]);

function tell(event: string, facts: object): void {
  console.log(JSON.stringify({ event, ...facts }));
}

function wordsOf(request: InvokeRequest): string[] {
  const words = (request.messages.at(-1)?.parts ?? []).flatMap((part) => part.text?.split(/\s+/) ?? []).filter(Boolean);
  if (!words.length) throw invalidArgument("messages", "nothing to answer – the last message has no words");
  return words;
}

function usageOf(words: string[]): Usage {
  return { inputTokens: words.length, outputTokens: words.length };
}

/** Aborted when nobody waits for the answer any more. */
function goneSignal(call: Call): AbortSignal {
  const gone = new AbortController();
  call.on("cancelled", () => gone.abort());
  return gone.signal;
}

/** Run one call: tell how it began and how it ended, and hand what it throws to `fail` as a status. */
async function handle(method: string, call: Call, fail: (status: Partial<grpc.StatusObject>) => void,
  answer: (words: string[], gone: AbortSignal) => Promise<void>): Promise<void> {
  const gone = goneSignal(call);
  const [session] = call.metadata.get("x-session-id");
  const [agent] = call.metadata.get("x-agent-id");
  const deadline = call.getDeadline();
  const leftMs = deadline === Infinity ? null : Number(deadline) - Date.now();
  tell("call", { method, agent, session, message_session: call.request.sessionId, left_ms: leftMs });
  try {
    await answer(wordsOf(call.request), gone);
    tell("done", { method, session });
  } catch (error) {
    tell(gone.aborted ? "cancelled" : "failed", { method, session });
    if (gone.aborted) fail({ code: grpc.status.CANCELLED, details: "the caller is gone" });
    else if (error instanceof Error) fail({ code: grpc.status.INTERNAL, details: error.message });
    else fail(error as grpc.StatusObject);
  }
}

function invoke(call: grpc.ServerUnaryCall<InvokeRequest, InvokeReply>, reply: grpc.sendUnaryData<InvokeReply>): void {
  void handle("Invoke", call, (status) => reply(status), async (words, gone) => {
    for (const _ of words) await sleep(wordMs, undefined, { signal: gone });
    reply(null, {
      parts: [{ text: words.join(" ") }], finishReason: "FINISH_REASON_STOP", model: MODEL, usage: usageOf(words),
    });
  });
}

function invokeStream(call: grpc.ServerWritableStream<InvokeRequest, InvokeChunk>): void {
  void handle("InvokeStream", call, (status) => call.emit("error", status), async (words, gone) => {
    for (const [at, word] of words.entries()) {
      await sleep(wordMs, undefined, { signal: gone });
      if (!call.write({ text: at ? ` ${word}` : word })) await once(call, "drain", { signal: gone });
    }
    call.write({ finish: { reason: "FINISH_REASON_STOP", model: MODEL, usage: usageOf(words) } });
    call.end();
  });
}

const server = new grpc.Server(MESSAGE_LIMITS);
server.addService(agentService, { invoke, invokeStream });
const health = new HealthImplementation({ "": "SERVING", "outrider.v1.Agent": "SERVING" });
health.addToServer(server);

server.bindAsync(`127.0.0.1:${options.port}`, grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) {
    console.error(`cannot listen on 127.0.0.1:${options.port}: ${error.message}`);
    process.exit(1);
  }
  tell("listening", { port });
});

function stop(): void {
  for (const service of ["", "outrider.v1.Agent"]) health.setStatus(service, "NOT_SERVING");
  server.tryShutdown(() => process.exit(0));
  setTimeout(() => process.exit(0), GRACE_MS).unref();
}
process.once("SIGTERM", stop);
process.once("SIGINT", stop);
