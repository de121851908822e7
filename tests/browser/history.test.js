import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

// The history of a revision in a fleet, as the admin UI tells it: a function over rollouts, which no browser needs to run.
describe("the standing of a revision", () => {
  let server;
  let standingIn;
  before(async () => {
    const { createServer } = await import("../../admin-ui/node_modules/vite/dist/node/index.js");
    const root = fileURLToPath(new URL("../../admin-ui", import.meta.url));
    server = await createServer({ root, logLevel: "error", server: { middlewareMode: true, hmr: false, ws: false } });
    ({ standingIn } = await server.ssrLoadModule("/src/lib/history.ts"));
  });
  after(() => server?.close());

  const time = (second) => `2026-01-01T00:00:${String(second).padStart(2, "0")}Z`;
  const OPEN = ["waiting", "running", "paused", "held", "baking"];

  /** A rollout of revision N, which began in second N. Proxies have acknowledged it, if nothing else is said. */
  const immediate = (revision, state, change = {}) => ({
    id: `${revision}-f`,
    revision,
    fleet: "f",
    strategy: "immediate",
    state,
    steps: [],
    events: [],
    started_at: time(revision),
    finished_at: state === "running" ? null : time(revision),
    counts: { applied: 3, total: 3 },
    ...change,
  });
  /** A rollout by steps, by the states of its steps; it ended 30 seconds after it began. */
  const stepwise = (revision, state, steps, change = {}) => ({
    ...immediate(revision, state),
    strategy: "progressive",
    steps: steps.map((state) => ({ state })),
    counts: { applied: 0, total: 3 },
    finished_at: OPEN.includes(state) ? null : time(revision + 30),
    ...change,
  });
  const check = (cases) => {
    for (const [about, revision, rollouts, wanted] of cases) {
      assert.deepEqual(standingIn(revision, rollouts).standing, wanted, about);
    }
  };

  const serving = { is: "serving", partly: false };
  const partly = { is: "serving", partly: true };
  const until = (second) => ({ is: "served-until", until: time(second) });
  const never = { is: "never-served", soFar: false };
  const notYet = { is: "never-served", soFar: true };
  const superseded = { is: "superseded" };
  const takenBack = { is: "taken-back" };
  const before2 = immediate(2, "succeeded");
  const silent = { counts: { applied: 0, total: 3 } };

  test("a revision without a rollout was never served, if the rollouts of its time are known", () => {
    check([
      ["older than all that is known", 1, [before2], null],
      ["between two", 3, [before2, immediate(4, "succeeded")], never],
      ["newer than all", 3, [before2], notYet],
    ]);
  });

  test("an immediate revision is serving until a later one is complete", () => {
    check([
      ["the newest", 2, [before2], serving],
      ["under way, on some proxies", 3, [before2, immediate(3, "running")], serving],
      ["under way, on none", 3, [before2, immediate(3, "running", silent)], notYet],
      ["while a later one is under way", 2, [before2, immediate(3, "running")], serving],
      ["before a later one", 2, [before2, immediate(4, "succeeded")], until(4)],
      ["before two later ones", 2, [before2, immediate(4, "succeeded"), immediate(5, "succeeded")], until(4)],
      ["overtaken on its way", 2, [immediate(2, "superseded"), immediate(4, "succeeded")], superseded],
      ["rejected by all", 2, [immediate(2, "failed", silent), immediate(4, "succeeded")], never],
      ["rejected by some", 2, [immediate(2, "failed"), immediate(4, "succeeded")], until(4)],
      ["before one that was rejected", 2, [before2, immediate(3, "failed")], serving],
      ["acknowledged by proxies that are gone", 2, [immediate(2, "succeeded", { ...silent, propagation_ms: { p50: 1 } })], serving],
    ]);
  });

  test("a revision by steps is serving from its first step on", () => {
    for (const state of ["running", "paused", "held"]) {
      const rollout = stepwise(3, state, ["running", "pending"]);
      check([
        [`${state}, at the canaries`, 3, [before2, rollout], partly],
        [`${state}, at the other proxies`, 2, [before2, rollout], serving],
      ]);
    }
    for (const state of ["waiting", "paused", "held"]) {
      check([[`${state} before its first step`, 3, [before2, stepwise(3, state, ["pending", "pending"])], notYet]]);
    }
    const events = [
      { at: time(10), code: "started", state: "running" },
      { at: time(20), code: "advanced", state: "running" },
      { at: time(22), code: "advanced", state: "baking" },
    ];
    const baking = stepwise(3, "baking", ["passed", "passed"], { events });
    const sameContent = stepwise(3, "succeeded", ["pending", "pending"]);
    check([
      ["baking", 3, [before2, baking], serving],
      ["before one that bakes", 2, [before2, baking], until(20)],
      ["kept", 3, [before2, stepwise(3, "succeeded", ["passed", "passed"], { events })], serving],
      ["before one that was kept", 2, [before2, stepwise(3, "succeeded", ["passed", "passed"], { events })], until(20)],
      ["with the stable content", 3, [before2, sameContent], serving],
      ["before one with the stable content", 2, [before2, sameContent], until(33)],
    ]);
  });

  test("a revision by steps that did not stay was taken back, superseded or never served", () => {
    const next = stepwise(4, "running", ["running", "pending"]);
    for (const state of ["failed", "aborted"]) {
      const began = stepwise(3, state, ["passed", "running"]);
      check([
        [`${state} after its first step`, 3, [before2, began], takenBack],
        [`before one that ${state}`, 2, [before2, began], serving],
        [`${state} before its first step`, 3, [before2, stepwise(3, state, ["pending", "pending"])], never],
        [`${state}, then tried again`, 3, [before2, began, stepwise(3, "succeeded", ["passed", "passed"], { id: "3-f~2" })], serving],
        [`${state} again`, 3, [before2, stepwise(3, state, ["running", "pending"], { id: "3-f~2" }), began], takenBack],
      ]);
    }
    check([
      ["superseded at its canaries", 3, [before2, stepwise(3, "superseded", ["running", "pending"]), next], superseded],
      ["before it", 2, [before2, stepwise(3, "superseded", ["running", "pending"]), next], serving],
      ["superseded at the whole fleet", 3, [before2, stepwise(3, "superseded", ["passed", "running"]), next], serving],
    ]);
  });
});
