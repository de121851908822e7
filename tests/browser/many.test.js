import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { call, DEADLINE, launch, openLoggedIn, unique, untilCount, write } from "./system.js";

// Every proxy of this system rejects each revision that has a listener whose name begins with "taken", and says why in
// words of its own.
describe("the admin UI with a large fleet", { timeout: 10 * DEADLINE }, () => {
  let browser;
  before(async () => {
    browser = await launch();
  });
  after(() => browser?.close());

  test("a revision that the whole fleet rejects is one alert of bounded size", async (t) => {
    const { length: count } = (await call("GET", "/proxies?limit=1000")).json.items;
    assert.ok(count >= 100, `${count} proxies`);
    const page = await openLoggedIn(t, browser, "/listeners/new");
    const name = unique("taken");
    await page.getByRole("textbox", { name: /^Name/ }).fill(name);
    await page.getByRole("textbox", { name: /^Address/ }).fill("127.0.0.1:443");
    await page.getByRole("button", { name: "Create listener" }).click();

    const strip = page.getByTestId("rollout-strip");
    await strip.getByText(`${count} proxies rejected revision`).waitFor();
    await strip.getByText(`listener ${name}`).first().waitFor();
    const height = async (element) => (await element.boundingBox()).height;
    assert.ok((await height(strip)) < 200, `the strip is ${await height(strip)} pixels high`);

    await page.getByRole("link", { name: "Board", exact: true }).click();
    const rejections = page.getByTestId("rejections");
    await rejections.getByText(`${count} proxies rejected revision`).waitFor();
    await untilCount(rejections.locator(".mantine-Alert-root"), 1);
    await rejections.getByText(/and \d+ more reasons/).waitFor();
    assert.ok((await height(rejections)) < 600, `the alerts are ${await height(rejections)} pixels high`);
    assert.equal(await rejections.getByRole("link", { name: `listener ${name}` }).first().getAttribute("href"), `/listeners/${name}`);
    const over = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    assert.ok(over <= 0, `${over} pixels too wide`);

    await write("DELETE", `/listeners/${name}`);
    await rejections.waitFor({ state: "detached" });
  });
});
