/** When the control plane was heard last, in any way; milliseconds since 1970. */
let heardAt = 0;

export function noteHeard() {
  heardAt = Date.now();
}

export function lastHeard(): number {
  return heardAt;
}
