import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync } from "node:fs";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import {
  call,
  connectedProxies,
  DEADLINE,
  launch,
  open,
  openAs,
  openLoggedIn,
  openWay,
  token,
  unique,
  until,
  url,
  write,
} from "./system.js";

describe("the admin UI", { timeout: 40 * DEADLINE }, () => {
  let browser;
  let proxies;
  before(async () => {
    browser = await launch();
    proxies = await connectedProxies();
    assert.ok(proxies.length >= 3, `three proxies must be connected; there are ${proxies.length}`);
  });
  after(() => browser?.close());

  test("a wrong token is refused with a reason, and the right one shows the board", async (t) => {
    const page = await open(t, browser);
    await page.goto(url);
    await page.getByLabel("Token").fill("not-a-token");
    await page.getByRole("button", { name: "Log in" }).click();
    await page.getByText("This token is not known, or was revoked.").waitFor();

    await page.getByLabel("Token").fill(token);
    await page.getByRole("button", { name: "Log in" }).click();
    await page.getByRole("heading", { name: "Proxies", exact: true }).waitFor();
    for (const id of proxies) await page.locator(`[data-proxy="${id}"]`).waitFor();

    await page.getByRole("button", { name: "Your session" }).click();
    await page.getByRole("menuitem", { name: "Log out" }).click();
    await page.getByLabel("Token").waitFor();
    await page.reload();
    await page.getByLabel("Token").waitFor();
  });

  test("an address below the board can be opened directly", async (t) => {
    const page = await openLoggedIn(t, browser, "/revisions");
    await page.getByRole("heading", { name: "Revisions", level: 1 }).waitFor();
  });

  test("a plugin, an upstream and a route are made by hand, and every proxy serves them", async (t) => {
    const page = await openLoggedIn(t, browser, "/plugins");
    const [plugin, upstream, route] = [unique("limit"), unique("up"), unique("route")];

    await page.getByRole("link", { name: "New plugin" }).first().click();
    await field(page, "Name").fill(plugin);
    await choose(page, "Type", "rate-limit");
    await field(page, "Limit").fill("250");
    await field(page, "Window").fill("10s");
    await choose(page, "Count by", "ip");
    await create(page, "plugin");
    assert.deepEqual((await call("GET", `/plugins/${plugin}`)).json.config, { limit: 250, window: "10s", by: "ip" });

    await navigate(page, "Upstreams");
    await page.getByRole("link", { name: "New upstream" }).first().click();
    await field(page, "Name").fill(upstream);
    await field(page, "Address of target 1").fill("127.0.0.1:65000");
    await page.getByRole("button", { name: "Add target" }).click();
    await field(page, "Address of target 2").fill("127.0.0.1:65001");
    await field(page, "Weight of target 2").fill("50");
    await field(page, "Response header count").fill("50");
    await field(page, "Response header size").fill("64KiB");
    await create(page, "upstream");
    const limits = { response_header_count: 50, response_header_size: "64KiB" };
    assert.deepEqual((await call("GET", `/upstreams/${upstream}`)).json.limits, limits);

    await navigate(page, "Routes");
    await page.getByRole("link", { name: "New route" }).first().click();
    await field(page, "Name").fill(route);
    await field(page, "Hosts").fill(`${route}.example.com`);
    await field(page, "Hosts").press("Enter");
    await field(page, "Path 1").fill("/users");
    await choose(page, "Upstream 1", upstream);
    await choose(page, "Plugins", plugin);
    await page.getByLabel("Message of the revision").fill("Route für die Benutzer");
    const revision = await create(page, "route");
    const stored = (await call("GET", `/routes/${route}`)).json;
    assert.deepEqual(stored.match, { hosts: [`${route}.example.com`], paths: [{ prefix: "/users" }] });
    assert.deepEqual(stored.plugins, [plugin]);
    assert.equal(stored.forward.upstreams[0].name, upstream);

    const strip = page.getByTestId("rollout-strip");
    await strip.getByText(/is live on \d+ of \d+ proxies in [\d.]+ m?s/).waitFor();

    await navigate(page, "Board");
    await page.getByText("Route für die Benutzer").first().waitFor();
    await page.locator(`[data-testid=convergence] [data-revision="${revision}"]`).getByText("live").waitFor();
    for (const id of proxies) await served(page, id, revision);
  });

  test("a certificate is made and renewed by hand, and its key is never shown", async (t) => {
    const page = await openLoggedIn(t, browser, "/certificates");
    const name = unique("cert");
    const made = () => {
      const directory = mkdtempSync(join(tmpdir(), "certificate-"));
      const [key, certificate] = ["key.pem", "cert.pem"].map((file) => join(directory, file));
      const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "365"];
      const names = ["-subj", `/CN=${name}`, "-addext", `subjectAltName=DNS:${name}.example`];
      execFileSync("openssl", ["req", "-x509", ...curve, ...names, "-keyout", key, "-out", certificate], {
        stdio: "ignore",
      });
      return { key: readFileSync(key, "utf8"), certificate: readFileSync(certificate, "utf8") };
    };
    const [first, second] = [made(), made()];
    await page.getByRole("link", { name: "New certificate" }).first().click();
    await field(page, "Name").fill(name);
    await field(page, "Certificate").fill(first.certificate);
    await field(page, "Private key").fill(second.key);
    await page.getByRole("button", { name: "Create certificate" }).click();
    await invalid(page, "Private key");
    await page.getByText("is not the key of the certificate").first().waitFor();
    await field(page, "Private key").fill(first.key);
    await create(page, "certificate");

    await page.reload();
    await field(page, "Certificate").waitFor();
    await page.getByRole("group", { name: "Private key" }).getByText("set", { exact: true }).waitFor();
    assert.equal(await field(page, "Private key").count(), 0, "a stored key is no text to be edited");
    await field(page, "Description").fill("of this test");
    const save = page.getByRole("button", { name: "Save" });
    await save.click();
    await until(async () => (await call("GET", `/certificates/${name}`)).json.description === "of this test");
    // Once all is read again the form begins anew, with nothing to save.
    await page.locator("button[type=submit]:disabled:not([data-loading])").waitFor();
    await field(page, "Certificate").fill(second.certificate);
    await save.click();
    await page.getByText("is not the key of the certificate").first().waitFor();
    await focusedInView(page, page.getByRole("button", { name: "Replace Private key" }));
    await page.getByRole("button", { name: "Replace Private key" }).click();
    await field(page, "Private key").fill(second.key);
    await save.click();
    const stored = async () => (await call("GET", `/certificates/${name}`)).json;
    await until(async () => (await stored()).certificate.trim() === second.certificate.trim());
    assert.equal((await stored()).private_key, "<redacted>");

    await navigate(page, "Certificates");
    const row = page.getByRole("row").filter({ hasText: name });
    await row.getByText(`${name}.example`).first().waitFor();
    const lastDay = new Date((await stored()).meta.certificate.not_after * 1000).toISOString().slice(0, 10);
    await row.getByText(lastDay).waitFor();
    assert.ok(!(await page.content()).includes("PRIVATE KEY"));
  });

  test("what is wrong with a field stands at the field", async (t) => {
    const page = await openLoggedIn(t, browser, "/routes/new");
    const upstream = unique("up");
    await write("PUT", `/upstreams/${upstream}`, { name: upstream, targets: [{ address: "127.0.0.1:65000" }] });
    await page.reload();
    await field(page, "Name").fill("Not A Name");
    await choose(page, "Kind of path 1", "Regex");
    await field(page, "Path 1").fill("/users/([0-9]+");
    await choose(page, "Upstream 1", upstream);
    await page.getByRole("button", { name: "Create route" }).click();

    await invalid(page, "Name");
    await invalid(page, "Path 1");
    await page.getByRole("alert").filter({ hasText: "2 fields are marked" }).waitFor();
    assert.equal((await call("GET", "/routes?q=Not%20A%20Name")).json.items.length, 0);

    // The error goes when the field is changed.
    await field(page, "Path 1").fill("/users/[0-9]+");
    await page.waitForFunction(() => document.querySelectorAll("[aria-invalid=true]").length === 1);
  });

  test("what is wrong with a plugin's configuration stands at its field", async (t) => {
    const page = await openLoggedIn(t, browser, "/plugins/new");
    await field(page, "Name").fill(unique("limit"));
    await choose(page, "Type", "rate-limit");
    await field(page, "Limit").fill("0");
    await field(page, "Window").fill("soon");
    await page.getByRole("button", { name: "Create plugin" }).click();
    await invalid(page, "Limit");
    await invalid(page, "Window");
  });

  test("text that cannot be read is not saved, and what can is taken over into the form", async (t) => {
    const page = await openLoggedIn(t, browser, "/upstreams/new");
    const name = unique("up");
    await page.getByRole("tab", { name: "Specification" }).click();
    const text = page.getByLabel("Specification", { exact: true }).and(page.locator("textarea"));
    await text.fill("name: [");
    await page.getByText("The text cannot be read").waitFor();
    await until(() => page.getByRole("button", { name: "Create upstream" }).isDisabled());
    await text.fill(`name: ${name}\ntargets:\n  - address: 127.0.0.1:65000\nidle_timeout: 7s\n`);
    await page.getByRole("tab", { name: "Form" }).click();
    await field(page, "Idle timeout").waitFor();
    assert.equal(await field(page, "Name").inputValue(), name);
    assert.equal(await field(page, "Idle timeout").inputValue(), "7s");
    await create(page, "upstream");
    assert.equal((await call("GET", `/upstreams/${name}`)).json.idle_timeout, "7s");
  });

  test("who comes second is told who was first, and loses nothing unseen", async (t) => {
    const name = unique("up");
    const path = `/upstreams/${name}`;
    await write("PUT", path, { name, targets: [{ address: "127.0.0.1:65000" }] });
    const page = await openLoggedIn(t, browser, path);
    await field(page, "Address of target 1").waitFor();
    await write("PUT", path, { name, description: "theirs", targets: [{ address: "127.0.0.1:65001" }] });

    await field(page, "Address of target 1").fill("127.0.0.1:65002");
    await page.getByRole("button", { name: "Save" }).click();
    const dialog = page.getByRole("dialog", { name: "Changed meanwhile" });
    await dialog.getByText("theirs").waitFor();
    assert.equal((await call("GET", path)).json.targets[0].address, "127.0.0.1:65001");

    await dialog.getByRole("button", { name: "Reload and discard my changes" }).click();
    await dialog.waitFor({ state: "hidden" });
    assert.equal(await field(page, "Address of target 1").inputValue(), "127.0.0.1:65001");

    await write("PUT", path, { name, targets: [{ address: "127.0.0.1:65003" }] });
    await field(page, "Address of target 1").fill("127.0.0.1:65004");
    await page.getByRole("button", { name: "Save" }).click();
    await dialog.getByRole("button", { name: "Overwrite" }).click();
    await dialog.waitFor({ state: "hidden" });
    assert.equal((await call("GET", path)).json.targets[0].address, "127.0.0.1:65004");
  });

  test("what is referred to is not deleted, and the referrer is named", async (t) => {
    const [upstream, route] = [unique("up"), unique("route")];
    await write("PUT", `/upstreams/${upstream}`, { name: upstream, targets: [{ address: "127.0.0.1:65000" }] });
    await write("PUT", `/routes/${route}`, routeTo(route, upstream));
    const page = await openLoggedIn(t, browser, "/upstreams");
    await page.getByLabel("Find upstreams").fill(upstream);
    await page.getByRole("button", { name: `Delete ${upstream}` }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByRole("button", { name: "Delete" }).click();
    await dialog.getByRole("alert").filter({ hasText: route }).waitFor();
    await dialog.getByRole("button", { name: "Cancel" }).click();

    await write("DELETE", `/routes/${route}`);
    await page.getByRole("button", { name: `Delete ${upstream}` }).click();
    await dialog.getByRole("button", { name: "Delete" }).click();
    await page.locator(`[data-name="${upstream}"]`).waitFor({ state: "detached" });
    assert.equal((await call("GET", `/upstreams/${upstream}`)).status, 404);
  });

  test("a route is switched off in the list", async (t) => {
    const name = unique("route");
    await write("PUT", `/routes/${name}`, { name, respond: { status: 204 } });
    const page = await openLoggedIn(t, browser, "/routes");
    await page.getByLabel("Find routes").fill(name);
    // Until then the rows still move.
    await page.waitForFunction(() => document.querySelectorAll("[data-name]").length === 1);
    await page.getByRole("switch", { name: `Enable ${name}` }).click({ force: true });
    await page.getByTestId("rollout-strip").waitFor();
    assert.equal((await call("GET", `/routes/${name}`)).json.enabled, false);
  });

  test("a revision shows what it changed, and is rolled back", async (t) => {
    const name = unique("up");
    const target = (port) => ({ name, targets: [{ address: `127.0.0.1:${port}` }] });
    const first = await write("PUT", `/upstreams/${name}`, target(65000));
    await write("PUT", `/upstreams/${name}`, target(65001), { "X-Signalbox-Message": "Move it" });
    const page = await openLoggedIn(t, browser, "/revisions");
    await page.getByTestId("revisions-list").getByRole("cell", { name: "Move it" }).first().click();
    const changes = page.getByTestId("changes");
    await changes.locator("tr.removed", { hasText: "127.0.0.1:65000" }).waitFor();
    await changes.locator("tr.added", { hasText: "127.0.0.1:65001" }).waitFor();

    await page.goto(`${url}/revisions/${first}`);
    await page.getByRole("button", { name: "Roll back to this" }).click();
    await page.getByRole("dialog").getByText(`It undoes the changes of revision ${first + 1}`).waitFor();
    await page.getByRole("dialog").getByRole("button", { name: "Roll back" }).click();
    await page.waitForURL((at) => /\/revisions\/\d+$/.test(at.pathname) && !at.pathname.endsWith(`/${first}`));
    await changes.locator("tr.added", { hasText: "127.0.0.1:65000" }).waitFor();
    await page.getByTestId("rollout-strip").getByText(/is live on/).waitFor();
    assert.equal((await call("GET", `/upstreams/${name}`)).json.targets[0].address, "127.0.0.1:65000");

    await choose(page, "Compare with revision", new RegExp(`^${first}(:|$)`));
    await page.getByText("are the same").waitFor();
  });

  test("a change made elsewhere appears on the board without a reload", async (t) => {
    const page = await openLoggedIn(t, browser);
    await page.getByRole("heading", { name: "Proxies", exact: true }).waitFor();
    const marker = await page.evaluate(() => {
      window.loadedOnce = Math.random();
      return window.loadedOnce;
    });
    const name = unique("up");
    const body = { name, targets: [{ address: "127.0.0.1:65000" }] };
    const message = `From a script, ${name}`;
    const revision = await write("PUT", `/upstreams/${name}`, body, { "X-Signalbox-Message": message });
    const row = page.locator(`[data-testid=convergence] [data-revision="${revision}"]`);
    await row.getByText(message).waitFor();
    await row.getByText("live").waitFor();
    for (const id of proxies) await served(page, id, revision);
    assert.equal(await page.evaluate(() => window.loadedOnce), marker);
  });

  test("a rejection is impossible to miss, and gone once it is mended", async (t) => {
    const name = unique("taken");
    t.after(() => call("DELETE", `/listeners/${name}`));
    const page = await openLoggedIn(t, browser);
    await page.getByRole("heading", { name: "Proxies", exact: true }).waitFor();
    // The control plane listens there itself, so no proxy on its host can.
    const revision = await write("PUT", `/listeners/${name}`, { name, address: new URL(url).host });
    const alert = page.getByRole("alert").filter({ hasText: `rejected revision ${revision}` });
    await alert.getByText(`listener ${name}`).first().waitFor();
    for (const id of proxies) {
      await page.locator(`[data-proxy="${id}"][data-state=rejected]`).waitFor();
      await page.locator(`[data-rejection="${id}"]`).filter({ hasText: name }).waitFor();
    }
    await page.locator(`[data-testid=convergence] [data-revision="${revision}"]`).getByText("rejected").waitFor();

    const mended = await write("DELETE", `/listeners/${name}`);
    for (const id of proxies) await served(page, id, mended);
    await alert.waitFor({ state: "detached" });
  });

  test("a lost connection is said, and what happened meanwhile appears when it is back", async (t) => {
    const way = await openWay(t);
    const page = await openLoggedIn(t, browser, "/", way.url);
    await page.getByRole("heading", { name: "Proxies", exact: true }).waitFor();
    await way.cut();
    await page.getByText("The connection to the control plane is lost").waitFor();
    await page.getByText(/not live for \d+ s/).waitFor();
    const name = unique("up");
    const revision = await write("PUT", `/upstreams/${name}`, { name, targets: [] });
    await way.mend();
    await page.locator("[data-connection=live]").waitFor();
    for (const id of proxies) await served(page, id, revision);
  });

  test("a revision that was rejected stays the one at fault after it was rolled back", async (t) => {
    const name = unique("taken");
    t.after(() => call("DELETE", `/listeners/${name}`));
    const page = await openLoggedIn(t, browser, "/revisions");
    const row = (revision) => page.locator(`[data-testid=revisions-list] [data-revision="${revision}"]`);
    const rejected = await write("PUT", `/listeners/${name}`, { name, address: new URL(url).host });
    await row(rejected).getByText(`by ${proxies.length} of ${proxies.length}`).waitFor();
    const { json } = await call("POST", `/revisions/${rejected - 1}/rollback?wait=30s`);
    const upstream = unique("up");
    const targets = [{ address: "127.0.0.1:65000" }];
    const harmless = await write("PUT", `/upstreams/${upstream}?wait=30s`, { name: upstream, targets });
    await row(harmless).getByText("serving").waitFor();
    await row(json.revision).getByText("served until").waitFor();
    await row(rejected).getByText("never served").waitFor();
    await row(rejected).getByText(`by ${proxies.length} of ${proxies.length}`).waitFor();
    await row(rejected).getByRole("link").first().click();
    const fault = page.getByTestId("fault");
    await fault.getByRole("link", { name: `listener ${name}` }).waitFor();
    await page.getByText(`${proxies.length} proxies rejected this revision`).waitFor();
    await page.goto(`${url}/revisions/${harmless}`);
    await page.getByText(`${proxies.length} of ${proxies.length} proxies serve this revision`).waitFor();
    assert.equal(await page.getByText("rejected this revision").count(), 0);
  });

  test("a stored secret is kept unless it is replaced as a whole", async (t) => {
    const name = unique("consumer");
    const path = `/consumers/${name}`;
    const [first, second] = [unique("first-key"), unique("second-key")];
    const isTaken = async (key) => {
      const other = { name: `${name}-other`, credentials: [{ key_auth: { key } }] };
      return (await call("PUT", `/consumers/${other.name}?dry_run=true`, other)).status >= 400;
    };
    await write("PUT", path, { name, credentials: [{ key_auth: { key: first } }] });
    assert.ok(await isTaken(first));
    const id = async () => (await call("GET", path)).json.credentials[0].key_auth.id;
    const firstId = await id();
    const page = await openLoggedIn(t, browser, path);
    const save = page.getByRole("button", { name: "Save" });
    const replace = page.getByRole("button", { name: "Replace Key" });
    await page.getByRole("group", { name: "Key" }).getByText("set", { exact: true }).waitFor();
    assert.equal(await page.getByRole("textbox").and(page.locator('[value*="redacted"]')).count(), 0);

    // Replacing can be taken back.
    await replace.click();
    await field(page, "Key").fill("nonsense");
    await page.getByRole("button", { name: "Keep the stored Key" }).click();
    await replace.waitFor();
    await until(() => save.isDisabled());
    await field(page, "Custom ID").fill("4711");
    await save.click();
    await until(async () => (await call("GET", path)).json.custom_id === "4711");
    assert.ok(await isTaken(first), "the stored key was kept");

    // The text of the specification is no way around it.
    await page.getByRole("tab", { name: "Specification" }).click();
    const text = page.getByLabel("Specification", { exact: true }).and(page.locator("textarea"));
    const whole = await text.inputValue();
    for (const half of ["<redacted>x", "x<redacted>", "<redacted", "redacted>"]) {
      await text.fill(whole.replace("<redacted>", `"${half}"`));
      await page.getByText("The text cannot be saved").waitFor();
      await until(() => save.isDisabled());
    }
    await text.fill(whole);
    await page.getByRole("tab", { name: "Form" }).click();

    await replace.click();
    await field(page, "Key").fill(second);
    assert.equal(await field(page, "Key").getAttribute("type"), "password");
    await save.click();
    await until(() => isTaken(second));
    assert.ok(!(await isTaken(first)), "the old key is gone");
    assert.notEqual(await id(), firstId, "the id that was made from the key follows it");
  });

  test("a save that fails says so in view, with the focus on it", async (t) => {
    const name = unique("up");
    const path = `/upstreams/${name}`;
    const targets = Array.from({ length: 40 }, (_, index) => ({ address: `127.0.0.1:${20_000 + index}` }));
    await write("PUT", path, { name, targets });
    const way = await openWay(t);
    const page = await openLoggedIn(t, browser, path, way.url);
    await field(page, "Description").fill("scrolled down to this");
    const save = page.getByRole("button", { name: "Save" });
    const alert = page.locator("[data-error-summary][role=alert]");

    // A field far above.
    await field(page, "Address of target 2").fill("nowhere");
    await field(page, "Description").focus();
    await save.click();
    await focusedInView(page, field(page, "Address of target 2"));
    await alert.filter({ hasText: "One field is marked" }).waitFor();
    await field(page, "Address of target 2").fill("127.0.0.1:20001");

    // No field at all. What a replica without its database, or a role, answers is known from its own tests.
    for (const [status, detail] of [
      [403, "the token has the role 'viewer'; this needs 'editor'"],
      [409, "another revision came first"],
      [503, "the database is away"],
    ]) {
      await page.route(`**/api/v1${path}`, (route) =>
        route.request().method() === "PUT"
          ? route.fulfill({ status, json: { title: "x", detail, status }, contentType: "application/problem+json" })
          : route.fallback(),
      );
      await field(page, "Description").focus();
      await save.click();
      await alert.filter({ hasText: detail }).waitFor();
      await focusedInView(page, alert);
      await page.unroute(`**/api/v1${path}`);
    }

    await way.cut();
    await field(page, "Description").focus();
    await save.click();
    await alert.filter({ hasText: /connection to the control plane failed|cannot be reached/ }).waitFor();
    await focusedInView(page, alert);
    await way.mend();
    await page.locator("[data-connection=live]").waitFor();
    await save.click();
    await until(async () => (await call("GET", path)).json.description === "scrolled down to this");
  });

  test("a name that is taken is told in view", async (t) => {
    const name = unique("up");
    await write("PUT", `/upstreams/${name}`, { name, targets: [{ address: "127.0.0.1:65000" }] });
    const page = await openLoggedIn(t, browser, "/upstreams/new");
    await field(page, "Name").fill(name);
    await field(page, "Address of target 1").fill("127.0.0.1:65001");
    await page.getByRole("button", { name: "Create upstream" }).click();
    await page.locator("[data-error-summary][role=alert]").waitFor();
    await page.waitForFunction(() => document.activeElement?.matches("[data-error-summary], [aria-invalid=true]"));
    assert.equal((await call("GET", `/upstreams/${name}`)).json.targets[0].address, "127.0.0.1:65000");
  });

  test("a changed form is not left without a question", async (t) => {
    const name = unique("up");
    const path = `/upstreams/${name}`;
    await write("PUT", path, { name, targets: [{ address: "127.0.0.1:65000" }] });
    const page = await openLoggedIn(t, browser, "/upstreams");
    await page.getByLabel("Find upstreams").fill(name);
    await page.getByRole("link", { name }).click();
    const description = field(page, "Description");
    const dialog = page.getByRole("dialog", { name: "Leave without saving?" });
    await description.click();
    await page.keyboard.type("not saved yet");

    await navigate(page, "Routes");
    await dialog.getByRole("button", { name: "Keep editing" }).click();
    await dialog.waitFor({ state: "hidden" });
    assert.equal(await description.inputValue(), "not saved yet");
    await page.goBack();
    await dialog.getByRole("button", { name: "Keep editing" }).click();
    await dialog.waitFor({ state: "hidden" });
    assert.equal(new URL(page.url()).pathname, path);
    await page.getByRole("link", { name: "Cancel" }).click();
    await dialog.getByRole("button", { name: "Keep editing" }).click();
    await dialog.waitFor({ state: "hidden" });

    // The browser asks before a reload; who insists finds the draft.
    const asked = new Promise((resolve) =>
      page.once("dialog", async (question) => {
        resolve(question.type());
        await question.accept();
      }),
    );
    await page.reload();
    assert.equal(await asked, "beforeunload");
    await page.getByText("Your unsaved changes are back").waitFor();
    assert.equal(await description.inputValue(), "not saved yet");

    await navigate(page, "Routes");
    await dialog.getByRole("button", { name: "Discard changes" }).click();
    await page.getByRole("heading", { name: "Routes", level: 1 }).waitFor();
    await page.goto(url + path);
    await description.waitFor();
    assert.equal(await description.inputValue(), "", "what was discarded does not come back");

    // A form that was saved is left without a question.
    await description.fill("saved");
    await page.getByRole("button", { name: "Save" }).click();
    await page.locator("button[type=submit]:disabled:not([data-loading])").waitFor();
    await navigate(page, "Routes");
    await page.getByRole("heading", { name: "Routes", level: 1 }).waitFor();
    assert.equal((await call("GET", path)).json.description, "saved");
  });

  test("after an expired session and a new login the draft is there, without its secrets", async (t) => {
    const name = unique("consumer");
    const path = `/consumers/${name}`;
    const key = unique("a-secret-key");
    await write("PUT", path, { name, credentials: [{ key_auth: { key: unique("key") } }] });
    const page = await openLoggedIn(t, browser, path);
    await field(page, "Custom ID").fill("4711");
    await page.getByRole("button", { name: "Replace Key" }).click();
    await field(page, "Key").fill(key);
    const drafts = () => page.evaluate(() => JSON.stringify({ ...sessionStorage, ...localStorage }));
    await until(async () => (await drafts()).includes("4711"));
    assert.ok(!(await drafts()).includes(key), "a secret was written to the browser's storage");

    await page.context().clearCookies();
    await page.getByRole("button", { name: "Save" }).click();
    await page.getByLabel("Token").fill(token);
    await page.getByRole("button", { name: "Log in" }).click();
    await page.getByText("Your unsaved changes are back").waitFor();
    assert.equal(await field(page, "Custom ID").inputValue(), "4711");
    assert.equal(await field(page, "Key").inputValue(), "");
    await field(page, "Key").fill(key);
    await page.getByRole("button", { name: "Save" }).click();
    await until(async () => (await call("GET", path)).json.custom_id === "4711");
    await until(async () => !(await drafts()).includes("4711"));
  });

  test("over a draft that is older than what is stored, saving shows the difference", async (t) => {
    const name = unique("up");
    const path = `/upstreams/${name}`;
    await write("PUT", path, { name, targets: [{ address: "127.0.0.1:65000" }] });
    const page = await openLoggedIn(t, browser, path);
    await field(page, "Description").fill("mine");
    await write("PUT", path, { name, description: "theirs", targets: [{ address: "127.0.0.1:65000" }] });
    await page.reload();
    await page.getByText("Somebody has changed the resource since").waitFor();
    await page.getByRole("button", { name: "Save" }).click();
    const dialog = page.getByRole("dialog", { name: "Changed meanwhile" });
    await dialog.getByText("theirs").waitFor();
    assert.equal((await call("GET", path)).json.description, "theirs");
    await dialog.getByRole("button", { name: "Keep editing" }).click();
    await page.getByRole("button", { name: "Discard them" }).click();
    await page.waitForFunction(() => !document.querySelector("[data-testid=draft]"));
    assert.equal(await field(page, "Description").inputValue(), "theirs");
  });

  test("what a conflict shows has no secret in it", async (t) => {
    const name = unique("consumer");
    const path = `/consumers/${name}`;
    const key = unique("a-secret-key");
    const credentials = [{ key_auth: { key: unique("key") } }];
    await write("PUT", path, { name, credentials });
    const page = await openLoggedIn(t, browser, path);
    await page.getByRole("button", { name: "Replace Key" }).click();
    await field(page, "Key").fill(key);
    await write("PATCH", path, { description: "theirs" }, { "Content-Type": "application/merge-patch+json" });
    await page.getByRole("button", { name: "Save" }).click();
    const dialog = page.getByRole("dialog", { name: "Changed meanwhile" });
    await dialog.getByText("<new secret>").waitFor();
    assert.ok(!(await dialog.innerText()).includes(key));
  });

  test("a frozen connection is told, and a write that was tried meanwhile is never made", async (t) => {
    const name = unique("up");
    const path = `/upstreams/${name}`;
    await write("PUT", path, { name, targets: [{ address: "127.0.0.1:65000" }] });
    const way = await openWay(t);
    const page = await openLoggedIn(t, browser, path, way.url);
    await field(page, "Description").fill("never");
    way.freeze();
    await page.locator("[data-connection=lost]").waitFor({ timeout: 2 * DEADLINE });
    await page.getByText(/not live for \d+ s/).waitFor();
    await page.getByRole("button", { name: "Save" }).click();
    await page.getByRole("alert").filter({ hasText: "Nothing was sent" }).waitFor();

    way.thaw();
    await page.locator("[data-connection=live]").waitFor({ timeout: 2 * DEADLINE });
    await seesChange(page);
    assert.equal((await call("GET", path)).json.description, undefined);
    await page.getByRole("button", { name: "Save" }).click();
    await until(async () => (await call("GET", path)).json.description === "never");
  });

  test("a write that was tried offline fails at once, and is never made", async (t) => {
    const name = unique("up");
    const path = `/upstreams/${name}`;
    await write("PUT", path, { name, targets: [{ address: "127.0.0.1:65000" }] });
    const page = await openLoggedIn(t, browser, path);
    await field(page, "Description").fill("never");
    await page.context().setOffline(true);
    await page.getByRole("button", { name: "Save" }).click();
    await page.getByRole("alert").filter({ hasText: "Your browser is offline" }).waitFor();
    await page.context().setOffline(false);
    await page.locator("[data-connection=live]").waitFor({ timeout: 2 * DEADLINE });
    await seesChange(page);
    assert.equal((await call("GET", path)).json.description, undefined);
  });

  test("requests that no route takes are shown apart from errors", async (t) => {
    const page = await openLoggedIn(t, browser);
    const { json } = await call("GET", "/proxies?limit=1000");
    const proxy = json.items.find(({ id }) => id === proxies[0]);
    const { hostname, port } = new URL(`http://${Object.values(proxy.listeners)[0]}`);
    const traffic = page.getByTestId("traffic");
    const row = page.locator(`[data-proxy="${proxy.id}"]`);
    const share = traffic.locator("div").filter({ hasText: /^[\d.]+ %no route$/ });
    await until(async () => {
      await Promise.all(Array.from({ length: 20 }, () => request(`http://${hostname}:${port}/`, "nowhere.example")));
      const shown = (await share.count()) > 0 ? parseFloat(await share.first().textContent()) : 0;
      return shown > 0 && (await row.getByText(/% no route/).count()) > 0;
    });
    await traffic.locator("div").filter({ hasText: /^0 %5xx$/ }).first().waitFor();
    const { classes, error_ratio } = (await call("GET", `/proxies/${proxy.id}`)).json.traffic;
    assert.deepEqual([classes["5xx"], error_ratio], [0, 0]);
  });

  test("a viewer sees what needs another role, disabled and with the reason", async (t) => {
    const [route, upstream] = [unique("route"), unique("up")];
    await write("PUT", `/upstreams/${upstream}`, { name: upstream, targets: [{ address: "127.0.0.1:65000" }] });
    const first = await write("PUT", `/routes/${route}`, routeTo(route, upstream));
    await write("PUT", `/routes/${route}`, { ...routeTo(route, upstream), description: "x" });
    const page = await openAs(t, browser, "viewer", "/routes");
    const refused = [];
    page.on("response", (answer) => answer.status() === 403 && refused.push(answer.url()));
    const denied = async (control, press = true) => {
      await control.waitFor();
      assert.equal(await control.getAttribute("aria-disabled"), "true");
      const reason = await control.evaluate(
        (element) => document.getElementById(element.getAttribute("aria-describedby"))?.textContent,
      );
      assert.match(reason, /has the role viewer; this needs editor/);
      if (!press) return;
      // By keyboard, which a disabled element would not take.
      await control.focus();
      await page.keyboard.press("Tab");
      await page.keyboard.press("Shift+Tab");
      await page.getByRole("tooltip").filter({ hasText: "this needs editor" }).waitFor();
      await page.keyboard.press("Enter");
      await control.blur();
      await page.getByRole("tooltip").waitFor({ state: "hidden" });
    };
    await page.getByLabel("Find routes").fill(route);
    await page.waitForFunction(() => document.querySelectorAll("[data-name]").length === 1);
    await denied(page.getByRole("link", { name: "New route" }));
    assert.equal(new URL(page.url()).pathname, "/routes");
    await denied(page.getByRole("button", { name: `Delete ${route}` }));
    const enable = page.getByRole("switch", { name: `Enable ${route}` });
    await denied(enable, false);
    await enable.click({ force: true });
    assert.ok(await enable.isChecked());

    await page.getByRole("link", { name: route }).click();
    await page.getByText("You can look at this, but not change it").waitFor();
    assert.ok(await field(page, "Description").isDisabled());
    await denied(page.getByRole("button", { name: "Save" }));
    await denied(page.getByRole("button", { name: "Delete" }));
    await page.getByRole("tab", { name: "Specification" }).click();
    const text = page.getByLabel("Specification", { exact: true }).and(page.locator("textarea"));
    assert.equal(await text.getAttribute("readonly"), "");
    await page.goto(`${url}/revisions/${first}`);
    await denied(page.getByRole("button", { name: "Roll back to this" }));
    assert.equal(await page.getByRole("dialog").count(), 0);
    assert.deepEqual(refused, []);

    // Who may write sees nothing of that.
    const editor = await openAs(t, browser, "editor", `/routes/${route}`);
    await field(editor, "Description").fill("by an editor");
    await editor.getByRole("button", { name: "Save" }).click();
    await until(async () => (await call("GET", `/routes/${route}`)).json.description === "by an editor");
  });

  test("the UI comes compressed, and its files are cached for good", async (t) => {
    const page = await open(t, browser);
    const answers = [];
    page.on("response", (answer) => answers.push(answer));
    await page.goto(url);
    await page.getByLabel("Token").waitFor();
    const assets = answers.filter((answer) => new URL(answer.url()).pathname.startsWith("/assets/"));
    assert.ok(assets.length >= 2);
    let bytes = 0;
    for (const asset of assets) {
      const headers = await asset.allHeaders();
      assert.match(headers["content-encoding"], /^(br|gzip)$/, asset.url());
      assert.match(headers["cache-control"], /immutable/);
      assert.match(headers.vary, /accept-encoding/i);
      bytes += (await asset.request().sizes()).responseBodySize;
    }
    assert.ok(bytes < 400_000, `${bytes} bytes`);

    // A client that cannot decompress is served, too.
    const [script] = assets.map((asset) => asset.url()).filter((each) => each.endsWith(".js"));
    const plain = await request(script);
    assert.equal(plain.headers["content-encoding"], undefined);
    assert.ok(plain.body.length > bytes && plain.body.includes("createElement"));
    const start = await request(url);
    assert.equal(start.headers["cache-control"], "no-cache");
    const again = await request(url, undefined, { "If-None-Match": start.headers.etag });
    assert.equal(again.status, 304);
  });

  test("nothing is wider than a window of 900 pixels", async (t) => {
    const page = await openLoggedIn(t, browser);
    await page.setViewportSize({ width: 900, height: 900 });
    for (const name of ["Board", "Rollouts", "Routes", "Upstreams", "Plugins", "Consumers", "Listeners", "Fleets", "Revisions"]) {
      await navigate(page, name);
      await page.getByRole("status").filter({ hasText: "Loading" }).waitFor({ state: "detached" });
      const over = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
      assert.ok(over <= 0, `${name} is ${over} pixels too wide`);
    }
  });

  test("the board is operable by keyboard alone", async (t) => {
    const page = await openLoggedIn(t, browser);
    await page.getByRole("heading", { name: "Proxies", exact: true }).waitFor();
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement?.textContent), "Skip to the content");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "Rollouts", level: 1 }).waitFor();
  });
});

