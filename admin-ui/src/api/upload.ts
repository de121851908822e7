import { api, read } from "./client";
import type { components } from "./schema";

/** Uploads a file that plugins name by its SHA-256. */
export function upload(file: File): Promise<components["schemas"]["Blob"]> {
  return read(
    api.POST("/blobs", {
      // The document says `string` for a body of bytes.
      body: file as unknown as string,
      bodySerializer: (body) => body as unknown as BodyInit,
      headers: { "Content-Type": "application/octet-stream" },
    }),
  );
}
