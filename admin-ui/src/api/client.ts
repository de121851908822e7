import createClient from "openapi-fetch";
import { Problem } from "./problem";
import type { paths } from "./schema";

/** The admin API, as its OpenAPI document has it. The browser sends the session's cookie by itself. */
export const api = createClient<paths>({ baseUrl: "/api/v1", credentials: "same-origin" });

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