const routeTo = (name, upstream) => ({
  name,
  match: { paths: [{ prefix: `/${name}` }] },
  forward: { upstreams: [{ name: upstream }] },
});

/** An input by its label, the asterisk of a required one left aside. */
function field(page, label) {
  const name = new RegExp(`^${label}( \\*)?$`);
  return page.getByRole("textbox", { name }).or(page.getByRole("combobox", { name })).first();
}

async function choose(page, label, option) {
  await field(page, label).click();
  await page.getByRole("option", { name: option, exact: typeof option === "string" }).first().click();
  await page.keyboard.press("Escape");
}

async function navigate(page, name) {
  await page.getByRole("navigation", { name: "Main" }).getByRole("link", { name, exact: true }).click();
}

/** Presses the button of a new resource's form; the revision that the strip names. */
async function create(page, singular) {
  const shown = page.getByTestId("rollout-strip").getByText(/^Revision \d+$/);
  const old = (await shown.count()) > 0 ? await shown.textContent() : "";
  await page.getByRole("button", { name: `Create ${singular}` }).click();
  await page.getByRole("button", { name: "Save" }).waitFor();
  await page.waitForFunction(
    (old) => {
      const text = document.querySelector("[data-testid=rollout-strip]")?.textContent ?? "";
      return /Revision \d+/.test(text) && text.match(/Revision \d+/)?.[0] !== old;
    },
    old,
  );
  return Number((await shown.textContent()).replace(/\D/g, ""));
}

