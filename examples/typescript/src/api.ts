/**
 * The Agent API as this example needs it: loaded from agent.proto at run time, its messages as interfaces.
 *
 * Always holds: a field that is not set has its default (`defaults`), an unset sub-message is null, an unset optional
 * field is absent. Not here: fields of the API that the example does not use; agent.proto documents them all.
 */
import { fileURLToPath } from "node:url";
import * as grpc from "@grpc/grpc-js";
import * as protoLoader from "@grpc/proto-loader";

export interface Part { text?: string }
export interface Message { role: string; parts: Part[] }
export interface InvokeRequest { agentId: string; sessionId: string; messages: Message[] }
export interface Usage { inputTokens?: number; outputTokens?: number }
export interface InvokeReply { parts: Part[]; finishReason: string; model: string; usage: Usage | null }
export interface Finish { reason: string; model: string; usage: Usage | null }
export interface InvokeChunk { text?: string; finish?: Finish | null }

export interface AgentClient extends grpc.Client {
  invoke(request: InvokeRequest, metadata: grpc.Metadata, options: grpc.CallOptions,
    reply: grpc.requestCallback<InvokeReply>): grpc.ClientUnaryCall;
  invokeStream(request: InvokeRequest, metadata: grpc.Metadata,
    options: grpc.CallOptions): grpc.ClientReadableStream<InvokeChunk>;
}
type AgentConstructor = new (target: string, credentials: grpc.ChannelCredentials, options: object) => AgentClient;

const LOADING = { defaults: true, oneofs: true, enums: String, longs: Number };
const PROTOS = fileURLToPath(new URL("../../../protos", import.meta.url));
const definition = protoLoader.loadSync("outrider/v1/agent.proto", { ...LOADING, includeDirs: [PROTOS] });

export const agentService = definition["outrider.v1.Agent"] as grpc.ServiceDefinition;
export const Agent = grpc.makeGenericClientConstructor(agentService, "Agent") as unknown as AgentConstructor;

/** grpc-js takes 4 MB at most unless it is told otherwise; the sidecar passes 64 MB. */
export const MESSAGE_LIMITS = {
  "grpc.max_receive_message_length": 64 * 1024 * 1024,
  "grpc.max_send_message_length": 64 * 1024 * 1024,
};

/** The part of google.rpc that says which field of a request is wrong. */
const richErrors = protoLoader.fromJSON({
  nested: { google: { nested: { rpc: { nested: {
    Status: { fields: {
      code: { type: "int32", id: 1 },
      message: { type: "string", id: 2 },
      details: { rule: "repeated", type: "Detail", id: 3 },
    } },
    Detail: { fields: { typeUrl: { type: "string", id: 1 }, value: { type: "bytes", id: 2 } } }, // protobuf's Any
    BadRequest: { fields: { fieldViolations: { rule: "repeated", type: "Violation", id: 1 } } },
    Violation: { fields: { field: { type: "string", id: 1 }, description: { type: "string", id: 2 } } },
  } } } } },
}, LOADING);
const DETAILS = "grpc-status-details-bin";
const BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest";

export interface Violation { field: string; description: string }

function rich(name: string): protoLoader.MessageTypeDefinition<object, object> {
  return richErrors[`google.rpc.${name}`] as protoLoader.MessageTypeDefinition<object, object>;
}

/** An INVALID_ARGUMENT that names the wrong field, also in a form that programs can read. */
export function invalidArgument(field: string, message: string): grpc.StatusObject {
  const code = grpc.status.INVALID_ARGUMENT;
  const value = rich("BadRequest").serialize({ fieldViolations: [{ field, description: message }] });
  const metadata = new grpc.Metadata();
  metadata.set(DETAILS, rich("Status").serialize({ code, message, details: [{ typeUrl: BAD_REQUEST, value }] }));
  return { code, details: message, metadata };
}

/** The wrong fields that a failed call names; none where its status carries no such details. */
export function violationsOf(metadata: grpc.Metadata): Violation[] {
  const [bytes] = metadata.get(DETAILS);
  if (!Buffer.isBuffer(bytes)) return [];
  const { details } = rich("Status").deserialize(bytes) as { details: { typeUrl: string; value: Buffer }[] };
  return details.filter(({ typeUrl }) => typeUrl === BAD_REQUEST).flatMap(({ value }) =>
    (rich("BadRequest").deserialize(value) as { fieldViolations: Violation[] }).fieldViolations);
}
