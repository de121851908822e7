import { useMemo } from "react";
import { diffLines, foldDiff } from "../lib/diff";
import type { Json } from "../lib/json";

const SIGNS = { same: " ", removed: "−", added: "+" };

/** The difference between two specifications, line by line. `null` or absent means that there was none. */
export function Diff({ before, after }: { before: Json | undefined; after: Json | undefined }) {
  const lines = useMemo(() => foldDiff(diffLines(write(before), write(after)), 3), [before, after]);
  return (
    <div className="diff">
      <table>
        <caption className="visually-hidden">Changed lines</caption>
        <tbody>
          {lines.map((line, index) =>
            line === null ? (
              <tr key={index} className="gap">
                <td className="line-no" colSpan={2} />
                <td className="sign" />
                <td>⋯</td>
              </tr>
            ) : (
              <tr key={index} className={line.kind}>
                <td className="line-no">{line.before}</td>
                <td className="line-no">{line.after}</td>
                <td className="sign">{SIGNS[line.kind]}</td>
                <td>{line.text}</td>
              </tr>
            ),
          )}
        </tbody>
      </table>
    </div>
  );
}

function write(value: Json | undefined): string {
  return value === null || value === undefined ? "" : JSON.stringify(value, null, 2);
}
