import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { call, DEADLINE, launch, openAs, openLoggedIn, until, untilCount, write } from "./system.js";

// Three proxies of the fleet "edge" are connected. No request reaches them, so no step ends by itself.
describe("the admin UI with a fleet that gets revisions step by step", { timeout: 20 * DEADLINE }, () => {
  const route = (timeout) => ({
    match: { paths: [{ prefix: "/" }] },
    forward: { upstreams: [{ name: "users" }], timeout },
  });
  let browser;
  let stable;
  before(async () => {
    browser = await launch();
    await write("PUT", "/upstreams/users", { targets: [{ address: "127.0.0.1:65000" }] });
    stable = await write("PUT", "/routes/users?wait=10s", route("10s"));
  });
  after(() => browser?.close());

  test("a policy is written by hand, step by step", async (t) => {
    const page = await openLoggedIn(t, browser, "/fleets/edge");
    await page.getByText("No policy is written for this fleet").waitFor();
    await untilCount(page.locator("[data-member]"), 3);
    await page.getByRole("link", { name: "Write a policy" }).click();
    await page.getByText("Progressive", { exact: true }).click();

    await page.getByText("The default steps: 10 % of the proxies for 60s, then 50 % for 2m.").waitFor();
    await page.getByRole("button", { name: "Change the steps" }).click();
    await page.getByRole("button", { name: "Add step" }).click();
    await page.getByRole("button", { name: "Move step 3 up" }).click();
    await page.locator("[aria-label='Step 2: percent of the proxies'][value='75 %']").waitFor();
    await page.getByRole("button", { name: "Remove step 3" }).click();
    await page.getByRole("button", { name: "Remove step 2" }).click();
    await page.getByRole("combobox", { name: "Step 1: size by" }).click();
    await page.getByRole("option", { name: "Count" }).click();
    await page.getByRole("textbox", { name: "Step 1: soak" }).fill("10m");
    await page.getByRole("textbox", { name: "Coverage" }).fill("7");
    await page.getByRole("textbox", { name: "Errors: tolerated ratio" }).fill("1.5");
    // A field that was emptied leaves nothing behind.
    await page.getByRole("textbox", { name: "Latency: confidence" }).fill("0.99");
    await page.getByRole("textbox", { name: "Latency: confidence" }).fill("");
    await page.getByRole("textbox", { name: "Bake time" }).fill("10");
    await page.getByRole("button", { name: "Create fleet" }).click();
    await page.locator("[aria-invalid=true]").and(page.getByRole("textbox", { name: "Bake time" })).waitFor();
    await page.getByRole("textbox", { name: "Bake time" }).fill("10m");
    await page.getByRole("button", { name: "Create fleet" }).click();
    await page.getByRole("tab", { name: "Overview" }).waitFor();

    const { rollout } = (await call("GET", "/fleets/edge")).json;
    assert.deepEqual(rollout, {
      strategy: "progressive",
      steps: [{ count: 1, soak: "10m" }],
      bake: "10m",
      gates: { errors: { tolerated_ratio: 1.5 }, coverage: { min_requests: 7 } },
    });
    await page.getByRole("tab", { name: "Specification" }).click();
    await page.getByText("min_requests: 7").waitFor();
  });

  test("a rollout is followed, paused and aborted by the buttons, and its revision is taken back", async (t) => {
    const before = (await call("GET", "/fleets/edge/status")).json.stable;
    assert.ok(before >= stable);
    const revision = await write("PUT", "/routes/users", route("20s"));
    const id = `${revision}-edge`;
    const page = await openLoggedIn(t, browser);
    const line = page.locator("[data-testid=fleet-lines] [data-fleet=edge]");
    await line.getByText(`stable ${before}, 1 canary on ${revision}`).waitFor();
    await page.locator("[data-because=canary]").getByRole("link", { name: "canary" }).waitFor();
    await untilCount(page.locator("[data-because=stable]"), 2);

    await line.getByRole("link", { name: /^Step 1 of 2/ }).click();
    await page.getByRole("heading", { name: `Revision ${revision} in fleet edge` }).waitFor();
    await page.getByText(new RegExp(`Step 1 of 2: 1 of 3 proxies have revision ${revision}; .* of 10 min healthy`)).waitFor();
    const canary = page.locator("[data-place=canary]");
    await page.locator(`[data-place=canary][data-serves="${revision}"]`).waitFor();
    await untilCount(page.locator(`[data-place=stable][data-serves="${before}"]`), 2);
    await page.locator("[data-gate=rejected][data-verdict=passing]").getByText("0; fails at 1").waitFor();

    const viewer = await openAs(t, browser, "viewer", `/rollouts/${id}`);
    await viewer.getByTestId("steps").waitFor();
    assert.equal(await viewer.getByRole("button", { name: "Abort" }).count(), 0);

    await command(page, "Pause", "It looks slow");
    await page.locator("[data-testid=rollout][data-state=paused]").waitFor();
    await page.getByTestId("why").getByText("Paused: It looks slow").waitFor();
    const event = page.getByTestId("events").getByRole("row").filter({ hasText: "It looks slow" });
    await event.getByRole("cell", { name: "admin", exact: true }).waitFor();
    assert.equal((await call("GET", `/rollouts/${id}`)).json.state, "paused");
    // The other page follows.
    await viewer.locator("[data-testid=rollout][data-state=paused]").waitFor();

    await command(page, "Abort", "It is slow");
    await page.locator("[data-testid=rollout][data-state=aborted]").waitFor();
    const why = page.getByRole("alert").filter({ hasText: `Revision ${revision} was taken back` });
    await why.getByText("Aborted: It is slow").waitFor();
    await canary.first().waitFor({ state: "detached" });
    await untilCount(page.locator(`[data-place=stable][data-serves="${before}"]`), 3);

    await page.goto(new URL("/revisions", page.url()).href);
    const standing = (number) => page.locator(`[data-revision="${number}"] [data-fleet=edge]`);
    await standing(revision).getByText("taken back").waitFor();
    await standing(before).getByText("serving").waitFor();
    await standing(stable).getByText("served until").waitFor();
    await page.goto(new URL("/fleets/edge", page.url()).href);
    await page.getByTestId("held").getByText("Aborted: It is slow").waitFor();

    await page.getByTestId("held").getByRole("link").click();
    await command(page, "Retry", "It was another cause");
    await page.getByRole("link", { name: "Open attempt 2" }).click();
    await page.locator("[data-testid=rollout][data-state=running]").waitFor();
    await command(page, "Promote", "It is known to be good");
    await untilCount(page.locator(`[data-member][data-serves="${revision}"]`), 3);
    await page.goto(new URL(`/revisions/${revision}`, page.url()).href);
    await page.locator("[data-standing=serving][data-fleet=edge]").waitFor();
  });
});

/** Presses a button of a rollout, gives the reason, and confirms. */
async function command(page, name, reason) {
  await page.getByTestId("rollout-commands").getByRole("button", { name, exact: true }).click();
  const dialog = page.getByRole("dialog");
  const confirm = dialog.getByRole("button", { name, exact: true });
  await confirm.waitFor();
  await until(() => confirm.isDisabled(), () => "the button is enabled without a reason");
  await dialog.getByRole("textbox", { name: "Reason" }).fill(reason);
  await confirm.click();
  await dialog.waitFor({ state: "detached" });
}
