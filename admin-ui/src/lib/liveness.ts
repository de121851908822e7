/** The time of the last response or event of the control plane, in milliseconds since 1970. */
let heardAt = 0;

export function noteHeard() {
  heardAt = Date.now();
}

export function lastHeard(): number {
  return heardAt;
}