/** Waits until an element has the focus and can be seen, wherever one has scrolled. */
async function focusedInView(page, element) {
  await until(() =>
    element.evaluate((element) => {
      const { top, bottom, left, right } = element.getBoundingClientRect();
      const [x, y] = [(left + right) / 2, (top + bottom) / 2];
      const isInside = top >= 0 && bottom <= window.innerHeight;
      return isInside && document.activeElement === element && element.contains(document.elementFromPoint(x, y));
    }),
  );
}

/** Waits until a page that was opened anew shows a change that was made just now: what was sent before is done by then. */
async function seesChange(page) {
  const name = unique("up");
  const message = `A change elsewhere, ${name}`;
  const body = { name, targets: [{ address: "127.0.0.1:65000" }] };
  await write("PUT", `/upstreams/${name}`, body, { "X-Signalbox-Message": message });
  const other = await page.context().newPage();
  await other.goto(new URL("/revisions", page.url()).href);
  await other.getByText(message).waitFor();
  await other.close();
}

/** A request as a simple client makes it. */
function request(to, host, headers = {}) {
  return new Promise((resolve, reject) => {
    const options = { headers: { ...headers, ...(host ? { Host: host } : {}) }, timeout: DEADLINE };
    http
      .get(to, options, (answer) => {
        const parts = [];
        answer.on("data", (part) => parts.push(part));
        answer.on("error", reject);
        answer.on("end", () =>
          resolve({ status: answer.statusCode, headers: answer.headers, body: Buffer.concat(parts) }),
        );
      })
      .on("error", reject);
  });
}

async function invalid(page, label) {
  await page.locator(`[aria-invalid=true]`).and(field(page, label)).waitFor();
}

/** Waits until the board says that a proxy has applied a revision, or a later one. */
async function served(page, id, revision) {
  await page.waitForFunction(
    ([id, revision]) => {
      const row = document.querySelector(`[data-proxy="${id}"][data-state="in_sync"]`);
      return Number(row?.getAttribute("data-applied")) >= revision;
    },
    [id, revision],
  );
}
