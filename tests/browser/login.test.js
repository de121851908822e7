import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import Provider from "oidc-provider";
import { DEADLINE, launch, open, until, write } from "./system.js";

// The proxy that the browser goes to. It runs on this host, and reads its secrets from a file.
const proxy = process.env.SIGNALBOX_PROXY.replace(/\/$/, "");

describe("a login at a provider through the plugin `oidc`", { timeout: 8 * DEADLINE }, () => {
  let browser;
  let directory;
  let refreshes = 0;
  const servers = [];

  const listen = (handler) =>
    new Promise((resolve) => {
      const server = http.createServer(handler);
      servers.push(server);
      server.listen(0, "127.0.0.1", () => resolve(`127.0.0.1:${server.address().port}`));
    });

  before(async () => {
    browser = await launch();
    directory = await mkdtemp(join(tmpdir(), "login-"));
    const secret = join(directory, "secret");
    await writeFile(secret, "a secret of forty characters, or a few m");
    // A page of an application, which says what it was told.
    const app = await listen((request, response) => {
      response.setHeader("content-type", "text/html");
      response.end(`<p>user ${request.headers["x-user"]}, cookies ${request.headers.cookie ?? "none"}</p>`);
    });
    let handle;
    const address = await listen((request, response) => handle(request, response));
    // Under another name than the proxy: a cookie belongs to a host, whatever its port.
    const issuer = `http://localhost:${address.split(":")[1]}`;
    handle = provider(issuer, "a secret of forty characters, or a few m").callback();

    await write("PUT", "/upstreams/app", { targets: [{ address: app }] });
    await write("PUT", "/upstreams/login", { targets: [{ address }] });
    await write("PUT", "/plugins/login", {
      type: "oidc",
      config: {
        issuer,
        upstream: "login",
        client_id: "shop",
        client_secret: { file: secret },
        redirect_uri: `${proxy}/callback`,
        scopes: ["offline_access"],
        parameters: { prompt: "consent" },
        session: { keys: [{ file: secret }] },
        claims_to_headers: { "x-user": "sub" },
        after_logout: `${proxy}/bye`,
      },
    });
    await write("PUT", "/routes/bye", { match: { paths: [{ exact: "/bye" }] }, respond: { body: "Goodbye" } });
    await write("PUT", "/routes/app?wait=10s", {
      match: { paths: [{ prefix: "/" }] },
      plugins: ["login"],
      forward: { upstreams: [{ name: "app" }] },
    });
  });

  after(async () => {
    await browser?.close();
    for (const server of servers) server.closeAllConnections();
    for (const server of servers) server.close();
    if (directory) await rm(directory, { recursive: true });
  });

  /** A provider that has the gateway for its client. Access tokens are due for a refresh a second after they were issued. */
  function provider(issuer, secret) {
    const made = new Provider(issuer, {
      clients: [
        {
          client_id: "shop",
          client_secret: secret,
          grant_types: ["authorization_code", "refresh_token"],
          redirect_uris: [`${proxy}/callback`],
          post_logout_redirect_uris: [`${proxy}/bye`],
        },
      ],
      cookies: { keys: ["a key for the provider's own cookies"] },
      pkce: { required: () => true },
      rotateRefreshToken: true,
      ttl: { AccessToken: 21, IdToken: 600, RefreshToken: 600, Session: 600, Grant: 600, Interaction: 600 },
    });
    made.on("grant.success", ({ oidc }) => {
      if (oidc.params.grant_type === "refresh_token") refreshes += 1;
    });
    return made;
  }

  async function logIn(page, target) {
    await page.goto(proxy + target);
    await page.locator("[name=login]").fill("alice");
    await page.locator("[name=password]").fill("any");
    await page.locator("button[type=submit]").click();
    // The consent.
    await page.getByRole("button", { name: "Continue" }).click();
    await page.waitForURL(proxy + target);
  }

  test("a user logs in, stays logged in while tokens are renewed, and logs out", async (t) => {
    const page = await open(t, browser);
    await logIn(page, "/page?a=b");
    await page.getByText("user alice, cookies none").waitFor();
    const before = await page.context().cookies(proxy);
    assert.deepEqual(
      before.map(({ name, httpOnly, sameSite }) => ({ name, httpOnly, sameSite })),
      [{ name: "session", httpOnly: true, sameSite: "Lax" }],
    );

    // On a slow machine the tokens were renewed during the login already.
    const renewed = refreshes;
    await until(
      async () => {
        await page.reload();
        await page.getByText("user alice").waitFor();
        return refreshes > renewed;
      },
      () => "the tokens were not renewed",
    );
    await page.reload();
    await page.getByText("user alice").waitFor();
    const [session] = await page.context().cookies(proxy);
    assert.notEqual(session.value, before[0].value);

    await page.goto(`${proxy}/logout`);
    await page.getByRole("button", { name: "Yes, sign me out" }).click();
    await page.getByText("Goodbye").waitFor();
    assert.deepEqual(await page.context().cookies(proxy), []);
    const status = await page.evaluate(async () => (await fetch("/page")).status);
    assert.equal(status, 401);
    await page.goto(`${proxy}/page`);
    await page.locator("[name=login]").waitFor();
  });
});
