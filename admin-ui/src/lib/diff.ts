export type DiffLine = { kind: "same" | "removed" | "added"; text: string; before?: number; after?: number };

/** Lines beyond which a diff is not computed but shown as all removed, all added: the table below is quadratic. */
const MAX_LINES = 2000;

/** A line diff by longest common subsequence; line numbers count from 1. */
export function diffLines(before: string, after: string): DiffLine[] {
  const a = before === "" ? [] : before.split("\n");
  const b = after === "" ? [] : after.split("\n");
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let endA = a.length;
  let endB = b.length;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) {
    endA--;
    endB--;
  }
  const lines: DiffLine[] = [];
  const same = (i: number, j: number) =>
    lines.push({ kind: "same", text: a[i] ?? "", before: i + 1, after: j + 1 });
  for (let i = 0; i < start; i++) same(i, i);
  lines.push(...diffMiddle(a.slice(start, endA), b.slice(start, endB), start));
  for (let i = endA, j = endB; i < a.length; i++, j++) same(i, j);
  return lines;
}

function diffMiddle(a: string[], b: string[], offset: number): DiffLine[] {
  const removed = (i: number): DiffLine => ({ kind: "removed", text: a[i] ?? "", before: offset + i + 1 });
  const added = (j: number): DiffLine => ({ kind: "added", text: b[j] ?? "", after: offset + j + 1 });
  if (a.length > MAX_LINES || b.length > MAX_LINES) {
    return [...a.map((_, i) => removed(i)), ...b.map((_, j) => added(j))];
  }
  // lengths[i][j]: the longest common subsequence of a[i..] and b[j..].
  const width = b.length + 1;
  const lengths = new Uint16Array((a.length + 1) * width);
  const at = (i: number, j: number) => lengths[i * width + j] ?? 0;
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      lengths[i * width + j] = a[i] === b[j] ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
    }
  }
  const lines: DiffLine[] = [];
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      lines.push({ kind: "same", text: a[i] ?? "", before: offset + i + 1, after: offset + j + 1 });
      i++;
      j++;
    } else if (i < a.length && (j === b.length || at(i + 1, j) >= at(i, j + 1))) {
      lines.push(removed(i++));
    } else {
      lines.push(added(j++));
    }
  }
  return lines;
}

/** The lines of a diff that changed with `context` lines around them; `null` stands for lines that are left out. */
export function foldDiff(lines: DiffLine[], context: number): (DiffLine | null)[] {
  const keep = lines.map(() => false);
  lines.forEach((line, index) => {
    if (line.kind !== "same") {
      for (let near = index - context; near <= index + context; near++) {
        if (near in keep) keep[near] = true;
      }
    }
  });
  const folded: (DiffLine | null)[] = [];
  lines.forEach((line, index) => {
    if (keep[index]) folded.push(line);
    else if (folded.at(-1) !== null) folded.push(null);
  });
  return folded;
}
