import type { FieldError } from "../forms/form";

/** An error of the API: `application/problem+json`. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly title: string,
    readonly detail: string,
    readonly errors: FieldError[],
  ) {
    super(detail || title);
  }

  /** Reads the body of a response that is not 2xx. A proxy in between may have written a different body. */
  static of(status: number, body: unknown): Problem {
    const found: { [key: string]: unknown } = typeof body === "object" && body !== null ? { ...body } : {};
    const title = typeof found.title === "string" ? found.title : `Status ${status}`;
    const detail = typeof found.detail === "string" ? found.detail : "";
    const errors = Array.isArray(found.errors) ? found.errors.filter(isFieldError) : [];
    return new Problem(status, title, detail, errors);
  }
}

/** A write without a response. It is not sent again. */
export class Unanswered extends Error {
  constructor(
    /** Says whether the write may have reached the control plane. */
    readonly outcome: "not-sent" | "unknown",
    why: string,
  ) {
    super(
      outcome === "not-sent"
        ? `${why} Nothing was sent, and nothing will be sent later.`
        : `${why} It is not known whether the change was made: look at the revisions before you try again. The page will not send it again by itself.`,
    );
  }
}

/** The error as a sentence for people. */
export function messageOf(error: unknown): string {
  if (error instanceof Problem) {
    if (error.status === 401) return "You are not logged in, or the token was revoked.";
    if (error.status === 403) return error.detail || "Your token's role does not allow this.";
    if (error.status === 503)
      return error.detail || "The database is unavailable. You can still read; try to write later.";
    return error.message;
  }
  if (error instanceof TypeError) return "The control plane cannot be reached.";
  if (error instanceof DOMException && error.name === "TimeoutError") {
    return "The control plane does not answer.";
  }
  return error instanceof Error ? error.message : String(error);
}

function isFieldError(value: unknown): value is FieldError {
  return (
    typeof value === "object" &&
    value !== null &&
    "field" in value &&
    typeof value.field === "string" &&
    "message" in value &&
    typeof value.message === "string"
  );
}
