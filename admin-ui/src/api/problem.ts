import type { FieldError } from "../forms/form";

/** An error as the API writes it: `application/problem+json`. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly title: string,
    readonly detail: string,
    readonly errors: FieldError[],
  ) {
    super(detail || title);
  }

  /** Reads the body of an answer that is not 2xx; whatever stands between may have written something else. */
  static of(status: number, body: unknown): Problem {
    const found: { [key: string]: unknown } = typeof body === "object" && body !== null ? { ...body } : {};
    const title = typeof found.title === "string" ? found.title : `Status ${status}`;
    const detail = typeof found.detail === "string" ? found.detail : "";
    const errors = Array.isArray(found.errors) ? found.errors.filter(isFieldError) : [];
    return new Problem(status, title, detail, errors);
  }
}

/** A write that got no answer. It is not sent again. */
export class Unanswered extends Error {
  constructor(
    /** Whether it may have reached the control plane. */
    readonly outcome: "not-sent" | "unknown",
    why: string,
  ) {
    super(
      outcome === "not-sent"
        ? `${why} Nothing was sent, and nothing will be sent later.`
        : `${why} It is not known whether the change was made: look at the revisions before you try again. It will not be sent again by itself.`,
    );
  }
}

/** What went wrong, in a sentence for people. */
export function messageOf(error: unknown): string {
  if (error instanceof Problem) {
    if (error.status === 401) return "You are not logged in, or the token was revoked.";
    if (error.status === 403) return error.detail || "Your token's role does not allow this.";
    if (error.status === 503)
      return error.detail || "The database is away. Reading goes on; try to write later.";
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
