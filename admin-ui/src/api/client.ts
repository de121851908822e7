import createClient from "openapi-fetch";
import { lastHeard, noteHeard } from "../lib/liveness";
import { Problem, Unanswered } from "./problem";
import type { paths } from "./schema";

/** The deadlines of responses, in milliseconds. */
const READ_DEADLINE = 20_000;
const WRITE_DEADLINE = 15_000;
const PROBE_DEADLINE = 3_000;
/** A write goes out without a probe when the control plane was heard within this time: one heartbeat and some more. */
const SURE_FOR = 7_000;

/** The admin API, as its OpenAPI document has it. The browser sends the session's cookie by itself. */
export const api = createClient<paths>({ baseUrl: "/api/v1", credentials: "same-origin", fetch: send });

/** Sends a request once, with a deadline. No request is ever sent again or later. */
async function send(request: Request): Promise<Response> {
  if (request.method === "GET") return exchange(request, READ_DEADLINE);
  // The bytes of a write must not wait in a connection that is stuck: they would arrive whenever it moves again.
  const isSession = new URL(request.url).pathname.endsWith("/session");
  if (!isSession && Date.now() - lastHeard() > SURE_FOR) await probe();
  try {
    return await exchange(request, WRITE_DEADLINE);
  } catch (error) {
    if (isSession) throw error;
    if (!navigator.onLine) throw new Unanswered("not-sent", "Your browser is offline.");
    throw isTimeout(error)
      ? new Unanswered("unknown", `The control plane did not answer within ${WRITE_DEADLINE / 1000} seconds.`)
      : new Unanswered("unknown", "The connection to the control plane failed.");
  }
}

/** Any answer shows that the control plane can be reached, also one that refuses. */
async function probe() {
  try {
    await exchange(new Request("/api/v1/session", { cache: "no-store" }), PROBE_DEADLINE);
  } catch {
    const why = navigator.onLine ? "The control plane cannot be reached." : "Your browser is offline.";
    throw new Unanswered("not-sent", why);
  }
}

/** The deadline holds for the body, too. */
async function exchange(request: Request, deadline: number): Promise<Response> {
  const signal = AbortSignal.any([request.signal, AbortSignal.timeout(deadline)]);
  const response = await fetch(request, { signal });
  const body = await response.arrayBuffer();
  noteHeard();
  const { status, statusText, headers } = response;
  return new Response(body.byteLength === 0 ? null : body, { status, statusText, headers });
}

function isTimeout(error: unknown): boolean {
  return error instanceof DOMException && error.name === "TimeoutError";
}

type Answer<T> = { data?: T; error?: unknown; response: Response };

/** The body of an answer; what is not 2xx is thrown as a [`Problem`]. */
export async function read<T>(call: Promise<Answer<T>>): Promise<T> {
  const { data } = await readAll(call);
  return data;
}

/** The body and the headers of an answer. */
export async function readAll<T>(call: Promise<Answer<T>>): Promise<{ data: T; headers: Headers }> {
  const { data, error, response } = await call;
  if (!response.ok) throw Problem.of(response.status, error);
  // An answer without a body (204) has no data; its type says so.
  return { data: data as T, headers: response.headers };
}
