// The system under test: it runs already, and says where in the environment. See README.md.
import assert from "node:assert/strict";
import net from "node:net";
import { chromium } from "playwright-core";

/** Longest that anything is waited for, milliseconds. */
export const DEADLINE = 15_000;

export const url = required("SIGNALBOX_URL").replace(/\/$/, "");
export const token = required("SIGNALBOX_TOKEN");

/** Names that no earlier run has used. */
export const unique = (word) => `${word}-${Date.now().toString(36)}${Math.floor(Math.random() * 1296).toString(36)}`;

export function launch() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
}

/** A page of a browser profile of its own. What the page logs as an error, or the browser refuses, fails the test. */
export async function open(t, browser) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
  context.setDefaultTimeout(DEADLINE);
  const page = await context.newPage();
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    // A status of 4xx is logged as an error too; the tests look at what the page makes of it.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) {
      complaints.push(message.text());
    }
  });
  t.after(async () => {
    await context.close();
    assert.deepEqual(complaints, [], "the page complained");
  });
  return page;
}

/** A page that is logged in, at `path`; `by`: the address by which it goes to the control plane. */
export async function openLoggedIn(t, browser, path = "/", by = url, as = token) {
  const page = await open(t, browser);
  const answer = await page.request.post(`${by}/api/v1/session`, { data: { token: as } });
  assert.equal(answer.status(), 200, await answer.text());
  await page.goto(by + path);
  await page.locator("[data-connection=live]").waitFor();
  return page;
}

/** A call of the admin API as a script makes it, apart from any browser. */
export async function call(method, path, body, headers = {}) {
  const answer = await fetch(`${url}/api/v1${path}`, {
    method,
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json", ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(DEADLINE),
  });
  const text = await answer.text();
  const json = text !== "" && answer.headers.get("content-type")?.includes("json") ? JSON.parse(text) : undefined;
  return { status: answer.status, json, text, revision: Number(answer.headers.get("signalbox-revision")) };
}

/** A write that must succeed; its revision. */
export async function write(method, path, body, headers) {
  const answer = await call(method, path, body, headers);
  assert.ok(answer.status < 300, `${method} ${path}: ${answer.status} ${answer.text}`);
  return answer.revision;
}

/** Waits until a condition holds; the message says what was waited for. */
export async function until(condition, message = () => "waited in vain") {
  const deadline = Date.now() + DEADLINE;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, message());
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Waits until a page has exactly so many of the elements: it draws its frame before its data is there. */
export async function untilCount(locator, wanted) {
  let found;
  await until(
    async () => (found = await locator.count()) === wanted,
    () => `${found} instead of ${wanted} elements: ${locator}`,
  );
}

/** The ids of the proxies that are connected. */
export async function connectedProxies() {
  const { json } = await call("GET", "/proxies?limit=1000");
  return json.items.filter((proxy) => proxy.connected).map((proxy) => proxy.id);
}

/** A page that is logged in as a new token of a role. */
export async function openAs(t, browser, role, path = "/") {
  const { json: made } = await call("POST", "/tokens", { name: unique(role), role });
  t.after(() => call("DELETE", `/tokens/${made.name}`));
  return openLoggedIn(t, browser, path, url, made.token);
}

/** A way to the control plane that can be cut and mended, or frozen and thawed: then what was sent arrives late. */
export async function openWay(t) {
  const { hostname, port } = new URL(url);
  const sockets = new Set();
  const track = (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    // What is cut ends with an error on either side.
    socket.on("error", () => socket.destroy());
  };
  let server;
  // While it is frozen: what is to be done when it thaws.
  let frozen = null;
  const whenThawed = (action) => (frozen ? frozen.push(action) : action());
  const listen = (on) =>
    new Promise((resolve, reject) => {
      server = net.createServer((client) => {
        track(client);
        let upstream;
        whenThawed(() => {
          upstream = net.connect(Number(port), hostname);
          track(upstream);
          upstream.on("data", (data) => whenThawed(() => client.write(data)));
          upstream.on("close", () => whenThawed(() => client.destroy()));
        });
        client.on("data", (data) => whenThawed(() => upstream.write(data)));
        client.on("close", () => whenThawed(() => upstream.end()));
      });
      server.on("error", reject).listen(on, "127.0.0.1", () => resolve(server.address().port));
    });
  const cut = () =>
    new Promise((resolve) => {
      server.close(resolve);
      for (const socket of sockets) socket.destroy();
    });
  // Outside the range from which the kernel takes ports: while it is cut, nobody else is to get it.
  let own = 0;
  while (!own) own = await listen(10_000 + Math.floor(Math.random() * 22_000)).catch(() => 0);
  t.after(cut);
  const freeze = () => {
    frozen = [];
  };
  const thaw = () => {
    const late = frozen;
    frozen = null;
    for (const action of late) action();
  };
  return { url: `http://127.0.0.1:${own}`, cut, mend: () => listen(own), freeze, thaw };
}

function required(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: see tests/browser/README.md`);
  return value;
}
